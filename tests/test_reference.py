"""The reference cache: found when nothing changed, missed when anything did, and never a second model."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Replace
from training import ALL, DPO, SHORT, curve, fresh, run, same, weights

from pivot.files import read_json
from pivot.model import MLLM, flops, score
from pivot.records import BadInput, CheckFailed, Example, Response
from pivot.train import Rates, Settings, reference, train
from pivot.train.reference import Entry, identity, row_key
from pivot.train.setup import build

ENTRY = 4  # rows, of which real entries have more
Change = Callable[[MLLM, list[Example]], Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reference, "ENTRY", ENTRY)
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rows that the reference had to score, as they are scored."""
    names: list[str] = []
    whole = reference._score

    def spy(setup: Any, rows: Any, filler: Any) -> Entry:
        names.extend(row.id for row in rows)
        return whole(setup, rows, filler)

    monkeypatch.setattr(reference, "_score", spy)
    return names


def many(pairs: list[Example], number: int = 2 * ENTRY + 3) -> list[Example]:
    return [replace(pairs[n % 8], id=f"row-{n}", prompt=f"What is shape {n}?") for n in range(number)]


def found(mllm: MLLM, examples: list[Example], folder: Path, **settings: Any) -> reference.Reference:
    """The reference of some rows, without training."""
    setup, told = build(mllm, DPO(), examples, None, Settings(**{**SHORT, **settings}), ALL, folder)
    try:
        *_, last = reference.compute(setup, setup.data.examples, told)
    finally:
        setup.ahead.close()
    assert isinstance(last, reference.Reference)
    return last


def test_it_holds_what_the_scorer_says_token_by_token(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    rows = many(pairs, ENTRY + 5)
    kept = found(fresh(shared_mllm), rows, tmp_path)
    with torch.no_grad():
        wanted = score(shared_mllm, rows)
    for number, responses in enumerate(wanted):
        for a, b in zip(kept.row(number), responses, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


def test_a_second_run_and_every_sweep_over_it_compute_nothing(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str]
) -> None:
    run(fresh(shared_mllm), DPO(), pairs, tmp_path / "a")
    assert len(scored) == 8 and read_json(tmp_path / "a" / "ledger.json")["reference"]["cached"] is False
    run(fresh(shared_mllm), DPO(beta=0.3), pairs, tmp_path / "b", seed=4, batch=2, micro=1, rates=Rates(1e-4, 0, 1e-4))
    assert len(scored) == 8
    facts = [read_json(tmp_path / name / "ledger.json")["reference"] for name in "ab"]
    assert facts[1] == {**facts[0], "cached": True} and facts[0]["seconds"] > 0 and facts[0]["flops"] > 0


def weight(mllm: MLLM, _: Any) -> None:
    with torch.no_grad():
        next(iter(mllm.parts()["tower"].parameters())).view(-1)[3] += 1e-3


def template(mllm: MLLM, _: Any) -> None:
    mllm.processor = copy.deepcopy(mllm.processor)
    mllm.processor.chat_template = "Look. " + mllm.processor.chat_template


def images_scaled(mllm: MLLM, _: Any) -> None:
    mllm.processor = copy.deepcopy(mllm.processor)
    mllm.processor.image_processor.image_mean = [0.4, 0.5, 0.5]


def tokenizer(mllm: MLLM, _: Any) -> None:
    mllm.processor = copy.deepcopy(mllm.processor)
    mllm.processor.tokenizer.backend_tokenizer.normalizer = Replace("shape", "form")


def attention(mllm: MLLM, _: Any) -> None:
    mllm.model.set_attn_implementation("eager")


def prompt(_: Any, rows: list[Example]) -> None:
    rows[2] = replace(rows[2], prompt="Which shape?")


def rejected(_: Any, rows: list[Example]) -> None:
    rows[2] = replace(rows[2], responses=(rows[2].responses[0], replace(rows[2].responses[1], text="None.")))


def pixels(_: Any, rows: list[Example]) -> None:
    image = rows[2].images[0].copy()  # type: ignore[union-attr]
    image.putpixel((5, 5), (1, 2, 3))
    rows[2] = replace(rows[2], images=(image,))


def own_picture(_: Any, rows: list[Example]) -> None:
    rows[2] = replace(rows[2], responses=(rows[2].responses[0], replace(rows[2].responses[1], images=rows[3].images)))


def roles(_: Any, rows: list[Example]) -> None:
    a, b = rows[2].responses
    rows[2] = replace(rows[2], responses=(replace(a, role="rejected"), replace(b, role="chosen")))


@pytest.mark.parametrize(
    "change",
    [weight, template, images_scaled, tokenizer, attention, prompt, rejected, pixels, own_picture, roles],
    ids=lambda c: c.__name__,
)
def test_whatever_changes_values_is_a_miss(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str], change: Change
) -> None:
    found(fresh(shared_mllm), pairs, tmp_path)
    del scored[:]
    mllm, rows = fresh(shared_mllm), list(pairs)
    change(mllm, rows)
    found(mllm, rows, tmp_path)
    assert scored == [f"pair-{n}" for n in range(4 if rows != pairs else 8)]


@pytest.mark.parametrize(
    "settings", [{"label_mask": "llava_next"}, {"limit": 500}, {"too_long": "cut"}, {"precision": "bf16"}, {"backend": "repeat"}]
)
def test_whatever_setting_changes_values_is_a_miss(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str], settings: dict[str, Any]
) -> None:
    found(fresh(shared_mllm), pairs, tmp_path)
    found(fresh(shared_mllm), pairs, tmp_path, **settings)
    assert len(scored) == 16


def test_another_library_version_is_a_miss(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found(fresh(shared_mllm), pairs, tmp_path)
    monkeypatch.setattr(reference, "version", lambda name: "99" if name == "torch" else "1")
    found(fresh(shared_mllm), pairs, tmp_path)
    assert len(scored) == 16


def test_what_changes_no_value_is_no_miss(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str]) -> None:
    """Names, answers, other responses, and rows that were added at the end."""
    rows = many(pairs, ENTRY)
    found(fresh(shared_mllm), rows, tmp_path)
    other = [replace(row, id=f"other-{row.id}", answer="?", responses=(*row.responses, Response("more", role="rejected"))) for row in rows]
    kept = found(fresh(shared_mllm), [*other, replace(rows[0], prompt="One more?")], tmp_path)
    assert scored[ENTRY:] == ["row-0"] and not kept.cached


def test_only_the_entry_of_a_changed_row_is_computed_again(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str]
) -> None:
    rows = many(pairs)
    before = found(fresh(shared_mllm), rows, tmp_path)
    del scored[:]
    rows[ENTRY + 1] = replace(rows[ENTRY + 1], prompt="Changed?")
    after = found(fresh(shared_mllm), rows, tmp_path)
    assert scored == [f"row-{n}" for n in range(ENTRY, 2 * ENTRY)]
    assert [a == b for a, b in zip(before.files, after.files, strict=True)] == [True, False, True]


# ---- kills and damage


def test_a_kill_on_the_way_costs_one_entry(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, write, times = many(pairs), Entry.write, [0]

    def killed(self: Entry, file: Path) -> None:
        times[0] += 1
        if times[0] == 2:
            raise KeyboardInterrupt
        write(self, file)

    monkeypatch.setattr(Entry, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        found(fresh(shared_mllm), rows, tmp_path)
    del scored[:]
    found(fresh(shared_mllm), rows, tmp_path)
    assert scored == [row.id for row in rows[ENTRY:]]


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def one_bit(file: Path) -> None:
    """Deep in the values, where no format would notice."""
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))


def no_file_at_all(file: Path) -> None:
    file.unlink()
    file.mkdir()
    file.rmdir()


@pytest.mark.parametrize("damage", [cut_off, emptied, one_bit, no_file_at_all], ids=lambda c: c.__name__)
def test_a_damaged_entry_is_a_miss(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, scored: list[str], damage: Callable[[Path], None]
) -> None:
    before = found(fresh(shared_mllm), pairs, tmp_path)
    values = [value.copy() for value in before.row(1)]
    damage(before.files[0])
    after = found(fresh(shared_mllm), pairs, tmp_path)
    assert len(scored) == 8 + ENTRY and all((a == b).all() for a, b in zip(after.row(1), values, strict=True))


def test_an_entry_that_vanishes_under_a_run_is_named(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    kept = found(fresh(shared_mllm), pairs, tmp_path)
    kept.files[0].unlink()
    with pytest.raises(BadInput, match="PIVOT_CACHE"):
        kept.row(0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(BadInput, match="PIVOT_CACHE"):
        found(fresh(shared_mllm), pairs, tmp_path)


# ---- before the first update


def test_a_reference_of_another_model_stops_the_run(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a fingerprint that forgets the weights."""
    monkeypatch.setattr(reference, "identity", identity)
    monkeypatch.setattr("pivot.train.setup.identity", lambda mllm, *rest: {**identity(mllm, *rest), "weights": None})
    run(fresh(shared_mllm), DPO(), pairs, tmp_path / "a")
    other = MLLM.tiny(seed=1)
    untouched = weights(other)
    with pytest.raises(CheckFailed, match=r"before the first update the margin of row pair-\d is .*not 0 \(tolerance 0.0001\)"):
        run(other, DPO(), pairs, tmp_path / "b")
    assert same(weights(other), untouched)


@pytest.mark.parametrize(
    ("precision", "off", "stops"), [("fp32", 2e-4, True), ("fp32", 5e-5, False), ("bf16", 0.06, True), ("bf16", 0.04, False)]
)
def test_tolerance_of_the_first_margin(precision: str, off: float, stops: bool) -> None:
    margins = torch.tensor([0.0, -off])
    if stops:
        with pytest.raises(CheckFailed, match="row b"):
            reference.check_start(margins, ["a", "b"], precision)
    else:
        reference.check_start(margins, ["a", "b"], precision)
    with pytest.raises(CheckFailed, match="nan"):
        reference.check_start(torch.tensor([0.0, torch.nan]), ["a", "b"], precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("label_mask", ["clean", "llava_next"])
def test_margins_start_at_zero_whatever_the_company(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, precision: str, label_mask: str
) -> None:
    """Scored in entries of so many rows, trained in other batches."""
    run(fresh(shared_mllm), DPO(beta=1), pairs, tmp_path, precision=precision, label_mask=label_mask, micro=3, batch=7)
    assert abs(curve(tmp_path, metric="rewards/margins")[0]) < {"fp32": 1e-4, "bf16": 0.05}[precision]


# ---- memory


def test_training_holds_one_model(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second module is made, and the parameters alive while it trains are those of one model."""
    mllm = fresh(shared_mllm)
    flops.weights(mllm.model.config)  # counts on a model without storage, once per architecture
    own = {id(p) for p in mllm.model.parameters()}

    def parameters() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.nn.Parameter) for thing in gc.get_objects())

    before, made = parameters(), []
    whole = torch.nn.Module.__init__
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda self, *a, **k: (made.append(type(self).__name__), whole(self, *a, **k))[1])
    alive = []
    settings = Settings(**SHORT)
    for event in train(mllm, DPO(), pairs, settings, tmp_path, rates=ALL):
        if event["kind"] == "train":
            alive.append(parameters())
        if event["kind"] == "checkpoint":  # what follows writes the model
            break
    assert set(made) <= {"Scorer", "ModuleDict", "ModuleList"} and made.count("Scorer") == 1
    assert alive and set(alive) == {before}
    assert {id(p) for p in mllm.model.parameters()} == own


def test_names_do_not_count_in_a_row_key(pairs: list[Example]) -> None:
    assert row_key(replace(pairs[0], id="x", meta={"a": 1})) == row_key(pairs[0]) != row_key(pairs[1])
    turns = replace(pairs[0], prompt=({"role": "user", "content": "?"},))
    assert row_key(turns) == row_key(replace(turns, prompt=[{"role": "user", "content": "?"}])) != row_key(pairs[0])
