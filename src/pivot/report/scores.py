"""One measurement of all arms, ready to be shown: figures of scores and of paired differences, and the table with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pivot.report import figures, words
from pivot.report.figures import Dot, Row

Facts = dict[str, Any]
BASELINE = "majority/"  # metrics of this name say what always answering the most frequent class would give


@dataclass(frozen=True)
class Line:
    """A metric in its place: how deep it lies below the headline, and what it is called beside the others."""

    metric: str
    depth: int
    label: str


@dataclass(frozen=True)
class Scores:
    """One measurement (`shape`) of one run: its rows and pairs, and in what tone each arm is drawn."""

    shape: Facts
    rows: Sequence[Facts]
    pairs: Sequence[Facts]
    tones: Mapping[str, int]
    trained: frozenset[str]
    prefix: str = ""  # before the names of this run's arms, where there are several runs

    @classmethod
    def of(cls, found: Facts, shape: Facts, tones: Mapping[str, int]) -> Scores:
        """What `collect` found on one measurement."""
        arms = {name for name, arm in found["arms"].items() if arm["run"] == shape["run"]}
        key = (shape["kind"], shape["name"])
        rows = [row for row in found["rows"] if (row["kind"], row["name"]) == key and row["arm"] in arms]
        pairs = [pair for pair in found["pairs"] if (pair["kind"], pair["name"]) == key and pair["a"] in arms]
        trained = frozenset(name for name, arm in found["arms"].items() if arm["trained"])
        return cls(shape, rows, pairs, tones, trained, f"{shape['run']}: " if len(found["runs"]) > 1 else "")

    def name(self, arm: str) -> str:
        """What an arm is called among those of its own run."""
        return arm.removeprefix(self.prefix)

    def contrast(self, a: str, b: str) -> str:
        return f"{self.name(a)} {words.MINUS} {self.name(b)}"

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
    def headline(self) -> str:
        """The metric that stands for the measurement."""
        inside = {part for parts in self.shape["parts"].values() for part in parts}
        roots = [metric for metric in self.shape["parts"] if metric not in inside]
        known = self.shape["metrics"]
        return next((metric for metric in ("mean", *roots, *known) if metric in known), "")

    @cached_property
    def lines(self) -> list[Line]:
        """Metrics with intervals, parts below what they make up; baselines are marks in figures instead."""
        parts = self.shape["parts"]
        inside = {part for of in parts.values() for part in of}
        found: list[tuple[str, int]] = []

        def add(metric: str, depth: int) -> None:
            if metric not in self.sure or metric in (one for one, _ in found):
                return
            found.append((metric, depth))
            for part in parts.get(metric, ()):
                add(part, depth + 1)

        for metric in (self.headline, *parts, *self.shape["metrics"]):
            if not metric.startswith(BASELINE) and (metric == self.headline or metric not in inside):
                add(metric, 0)
        tops = [words.metric(metric) for metric, depth in found if not depth]
        return [Line(metric, depth, words.metric(metric) if depth else _label(metric, tops)) for metric, depth in found]

    @cached_property
    def others(self) -> list[str]:
        """Metrics without an interval: settings that were searched for, and means of nothing that is kept."""
        return [metric for metric in self.shape["metrics"] if metric not in self.sure]

    @cached_property
    def panels(self) -> list[tuple[str, list[Line]]]:
        """Lines in figures of their own: what has parts, with these."""
        depth = {line.metric: line for line in self.lines}
        found, drawn = [], set()
        for line in self.lines:
            parts = [depth[part] for part in self.shape["parts"].get(line.metric, ()) if part in depth]
            if parts:
                found.append((self._caption(line), [line, *parts]))
                drawn |= {line.metric, *(part.metric for part in parts)}
        alone = [line for line in self.lines if line.metric not in drawn]
        return [*found, *([("Further metrics" if found else self.shape["name"], alone)] if alone else [])]

    def _caption(self, line: Line) -> str:
        if line.depth:
            return line.label
        prefix = line.metric.rpartition("/")[0].replace("_", " ")
        return prefix.capitalize() or ("Overall" if line.metric == self.headline else line.label)

    # -- numbers

    @cached_property
    def scale(self) -> int:
        """100 where all values are shares, so that they are shown in percent and their differences in points."""
        values = [row["value"] for row in self.rows if row["metric"] in self.sure and words.is_number(row["value"])]
        return 100 if values and all(0 <= value <= 1 for value in values) else 1

    @property
    def unit(self) -> str:
        return f"{words.THIN}%" if self.scale == 100 else ""

    @cached_property
    def arms(self) -> list[str]:
        return [arm for arm in self.tones if any(row["arm"] == arm for row in self.rows)]

    def row(self, arm: str, metric: str) -> Facts | None:
        """An arm's value: over its seeds if there are several."""
        of = [row for row in self.rows if (row["arm"], row["metric"]) == (arm, metric)]
        return next((row for row in of if row["seed"] is None), of[0] if of else None)

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
        show = words.score if key == "value" else words.change
        sure = of["low"] is not None
        interval = f"[{show(of['low'], self.scale)}, {show(of['high'], self.scale)}]" if sure else ""
        return {"text": show(of[key], self.scale), "interval": interval, "n": of["n"], "seeds": of["seeds"]}

    # -- figures and table

    def figures(self) -> list[Facts]:
        """One figure a panel, all on one axis."""
        values = [
            self.scale * row[key] for row in self.rows for key in ("low", "high") if row["low"] is not None and self._drawn(row["metric"])
        ]
        if not values:
            return []
        low, high = figures.span(values, 0.03)
        low, high = (max(0.0, low), min(100.0, high)) if self.scale == 100 else (low, high)
        return [
            {"caption": caption, "svg": figures.dots([self._dots(line) for line in lines], low, high, f"{self.title}, {caption}: scores")}
            for caption, lines in self.panels
        ]

    def _drawn(self, metric: str) -> bool:
        return any(line.metric == metric for line in self.lines)

    def _dots(self, line: Line) -> Row:
        dots = []
        for arm in self.arms:
            row = self.row(arm, line.metric)
            if row and row["low"] is not None:
                told = self.told(row)
                title = f"{self.name(arm)}, {line.label}: {told['text']}{self.unit} {told['interval']}, {row['n']} items" if told else ""
                dots.append(Dot(self.scale * row["value"], self.scale * row["low"], self.scale * row["high"], self.tones[arm], title))
        baseline = next((row["value"] for arm in self.arms if (row := self.row(arm, BASELINE + line.metric))), None)
        reference = None
        if baseline is not None and words.is_number(baseline):
            says = f"{line.label}: always the most frequent class gives {words.score(baseline, self.scale)}{self.unit}"
            reference = (self.scale * baseline, says)
        return Row(line.label, dots, bool(self.shape["parts"].get(line.metric)), reference=reference)

    @property
    def has_baseline(self) -> bool:
        return any(metric.startswith(BASELINE) for metric in self.shape["metrics"])

    def difference_figures(self) -> list[Facts]:
        """One figure a pair of arms, all on one axis."""
        drawn = [pair for pair in self.pairs if pair["low"] is not None and self._drawn(pair["metric"])]
        if not drawn:
            return []
        ends = [self.scale * pair[key] for pair in drawn for key in ("low", "high")]
        low, high = figures.span([*ends, 0.0], 0.03)
        found = []
        for a, b in self.contrasts:
            rows = [row for line in self.lines if (row := self._difference(a, b, line))]
            title = self.contrast(a, b)
            if rows:
                found.append({"a": a, "b": b, "caption": title, "svg": figures.dots(rows, low, high, f"{self.title}, {title}", zero=True)})
        return found

    def _difference(self, a: str, b: str, line: Line) -> Row | None:
        pair = self.pair(a, b, line.metric)
        told = self.told(pair, "difference")
        if pair is None or told is None or pair["low"] is None:
            return None
        title = f"{self.contrast(a, b)}, {line.label}: {told['text']} {told['interval']}, {pair['n']} items"
        dot = Dot(self.scale * pair["difference"], self.scale * pair["low"], self.scale * pair["high"], self.tones[a], title)
        return Row(line.label, [dot], bool(self.shape["parts"].get(line.metric)), note=told["text"])

    def table(self) -> list[Facts]:
        """Every number: a line a metric, with its values by arm and its differences by pair of arms."""
        return [self._line(line) for line in self.lines]

    def _line(self, line: Line) -> Facts:
        return {
            "label": line.label,
            "depth": line.depth,
            "strong": bool(self.shape["parts"].get(line.metric)),
            "n": max((row["n"] for arm in self.arms if (row := self.row(arm, line.metric))), default=0),
            "values": {arm: self.told(self.row(arm, line.metric)) for arm in self.tones},
            "differences": {(a, b): self.told(self.pair(a, b, line.metric), "difference") for a, b in self.contrasts},
        }

    @property
    def glance(self) -> Facts:
        """The headline's line of the table."""
        return self._line(next((line for line in self.lines if line.metric == self.headline), self.lines[0]))

    def rest(self) -> list[Facts]:
        """Metrics without an interval, as they are."""
        values = {metric: [self.row(arm, metric) for arm in self.arms] for metric in self.others}
        return [
            {"label": metric.replace("_", " "), "values": [words.plain(row["value"]) if row else words.NONE for row in rows]}
            for metric, rows in values.items()
        ]


def _label(metric: str, names: Sequence[str]) -> str:
    """A metric's own name; with what stands before it where another has the same."""
    name = words.metric(metric)
    prefix = metric.rpartition("/")[0]
    return f"{prefix} {name}".replace("_", " ") if prefix and names.count(name) > 1 else name
