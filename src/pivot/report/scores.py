"""One measurement of all arms, ready to be shown: which metrics in which order, on what scale, and the table with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pivot.report import depth, words

Facts = dict[str, Any]
# Metrics of these names say what would be had without seeing anything: marks in figures, no lines of their own.
BASELINES = {"permuted/": "captions of other pictures", "majority/": "always answering the most frequent class", "chance/": "chance"}
CHANCE = "chance"  # by itself of the headline; before the last part of a name of all variants, as chance/ap of cam/ap too


@dataclass(frozen=True)
class Line:
    """A metric in its place: how deep it lies below the headline, and what it is called beside the others."""

    metric: str
    depth: int
    label: str


@dataclass(frozen=True)
class Scale:
    """How a metric's numbers are written: shares in percent and their differences in points, others as they are."""

    factor: int
    digits: int

    @property
    def unit(self) -> str:
        return f"{words.THIN}%" if self.factor == 100 else ""


@dataclass(frozen=True)
class Scores:
    """One measurement (`shape`) of one run: its rows and pairs, and in what tone each arm is drawn."""

    shape: Facts
    rows: Sequence[Facts]
    pairs: Sequence[Facts]
    tones: Mapping[str, int]
    trained: frozenset[str]
    prefix: str = ""  # before the names of this run's arms, where there are several runs
    apart: Sequence[tuple[str, str]] = ()  # arms that were not measured alike, and are not compared

    @classmethod
    def of(cls, found: Facts, shape: Facts, tones: Mapping[str, int]) -> Scores:
        """What `collect` found on one measurement."""
        arms = {name for name, arm in found["arms"].items() if arm["run"] == shape["run"]}
        key = (shape["kind"], shape["name"])
        rows = [row for row in found["rows"] if (row["kind"], row["name"]) == key and row["arm"] in arms]
        pairs = [pair for pair in found["pairs"] if (pair["kind"], pair["name"]) == key and pair["a"] in arms]
        trained = frozenset(name for name, arm in found["arms"].items() if arm["trained"])
        apart = [(one["a"], one["b"]) for one in found.get("apart", ()) if (one["kind"], one["name"]) == key and one["a"] in arms]
        return cls(shape, rows, pairs, tones, trained, f"{shape['run']}: " if len(found["runs"]) > 1 else "", apart)

    def name(self, arm: str) -> str:
        """What an arm is called among those of its own run."""
        return arm.removeprefix(self.prefix)

    def contrast(self, a: str, b: str) -> str:
        return f"{self.name(a)} {words.MINUS} {self.name(b)}"

    @property
    def uncompared(self) -> str:
        """That some arms are not compared, and why, as a sentence; empty where all are."""
        pairs = [f"{self.name(b)} and {self.name(a)}" for a, b in self.apart]
        return f"Not compared, as they were measured on other items or with other settings: {'; '.join(pairs)}." if pairs else ""

    @property
    def title(self) -> str:
        return f"{self.shape['kind'].capitalize()}: {self.shape['name']}"

    @property
    def several_seeds(self) -> bool:
        return any(row["seed"] is None for row in self.rows)

    # -- which metrics, in which order

    @cached_property
    def sure(self) -> set[str]:
        """Metrics with an interval somewhere."""
        return {row["metric"] for row in self.rows if row["low"] is not None}

    @cached_property
    def layered(self) -> list[depth.Quantity]:
        """Metrics that are told block by block: figures of their own, no lines."""
        return depth.quantities(self.shape["metrics"])

    @cached_property
    def layers(self) -> set[str]:
        return {metric for quantity in self.layered for metric in quantity.metrics.values()}

    @cached_property
    def known(self) -> list[str]:
        """Metrics that stand for themselves: no baselines, and none that is told block by block."""
        return [metric for metric in self.shape["metrics"] if metric not in self.layers and not is_baseline(metric)]

    @cached_property
    def headline(self) -> str:
        """The metric that stands for the measurement."""
        inside = {part for parts in self.shape["parts"].values() for part in parts}
        roots = [metric for metric in self.shape["parts"] if metric not in inside]
        return next((metric for metric in ("mean", *roots, *self.known) if metric in self.known), "")

    @cached_property
    def lines(self) -> list[Line]:
        """Metrics with intervals, parts below what they make up; baselines are marks in figures instead."""
        parts = self.shape["parts"]
        inside = {part for of in parts.values() for part in of}
        found: list[tuple[str, int]] = []

        def add(metric: str, depth: int) -> None:
            if metric not in self.sure or metric not in self.known or metric in (one for one, _ in found):
                return
            found.append((metric, depth))
            for part in parts.get(metric, ()):
                add(part, depth + 1)

        for metric in (self.headline, *(one for one in parts if one in self.known), *self.known):
            if metric == self.headline or metric not in inside:
                add(metric, 0)
        tops = [words.metric(metric) for metric, depth in found if not depth]
        return [Line(metric, depth, words.metric(metric) if depth else _label(metric, tops)) for metric, depth in found]

    @cached_property
    def unsure(self) -> list[Line]:
        """Quantities without an interval, which stand in the table all the same."""
        found = [metric for metric in self.known if metric not in self.sure and words.leaf(metric) in words.PLAIN]
        tops = [words.metric(metric) for metric in [*found, *(line.metric for line in self.lines)]]
        return [Line(metric, 0, _label(metric, tops)) for metric in found]

    @cached_property
    def others(self) -> list[str]:
        """What else has no interval: settings that were searched for, and means of nothing that is kept."""
        told = {line.metric for line in self.unsure}
        return [metric for metric in self.known if metric not in self.sure and metric not in told]

    def whole(self, metric: str) -> bool:
        """Whether its parts are lines too."""
        return not self.sure.isdisjoint(self.shape["parts"].get(metric, ())) and not self.layers.issuperset(self.shape["parts"][metric])

    # -- numbers

    @cached_property
    def _plain(self) -> frozenset[str]:
        """Last parts of metrics that are not all shares. What has parts is on one scale with them."""
        values: dict[str, list[float]] = {}
        plain: set[str] = set()
        sure = {words.leaf(metric) for metric in self.sure}
        for row in self.rows:
            leaf = words.leaf(row["metric"])
            if words.is_number(row["value"]) and (row["metric"] in self.sure or leaf not in sure):
                values.setdefault(leaf, []).append(row["value"])
                plain |= {leaf} if words.PLAIN.intersection(row["metric"].split("/")) else set()
        plain |= {leaf for leaf, of in values.items() if not all(0 <= value <= 1 for value in of)}
        families = [{words.leaf(one) for one in (metric, *parts)} for metric, parts in self.shape["parts"].items()]
        while more := {leaf for family in families if family & plain for leaf in family - plain}:
            plain |= more
        return frozenset(plain)

    @cached_property
    def _scales(self) -> dict[str, Scale]:
        return {metric: self._scale(metric) for metric in self.shape["metrics"]}

    def _scale(self, metric: str) -> Scale:
        leaf = words.leaf(metric)
        if leaf not in self._plain:
            return Scale(100, 1)
        values = [abs(row["value"]) for row in self.rows if words.leaf(row["metric"]) == leaf and words.is_number(row["value"])]
        pairs = [pair for pair in self.pairs if words.leaf(pair["metric"]) == leaf and pair["low"] is not None]
        ends = [abs(pair[end]) for pair in pairs for end in ("low", "high")]
        return Scale(1, words.decimals(max(values, default=0.0), max(ends, default=0.0)))

    def scale(self, metric: str) -> Scale:
        """How its numbers are written."""
        return self._scales.get(metric, Scale(100, 1))

    @property
    def percent(self) -> bool:
        """Whether all lines are."""
        return all(self.scale(line.metric).factor == 100 for line in [*self.lines, *self.unsure])

    @cached_property
    def arms(self) -> list[str]:
        return [arm for arm in self.tones if any(row["arm"] == arm for row in self.rows)]

    def row(self, arm: str, metric: str) -> Facts | None:
        """An arm's value: over its seeds if there are several."""
        of = [row for row in self.rows if (row["arm"], row["metric"]) == (arm, metric)]
        return next((row for row in of if row["seed"] is None), of[0] if of else None)

    def by_seed(self, arm: str, metric: str) -> dict[int, float]:
        """An arm's value at each of its seeds."""
        of = [row for row in self.rows if (row["arm"], row["metric"]) == (arm, metric) and row["seed"] is not None]
        return {row["seed"]: row["value"] for row in of if words.is_number(row["value"])}

    def pair(self, a: str, b: str, metric: str) -> Facts | None:
        return next((pair for pair in self.pairs if (pair["a"], pair["b"], pair["metric"]) == (a, b, metric)), None)

    @cached_property
    def contrasts(self) -> list[tuple[str, str]]:
        """Pairs of arms, those of two trained arms first: nothing but the objective is between them."""
        pairs = dict.fromkeys((pair["a"], pair["b"]) for pair in self.pairs)
        return sorted(pairs, key=lambda pair: pair[1] not in self.trained)

    def told(self, of: Facts | None, key: str = "value") -> Facts | None:
        """A value or difference as text, with its interval."""
        if of is None:
            return None
        show, scale = words.score if key == "value" else words.change, self.scale(of["metric"])
        text, *ends = (show(of[one], scale.factor, scale.digits) for one in (key, "low", "high"))
        if (
            of["low"] is None
            and scale.factor == 1
            and key == "difference"
            and words.is_number(of[key])
            and 0 < abs(of[key]) < 0.5 * 10**-scale.digits
        ):
            text = f"{'+' if of[key] > 0 else ''}{words.plain(of[key], 2)}"
        interval = f"[{', '.join(ends)}]" if of["low"] is not None else ""
        return {"text": text, "interval": interval, "n": of["n"], "seeds": of["seeds"]}

    def baseline(self, metric: str) -> tuple[float, str] | None:
        """What would be had without seeing anything, and how."""
        names = {prefix + metric: how for prefix, how in BASELINES.items()} | {f"{CHANCE}/{words.leaf(metric)}": CHANCE}
        names |= {CHANCE: CHANCE} if metric == self.headline else {}
        for name, how in names.items():
            value = next((row["value"] for arm in self.arms if (row := self.row(arm, name))), None)
            if value is not None and words.is_number(value):
                return value, how
        uninformed = words.UNINFORMED.get(words.leaf(metric)) if self.scale(metric).factor == 1 else None
        return None if uninformed is None else (uninformed, CHANCE)

    @cached_property
    def baselines(self) -> list[str]:
        """How what would be had without seeing anything comes about, for all lines."""
        return list(dict.fromkeys(found[1] for line in self.lines if (found := self.baseline(line.metric))))

    # -- tables

    def table(self) -> Facts:
        """Every number: a line a metric, with its values by arm and its differences by pair of arms."""
        return {
            "percent": self.percent,
            "arms": {arm: self.name(arm) for arm in self.arms},
            "contrasts": {pair: self.contrast(*pair) for pair in self.contrasts},
            "lines": [self._line(line) for line in [*self.lines, *self.unsure]],
        }

    def _line(self, line: Line) -> Facts:
        unit = ", %" if self.scale(line.metric).factor == 100 and not self.percent else ""
        return {
            "label": f"{line.label}{unit}",
            "depth": line.depth,
            "strong": self.whole(line.metric),
            "n": max((row["n"] for arm in self.arms if (row := self.row(arm, line.metric))), default=0),
            "values": {arm: self.told(self.row(arm, line.metric)) for arm in self.tones},
            "differences": {(a, b): self.told(self.pair(a, b, line.metric), "difference") for a, b in self.contrasts},
        }

    @property
    def glance(self) -> Facts:
        """The headline's line of the table, whether or not it has an interval."""
        return self._line(Line(self.headline, 0, words.metric(self.headline)))

    def rest(self) -> list[Facts]:
        """Metrics without an interval, as they are."""
        values = {metric: [self.row(arm, metric) for arm in self.arms] for metric in self.others}
        return [
            {"label": " ".join(_full(metric)), "values": [words.plain(row["value"]) if row else words.NONE for row in rows]}
            for metric, rows in values.items()
        ]


def is_baseline(metric: str) -> bool:
    return metric == CHANCE or metric.startswith(tuple(BASELINES))


def glances(measured: Sequence[Scores]) -> Facts | None:
    """The headline of each measurement of one run, in one table; None where nothing is measured."""
    shown = [one for one in measured if one.headline]
    if not shown:
        return None
    percent = all(one.scale(one.headline).factor == 100 for one in shown)
    lines = []
    for one in shown:
        name = "" if one.headline == "mean" else f", {words.metric(one.headline)}"
        unit = "" if percent or one.scale(one.headline).factor == 1 else ", %"
        lines.append({**one.glance, "label": f"{one.title}{name}{unit}", "strong": False})
    named = {arm: one.name(arm) for one in shown for arm in one.arms}
    contrasts = dict.fromkeys(pair for one in shown for pair in one.contrasts)
    return {
        "percent": percent,
        "arms": {arm: named[arm] for arm in shown[0].tones if arm in named},
        "contrasts": {pair: shown[0].contrast(*pair) for pair in sorted(contrasts, key=lambda pair: pair[1] not in shown[0].trained)},
        "lines": lines,
    }


def _full(metric: str) -> list[str]:
    """A metric's name behind what stands before it."""
    return [said for said in (words.variant(metric), words.metric(metric)) if said]


def _label(metric: str, names: Sequence[str]) -> str:
    """A metric's own name; with what stands before it where another has the same."""
    name = words.metric(metric)
    return " ".join(_full(metric)) if names.count(name) > 1 else name
