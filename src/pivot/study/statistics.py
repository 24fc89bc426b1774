"""How sure a measured number is: intervals of scores and of paired differences, over items and over seeds.

The items of a measurement are taken as a sample of those that could have been asked. What is drawn again are units: an item (a pair
of twins is one item already), or a picture with all of its objects where `unit` says that items are objects. Metrics that share units
are drawn together, others apart (a task is a stratum), and one draw serves both arms of a difference. From a stratum of n units n - 1
are drawn, which makes the variance of a stratum's mean unbiased (Rao and Wu, 1988): tasks are small, and drawing n is too narrow there.
For the same reason two ghosts are drawn with them where items are right or wrong: see `_ghosts`.

What another seed would give is not among the items. With several seeds their spread is added as Student's t: with two or three
seeds, resampling them would never leave their own range. With one seed an interval speaks of the items alone, and there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

from pivot.records import Measurement

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 4_000_000  # counts held at a time: 32 MB
SAME = 1e-6  # how near a stored metric must be to the mean of its items to be taken for it

# N units, L leaf metrics, M metrics, C measurements, S seeds, R resamples, K kinds of units with equal values


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, the items that it rests on and how many seeds. Without item values there are no bounds."""

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: int

    @property
    def verdict(self) -> Literal["higher", "lower", "open"] | None:
        """Which side of 0 a difference is on. None where it cannot be said: one seed, or no interval."""
        if self.seeds < 2 or self.low is None or self.high is None:
            return None
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "open"


def wilson(right: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion: never empty and never outside [0, 1], also where all or none are right."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, spread = right / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = math.sqrt(spread * p * (1 - p) + spread * spread / 4) / (1 + spread)
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def estimates(seeds: Sequence[Measurement], level: float = LEVEL, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """Every metric of one arm, from one measurement a seed: the mean over seeds."""
    return _estimates(seeds, np.eye(len(seeds)), level, resamples)


def differences(
    a: Sequence[Measurement], b: Sequence[Measurement], level: float = LEVEL, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """a - b in every metric that both arms have, over the items and the seeds that both have. {} without a common seed, and where
    what was measured is not the same: items of other data may have the same names.
    """
    if unlike(a, b):
        return {}
    of_a, of_b = ({one.seed: one for one in arm} for arm in (a, b))
    common = sorted(of_a.keys() & of_b.keys())
    columns = [of_a[seed] for seed in common] + [of_b[seed] for seed in common]
    return _estimates(columns, np.vstack([np.eye(len(common)), -np.eye(len(common))]), level, resamples) if common else {}


def unlike(a: Sequence[Measurement], b: Sequence[Measurement]) -> bool:
    """Whether at a common seed other items were measured, or by other settings. Measurements that do not say are taken to be alike."""
    of_b = {one.seed: one.of for one in b if one.of}
    return any(one.of and of_b.get(one.seed, one.of) != one.of for one in a)


def _estimates(columns: Sequence[Measurement], contrast: np.ndarray, level: float, resamples: int) -> dict[str, Estimate]:
    """Each metric of the combination `contrast` (C, S) of measurements, averaged over S: one arm's, or one arm's less another's."""
    sheet = Sheet(columns)
    seeds = contrast.shape[1]
    found = {}
    for metric in columns[0].metrics:
        if all(metric in column.metrics for column in columns):
            stored = np.array([column.metrics[metric] for column in columns]) @ contrast
            found[metric] = Estimate(float(stored.mean()), None, None, 0, seeds)
    if not sheet.metrics:
        return found
    dice = np.random.default_rng(0)
    values = sheet.values(contrast)  # (M, S)
    drawn = sheet.resampled(contrast, resamples, dice)  # (R, M)
    counts = np.array([sheet.count(metric) for metric in sheet.metrics])
    alone = len(columns) == seeds
    copies = not alone and all(_same(a, b) for a, b in zip(columns[:seeds], columns[seeds:], strict=True))
    if sheet.right_or_wrong.any() and not copies:
        drawn = drawn + _ghosts(values.mean(axis=1), alone, resamples, dice) / counts * sheet.right_or_wrong
    if seeds > 1:
        error = values.std(axis=1, ddof=1) / math.sqrt(seeds)
        drawn = drawn + dice.standard_t(seeds - 1, (resamples, 1)) * error
    if sheet.shares_only:
        drawn = np.clip(drawn, 0 if alone else -1, 1)
    bounds = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    for number, metric in enumerate(sheet.metrics):
        low, high = sheet.proportion(metric, level) or bounds[:, number].tolist()
        if low == high and sheet.fewest(metric) < 2:  # one item says nothing about spread
            low = high = None
        found[metric] = Estimate(float(values[number].mean()), low, high, int(counts[number]), seeds)
    return found


def _ghosts(values: np.ndarray, alone: bool, resamples: int, dice: np.random.Generator) -> np.ndarray:
    """(R, M) what two items that were not seen would add, in items: one that is right and one that is wrong, drawn like any other.

    Without them a task in which nothing changed would surely be unchanged, resampled from no change. With them n quiet items leave room
    for 3 / n either way, the rule of three; where much changed they add next to nothing. Of a difference, they are one won and one lost.
    """
    right, wrong = dice.poisson(1.0, (2, resamples, 1))
    return right * (1 - values) - wrong * values if alone else right - wrong


@dataclass(frozen=True)
class Sheet:
    """The item values of several measurements, side by side, on the items that all of them have.

    Only metrics that are what they say take part: the mean of their items, or of their parts. A recall over classes, say, is no mean of
    items, and an interval of such a mean would not be an interval of it.
    """

    columns: Sequence[Measurement]

    @cached_property
    def leaves(self) -> dict[str, list[str]]:
        """Metrics that are means of items in all measurements, each with the items that all have. None without such items."""
        first = self.columns[0]
        leaves = [leaf for leaf in first.items if leaf not in first.parts and all(_is_mean(column, leaf) for column in self.columns)]
        common = {leaf: [item for item in first.items[leaf] if all(item in c.items[leaf] for c in self.columns)] for leaf in leaves}
        return {leaf: items for leaf, items in common.items() if items}

    def unit(self, item: str) -> str:
        """What an item is drawn with: objects are named PICTURE/NUMBER, those of a pair of pictures PAIR/NUMBER."""
        return item.rpartition("/")[0] or item if self.columns[0].unit == "object" else item

    @cached_property
    def shares(self) -> dict[str, np.ndarray]:
        """Metric -> (L,) the weight of each leaf in it."""
        found = dict(zip(self.leaves, np.eye(len(self.leaves)), strict=True))
        parts = self.columns[0].parts
        waiting = [metric for metric in parts if all(_is_mean_of_parts(column, metric, parts[metric]) for column in self.columns)]
        while ready := [metric for metric in waiting if all(part in found for part in parts[metric])]:
            found |= {metric: np.mean([found[part] for part in parts[metric]], axis=0) for metric in ready}
            waiting = [metric for metric in waiting if metric not in found]
        return found

    @property
    def metrics(self) -> list[str]:
        return list(self.shares)

    @cached_property
    def strata(self) -> list[Stratum]:
        """Leaves that share units, together with these."""
        units = {leaf: [self.unit(item) for item in items] for leaf, items in self.leaves.items()}
        return [Stratum.of(self.columns, {leaf: (units[leaf], self.leaves[leaf]) for leaf in group}) for group in _connected(units)]

    def count(self, metric: str) -> int:
        """How many items a metric rests on."""
        return len({item for items, share in zip(self.leaves.values(), self.shares[metric], strict=True) if share > 0 for item in items})

    def fewest(self, metric: str) -> int:
        """How many units the smallest leaf of a metric has."""
        leaves = zip(self.leaves.values(), self.shares[metric], strict=True)
        return min(len({self.unit(item) for item in items}) for items, share in leaves if share > 0)

    def proportion(self, metric: str, level: float) -> tuple[float, float] | None:
        """The interval by formula of a share of items that are right or wrong and apart from each other, in one measurement."""
        values = list(self.columns[0].items[metric].values()) if len(self.columns) == 1 and metric in self.leaves else []
        if not values or not set(values) <= {0, 1} or len({self.unit(item) for item in self.leaves[metric]}) < len(values):
            return None
        return wilson(sum(values), len(values), level)

    @cached_property
    def right_or_wrong(self) -> np.ndarray:
        """(M,) whether each metric is of items that are right (1) or wrong (0). What lies between shows by itself how it spreads."""
        plain = np.array([all(value in (0, 1) for column in self.columns for value in column.items[leaf].values()) for leaf in self.leaves])
        return np.array([bool(plain[share > 0].all()) for share in self.shares.values()])

    @cached_property
    def shares_only(self) -> bool:
        """Whether all values lie between 0 (wrong) and 1 (right)."""
        return all(0 <= value <= 1 for column in self.columns for leaf in self.leaves for value in column.items[leaf].values())

    def values(self, contrast: np.ndarray) -> np.ndarray:
        """(M, S) each metric as measured."""
        means = {leaf: mean for stratum in self.strata for leaf, mean in zip(stratum.leaves, stratum.means(contrast), strict=True)}
        return np.stack(list(self.shares.values())) @ np.stack([means[leaf] for leaf in self.leaves])

    def resampled(self, contrast: np.ndarray, resamples: int, dice: np.random.Generator) -> np.ndarray:
        """(R, M) each metric, mean over seeds, on drawn items."""
        drawn: dict[str, np.ndarray] = {}
        for stratum in self.strata:
            drawn |= dict(zip(stratum.leaves, stratum.resampled(contrast, resamples, dice).T, strict=True))
        return np.stack([drawn[leaf] for leaf in self.leaves], axis=1) @ np.stack(list(self.shares.values())).T


@dataclass(frozen=True)
class Stratum:
    """Units that are drawn together. A unit may have no item of a leaf, or several."""

    leaves: list[str]
    items: np.ndarray  # (N, L) how many items
    totals: np.ndarray  # (N, L, C) the sum of their values

    @classmethod
    def of(cls, columns: Sequence[Measurement], leaves: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> Stratum:
        """The stratum of leaves, each with the units and the names of its items."""
        row = {unit: number for number, unit in enumerate(dict.fromkeys(unit for units, _ in leaves.values() for unit in units))}
        counts = np.zeros((len(row), len(leaves)))
        totals = np.zeros((len(row), len(leaves), len(columns)))
        for number, (leaf, (units, items)) in enumerate(leaves.items()):
            rows = [row[unit] for unit in units]
            np.add.at(counts, (rows, number), 1)
            np.add.at(totals, (rows, number), np.array([[column.items[leaf][item] for column in columns] for item in items]))
        return cls(list(leaves), counts, totals)

    def means(self, contrast: np.ndarray) -> np.ndarray:
        """(L, S) means over items."""
        return (self.totals @ contrast).sum(axis=0) / self.items.sum(axis=0)[:, None]

    def resampled(self, contrast: np.ndarray, resamples: int, dice: np.random.Generator) -> np.ndarray:
        """(R, L) each leaf's mean over the items of drawn units and over seeds.

        Units with equal values are one kind, and what is drawn is how often each kind comes: the same distribution as drawing
        units one by one, and answers that are right or wrong come in few kinds.
        """
        totals = (self.totals @ contrast).mean(axis=2)  # (N, L)
        kinds, counts = np.unique(np.concatenate([totals, self.items], axis=1), axis=0, return_counts=True)
        totals, items = np.split(kinds, 2, axis=1)  # (K, L)
        whole = counts @ totals / (counts @ items)
        n, means = int(counts.sum()), []
        for size in _chunks(resamples, max(1, AT_ONCE // len(kinds))):
            drawn = dice.multinomial(max(1, n - 1), counts / n, size=size)  # (R, K)
            times = drawn @ items
            # A leaf may be in few of the units; a draw with none of them says nothing about it.
            means.append(np.where(times > 0, drawn @ totals / np.maximum(times, 1), whole))
        return np.concatenate(means)


def _same(a: Measurement, b: Measurement) -> bool:
    """Whether two measurements are of one thing, and not of two that happen to be right on the same items."""
    return (a.fingerprint, a.items) == (b.fingerprint, b.items)


def _is_mean(column: Measurement, leaf: str) -> bool:
    items = column.items.get(leaf, {})
    return bool(items) and leaf in column.metrics and abs(fmean(items.values()) - column.metrics[leaf]) <= SAME


def _is_mean_of_parts(column: Measurement, metric: str, parts: Sequence[str]) -> bool:
    known: Mapping[str, float] = column.metrics
    if not parts or list(column.parts.get(metric, ())) != list(parts) or not {metric, *parts} <= known.keys():
        return False
    return abs(fmean(known[part] for part in parts) - known[metric]) <= SAME


def _connected(leaves: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Leaves in groups: two that share a unit are in one group."""
    groups: list[tuple[list[str], set[str]]] = []
    for leaf, items in leaves.items():
        touching = [group for group in groups if not group[1].isdisjoint(items)]
        names = [name for group in touching for name in group[0]]
        groups = [group for group in groups if group not in touching]
        groups.append(([*names, leaf], set(items).union(*(group[1] for group in touching))))
    return [names for names, _ in groups]


def _chunks(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)
