"""What stops a run, and names the rows that are to blame; what is worth an alarm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import SFT, curve, fresh, run

from pivot.data.collate import encode
from pivot.files import read_json
from pivot.lookup import find
from pivot.model import MLLM
from pivot.records import CheckFailed, Example, Response
from pivot.train import Rates, order, watch
from pivot.train.watch import ENOUGH, TREND, Watch

FAST = Rates(1e-2, 1e-2, 1e-2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def poisoned(pairs: Sequence[Example], mllm: MLLM, name: str, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Make the pixels of one row a given value."""
    from pivot.model import mllm as module

    def spoilt(example: Example, *args: Any) -> Any:
        row = encode(example, *args)
        trunk = row.trunks[0]
        if example.id != name or not trunk.images:
            return row
        bad = {"pixel_values": torch.full_like(trunk.images[0].inputs["pixel_values"], value)}
        return replace(row, trunks=(replace(trunk, images=(replace(trunk.images[0], inputs=bad),)),))

    monkeypatch.setattr(module, "encode", spoilt)


def test_a_loss_that_is_not_finite_stops_and_names_the_row(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = fresh(shared_mllm)
    poisoned(pairs, mllm, "pair-3", monkeypatch, math.nan)
    at = next(n for n, batch in enumerate(order.batches(8, 2), start=1) if 3 in batch)
    with pytest.raises(CheckFailed, match=rf"update {at}: the loss is nan .*by their own loss: pair-3 \(nan\), pair-\d \(\d"):
        run(mllm, SFT(), pairs, tmp_path, batch=2, save_every=1)
    assert all(torch.isfinite(p).all() for p in mllm.model.parameters())
    assert len(curve(tmp_path)) == at - 1


def test_a_spike_stops_before_it_does_harm(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """Planted: after many easy rows, one whose answer is noise."""
    odd_one = replace(pairs[1], id="noise", responses=(Response("zq xv kj qq"),))
    rows = [replace(pairs[0], id=f"easy-{n}") for n in range(60)]
    rows[order.order(0, 0, 60)[-1]] = odd_one
    mllm = fresh(shared_mllm)
    with pytest.raises(CheckFailed, match=r"update 60: the loss jumped to .* robust deviations .*: noise \("):
        run(mllm, SFT(), rows, tmp_path, batch=1, micro=1, rates=FAST)


def test_a_row_is_blamed_for_its_own_loss_alone(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a critic, too: what it expected of other rows in the same micro-batch is theirs."""
    told: dict[int, list[tuple[str, float]]] = {1: [], 2: []}
    objective = find("objective", "ppo")(reward={"name": "length", "unit": "characters", "limit": 20}, max_new=4, critic="detached")
    for micro, found in told.items():
        monkeypatch.setattr(Watch, "check", lambda *given, found=found: found.extend(given[-1]()))
        run(fresh(shared_mllm), objective, pairs[:4], tmp_path / f"{micro}", batch=2, micro=micro)
    assert len(told[1]) == 8 and [name for name, _ in told[1]] == [name for name, _ in told[2]]  # four rows, two passes
    assert [loss for _, loss in told[2]] == pytest.approx([loss for _, loss in told[1]], abs=1e-5)


def rough(number: int) -> Iterator[float]:
    return iter((1 + 0.1 * torch.randn(number, generator=torch.Generator().manual_seed(0))).tolist())


def test_what_counts_as_a_spike() -> None:
    seen = Watch(20)
    for loss in rough(ENOUGH - 1):
        seen.check(0, 100.0, 1.0, list)  # too little is known
        seen.see({"loss": loss})
    seen.see({"loss": 1.0})
    for loss in rough(500):
        seen.check(0, loss, 1.0, list)
        seen.see({"loss": loss})
    seen.check(0, 2.0, 1.0, list)
    with pytest.raises(CheckFailed, match="jumped"):
        seen.check(0, 4.0, 1.0, list)
    Watch(0).check(0, 1e9, 1.0, list)


@pytest.mark.parametrize(("loss", "gradient"), [(math.inf, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_what_is_not_finite_stops(loss: float, gradient: float) -> None:
    with pytest.raises(CheckFailed, match=r"a \(5\), b \(2\)\. .* start anew with another out="):
        Watch(0).check(0, loss, gradient, lambda: [("b", 2.0), ("a", 5.0)])


@pytest.mark.parametrize(
    ("metric", "values", "says"),
    [
        ("logps/chosen", [-10.0] * TREND + [-16.0] * TREND, "forgetting"),
        ("logps/chosen", [-10.0] * TREND + [-14.0] * TREND, None),
        ("logps/chosen", [-10.0] * TREND + [-5.0] * TREND, None),
        ("lengths/chosen", [10.0] * TREND + [16.0] * TREND, "lengths/chosen went from 10 to 16"),
        ("lengths/rejected", [10.0] * TREND + [6.0] * TREND, "lengths/rejected"),
        ("lengths/chosen", [10.0] * TREND + [14.0] * TREND, None),
        ("lengths/chosen", [10.0] * TREND + [40.0] * 3 + [10.0] * TREND, None),
        ("rewards/chosen", [1.0] * TREND + [90.0] * TREND, None),
    ],
)
def test_drifts_raise_an_alarm_once(metric: str, values: list[float], says: str | None) -> None:
    seen = Watch(20)
    alarms = [alarm for value in [*values, *values[-1:] * 5] for alarm in seen.see({"loss": 1.0, metric: value})]
    assert len(alarms) == (says is not None)
    assert says is None or says in alarms[0]


def test_an_alarm_is_an_event_and_in_the_ledger(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "TREND", 5)
    long = replace(pairs[0], id="long", responses=(Response("so " * 20),))
    rows = [long] * 11
    for n in order.order(0, 0, 11)[:5]:
        rows[n] = replace(pairs[0], id="short")
    events = run(fresh(shared_mllm), SFT(), rows, tmp_path, batch=1, micro=1, spike=0)
    alarms = [event["message"] for event in events if event["kind"] == "alarm"]
    assert any("lengths/chosen" in alarm for alarm in alarms)
    assert read_json(tmp_path / "ledger.json")["alarms"] == alarms
