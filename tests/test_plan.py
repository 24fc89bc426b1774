"""The plan: from settings alone, true to what is counted and measured, and a wrong path or field found before anything begins."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from test_flops import row
from test_llm import saved
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training import DPO, SFT, fresh, run
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from pivot import cli, plan, recipe, rehearsal
from pivot.data.collate import collate
from pivot.data.writing.write import write
from pivot.encoder import Encoder
from pivot.files import read_json
from pivot.model import MLLM, Scorer
from pivot.model.memory import largest, memory
from pivot.plan import PEAKS, Machine
from pivot.records import BadInput, Tap
from pivot.runfolder import RunFolder
from pivot.train import Rates
from pivot.train.parts import freeze
from pivot.train.setup import _wake

ALL = {"tower": 1e-4, "projector": 1e-4, "llm": 1e-4}
PLAIN: dict[str, Any] = {
    "name": "small",
    "init": "tiny",
    "data": {"pairs": {"read": "world", "size": 5}, "captions": {"read": "world", "size": 6, "seed": 1}},
    "align": {"data": "captions", "rates": {"tower": 0, "projector": 1e-3, "llm": 0}, "template": "plain", "batch": 3},
    "arms": {"sft": {"objective": {"name": "sft"}, "rates": ALL}, "dpo": {"objective": {"name": "dpo"}, "rates": ALL}},
    "post": {"batch": 4, "micro": 1, "epochs": 2},
}


def planned(folder: Path, machine: Machine | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """Rows of a plan by the names of their stages."""
    made = plan.plan(recipe.validate({**PLAIN, **changes}, "here"), RunFolder(folder), machine)
    return {row["stage"]: row for row in made.stages}


# ---- without weights


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    """An encoder and an LLM as folders whose weights were taken away, after what is built of them was counted."""
    Encoder.tiny("clip", pixels=48).save(tmp_path / "encoder")
    saved(tmp_path / "llm", "llama", vocab_size=589)
    return {"encoder": str(tmp_path / "encoder"), "llm": str(tmp_path / "llm")}


@pytest.mark.usefixtures("no_memory")
def test_parts_are_planned_from_settings_alone(parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llm" / "chat_template.jinja").unlink(missing_ok=True)
    whole = MLLM.build(parts["encoder"], parts["llm"])
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in whole.parts().items()}
    before = planned(tmp_path / "run", init=None, **parts)
    for file in (*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.bin")):
        file.unlink()
    assert planned(tmp_path / "run", init=None, **parts) == before
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**{key: value for key, value in PLAIN.items() if key != "init"}, **parts}))
    assert cli.call(["run", str(file), "--plan", "--json", f"out={tmp_path / 'run'}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parts"] == sizes
    assert cli.call(["run", str(file), f"out={tmp_path / 'run'}"]) == 2, "a run needs them"


@pytest.mark.usefixtures("no_memory")
def test_a_saved_mllm_is_planned_from_settings_alone(shared_mllm: MLLM, tmp_path: Path) -> None:
    shared_mllm.save(tmp_path / "mllm")
    (tmp_path / "mllm" / "model.safetensors").unlink()
    found, alive = planned(tmp_path / "run", init=str(tmp_path / "mllm")), planned(tmp_path / "run")
    assert found == alive and found["post-dpo/seed-0"]["flops"] > 0


# ---- true to what is counted


@pytest.mark.usefixtures("no_memory")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("stage", ["align", "post-dpo/seed-0 again", pytest.param("post-sft/seed-0", marks=pytest.mark.slow)])
def test_a_stage_costs_what_the_plan_says(stage: str, shared_mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of a whole stage is counted as it runs, the reference's too. Micro-batches of one row: padding is not in the plan."""
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    again = {"checkpointing": True} if stage.endswith("again") else {}
    data = {"pairs": {"read": "world", "size": 3}, "captions": {"read": "world", "size": 3, "seed": 1}}
    changes: dict[str, Any] = {
        "data": data,
        "post": {**PLAIN["post"], "batch": 2, **again},
        "align": {**PLAIN["align"], "batch": 2, "micro": 1},
    }
    told = recipe.validate({**PLAIN, **changes}, "here")
    expected = planned(tmp_path / "run", **changes)[stage.removesuffix(" again")]
    section = told.align if stage == "align" else told.post
    assert section and told.align
    rates = told.align.rates.model_dump() if stage == "align" else ALL
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(
            fresh(shared_mllm),
            DPO() if "dpo" in stage else SFT(),
            told.examples(section.data),
            tmp_path / "stage",
            Rates(**rates),
            **section.settings,
        )
    assert expected["flops"] == pytest.approx(counter.get_total_flops(), rel=0.03)
    ledger = read_json(tmp_path / "stage" / "ledger.json")
    for key in ("steps", "image_tokens", "text_tokens"):
        assert expected[key] == ledger[key], key
    assert expected["error"] == 0, "all rows were read"


@pytest.mark.usefixtures("no_memory")
def test_a_sample_of_the_rows_comes_as_near_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {**PLAIN["data"], "pairs": {"read": "world", "size": 120}}
    exact = planned(tmp_path / "run", data=data)["post-dpo/seed-0"]
    monkeypatch.setattr(plan, "READ", 30)
    found = planned(tmp_path / "run", data=data)["post-dpo/seed-0"]
    assert 0 < found["error"] < 0.03
    for key in ("flops", "text_tokens"):
        assert found[key] != exact[key] and found[key] == pytest.approx(exact[key], rel=6 * found["error"])


@pytest.mark.usefixtures("no_memory")
def test_rows_whose_pictures_stay_closed_are_counted_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {**PLAIN["data"], "pairs": {"read": "world", "size": 40}}
    found = planned(tmp_path / "run", data=data)
    monkeypatch.setattr(rehearsal, "LOOKED_AT", 40)
    assert planned(tmp_path / "run", data=data) == found


@pytest.mark.usefixtures("no_memory")
def test_a_dropped_last_batch_costs_nothing(tmp_path: Path) -> None:
    whole = planned(tmp_path / "run")["post-sft/seed-0"]
    dropped = planned(tmp_path / "run", post={**PLAIN["post"], "drop_last": True})["post-sft/seed-0"]
    assert (whole["steps"], dropped["steps"]) == (4, 2)
    assert dropped["flops"] == pytest.approx(whole["flops"] * 8 / 10)


@pytest.mark.usefixtures("no_memory")
def test_rows_over_the_limit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of rows whose pictures stay closed: one that is looked at stops the plan as it would stop the run."""
    monkeypatch.setattr(rehearsal, "LOOKED_AT", 1)
    lengths = [len(found) for found in _lengths(12)]
    limit, data = sorted(lengths)[-2], {"pairs": {"read": "world", "size": 12}}
    assert lengths[0] <= limit < max(lengths), "the seed's rows must differ so"
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, "data": data, "align": None, "post": {**PLAIN["post"], "limit": limit}}))
    assert cli.call(["run", str(file), "--plan", f"out={tmp_path / 'run'}"]) == 0
    share = sum(length > limit for length in lengths) / 12
    assert f"post-dpo/seed-0: {share:.1%} of the rows are over the limit" in capsys.readouterr().out


def _lengths(size: int) -> list[range]:
    mllm = MLLM.tiny()
    return [range(mllm.encode(example).length) for example in DPO().source(recipe.read(f"world,size={size}"))]


# ---- memory


class Living(TorchDispatchMode):
    """Bytes of tensors that are made and alive, and the most that there were. `own` are not counted."""

    def __init__(self, own: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.own = {tensor.untyped_storage()._cdata for tensor in own}
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive and storage._cdata not in self.own and storage.nbytes():
                    self.alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata)
        return out

    def gone(self, number: int) -> None:
        self.now -= self.alive.pop(number)


def medium() -> MLLM:
    """Small, but such that activations outweigh what is not looked at."""
    text = Qwen2Config(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=192,
        patch_size=16,
        vision_use_head=False,
    )
    shape = {"image_seq_length": 144, "vision_feature_select_strategy": "full", "vision_feature_layer": -2}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4000, **shape)
    return MLLM(LlavaForConditionalGeneration(config).eval(), None, Tap(-2))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize(
    ("responses", "precision", "checkpointing"),
    [
        pytest.param(*case, marks=[] if case == ((40, 40), "bf16", True) else pytest.mark.slow)
        for case in product([(60,), (40, 40)], ["fp32", "bf16"], [False, True])
    ],
)
def test_memory_is_what_is_measured(responses: tuple[int, ...], precision: str, checkpointing: bool) -> None:
    """The second micro-batch of an update, when gradients are there already: within 15 % of the most that was alive beside them."""
    mllm = medium()
    freeze(mllm, Rates(1, 1, 1))
    rows = [row(mllm.model.config, 1, 60, responses) for _ in range(4)]
    with torch.device("meta"):
        shell = MLLM(LlavaForConditionalGeneration(mllm.model.config), None, mllm.tap)  # type: ignore[arg-type]
    freeze(shell, Rates(1, 1, 1))
    expected = memory(shell.model, largest(rows, 4, shell.model.config, "shared"), precision)[checkpointing]
    _wake(mllm, checkpointing)
    scorer, batch = Scorer(mllm), collate(rows)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = sum(response.sum() for example in scorer(batch).logps for response in example)
        loss.backward()  # type: ignore[union-attr]

    step()
    trained = [weight for weight in mllm.model.parameters() if weight.requires_grad]
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    with Living([*mllm.model.parameters(), *mllm.model.buffers(), *gradients, batch["tokens"], *batch["images"].values()]) as living:
        step()
    assert expected.activations is not None and expected.moment is not None
    assert expected.activations + expected.moment == pytest.approx(living.peak, rel=0.15)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert expected.weights == sum(weight.nbytes for weight in mllm.model.parameters())
    assert expected.gradients == sum(gradient.nbytes for gradient in gradients)
    assert expected.optimizer == sum(moment.nbytes for moment in moments)


def test_packed_rows_hold_no_padding() -> None:
    config = MLLM.tiny().model.config
    rows = [row(config, 1, 11, (length,)) for length in (40, 4)]
    padded, packed = (largest(rows, 2, config, "shared", packing) for packing in (False, True))
    assert (padded.rows, padded.tokens) == (2, rows[0].length)
    assert (packed.rows, packed.tokens) == (1, rows[0].length + rows[1].length)
    assert padded.supervised == packed.supervised == 44


def test_what_is_frozen_needs_no_room_and_checkpointing_needs_less(tmp_path: Path) -> None:
    arms = {"arms": {"sft": PLAIN["arms"]["sft"]}}
    found = planned(tmp_path / "run", **arms)
    align, post = found["align"]["memory"], found["post-sft/seed-0"]["memory"]
    assert align["weights"] == post["weights"] and align["gradients"] < 0.1 * post["gradients"]
    assert post["otherwise"] < post["total"] and not post["checkpointing"]
    several = planned(tmp_path / "run", Machine(gpus=2), align=None, **arms)["post-sft/seed-0"]["memory"]
    assert several["gradients"] == 2 * post["gradients"], "and the buckets in which they are exchanged"


def test_an_mllm_that_packs_patches_has_its_activations_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MLLM.tiny(family="qwen2_5_vl").save(tmp_path / "mllm")
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, "init": str(tmp_path / "mllm"), "align": None}))
    assert cli.call(["run", str(file), "--plan", "--json", f"out={tmp_path / 'run'}"]) == 0
    told = {one["stage"]: one for one in json.loads(capsys.readouterr().out)["stages"]}["post-sft/seed-0"]
    assert told["memory"]["total"] is None and told["memory"]["weights"] > 0 and told["flops"] > 0
    assert cli.call(["run", str(file), "--plan", f"out={tmp_path / 'run'}"]) == 0
    assert " ? " in capsys.readouterr().out.replace("?\n", "? \n")


# ---- time


@pytest.mark.usefixtures("no_memory")
def test_gpu_hours_are_flops_over_what_the_gpus_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path / "run", Machine(8, "h200", 0.5))["post-sft/seed-0"]
    assert found["gpu_hours"] == pytest.approx(found["flops"] / (67e12 * 0.5 * 3600)), "fp32 does not run on tensor cores"
    post = {**PLAIN["post"], "precision": "bf16"}
    assert planned(tmp_path / "run", Machine(8, "h200", 0.5), post=post)["post-sft/seed-0"]["gpu_hours"] == pytest.approx(
        found["flops"] / (989e12 * 0.5 * 3600)
    )
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PLAIN))
    asked = ["--plan", "--json", "--gpus", "8", "--gpu", "a100", "--utilisation", "0.3", f"out={tmp_path / 'run'}"]
    assert cli.call(["run", str(file), *asked]) == 0
    told = json.loads(capsys.readouterr().out)["machine"]
    assert told == {**asdict(Machine(8, "a100", 0.3)), "peak_flops": {"bf16": PEAKS["a100"][0], "fp32": PEAKS["a100"][1]}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "--gpu", "h10"], "no figures of 'h10'; did you mean 'h100'?"),
        (["--plan", "--gpus", "0"], "give at least one GPU"),
        (["--plan", "--utilisation", "40"], "a share above 0 up to 1"),
        (["--gpus", "8"], "--gpus says what a plan is made for; add --plan"),
    ],
)
def test_what_a_plan_cannot_be_made_for_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["demo", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.usefixtures("no_memory")
def test_the_text_fits_a_wide_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.yaml"
    arms = {"original": {}, **dict.fromkeys(("dpo", "dpo-with-a-long-name"), PLAIN["arms"]["dpo"])}
    file.write_text(yaml.safe_dump({**PLAIN, "arms": arms, "bench": {"world": {"data": "pairs"}}}))
    assert cli.call(["run", str(file), "--plan", "--gpus", "8", f"out={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 140
    for word in ("parameters: tower", "image tokens", "GPU-hours", "memory", "checkpointing", "h100 at 40% of its peak", "on 8"):
        assert word in said


# ---- what is wrong, found before anything begins


def _gone(home: Path) -> None:
    (home / "rows" / "data.jsonl").unlink()


def _field(home: Path) -> None:
    file = home / "rows" / "data.jsonl"
    file.write_text(file.read_text().replace('"prompt"', '"promt"'))


def _picture(home: Path) -> None:
    for file in (home / "rows").rglob("*.png"):
        file.unlink()


def _broken(home: Path) -> None:
    for file in (home / "rows").rglob("*.png"):
        file.write_bytes(b"no picture")


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (_gone, "rows not found"),
    (_field, "line 1 of .*prompt: Field required"),
    (_picture, "image not found"),
    (_broken, "image cannot be read"),
]


USERS = ("align", "validation", "post", "probe", "bench")
CASES = [*((user, _gone, FAULTS[0][1]) for user in USERS), *(("post", *fault) for fault in FAULTS[1:]), ("probe", *FAULTS[3])]


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(("user", "fault", "message"), CASES)
def test_a_fault_in_the_data_of_any_stage_is_found_first(
    user: str, fault: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(write(recipe.read("world,size=6"), tmp_path / "rows"))
    fault(tmp_path)
    rows = {"read": "rows", "path": str(tmp_path / "rows")}
    plain = copy.deepcopy({**PLAIN, "arms": {"sft": PLAIN["arms"]["sft"]}})
    plain["data"]["bad"] = rows
    if user == "validation":
        plain["post"]["validation"] = "bad"
    elif user in ("probe", "bench"):
        plain[{"probe": "probes", "bench": "bench"}[user]] = {{"probe": "linear", "bench": "world"}[user]: {"data": "bad"}}
    else:
        plain[user]["data"] = "bad"
    file, out = tmp_path / "small.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(plain))
    for options in (["--plan"], []):
        assert cli.call(["run", str(file), f"out={out}", *options]) == 2
        said = capsys.readouterr().err
        with pytest.raises(BadInput, match=message):
            raise BadInput(said.strip())
        assert said.count("\n") == 1
        assert not [path for path in out.glob("*") if path.is_dir()], "no stage has begun"


@pytest.mark.usefixtures("no_memory")
def test_a_row_that_its_stage_would_refuse_is_found_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field that is there, but not what the last stage needs: captions have no rejected response."""
    data = {**PLAIN["data"], "pairs": {"read": "world", "size": 6, "form": "facts"}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, "data": data}))
    for options in (["--plan"], []):
        assert cli.call(["run", str(file), f"out={tmp_path / 'run'}", *options]) == 2
        assert "has no rejected response" in capsys.readouterr().err
    assert not (tmp_path / "run" / "align").exists()


def test_a_model_that_is_yet_to_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--plan"], []):
        given = [f"init={tmp_path / 'runs/paper-align/align/model'}", "chats=world,size=4", f"out={tmp_path / 'out'}"]
        assert cli.call(["run", "paper/stages/instruct", *given, *options]) == 2
        said = capsys.readouterr().err
        assert "no such folder; check the path, run the stage that makes it" in said and said.count("\n") == 1


@pytest.mark.usefixtures("no_memory")
def test_data_of_finished_stages_may_be_gone(tmp_path: Path) -> None:
    """What is left to do is planned and run all the same."""
    assert list(write(recipe.read("world,size=6"), tmp_path / "rows"))
    data = {**PLAIN["data"], "captions": {"read": "rows", "path": str(tmp_path / "rows")}}
    folder = RunFolder(tmp_path / "run")
    for stage in ("align",):
        folder.mark(stage)
    _gone(tmp_path)
    found = planned(folder.path, data=data)
    assert found["align"]["state"] == "finished" and found["align"]["flops"] is None
    assert found["post-sft/seed-0"]["flops"] > 0
    rehearsal.Rehearsal(recipe.validate({**PLAIN, "data": data}, "here")).try_all([])


@pytest.mark.usefixtures("no_memory")
def test_a_picture_of_a_closed_row_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows of a plan have their text read alone."""
    assert list(write(recipe.read("world,size=30"), tmp_path / "rows"))
    seen: list[Any] = []
    whole = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest, **options: seen.append(file) or whole(file, *rest, **options))
    planned(tmp_path / "run", data={**PLAIN["data"], "pairs": {"read": "rows", "path": str(tmp_path / "rows")}})
    opened = {str(file) for file in seen if str(tmp_path) in str(file)}
    assert 0 < len(opened) <= rehearsal.LOOKED_AT
