"""What a run is watched for while it goes on: losses that must stop it, and drifts that are worth a word.

A loss stops the run if it, or the gradient norm, is not finite, or if it spikes: if it lies more than `spike` robust
deviations above the median of the last updates. A robust deviation is 1.4826 times the median distance from that median
(what a standard deviation would be, for a bell curve), and at least 0.05, or a twentieth of a median above 1, so that a loss
near its floor is not stopped by one hard row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from pivot.records import CheckFailed

WINDOW = 32  # updates that a spike is measured against
ENOUGH = 16  # of them, before anything can be called a spike
FLOOR = 0.05  # least deviation; of the median, where that is above 1
TREND = 20  # updates on either end of a drift
COLLAPSE = 0.5  # by which share of its first value the log-probability of chosen responses may fall
DRIFT = 1.5  # by which factor lengths may change
NAMED = 5  # rows that a message names

Suspects = Callable[[], Sequence[tuple[str, float]]]  # rows of the update with the loss of each, asked only when it stops


class Watch:
    """Sees one line of metrics per update, in order. What it will say depends on nothing else, so a resumed run replays them."""

    def __init__(self, spike: float) -> None:
        self.spike = spike
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, deque[float]] = {}
        self.said: set[str] = set()

    def check(self, step: int, loss: float, gradient: float, suspects: Suspects) -> None:
        """Stop before an update that would spoil the weights."""
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            what = f"the loss is {loss:g} and the gradient norm {gradient:g}"
        elif self.spike and self.deviation(loss) > self.spike:
            what = (
                f"the loss jumped to {loss:.4g}, {self.deviation(loss):.0f} robust deviations above its median of {median(self.losses):.4g}"
            )
        else:
            return
        rows = sorted(suspects(), key=lambda row: -row[1] if math.isfinite(row[1]) else -math.inf)
        named = ", ".join(f"{name} ({own:.4g})" for name, own in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        raise CheckFailed(
            f"update {step + 1}: {what}; rows by their own loss: {named}{more}. "
            "Look at these rows, or lower the rates, and start anew with another out=: checkpoints of earlier updates stay in this one"
        )

    def deviation(self, loss: float) -> float:
        """How many robust deviations a loss lies above what was usual; 0 as long as too little is known."""
        if len(self.losses) < ENOUGH:
            return 0.0
        middle = median(self.losses)
        spread = 1.4826 * median(abs(one - middle) for one in self.losses)
        return (loss - middle) / max(spread, FLOOR * max(1.0, abs(middle)))

    def see(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in the metrics of an update that went through; returns alarms, each said once."""
        self.losses.append(metrics["loss"])
        alarms = []
        for name in metrics:
            if name == "logps/chosen" or name.startswith("lengths/"):
                alarm = self._drift(name, metrics[name])
                if alarm and name not in self.said:
                    self.said.add(name)
                    alarms.append(alarm)
        return alarms

    def _drift(self, name: str, value: float) -> str | None:
        first, last = self.first.setdefault(name, []), self.last.setdefault(name, deque(maxlen=TREND))
        if len(first) < TREND:
            first.append(value)
            return None
        last.append(value)
        if len(last) < TREND:
            return None
        before, now = median(first), median(last)
        if name == "logps/chosen":
            if now < before - COLLAPSE * abs(before):
                return f"the log-probability of chosen responses fell from {before:.4g} to {now:.4g}: the model is forgetting them"
        elif not before / DRIFT <= now <= before * DRIFT:
            return f"{name} went from {before:.4g} to {now:.4g} tokens: rows are not mixed, or lengths are being gamed"
        return None
