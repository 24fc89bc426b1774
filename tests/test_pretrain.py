"""Stage 0: the tower learns what lies under its patches, and a kill changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pivot.data.world import read
from pivot.model import MLLM
from pivot.pretrain.loop import pretrain
from pivot.pretrain.supervised import HEADS, IGNORE, Pretraining
from pivot.records import BadInput, Example
from pivot.runfolder import read_json, read_jsonl
from pivot.world.scene import ORIENTATIONS, TEXTURES

SMALL = Pretraining(batch=16, rate=3e-3, save_every=4)


def run(folder: Path, size: int, stop: int | None = None) -> MLLM:
    """Pretrain a tiny tower, or stop after that many steps as a kill would."""
    mllm = MLLM.tiny()
    events = pretrain(mllm, SMALL, read(size=size, seed=3), folder)
    for number, _ in enumerate(events, start=1):
        if number == stop:
            events.close()
            break
    return mllm


def test_targets_are_the_truth_of_the_patches() -> None:
    """A patch is asked about the thing that its pixels show; an unpainted one is background and has no colour."""
    examples = read(size=320, seed=5)[::5]
    targets = SMALL.targets(examples, grid=6)
    for row, example in enumerate(examples):
        classes = example.truth.classes.reshape(6, 8, 6, 8).transpose(0, 2, 1, 3).reshape(36, 64)
        for patch in range(36):
            kind, colour = int(targets["kind"][row, patch]), int(targets["colour"][row, patch])
            assert kind == 0 or kind in classes[patch]
            if (classes[patch] == 0).all():
                assert kind == 0 and colour == IGNORE
            if colour != IGNORE:
                here = [
                    t.attributes["colour"]
                    for t in example.truth.objects
                    if t.mask.reshape(6, 8, 6, 8)[patch // 6, :, patch % 6].any() and "colour" in t.attributes
                ]
                assert HEADS["colour"][colour] in here


def test_nothing_that_the_probe_asks_is_taught() -> None:
    assert not {*TEXTURES, *ORIENTATIONS} & {name for names in HEADS.values() for name in names}


def test_it_learns_and_leaves_the_llm_alone(tmp_path: Path) -> None:
    before, after = MLLM.tiny().hashes(), run(tmp_path, 16 * 40).hashes()
    assert before["tower"] != after["tower"] and before["llm"] == after["llm"] and before["projector"] == after["projector"]
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.88 * np.mean([line["loss"] for line in lines[:3]])
    assert read_json(tmp_path / "ledger.json")["examples"] == 640
    assert MLLM.load(tmp_path / "model").hashes() == after


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_killed_one_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole", 16 * 10)
    run(tmp_path / "killed", 16 * 10, stop=stop)
    again = run(tmp_path / "killed", 16 * 10)
    assert whole.hashes() == again.hashes()
    steps = [line["step"] for line in read_jsonl(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 11))


def test_the_ledger_counts_what_torch_counts(tmp_path: Path) -> None:
    # The counter knows no CPU attention kernel, so attention is spelt out as the two products that it is.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(tmp_path, 32)
    told = read_json(tmp_path / "ledger.json")
    assert told["flops"] == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert told["image_tokens"] == 32 * 36 and told["steps"] == 2


def test_examples_without_truth_are_refused() -> None:
    with pytest.raises(BadInput, match="x1 has no truth"):
        SMALL.targets([Example("x1", (), "?")], grid=6)


def test_heads_ask_only_where_there_is_an_answer() -> None:
    tower = MLLM.tiny().parts()["tower"]
    heads = SMALL.init(tower.config.hidden_size)
    silent = {head: torch.full((1, 36), IGNORE) for head in HEADS}
    silent["kind"] = torch.zeros(1, 36, dtype=torch.long)
    loss, metrics = SMALL.loss(tower, {"pixels": torch.zeros(1, 3, 48, 48), "targets": silent}, heads)
    assert torch.isfinite(loss) and set(metrics) == {"loss", "accuracy/kind"}
