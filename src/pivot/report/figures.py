"""Small SVG figures from plain data: curves, and dots with their intervals.

Colours, fonts and line widths are the page's: a mark carries the class `tone-N` of its series, and the style sheet says what that
is in light, in dark and on paper. What the pointer rests on names itself, by <title> or by a read-out that CSS shows; there is no script.
Everything that comes from data is escaped by `element`, the one place where markup is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from pivot.report import words

WIDTH = 340  # of every figure, in its own units: a column on a desk, the whole width of a telephone
TONES = 8
LETTER = 5.7  # mean width of a letter at the figures' font size
POINTS = 160  # of a curve; more are averaged in bins
READINGS = 60  # places of a curve that can be pointed at


def element(name: str, *inside: Any, **attributes: Any) -> Markup:
    """One SVG element. `class_` is class, `text_anchor` is text-anchor; None leaves an attribute out; floats are rounded."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_round(value))}"' for key, value in attributes.items() if value is not None
    )
    return Markup(f"<{name}{told}>{''.join(escape(one) for one in inside)}</{name}>")


def _round(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def line(x1: float, y1: float, x2: float, y2: float, class_: str | None = None) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, *inside: Any, class_: str | None = None) -> Markup:
    return element("text", *inside, x=x, y=y, class_=class_)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_names(at: Sequence[float]) -> dict[float, str]:
    """What stands at each tick: as many decimals as their distance needs, so that no two read alike."""
    step = abs(at[1] - at[0]) if len(at) > 1 else abs(at[0]) or 1.0
    if step < 1e-4 or max(map(abs, at)) >= 1e5:
        return {one: words.plain(one) for one in at}
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
    return {one: f"{one:.{decimals}f}".replace("-", words.MINUS) for one in at}


def span(values: Sequence[float], pad: float = 0.06, least: float = 0.0) -> tuple[float, float]:
    """The range of an axis: what the values need and a little more, at least `least` wide."""
    low, high = min(values), max(values)
    room = max((high - low) * pad, (least - (high - low)) / 2, abs(high) * 1e-3, 1e-9)
    return low - room, high + room


@dataclass(frozen=True)
class Axis:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


# ---- dots with intervals


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in what it is drawn, and what it says when pointed at."""

    value: float
    low: float
    high: float
    tone: int
    title: str


@dataclass(frozen=True)
class Row:
    """One line of a dot figure: the dots of its series; `note` stands at the right, `reference` is a thin mark and what it says."""

    label: str
    dots: Sequence[Dot]
    strong: bool = False
    note: str = ""
    reference: tuple[float, str] | None = None


def dots(rows: Sequence[Row], low: float, high: float, label: str, zero: bool = False) -> Markup:
    """Rows of dots on one axis. `zero` draws the line of no difference."""
    notes = any(row.note for row in rows)
    axis = Axis(low, high, 112, WIDTH - (50 if notes else 12))
    heights = [9 + 10 * max(1, len(row.dots)) for row in rows]
    height = sum(heights) + 8
    drawn = []
    for at, name in tick_names(ticks(low, high)).items():
        told = text(axis(at), height + 14, name)
        drawn.append(element("g", line(axis(at), 4, axis(at), height), told, class_="tick"))
    if zero and low <= 0 <= high:
        drawn.append(line(axis(0), 4, axis(0), height, "zero"))
    top = 6.0
    for row, tall in zip(rows, heights, strict=True):
        drawn.append(_row(row, axis, top, tall))
        top += tall
    return _svg(drawn, height + 20, label)


def _row(row: Row, axis: Axis, top: float, tall: float) -> Markup:
    middle = top + tall / 2
    parts = [_label(row.label, middle + 4)]
    if row.reference and axis.low <= row.reference[0] <= axis.high:
        at = axis(row.reference[0])
        parts.append(element("g", element("title", row.reference[1]), line(at, top + 2, at, top + tall - 2), class_="reference"))
    for place, dot in enumerate(row.dots):
        parts.append(_dot(dot, axis, middle + 10 * (place - (len(row.dots) - 1) / 2)))
    if row.note:
        parts.append(text(WIDTH - 2, middle + 4, row.note, class_="note"))
    return element("g", *parts, class_="row strong" if row.strong else "row")


def _label(name: str, y: float) -> Markup:
    """A row's label, cut where there is no room; the whole of it shows when pointed at."""
    cut = _cut(name, 18)
    return text(104, y, cut, *([element("title", name)] if cut != name else []), class_="label")


def _dot(dot: Dot, axis: Axis, y: float) -> Markup:
    x, left, right = axis(dot.value), axis(max(dot.low, axis.low)), axis(min(dot.high, axis.high))
    return element(
        "g",
        element("title", dot.title),
        element("rect", x=axis.start, y=y - 5, width=axis.end - axis.start, height=10, class_="hit"),
        line(left, y, right, y),
        mark(dot.tone, x, y),
        class_=f"dot tone-{dot.tone % TONES}",
    )


def mark(tone: int, x: float, y: float, size: float = 3.4) -> Markup:
    """A series' mark: its shape tells it apart where colour cannot."""
    shape = tone % 4
    if shape == 0:
        return element("circle", cx=x, cy=y, r=size)
    if shape == 1:
        return element("rect", x=x - size * 0.9, y=y - size * 0.9, width=size * 1.8, height=size * 1.8, class_="mark")
    corners = [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)] if shape == 2 else [(0, -1.2), (1.15, 0.85), (-1.15, 0.85)]
    return element("polygon", points=" ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in corners))


def swatch(tone: int) -> Markup:
    """A series' mark, to stand in a line of text."""
    inside = [element("line", x1=0, x2=16, y1=6, y2=6), mark(tone, 8, 6)]
    return element(
        "svg", element("g", *inside, class_=f"dot tone-{tone % TONES}"), class_="swatch", viewBox="0 0 16 12", aria_hidden="true"
    )


# ---- curves


@dataclass(frozen=True)
class Series:
    """One curve. A `sparse` one is drawn with its points, as what is measured now and then; a `faint` one stays behind.

    `end` is written at its end, `label` before its value where the pointer rests; one without a label is not read out.
    """

    label: str
    points: Sequence[tuple[float, float]]
    tone: int
    sparse: bool = False
    faint: bool = False
    end: str = ""


def curves(
    series: Sequence[Series],
    label: str,
    x_label: str = "step",
    low: float | None = None,
    high: float | None = None,
    names: Mapping[int, str] | None = None,
) -> Markup:
    """Curves over steps, labelled at their ends. `low` and `high` fix an end of the value axis; `names` say what each step is called."""
    drawn_series = [replace(one, points=thinned(one.points, POINTS), end=_cut(one.end)) for one in series if one.points]
    if not drawn_series:
        return element("p", "no values", class_="none")
    room = max(14 + LETTER * max(len(one.end) for one in drawn_series), 0 if names is None else 20 + LETTER * len(x_label))
    steps = [x for one in drawn_series for x, _ in one.points]
    bottom, top = span([y for one in drawn_series for _, y in one.points])
    y = Axis(bottom if low is None else low, top if high is None else high, 178, 34)
    heights = tick_names(ticks(y.low, y.high, 4))
    left = max(34.0, 10 + LETTER * max(len(name) for name in heights.values()))
    x = Axis(min(steps), max(max(steps), min(steps) + 1), left, WIDTH - min(room, 110))
    drawn = []
    for at, name in heights.items():
        told = text(x.start - 6, y(at) + 4, name, class_="left")
        drawn.append(element("g", line(x.start, y(at), x.end, y(at)), told, class_="tick"))
    drawn += [element("g", text(x(at), 194, name), class_="tick") for at, name in _steps(x, names).items()]
    drawn.append(text(x.start - 6 if names is None else WIDTH - 2, 194, x_label, class_="axis"))
    drawn += [_curve(one, x, y) for one in sorted(drawn_series, key=lambda one: (not one.faint, one.sparse))]
    drawn += _ends(drawn_series, x, y)
    drawn += _readings([one for one in drawn_series if one.label], x, y, x_label, names or {})
    return _svg(drawn, 200, label)


def _steps(x: Axis, names: Mapping[int, str] | None) -> dict[float, str]:
    """What stands below a curve. Of names that are numbers as many as there is room for, the others always."""
    if names is None:
        return {at: words.count(at) for at in ticks(x.low, x.high, 4) if at == int(at)}
    numbers = [at for at, name in names.items() if name.isdecimal()]
    shown = numbers[:: math.ceil(len(numbers) / 8) or 1]
    return {float(at): name for at, name in names.items() if at in shown or not name.isdecimal()}


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points; where there are more, neighbours are averaged."""
    size = math.ceil(len(points) / most)
    bins = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in bins]


def _cut(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _curve(one: Series, x: Axis, y: Axis) -> Markup:
    path = "M" + "L".join(f"{x(at):.1f},{y(value):.1f}" for at, value in one.points)
    parts = [element("path", d=path)]
    if one.sparse or len(one.points) == 1:
        parts += [mark(one.tone, x(at), y(value), 2.4) for at, value in one.points]
    return element("g", *parts, class_=f"curve tone-{one.tone % TONES}{' faint' if one.faint else ''}")


def _ends(series: Sequence[Series], x: Axis, y: Axis) -> Iterator[Markup]:
    """Labels at the ends of curves, pushed apart where they would touch."""
    places: list[float] = []
    for one in sorted((one for one in series if one.end), key=lambda one: y(one.points[-1][1])):
        at = max(y(one.points[-1][1]) + 4, places[-1] + 12 if places else 0)
        places.append(at)
        yield text(x.end + 6, at, one.end, class_=f"end tone-{one.tone % TONES}")


def _readings(series: Sequence[Series], x: Axis, y: Axis, x_label: str, names: Mapping[int, str]) -> Iterator[Markup]:
    """Invisible bands over the plot; the one under the pointer shows its step and every curve's value there, above the plot."""
    steps = sorted({at for one in series for at, _ in one.points})
    steps = steps[:: math.ceil(len(steps) / READINGS)]
    edges = [x.start, *((x(a) + x(b)) / 2 for a, b in pairwise(steps)), x.end]
    for step, left, right in zip(steps, edges, edges[1:], strict=False):
        near = [(one, min(one.points, key=lambda point: abs(point[0] - step))) for one in series]
        told = [(one, value) for one, (at, value) in near if abs(at - step) <= (steps[-1] - steps[0]) / 40]
        head = names.get(round(step), words.count(round(step)))
        named: list[tuple[str, str | None]] = [(head if head and not head[0].isdecimal() else f"{x_label} {head}", None)]
        named += [(f"{one.label}: {words.plain(value)}", f"tone-{one.tone % TONES}") for one, value in told]
        half = len(named) if len(named) < 4 else math.ceil(len(named) / 2)
        halves = [one for one in (named[:half], named[half:]) if one]
        yield element(
            "g",
            element("rect", x=left, y=y.end, width=max(0.5, right - left), height=y.start - y.end, class_="hit"),
            line(x(step), y.end, x(step), y.start),
            *(text(4, 11 + 13 * row, *_spans(one)) for row, one in enumerate(halves)),
            class_="reading",
        )


def _spans(named: Sequence[tuple[str, str | None]]) -> Iterator[Markup]:
    for place, (said, tone) in enumerate(named):
        yield element("tspan", said, dx=9 if place else None, class_=tone)


def _svg(inside: Sequence[Markup], height: float, label: str) -> Markup:
    return element("svg", *inside, class_="figure", viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=label)
