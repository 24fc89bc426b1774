"""Gradients of single examples: training's own losses step by step, the gradient against finite differences and the stock model's own,
weights put back to the bit, and folders that survive a kill."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture_of
from PIL import Image
from safetensors import safe_open
from test_score import exact_norms
from training import curve, fresh, run

from pivot import files, lookup
from pivot.data import world
from pivot.data.collate import collate
from pivot.encoder import towers
from pivot.encoder.geometry import Geometry
from pivot.files import read_json
from pivot.model import MLLM, Scorer
from pivot.objective._contract import Objective
from pivot.recipe import validate
from pivot.records import BadInput, CheckFailed, Example
from pivot.stages import stages
from pivot.train import Rates, Settings, saliency
from pivot.train.glance import Glance
from pivot.train.saliency import FACTS, How, Subjects, write
from pivot.train.single import Lesson, Single

RATE = 1e-3
ITEMS = world.read(split="test", size=6)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_sync", lambda _path: None)


def made(name: str, **knobs: Any) -> Any:
    return lookup.find("objective", name)(**knobs)


def shown(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def glances(mllm: MLLM, objective: Objective, examples: Any, steps: int = 0, rate: float = RATE, **knobs: Any) -> list[Glance]:
    """Each example looked at, in one call."""
    single = Single(mllm, objective, knobs.pop("at", "encoder"), steps, rate, Settings(**knobs))
    rows = [mllm.encode(example) for example in objective.source(examples)]
    with single.begun():
        return single.look(rows)


# ---- against training


@pytest.mark.parametrize("name", ["sft", "dpo", "mpo"])
def test_losses_are_those_of_training_on_that_example_alone(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, name: str) -> None:
    """mpo's running shift and dpo's reference come into it from the second update on."""
    objective, one = made(name), [pairs[1]]
    run(fresh(shared_mllm), objective, one, tmp_path, Rates(RATE, RATE, RATE), batch=1, micro=1, epochs=4)
    losses = [glances(shared_mllm, objective, one, steps)[0].losses for steps in (0, 1, 3)]
    trained = curve(tmp_path)
    assert [now for _, now in losses] == pytest.approx([trained[0], trained[1], trained[3]], rel=1e-5)
    assert {first for first, _ in losses} == {losses[0][1]}
    assert trained[3] < trained[1] < trained[0], "else nothing was compared"


def test_the_gradient_of_sft_is_the_stock_models(shared_mllm: MLLM, pairs: list[Example]) -> None:
    model, row = fresh(shared_mllm).model, shared_mllm.encode(made("sft").source(pairs)[0])
    tokens, supervised = row.trunks[0].span.ids + row.branches[0].ids, row.trunks[0].span.supervised + row.branches[0].supervised
    labels = [token if counts else -100 for token, counts in zip(tokens, supervised, strict=True)]
    entered: list[torch.Tensor] = []
    model.get_submodule(shared_mllm.family.projector).register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    pixels = row.trunks[0].images[0].inputs["pixel_values"]
    loss = model(input_ids=torch.tensor([tokens]), pixel_values=pixels, labels=torch.tensor([labels])).loss
    (gradient,) = torch.autograd.grad(loss, entered[0])
    (found,) = glances(shared_mllm, made("sft"), pairs[:1])
    assert found.losses[1] == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(found.gradient, gradient[0].numpy(), rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
    np.testing.assert_array_equal(found.activation, entered[0][0].detach().numpy())


@pytest.mark.parametrize("at", ["encoder", "projector"])
def test_the_gradient_of_dpo_is_that_of_finite_differences(shared_mllm: MLLM, pairs: list[Example], at: Any) -> None:
    """In fp64, of some channels of some tokens; at the start it is also -beta/2 of what each response gains, by the formula."""
    mllm, objective = fresh(shared_mllm).to(dtype="float64"), made("dpo", beta=0.5)
    with exact_norms(mllm):
        (found,) = glances(mllm, objective, pairs[:1], at=at)
    batch, scorer = collate([mllm.encode(objective.source(pairs)[0])]), Scorer(mllm)
    projector, nudge = mllm.model.get_submodule(mllm.family.projector), torch.zeros(found.gradient.shape, dtype=torch.float64)
    if at == "encoder":
        projector.register_forward_pre_hook(lambda _, given: (given[0] + nudge,))
    else:
        projector.register_forward_hook(lambda _, given, output: output + nudge)

    def gain() -> float:
        with torch.no_grad():
            chosen, rejected = scorer(batch).logps[0]
        return float(chosen.sum() - rejected.sum())

    step, scale = 1e-4, np.abs(found.gradient).max()
    with exact_norms(mllm):
        start = gain()
        for token, channel in np.random.default_rng(0).integers(0, found.gradient.shape, (3, 2)):
            ends = []
            for sign in (1, -1):
                nudge[token, channel] = sign * step
                ends.append(gain())
            nudge[token, channel] = 0
            up, down = (np.logaddexp(0, -0.5 * (end - start)) for end in ends)
            slope = pytest.approx(found.gradient[token, channel], rel=1e-4, abs=1e-6 * scale)
            assert (up - down) / (2 * step) == slope
            assert -0.25 * (ends[0] - ends[1]) / (2 * step) == slope
    assert found.losses[1] == pytest.approx(np.log(2))


@pytest.fixture(scope="module", params=["llava", "llava_onevision", "qwen2_5_vl"])
def each(request: pytest.FixtureRequest) -> MLLM:
    return MLLM.tiny(family=request.param)


@pytest.mark.parametrize("at", ["encoder", "projector"])
def test_the_first_picture_is_found_again_among_others(each: MLLM, odd: dict[str, Example], at: Any) -> None:
    """Among other rows' and this row's second one; and with its whole gradient where each response has a copy of it."""
    rows = [odd["pair"], odd["two images"]]
    for example, found in zip(rows, glances(each, made("dpo"), rows, at=at), strict=True):
        (alone,) = glances(each, made("dpo"), [example], at=at)
        (copied,) = glances(each, made("dpo"), [example], at=at, backend="repeat")
        scale = np.abs(alone.gradient).max()
        assert scale > 0 and len(alone.gradient) == np.prod(alone.geometry.grid)
        for other in (found, copied):
            np.testing.assert_allclose(other.gradient, alone.gradient, atol=1e-3 * scale)
            np.testing.assert_allclose(other.activation, alone.activation, atol=1e-4)


def test_tokens_are_in_raster_order(each: MLLM, pairs: list[Example]) -> None:
    """What enters the projector is what the detached encoder says of the picture; what leaves it comes to the LLM in that order."""
    encoder = each.detach()
    height, width = encoder.processor.size["height"], encoder.processor.size["width"]
    example = replace(pairs[0], images=(picture_of(0).resize((width, height)),))
    entering, leaving = (glances(each, made("sft"), [example], at=at)[0] for at in ("encoder", "projector"))
    np.testing.assert_allclose(entering.activation, encoder.features(example.images).tokens[0].numpy(), atol=1e-4)
    with torch.no_grad():
        projected = each.family.features(each.model, collate([each.encode(example)])["images"])
    np.testing.assert_allclose(leaving.activation, projected[: len(leaving.activation)].numpy(), atol=1e-4)


# ---- from the given weights, and back to them


def test_weights_and_what_is_set_on_them_are_as_before(mllm: MLLM, pairs: list[Example]) -> None:
    before, frozen = mllm.hashes(), next(mllm.model.parameters())
    frozen.requires_grad_(False)
    mllm.model.train()
    modes = [module.training for module in mllm.model.modules()]
    wanted = [parameter.requires_grad for parameter in mllm.model.parameters()]
    single = Single(mllm, made("dpo"), "encoder", 2, 0.1, Settings())
    rows = [mllm.encode(example) for example in pairs[:1]]
    with pytest.raises(ZeroDivisionError), single.begun():
        single.look(rows)
        assert mllm.hashes() == before
        single._learn(collate(rows), Lesson.of(rows[0], made("dpo")))
        assert mllm.hashes() != before
        _ = 1 / 0
    assert mllm.hashes() == before
    assert [module.training for module in mllm.model.modules()] == modes
    assert [parameter.requires_grad for parameter in mllm.model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in mllm.model.parameters())


def test_neither_order_nor_company_changes_what_is_found(shared_mllm: MLLM, pairs: list[Example]) -> None:
    objective, three = made("mpo"), pairs[:3]
    forth, back = glances(shared_mllm, objective, three, 3), glances(shared_mllm, objective, three[::-1], 3)[::-1]
    assert all((a.gradient == b.gradient).all() and a.losses == b.losses for a, b in zip(forth, back, strict=True))
    together = glances(shared_mllm, objective, three)
    for alone, among in zip((glances(shared_mllm, objective, [one])[0] for one in three), together, strict=True):
        np.testing.assert_allclose(among.gradient, alone.gradient, atol=1e-4 * np.abs(alone.gradient).max())
        assert not np.allclose(among.gradient, forth[0].gradient, rtol=0.1), "updates change the map, and examples differ"


def test_what_the_tap_excludes_is_not_read(mllm: MLLM, pairs: list[Example]) -> None:
    """Poisoned above the tap, trained through: everything is as before."""
    before = glances(mllm, made("dpo"), pairs[:1], 2)
    for parameter in towers.idle_parameters(mllm.parts()["tower"], mllm.tap).values():  # type: ignore[arg-type]
        parameter.data.fill_(torch.nan)
    after = glances(mllm, made("dpo"), pairs[:1], 2)
    np.testing.assert_array_equal(after[0].gradient, before[0].gradient)


def test_a_rate_that_breaks_the_weights_is_named(shared_mllm: MLLM, pairs: list[Example]) -> None:
    with pytest.raises(CheckFailed, match=r"row pair-0: loss nan, or its gradient, is not finite after 3 updates at rate 1e\+30"):
        glances(shared_mllm, made("dpo"), pairs[:1], 3, rate=1e30)


def test_activations_in_bf16_find_nearly_the_same(shared_mllm: MLLM, pairs: list[Example]) -> None:
    exact, rough = (glances(shared_mllm, made("dpo"), pairs[:1], 2, precision=precision)[0] for precision in ("fp32", "bf16"))
    assert np.corrcoef(exact.gradient.ravel(), rough.gradient.ravel())[0, 1] > 0.98
    assert (exact.gradient != rough.gradient).any() and rough.losses == pytest.approx(exact.losses, rel=0.02)


def test_maps_of_a_glance() -> None:
    """By hand: two tokens, two channels."""
    geometry = Geometry((1, 2), None, None)
    glance = Glance(np.array([[3.0, -4.0], [1.0, 0.0]]), np.array([[1.0, 2.0], [-1.0, 1.0]]), geometry, (1.0, 1.0))
    assert glance.l2().tolist() == [[5.0, 1.0]] and glance.l1().tolist() == [[7.0, 1.0]]
    # Channels of the score -loss weigh -2 and 2: the first token has -2 + 4, the second 2 + 2.
    assert glance.cam().tolist() == [[2.0, 4.0]]
    flipped = replace(glance, gradient=-glance.gradient)
    assert flipped.cam().tolist() == [[0.0, 0.0]], "what speaks against the score is cut off"


# ---- folders


def written(mllm: MLLM, folder: Path, objective: Any = None, examples: Any = ITEMS, **how: Any) -> list[tuple[int, int]]:
    how = {"steps": 0, "batch": 3, **how}
    return list(write(mllm, objective or made("dpo"), examples, folder, How(**how), arm="dpo"))


def read_back(folder: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    tensors, items = dict[str, np.ndarray](), list[dict[str, Any]]()
    for file in sorted(folder.glob("items-*")):
        with safe_open(file, "np") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            items += json.loads(opened.metadata()["items"])
    return tensors, items


def test_a_folder_holds_maps_regions_and_pictures(shared_mllm: MLLM, tmp_path: Path) -> None:
    told = written(shared_mllm, tmp_path / "out", keep="all")
    tensors, items = read_back(tmp_path / "out")
    assert told[-1] == (6, 6) and [done for done, _ in told] == sorted(done for done, _ in told)
    geometry, objective = shared_mllm.detach().geometry, made("dpo")
    for number, example in enumerate(ITEMS):
        one, (found,) = items[number], glances(shared_mllm, objective, [example])
        assert one["id"] == example.id and one["question"] == example.prompt and one["losses"] == pytest.approx([np.log(2)] * 2)
        np.testing.assert_allclose(tensors[f"{number}/region"], geometry.coverage(example.truth.region), atol=1e-6)  # type: ignore[union-attr]
        assert np.asarray(shown(one["picture"])).tolist() == np.asarray(example.images[0]).tolist()
        scale = np.abs(found.gradient).max()
        np.testing.assert_allclose(tensors[f"{number}/gradient"], found.gradient, atol=1e-4 * scale)
        for of in ("", "global/"):
            gradient = tensors[f"{number}/{of}gradient"].astype(np.float64)
            np.testing.assert_allclose(tensors[f"{number}/{of}l2"].ravel(), np.linalg.norm(gradient, axis=1), rtol=1e-5)
            np.testing.assert_allclose(tensors[f"{number}/{of}l1"].ravel(), np.abs(gradient).sum(1), rtol=1e-5)
        assert not np.allclose(tensors[f"{number}/global/l2"], tensors[f"{number}/l2"], rtol=0.1)
    facts = read_json(tmp_path / "out" / FACTS)
    assert facts["items"] == 6 and facts["objective"]["name"] == "dpo" and facts["at"] == "encoder" and facts["versions"]["torch"]


def test_the_global_question_has_the_own_caption_against_another() -> None:
    subjects = Subjects(ITEMS, made("dpo"), How())
    for number, example in enumerate(ITEMS):
        (_, own, _), (_, of, overall) = subjects.questions(number)
        assert (own, of) == ("", "global/") and overall.images[0] == example.images[0] and overall.prompt == "describe the picture."
        chosen, rejected = (response.text for response in overall.responses)
        captions = [other.truth.caption for other in ITEMS]  # type: ignore[union-attr]
        assert chosen == captions[number] and rejected in captions and rejected != chosen
    bare = [replace(example, truth=None) for example in ITEMS]
    assert [len(Subjects(bare, made("sft"), How()).questions(number)) for number in range(6)] == [1] * 6
    assert len(Subjects(ITEMS, made("sft"), How(control=False)).questions(0)) == 1


def test_more_examples_than_are_wanted_are_drawn(pairs: list[Example]) -> None:
    drawn = [Subjects(pairs * 5, made("sft"), How(size=10, seed=seed)).numbers for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(len(set(one)) == 10 and one == sorted(one) for one in drawn)


def test_those_with_a_region_are_drawn_first_and_truth_is_read_as_far_as_needed(pairs: list[Example]) -> None:
    read: list[int] = []

    class Rows(list[Example]):
        def __getitem__(self, at: Any) -> Any:
            read.append(at)
            return super().__getitem__(at)

    def drawn(regions: dict[int, bool], size: int) -> list[int]:
        read.clear()
        truth = replace(ITEMS[0].truth, region=np.array([[True, False]]))  # type: ignore[type-var]
        other = [None, replace(truth, region=np.zeros((1, 2), bool)), replace(truth, region=np.ones((1, 2), bool))]  # type: ignore[type-var]
        rows = Rows(replace(pairs[0], id=str(n), truth=truth if n in regions else other[n % 3]) for n in range(40))
        numbers = Subjects(rows, made("sft"), How(size=size)).numbers
        assert len(numbers) == len(set(numbers)) == min(size, 40) and numbers == sorted(numbers)
        return numbers

    every = dict.fromkeys(range(40), True)
    some = dict.fromkeys(range(0, 40, 2), True)
    assert set(drawn(some, 8)) < some.keys() and len(read) < 40
    assert set(drawn(some, 24)) > some.keys(), "the others fill up"
    assert drawn(every, 8) == drawn({}, 8), "none has one: any"
    assert len(read) == 8
    assert drawn(some, 40) == list(range(40)) and not read


def test_a_killed_one_goes_on_to_the_same_bits(shared_mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "CHUNK", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    written(shared_mllm, whole, batch=2, control=False)
    started = write(shared_mllm, made("dpo"), ITEMS, killed, How(steps=0, batch=2, control=False), arm="dpo")
    while not list(killed.glob("items-*")):
        next(started)
    started.close()
    (first,) = killed.glob("items-*")
    leftover, stamp = killed / ".items-000002.safetensors.12345678.999999.tmp", first.stat().st_mtime_ns
    leftover.write_bytes(b"half")
    assert written(shared_mllm, killed, batch=2, control=False)[0] == (2, 6)
    assert first.stat().st_mtime_ns == stamp and not leftover.exists()
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names and len(names) == 4
    assert all((killed / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_killed_before_it_said_anything_a_folder_is_begun_anew(shared_mllm: MLLM, tmp_path: Path) -> None:
    (tmp_path / f".{FACTS}.12345678.999999.tmp").write_text("{")
    assert written(shared_mllm, tmp_path, size=1)[-1] == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items-000000.safetensors", FACTS]


def test_a_folder_of_something_else_is_refused(shared_mllm: MLLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(shared_mllm, out, size=1, control=False)
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())
    other = fresh(shared_mllm)
    next(other.parts()["llm"].parameters()).data.add_(1)
    for model, objective, how, changed in (
        (shared_mllm, made("sft"), {}, "objective.name"),
        (shared_mllm, made("dpo", beta=0.3), {}, "objective.beta"),
        (other, None, {}, "model.weights"),
        (shared_mllm, None, {"at": "projector"}, "at"),
    ):
        with pytest.raises(BadInput, match=rf"out holds gradients of something else \(changed: {changed}"):
            written(model, out, objective, size=1, control=False, **how)
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    with pytest.raises(BadInput, match="theirs exists and holds no gradients"):
        written(shared_mllm, tmp_path / "theirs")


@pytest.mark.parametrize(
    ("objective", "knobs", "learns"),
    [
        ("grpo", {"reward": {"name": "answer"}}, "from replies that the model writes itself"),
        ("kto", {}, "from the chosen and the rejected response, and another row's"),
        ("reward_model", {}, "by way of a head"),
        ("dpo", {"image": 1.0}, "and the chosen one to a crop"),
    ],
)
def test_objectives_without_a_loss_on_one_row_are_refused(
    shared_mllm: MLLM, tmp_path: Path, objective: str, knobs: dict[str, Any], learns: str
) -> None:
    with pytest.raises(BadInput, match=f"{objective} gives a row of data no loss of its own .*{learns}"):
        written(shared_mllm, tmp_path / "out", made(objective, **knobs))
    assert not (tmp_path / "out").exists()


def test_a_row_without_a_picture_is_named(shared_mllm: MLLM, odd: dict[str, Example], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row text only has no picture"):
        written(shared_mllm, tmp_path / "out", examples=[odd["text only"]])


def test_a_run_looks_only_through_objectives_that_can() -> None:
    rates = {"tower": 1e-5, "projector": 1e-5, "llm": 1e-5}
    arms = {name: {"objective": {"name": name}, "rates": rates} for name in ("dpo", "kto")}
    data = {"pairs": {"read": "world"}}
    plain = {"name": "n", "init": "tiny", "data": data, "seeds": [0, 1], "arms": arms, "post": {}, "probes": {"gradcam": {"data": "pairs"}}}
    found = [stage.name for stage in stages(validate(plain, "test")) if stage.entry]
    assert found == ["saliency-gradcam/dpo", "probe-gradcam-dpo/seed-0"]
