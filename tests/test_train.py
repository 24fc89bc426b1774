"""The loop: what it computes does not depend on how it is cut, and its records say what was done."""

from __future__ import annotations

import ast
import inspect
import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import ALL, DPO, SFT, curve, distance, fresh, run, same, weights

from pivot.data.collate import Row, Trunk, encode
from pivot.data.speech import Span
from pivot.files import read_json, read_jsonl
from pivot.model import MLLM, score
from pivot.model.sample import reply
from pivot.records import BadInput, Example, Response
from pivot.train import Rates, Settings, loop, order
from pivot.train.feed import Ahead, Data, count

ROW = Row("", (Trunk(Span([1], [False]), (), (), (0,)),), (Span([2], [True]),))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


# ---- the shape of the loop


def test_the_update_fits_forty_lines_and_says_what_it_does() -> None:
    tree = ast.parse(inspect.getsource(loop))
    update = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_update")
    assert update.end_lineno is not None and update.end_lineno - update.lineno + 1 <= 40
    text = ast.unparse(update)
    for word in ("scorer(batch", "objective.loss", "backward", "clip_grad_norm_", "optimizer.step", "zero_grad"):
        assert word in text


# ---- order


def test_order_is_the_same_on_every_machine() -> None:
    golden = [1, 5, 3, 2, 9, 7, 0, 6, 8, 4]
    assert order.order(0, 0, 10) == golden
    assert order.order(0, 1, 10) != golden and order.order(1, 0, 10) != golden


@pytest.mark.parametrize("start", range(9))
def test_an_epoch_reads_each_row_once_and_a_restart_reads_the_same(start: int) -> None:
    every = list(order.batches(11, 4, seed=3, epochs=3))
    assert [len(batch) for batch in every] == [4, 4, 3] * 3
    for epoch in range(3):
        assert sorted(chain(*every[3 * epoch : 3 * epoch + 3])) == list(range(11))
    assert list(order.batches(11, 4, seed=3, epochs=3, start=start)) == every[start:]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_processes_run_equally_many_forward_passes_and_each_row_once(pairs: list[Example], batch: int, micro: int, processes: int) -> None:
    rows = list(range(batch))
    data = Data(pairs)

    def encoded(example: Example) -> Any:
        return replace(ROW, id=example.id)

    settings = Settings(batch=batch, micro=micro)
    portions = [
        portion for process in range(processes) for portion in data.portions([rows], encoded, Ahead(0), settings, process, processes)
    ]
    assert len(portions) == processes
    assert len({len(portion.micros) for portion in portions}) == 1
    real = [row.id for portion in portions for piece in portion.micros if not piece.filler for row in piece.rows]
    assert sorted(real) == sorted(pairs[n].id for n in rows)
    assert all(1 <= len(piece.rows) <= micro for portion in portions for piece in portion.micros)
    assert sorted(row.id for portion in portions for row in portion.rows) == sorted(real)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_pace(schedule: Any, expected: list[float]) -> None:
    settings = Settings(schedule=schedule, warmup=0.3)
    assert [settings.pace(step, 6) for step in range(6)] == pytest.approx(expected, rel=1e-5)
    assert Settings(schedule=schedule, warmup=0).pace(0, 1) == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_schedule_with_a_floor_falls_in_proportion_to_it(schedule: Any) -> None:
    """What is left above the floor is what a schedule to zero has; while it warms up, the floor has no say."""
    plain, floored = Settings(schedule=schedule, warmup=0.2), Settings(schedule=schedule, warmup=0.2, floor=0.5)
    both = [(plain.pace(step, 20), floored.pace(step, 20)) for step in range(20)]
    assert all(a == b for a, b in both[:4])
    assert all(b == pytest.approx(0.5 + a / 2) for a, b in both[4:]) and both[4] == (1, 1)


# ---- what it computes


@pytest.mark.parametrize("objective", [SFT(), DPO()])
def test_losses_fall_and_the_log_says_so(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, objective: Any) -> None:
    events = run(
        fresh(shared_mllm),
        objective,
        pairs,
        tmp_path,
        epochs=4,
        validation=pairs[:3],
        eval_every=3,
        save_every=50,
        model=objective.needs_reference,
    )
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 9))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [0, 3, 6, 8]
    assert curve(tmp_path)[-1] < curve(tmp_path)[0] and curve(tmp_path, "eval")[-1] < curve(tmp_path, "eval")[0]
    train = next(line for line in lines if line["kind"] == "train")
    assert {"loss", "logps/chosen", "grad_norm", "lr/tower", "lr/projector", "lr/llm", "seconds", "epoch"} <= train.keys()
    if objective.needs_reference:
        assert curve(tmp_path)[0] == pytest.approx(math.log(2), rel=1e-6)
        assert curve(tmp_path, metric="rewards/accuracies")[-1] == 1
        assert MLLM.load(tmp_path / "model").hashes() != shared_mllm.hashes()
    assert all({"kind", "done", "total"} <= event.keys() for event in events)
    assert [event["kind"] for event in events][-2:] == ["checkpoint", "done"]


@pytest.mark.parametrize("objective", [SFT(), DPO(gamma=0.5)])
def test_micro_batches_change_nothing(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, objective: Any) -> None:
    found = []
    for micro in (1, 3, 8):
        mllm = fresh(shared_mllm)
        run(mllm, objective, pairs[:7], tmp_path / str(micro), batch=7, micro=micro, epochs=2, save_every=9)
        found.append((curve(tmp_path / str(micro)), curve(tmp_path / str(micro), metric="grad_norm")))
    for losses, norms in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=2e-6) and norms == pytest.approx(found[0][1], rel=1e-4)


def test_without_global_counts_micro_batches_would_show(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: each micro-batch normalises by its own tokens, as trainers did for years."""
    from pivot.train.feed import Micro

    whole = Micro.batch

    def own_counts(micro: Micro, counts: Any = None) -> dict[str, Any]:
        return whole(micro, count(micro.rows, 1))

    monkeypatch.setattr(Micro, "batch", own_counts)
    for micro in (3, 8):
        run(fresh(shared_mllm), SFT(), pairs[:7], tmp_path / str(micro), batch=7, micro=micro, save_every=9)
    a, b = curve(tmp_path / "3"), curve(tmp_path / "8")
    assert abs(a[0] - b[0]) > 0.1


def test_a_run_is_the_same_twice_and_another_with_another_seed(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mllm = fresh(shared_mllm)
        run(mllm, SFT(), pairs, tmp_path / name, seed=seed)
        found.append(weights(mllm))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_activation_checkpointing_computes_again_and_changes_nothing(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        mllm, calls = fresh(shared_mllm), [0]
        layer = mllm.parts()["llm"].get_submodule("model.layers.0.mlp")
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        run(mllm, SFT(), pairs, tmp_path / str(checkpointing), checkpointing=checkpointing)
        found.append((weights(mllm), calls[0]))
    assert distance(found[0][0], found[1][0]) < 1e-6
    assert found[1][1] == 2 * found[0][1]
    assert not any(module.training for module in mllm.model.modules())


def test_dropout_is_off(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    found = []
    for dropout in (0.0, 0.5):
        mllm = fresh(shared_mllm)
        for module in mllm.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = dropout
        mllm.model.train()
        run(mllm, DPO(), pairs, tmp_path / str(dropout), checkpointing=True)
        found.append(weights(mllm))
    assert same(*found)


def test_bf16_keeps_its_weights_in_fp32(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    mllm = fresh(shared_mllm).to(dtype="bfloat16")
    run(mllm, DPO(), pairs, tmp_path, precision="bf16", epochs=2, rates=Rates(1e-6, 1e-6, 1e-6))
    assert {p.dtype for p in mllm.model.parameters()} == {torch.float32}
    facts = read_json(tmp_path / "ledger.json")
    assert all(part["moved"] > 0 for part in facts["parts"].values())  # by less than bf16 could hold
    assert curve(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-2)


def test_gradients_are_clipped(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.nn.utils.get_total_norm(grads)))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for clip in (0.01, 0.0):
        run(fresh(shared_mllm), SFT(), pairs, tmp_path / str(clip), clip=clip)
    norms = curve(tmp_path / "0.0", metric="grad_norm")
    assert seen == pytest.approx([0.01, 0.01, *norms], rel=1e-4) and min(norms) > 0.1


def test_text_only_rows_and_several_images_train(shared_mllm: MLLM, odd: dict[str, Example], tmp_path: Path) -> None:
    rows = [odd[name] for name in ("text only", "two images", "pair", "turns", "own image", "chat prompt")]
    run(fresh(shared_mllm), DPO(), rows, tmp_path, batch=6, micro=1, epochs=2)
    assert len(curve(tmp_path)) == 2


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_validated_checkpoint_stays(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, keep: str) -> None:
    """Trained on the wrong answers of what it is validated on: the first validation is the best."""
    swapped = [
        replace(pair, responses=tuple(replace(r, role=role) for r, role in zip(pair.responses, ("rejected", "chosen"), strict=True)))
        for pair in pairs
    ]
    run(fresh(shared_mllm), DPO(), swapped, tmp_path, epochs=3, validation=pairs, eval_every=2, save_every=3, keep=keep, model=True)
    losses = curve(tmp_path, "eval")
    assert min(losses[1:]) == losses[1] < losses[-1]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    kept = load_file(tmp_path / f"checkpoint-{2 if keep == 'best' else 6}" / "model.safetensors")
    saved = weights(MLLM.load(tmp_path / "model"))
    assert all(torch.equal(tensor, saved[name.removeprefix("model.")]) for name, tensor in kept.items())
    assert read_json(tmp_path / "ledger.json")["best"] == [2, losses[1]]


# ---- the ledger


def test_the_ledger_counts_what_was_done(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    rates = replace(ALL, tower=0.0)
    # the counter knows no CPU attention kernel, so attention is spelt out as the two products that it is
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(fresh(shared_mllm), SFT(), pairs[:4], tmp_path, batch=1, micro=1, epochs=2, rates=rates, save_every=99)
    facts = read_json(tmp_path / "ledger.json")
    rows = [encode(row, shared_mllm.processor) for row in SFT().source(pairs[:4])]
    assert facts["image_tokens"] == 2 * 4 * 36 and facts["text_tokens"] == 2 * sum(row.text_tokens for row in rows)
    assert facts["flops"] == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert (facts["examples"], facts["epochs"], facts["batch"], facts["steps"]) == (4, 2, 1, 8)
    assert facts["seconds"] == pytest.approx(sum(line["seconds"] for line in read_jsonl(tmp_path / "metrics.jsonl")))
    assert facts["rates"] == {"tower": 0.0, "projector": 1e-3, "llm": 1e-3}
    assert facts["objective"]["name"] == "sft" and facts["reference"] is None and facts["device"] == "cpu"
    assert {"torch", "transformers", "accelerate", "pivot-vision"} <= facts["versions"].keys()


def test_arms_of_one_seed_read_the_same_rows_in_the_same_order(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    def read(name: str, objective: Any, rows: list[Example], seed: int) -> str:
        run(fresh(shared_mllm), objective, rows, tmp_path / name, seed=seed)
        return read_json(tmp_path / name / "ledger.json")["ids_sha256"]

    sft = read("sft", SFT(), pairs, 0)
    assert read("dpo", DPO(), pairs, 0) == sft
    assert read("seed", SFT(), pairs, 1) != sft
    # Only one of a pair's responses has a picture of its own: what is asked is the same for who reads one and who reads both.
    for role in (0, 1):
        own = replace(pairs[7].responses[role], images=pairs[0].images)
        mixed = [*pairs[:7], replace(pairs[7], responses=tuple(own if n == role else r for n, r in enumerate(pairs[7].responses)))]
        assert read(f"sft-own-{role}", SFT(), mixed, 0) == read(f"dpo-own-{role}", DPO(), mixed, 0) == sft
    others = (replace(pairs[7], id="other"), replace(pairs[7], prompt="What else?"), replace(pairs[7], images=pairs[0].images))
    for n, other in enumerate(others):
        assert read(f"rows-{n}", SFT(), [*pairs[:7], other], 0) != sft


# ---- bad input, and what a tracker is told


def test_no_examples(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    for examples, validation in (([], None), (pairs, [])):
        with pytest.raises(BadInput, match="no examples"):
            run(fresh(shared_mllm), SFT(), examples, tmp_path, validation=validation)


def test_a_row_over_the_limit_is_named(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    rows = [*pairs[:7], replace(pairs[7], id="too-long", responses=(Response("so " * 90),))]
    with pytest.raises(BadInput, match=r"row too-long: .* the limit is 100"):
        run(fresh(shared_mllm), SFT(), rows, tmp_path, limit=100)


def test_a_row_over_the_context_is_named_without_any_limit(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    mllm = fresh(shared_mllm)
    mllm.model.config.text_config.max_position_embeddings = 100
    long = replace(pairs[7], id="too-long", prompt="so " * 90)
    with pytest.raises(BadInput, match=r"row too-long: .* the LLM's context holds 100"):
        run(mllm, SFT(), [*pairs[:7], long], tmp_path)
    with pytest.raises(BadInput, match="context holds 100"):
        score(mllm, [long])
    with pytest.raises(BadInput, match="context holds 100"):
        reply(mllm, [long])


def test_a_tracker_that_is_not_there(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="report_to: nonesuch"):
        run(fresh(shared_mllm), SFT(), pairs, tmp_path, report_to=("nonesuch",))


def test_trackers_are_told_every_line(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    told: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: told.append((step, values)))
    run(fresh(shared_mllm), SFT(), pairs, tmp_path, validation=pairs[:2])
    assert [step for step, _ in told] == [0, 1, 2, 2]
    assert "eval/loss" in told[0][1] and "train/loss" in told[1][1] and "train/lr/tower" in told[1][1]


def test_settings_load_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, pivot.train.settings; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
