"""Who trains: each part does what its rate says, and a part that does not is caught."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import ALL, SFT, curve, distance, fresh, run, weights

from pivot.files import read_json
from pivot.model import MLLM
from pivot.records import BadInput, CheckFailed, Example
from pivot.train import Rates

TOWER, PROJECTOR, LLM = "model.vision_tower", "model.multi_modal_projector", "model.language_model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("frozen", ["tower", "projector", "llm"])
def test_frozen_parts_and_what_lies_above_the_tap_stay_as_they_are(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, frozen: str
) -> None:
    mllm = fresh(shared_mllm)
    run(mllm, SFT(), pairs, tmp_path, rates=replace(ALL, **{frozen: 0.0}))
    before, after = weights(shared_mllm), weights(mllm)
    for part, prefix in {"tower": TOWER, "projector": PROJECTOR, "llm": LLM}.items():
        assert (distance(before, after, prefix) == 0) == (part == frozen)
    for idle in ("encoder.layers.2.", "post_layernorm."):
        assert distance(before, after, f"{TOWER}.{idle}") == 0
    facts = read_json(tmp_path / "ledger.json")["parts"]
    assert [part for part in facts if not facts[part]["trained"]] == [frozen]
    assert all((part["moved"] > 0) == part["trained"] for part in facts.values())


def test_each_part_has_its_own_rate(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """Adam's first step is the rate times the gradient's sign."""
    mllm = fresh(shared_mllm)
    run(mllm, SFT(), pairs, tmp_path, batch=8, rates=Rates(tower=1e-4, projector=1e-3, llm=1e-2))
    before, after = weights(shared_mllm), weights(mllm)
    for prefix, rate in {TOWER: 1e-4, PROJECTOR: 1e-3, LLM: 1e-2}.items():
        assert distance(before, after, prefix) == pytest.approx(rate, rel=1e-2)
    assert curve(tmp_path, metric="lr/llm") == [1e-2]


def test_only_matrices_decay(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, float] = {}
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *_: seen.update({p.ndim: group["weight_decay"] for group in self.param_groups for p in group["params"]}),
    )
    with pytest.raises(CheckFailed, match="did not move"):
        run(fresh(shared_mllm), SFT(), pairs, tmp_path, weight_decay=0.1)
    assert seen[1] == 0 and seen[2] == seen[4] == 0.1


def test_a_tower_that_is_cut_off_is_caught(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: peers' worst bug, features computed without gradients."""
    mllm = fresh(shared_mllm)
    tower, whole = mllm.parts()["tower"], type(mllm.parts()["tower"]).forward

    def detached(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(tower), "forward", detached)
    with pytest.raises(CheckFailed, match="the tower has a learning rate but no gradient"):
        run(mllm, SFT(), pairs, tmp_path)
    run(mllm, SFT(), pairs, tmp_path / "frozen", rates=replace(ALL, tower=0.0))


def test_half_a_tower_that_is_cut_off_is_caught(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    mllm = fresh(shared_mllm)
    block = mllm.parts()["tower"].get_submodule("encoder.layers.1")
    block.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:]))
    with pytest.raises(CheckFailed, match=r"tower .* no gradient in embeddings.patch_embedding and \d+ more modules"):
        run(mllm, SFT(), pairs, tmp_path)


def test_a_tower_that_no_image_reaches_is_caught(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="no row has an image"):
        run(fresh(shared_mllm), SFT(), [replace(pair, images=()) for pair in pairs], tmp_path)


def test_a_rate_that_rounds_away_is_caught(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"projector has gradients but its weights did not move: raise its rate, which rounds away"):
        run(fresh(shared_mllm), SFT(), pairs, tmp_path, rates=replace(ALL, projector=1e-30))


@pytest.mark.parametrize("name", ["multi_modal_projector.linear_1.bias", "vision_tower.post_layernorm.weight"])
def test_a_frozen_weight_that_moves_is_caught(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, name: str) -> None:
    """Planted: something writes into a frozen part, after the first updates too."""
    mllm = fresh(shared_mllm)
    moving, calls = mllm.model.model.get_parameter(name), [0]

    def nudge(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == 14:
            with torch.no_grad():
                moving.add_(1e-6)

    mllm.model.model.language_model.register_forward_pre_hook(nudge)
    with pytest.raises(CheckFailed, match=name.rpartition(".")[2]):
        run(mllm, SFT(), pairs, tmp_path, rates=replace(ALL, projector=0.0), epochs=4, save_every=100)
    assert len(curve(tmp_path)) == 8


@pytest.mark.parametrize("rates", [(0, 0, 0), (-1e-5, 0, 0), (math.nan, 1, 1)])
def test_impossible_rates(rates: tuple[float, float, float]) -> None:
    with pytest.raises(BadInput, match="rates"):
        Rates(*rates)
