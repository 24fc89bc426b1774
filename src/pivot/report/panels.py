"""Figures of one measurement: scores as dots with intervals, and paired differences. What is on one scale shares an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pivot.report import figures, words
from pivot.report.figures import Dot, Row
from pivot.report.scores import Line, Scores

Facts = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """Lines in a figure of their own. Panels of one `axis` have the same ends."""

    caption: str
    lines: Sequence[Line]
    axis: str


def panels(scores: Scores) -> list[Panel]:
    """What has parts, with these; of the rest shares together, and each other quantity by itself, in all of its variants."""
    depth = {line.metric: line for line in scores.lines}
    found, drawn = [], set()
    for line in scores.lines:
        parts = [depth[part] for part in scores.shape["parts"].get(line.metric, ()) if part in depth]
        if parts:
            found.append(Panel(_caption(scores, line), [line, *parts], "share" if _is_share(scores, line) else "whole"))
            drawn |= {line.metric, *(part.metric for part in parts)}
    alone = [line for line in scores.lines if line.metric not in drawn]
    groups: dict[str, list[Line]] = {}
    for line in alone:
        groups.setdefault("share" if _is_share(scores, line) else words.leaf(line.metric), []).append(line)
    for axis, lines in groups.items():
        if (quantity := _quantity(lines)) and (found or len(groups) > 1):
            found.append(Panel(words.heading(quantity), [_in_its_panel(line) for line in lines], axis))
        else:
            found.append(Panel("Further metrics" if found else "Shares" if len(groups) > 1 else scores.shape["name"], lines, axis))
    return found


def _is_share(scores: Scores, line: Line) -> bool:
    return scores.scale(line.metric).factor == 100


def _quantity(lines: Sequence[Line]) -> str:
    """What all of them are variants of; '' where they are not."""
    quantities = {words.metric(line.metric) for line in lines}
    return quantities.pop() if len(quantities) == 1 else ""


def _in_its_panel(line: Line) -> Line:
    """Beside other variants of one quantity the variant is what names a line."""
    return Line(line.metric, line.depth, words.variant(line.metric) or words.metric(line.metric))


def _caption(scores: Scores, line: Line) -> str:
    if line.depth:
        return line.label
    prefix = words.variant(line.metric)
    return words.heading(prefix) or ("Overall" if line.metric == scores.headline else line.label)


def scored(scores: Scores) -> list[Facts]:
    """A figure a panel."""
    every = panels(scores)
    found = []
    for one in every:
        low, high = _ends(scores, [line for other in every if other.axis == one.axis for line in other.lines])
        caption = f"{one.caption}, %" if one.axis == "share" and not scores.percent else one.caption
        svg = figures.dots([_scored(scores, line) for line in one.lines], low, high, f"{scores.title}, {caption}: scores")
        found.append({"caption": caption, "svg": svg})
    return found


def _ends(scores: Scores, lines: Sequence[Line]) -> tuple[float, float]:
    """Of an axis: what the intervals of all arms need, and what would be had without seeing anything."""
    factor = scores.scale(lines[0].metric).factor
    inside = {line.metric for line in lines}
    values = [factor * row[key] for row in scores.rows for key in ("low", "high") if row["low"] is not None and row["metric"] in inside]
    values += [factor * found[0] for line in lines if (found := scores.baseline(line.metric))]
    low, high = figures.span(values, 0.03)
    return (max(0.0, low), min(100.0, high)) if factor == 100 else (low, high)


def _scored(scores: Scores, line: Line) -> Row:
    scale, dots = scores.scale(line.metric), []
    for arm in scores.arms:
        row = scores.row(arm, line.metric)
        if row and row["low"] is not None:
            told = scores.told(row)
            title = f"{scores.name(arm)}, {line.label}: {told['text']}{scale.unit} {told['interval']}, {row['n']} items" if told else ""
            value, low, high = (scale.factor * row[key] for key in ("value", "low", "high"))
            dots.append(Dot(value, low, high, scores.tones[arm], title))
    reference = None
    if baseline := scores.baseline(line.metric):
        value, how = baseline
        says = f"{line.label}: {how} gives {words.score(value, scale.factor, scale.digits)}{scale.unit}"
        reference = (scale.factor * value, says)
    return Row(line.label, dots, scores.whole(line.metric), reference=reference)


def differences(scores: Scores) -> list[Facts]:
    """A figure for each pair of arms, all on one axis; of what are no shares, one for each quantity."""
    groups: dict[str, list[Panel]] = {}
    for panel in panels(scores):
        groups.setdefault(panel.axis, []).append(panel)
    found = []
    for axis, of in groups.items():
        unit = "points" if axis == "share" and not scores.percent else ""
        quantity = _quantity(of[0].lines) if len(of) == 1 and len(groups) > 1 else ""
        # Without a quantity of their own as in the table, where a part stands below its whole.
        inside = {line.metric for panel in of for line in panel.lines}
        lines = of[0].lines if quantity else [line for line in scores.lines if line.metric in inside]
        found += _contrasts(scores, lines, ", ".join(said for said in (quantity, unit) if said))
    return found


def _contrasts(scores: Scores, lines: Sequence[Line], caption: str) -> list[Facts]:
    factor = scores.scale(lines[0].metric).factor
    inside = {line.metric for line in lines}
    drawn = [pair for pair in scores.pairs if pair["low"] is not None and pair["metric"] in inside]
    if not drawn:
        return []
    low, high = figures.span([*(factor * pair[key] for pair in drawn for key in ("low", "high")), 0.0], 0.03)
    found = []
    for a, b in scores.contrasts:
        rows = [row for line in lines if (row := _difference(scores, a, b, line))]
        title = ", ".join(one for one in (scores.contrast(a, b), caption) if one)
        if rows:
            svg = figures.dots(rows, low, high, f"{scores.title}, {title}", zero=True)
            found.append({"a": a, "b": b, "caption": title, "svg": svg})
    return found


def _difference(scores: Scores, a: str, b: str, line: Line) -> Row | None:
    pair = scores.pair(a, b, line.metric)
    told = scores.told(pair, "difference")
    if pair is None or told is None or pair["low"] is None:
        return None
    factor = scores.scale(line.metric).factor
    title = f"{scores.contrast(a, b)}, {line.label}: {told['text']} {told['interval']}, {pair['n']} items"
    value, low, high = (factor * pair[key] for key in ("difference", "low", "high"))
    dot = Dot(value, low, high, scores.tones[a], title)
    return Row(line.label, [dot], scores.whole(line.metric), note=told["text"])
