"""A kill changes nothing, whatever the objective: what it knows beside the weights lives in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import ALL, DPO, SFT, SHORT, curve, fresh, run, same, weights

from pivot import files
from pivot.model import MLLM
from pivot.objective.kto import Objective as KTO
from pivot.objective.mpo import Objective as MPO
from pivot.objective.orpo import Objective as ORPO
from pivot.objective.reward_model import Objective as RewardModel
from pivot.records import Example
from pivot.train import Settings, train

OBJECTIVES = {
    "mpo": MPO(),
    "kto": KTO(),
    "mdpo": DPO(image=1.0, anchor=1.0, differ=2),
    "orpo": ORPO(),
    "unlikelihood": SFT(unlikelihood=1.0),
    "reward model": RewardModel(),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_killed_run_goes_on_to_the_same_bits(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    objective, settings = OBJECTIVES[name], {"epochs": 2, "batch": 2, "save_every": 2}
    whole, again = fresh(shared_mllm), fresh(shared_mllm)
    run(whole, objective, pairs[:4], tmp_path / "whole", **settings)
    monkeypatch.setattr(files, "_sync", lambda *_: None)
    running = train(fresh(shared_mllm), objective, pairs[:4], Settings(**{**SHORT, **settings}), tmp_path / "killed", rates=ALL)
    while (event := next(running))["kind"] != "checkpoint" or event["done"] != 2:
        pass
    running.close()  # type: ignore[attr-defined]
    events = run(again, objective, pairs[:4], tmp_path / "killed", **settings)
    assert [event["done"] for event in events if event["kind"] == "train"] == [3, 4]
    assert same(weights(again), weights(whole))
    for metric in ("loss", "grad_norm"):
        assert curve(tmp_path / "killed", metric=metric) == curve(tmp_path / "whole", metric=metric)


@pytest.mark.parametrize("name", ["mpo", "kto"])
def test_what_a_batch_must_know_of_itself_does_not_hang_on_micro_batches(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, name: str
) -> None:
    """Batches of 6 and 2 rows, in pieces of one and whole: with pieces, all are looked at before the first is learned from."""
    objective: Any = OBJECTIVES[name]
    for micro in (1, 8):
        run(fresh(shared_mllm), objective, pairs, tmp_path / str(micro), batch=6, micro=micro)
    for metric in ("loss", "grad_norm", "delta" if name == "mpo" else "kl"):
        assert curve(tmp_path / "1", metric=metric) == pytest.approx(curve(tmp_path / "8", metric=metric), rel=1e-4, abs=1e-6), metric
    assert curve(tmp_path / "1", metric="delta" if name == "mpo" else "kl")[1] != 0
