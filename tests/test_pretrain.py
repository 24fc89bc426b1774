"""Stage 0: the tower learns what lies under its patches, and a kill changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pivot.data.world import read
from pivot.files import read_json, read_jsonl
from pivot.model import MLLM
from pivot.pretrain.loop import pretrain
from pivot.pretrain.supervised import HEADS, IGNORE, Pretraining
from pivot.records import BadInput, CheckFailed, Example
from pivot.world.glyphs import DIGITS, LETTERS
from pivot.world.scene import COLOURS, KINDS, ORIENTATIONS, TEXTURES

COMMON = {*COLOURS, *KINDS, *LETTERS, *DIGITS, "top", "left"}  # names that stand for themselves
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


def test_it_learns_and_leaves_the_layers_of_the_llm_alone(tmp_path: Path) -> None:
    before, after = MLLM.tiny(), run(tmp_path, 16 * 40)
    moved = {name for name, weight in after.model.named_parameters() if not torch.equal(weight, before.model.get_parameter(name))}
    assert {name for name in moved if "language_model" in name} == {"model.language_model.embed_tokens.weight"}
    assert any("projector" in name for name in moved) and any("vision_tower" in name for name in moved)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.88 * np.mean([line["loss"] for line in lines[:3]])
    assert read_json(tmp_path / "ledger.json")["examples"] == 640
    assert MLLM.load(tmp_path / "model").hashes() == after.hashes()


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_killed_one_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole", 16 * 10)
    run(tmp_path / "killed", 16 * 10, stop=stop)
    again = run(tmp_path / "killed", 16 * 10)
    assert whole.hashes() == again.hashes()
    steps = [line["step"] for line in read_jsonl(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 11))


def test_what_would_teach_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="15 examples do not fill one batch of 16"):
        run(tmp_path / "few", 15)
    still = replace(SMALL, rate=0.0)
    with pytest.raises(CheckFailed, match="the tower is what it was"):
        list(pretrain(MLLM.tiny(), still, read(size=16), tmp_path / "still"))
    broken = MLLM.tiny()
    with torch.no_grad():
        next(broken.parts()["projector"].parameters()).fill_(math.nan)
    with pytest.raises(BadInput, match="the loss of step 1 is nan, from row world-train-0-48-000000"):
        list(pretrain(broken, SMALL, read(size=16), tmp_path / "broken"))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 16 * 10, stop=5)
    with pytest.raises(BadInput, match="is of another training"):
        run(tmp_path, 16 * 11)


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
    mllm = MLLM.tiny()
    silent = {head: torch.full((1, 36), IGNORE) for head in HEADS}
    silent["kind"] = torch.zeros(1, 36, dtype=torch.long)
    loss, metrics = SMALL.loss(mllm.detach(), {"pixels": torch.zeros(1, 3, 48, 48), "targets": silent}, SMALL.init(mllm))
    assert torch.isfinite(loss) and set(metrics) == {"loss", "accuracy/kind"}


def test_a_patch_is_held_against_the_words_of_the_llm() -> None:
    """Every head's words are single tokens that read as the names, and the place is that of the patch."""
    mllm = MLLM.tiny()
    words = SMALL.init(mllm)
    for head, forms in words.forms.items():
        for ids in forms:
            read_back = [mllm.processor.tokenizer.decode([i]).strip() for i in ids]
            assert len(set(ids)) == len(HEADS[head]) and all(a == b for a, b in zip(read_back, HEADS[head], strict=True) if b in COMMON)
    targets = SMALL.targets(read(size=2), grid=6)
    assert targets["row"][0].view(6, 6)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert targets["column"][0].view(6, 6)[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_an_llm_without_the_words_is_refused() -> None:
    mllm = MLLM.tiny()
    known = mllm.processor.tokenizer.get_vocab
    mllm.processor.tokenizer.get_vocab = lambda: {word: i for word, i in known().items() if "ring" not in word}
    with pytest.raises(BadInput, match="not all single tokens"):
        SMALL.init(mllm)
