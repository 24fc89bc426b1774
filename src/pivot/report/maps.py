"""Maps over pictures, as SVG: class maps in the classes' colours, and shares as heat, with the outline of what is asked about.

Their colours are those of data and not of the page: the same by day, by night and on paper, as they lie on a picture. A picture is put
into the page once, in its item's first cell; the others use it from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from pivot.report import pictures
from pivot.report.figures import element

Facts = dict[str, Any]
Grid = Sequence[Sequence[float]]
FIFTH = 0.2  # of a patch that the region covers: from there on it is outlined
SIDE = 100  # of a cell's longer side, in its own units
# Each the farthest in OKLab from all before it, seen as most people do and as those who tell no red from green (deuteranopia, protanopia).
# Class 0 has none of them: there the picture itself is seen.
CLASSES = (
    *("#2673cc", "#ffe659", "#991a0d", "#f2a6ff", "#59a640", "#66337f", "#59ffcc", "#a68cb2", "#b2bf8c", "#0d7f73", "#99660d", "#5999ff"),
    *("#ffb233", "#1a594c", "#994ca6", "#0dcccc", "#b2e6ff", "#59997f", "#4040a6", "#ffcc99", "#59597f", "#737fbf", "#a65959", "#0da6d9"),
)
# From little to much, always lighter: it reads in grey as well.
HEAT = ("#1c1044", "#3b1260", "#5f1a6e", "#862573", "#ad346c", "#cf4a5a", "#e76a45", "#f48f3a", "#fab74a", "#fdf0a0")


def colours(numbers: Sequence[int]) -> dict[int, str]:
    """A colour for each class number but 0. Of more classes than there are colours, the first of those that occur have one alone."""
    shown = [number for number in sorted(numbers) if number > 0]
    own = max(shown, default=0) <= len(CLASSES)
    return {number: CLASSES[(number - 1 if own else place) % len(CLASSES)] for place, number in enumerate(shown)}


def section(found: Sequence[Facts], shape: Facts) -> Facts | None:
    """One measurement's items as pictures, of those of all measurements; None without any. A class has one colour on all of the page."""
    number = next((place for place, one in enumerate(found) if all(one[key] == shape[key] for key in ("run", "kind", "name"))), None)
    if number is None:
        return None
    tones = colours(list(pictures.classes([item for one in found for item in one["items"] if item["names"]])))
    named = {str(of): tone for of, tone in tones.items()}
    items = found[number]["items"]
    return {
        "items": [item(facts, f"picture-{number}-{place}", named) for place, facts in enumerate(items)],
        "legend": legend(pictures.classes([item for item in items if item["names"]]), tones),
        "heat": any(not item["names"] for item in items),
        "several": found[number]["several"],
    }


def item(facts: Facts, name: str, tones: Mapping[str, str]) -> Facts:
    """An item's cells: the picture, the truth, and a map for each arm. `name` is the picture's id in the page; `tones` are of classes."""
    picture = facts["picture"]
    longest = max(picture["width"], picture["height"])
    size = (SIDE * picture["width"] / longest, SIDE * picture["height"] / longest)
    small = "small" if longest < SIDE else None
    kept = element("image", id=name, href=picture["uri"], width=size[0], height=size[1], preserveAspectRatio="none", class_=small)
    again = element("use", href=f"#{name}")
    what = f"item {facts['id']}"
    if facts["names"]:
        cells = [_cell("image", [kept], size, f"{what}: the image")]
        cells.append(_cell("truth", [again, *_classes(facts["truth"], facts["names"], tones, size)], size, f"{what}: the truth"))
    else:
        told = "image, region outlined" if inside_from(facts["truth"]) > 0 else "image"
        cells = [_cell(told, [kept, *_outline(facts["truth"], size)], size, f"{what}: the image")]
    for arm, grid in facts["found"].items():
        if grid is None:
            cells.append({"arm": arm, "caption": "", "svg": None})
            continue
        if facts["names"]:
            drawn = [again, *_classes(grid, facts["names"], tones, size)]
        else:
            drawn = [again, *_heat(grid, size), *_outline(facts["truth"], size)]
        cells.append({**_cell("; ".join(facts["said"][arm]), drawn, size, f"{what}: {arm}"), "arm": arm})
    return {"id": facts["id"], "says": "\n".join(facts["says"]), "cells": cells}


def legend(names: Mapping[int, str], tones: Mapping[int, str]) -> list[Facts]:
    """The classes that occur, each with its colour; those without one are where the picture is seen."""
    return [
        {"name": name, "swatch": _swatch([tones[number]]) if number in tones else None} for number, name in names.items() if number >= 0
    ]


def scale() -> Markup:
    """The colours of heat, from 0 to 1."""
    return _swatch(HEAT)


def _swatch(fills: Sequence[str]) -> Markup:
    parts = [element("rect", x=6 * place, width=6, height=10, fill=fill) for place, fill in enumerate(fills)]
    view = f"0 0 {6 * len(fills)} 10"
    shape = "ramp" if len(fills) > 1 else "patch"
    return element("svg", *parts, class_=shape, viewBox=view, preserveAspectRatio="none", aria_hidden="true")


def _cell(caption: str, inside: Sequence[Markup], size: tuple[float, float], label: str) -> Facts:
    view = f"0 0 {size[0]:.4g} {size[1]:.4g}"
    return {"arm": None, "caption": caption, "svg": element("svg", *inside, class_="map", viewBox=view, role="img", aria_label=label)}


def _classes(grid: Grid, names: Mapping[str, str], tones: Mapping[str, str], size: tuple[float, float]) -> Iterator[Markup]:
    """A veil over the picture, and on it each class in its colour; where it is class 0 the veiled picture is seen."""
    yield element("rect", width=size[0], height=size[1], class_="veil")
    paths = []
    for number, path in _paths(grid, int).items():
        if str(number) in tones:
            title = element("title", names.get(str(number), f"class {number}"))
            paths.append(element("path", title, d=path, fill=tones[str(number)]))
    yield _fitted(grid, size, paths, "classes")


def _heat(grid: Grid, size: tuple[float, float]) -> Iterator[Markup]:
    """The picture in grey is what `veil` makes of it; patches lie on it in the colours of `HEAT`, the more opaque the more they have."""
    yield element("rect", width=size[0], height=size[1], class_="veil")
    steps = len(HEAT)
    paths = _paths(grid, lambda value: min(steps - 1, int(value * steps)))
    drawn = []
    for step, path in sorted(paths.items()):
        title = element("title", f"{step / steps:g} to {(step + 1) / steps:g}")
        drawn.append(element("path", title, d=path, fill=HEAT[step], opacity=0.25 + 0.65 * step / steps))
    yield _fitted(grid, size, drawn, "heat")


def _fitted(grid: Grid, size: tuple[float, float], inside: Sequence[Markup], kind: str) -> Markup:
    """Drawn in patches, stretched over the picture."""
    return element("g", *inside, class_=kind, transform=f"scale({size[0] / len(grid[0]):.5g} {size[1] / len(grid):.5g})")


def _paths(grid: Grid, key: Any) -> dict[int, str]:
    """One path for all patches of a kind; patches side by side are one rectangle."""
    found: dict[int, list[str]] = {}
    for y, row in enumerate(grid):
        x = 0
        for kind, run in groupby(row, key=key):
            wide = len(list(run))
            found.setdefault(kind, []).append(f"M{x} {y}h{wide}v1h-{wide}z")
            x += wide
    return {kind: "".join(parts) for kind, parts in found.items()}


def inside_from(truth: Grid) -> float:
    """How much of a patch must be region for it to be outlined: a fifth, or where no patch has as much, what the fullest has."""
    return min(FIFTH, max(value for row in truth for value in row))


def _outline(truth: Grid, size: tuple[float, float]) -> Iterator[Markup]:
    """Around the patches that hold some of the region: light on dark, so that it is seen on any picture."""
    least = inside_from(truth)
    inside = {(x, y) for y, row in enumerate(truth) for x, value in enumerate(row) if 0 < least <= value}
    edges = []
    for x, y in sorted(inside):
        edges += [f"M{x} {y}v1"] * ((x - 1, y) not in inside) + [f"M{x + 1} {y}v1"] * ((x + 1, y) not in inside)
        edges += [f"M{x} {y}h1"] * ((x, y - 1) not in inside) + [f"M{x} {y + 1}h1"] * ((x, y + 1) not in inside)
    if edges:
        path = "".join(edges)
        yield _fitted(truth, size, [element("path", d=path, class_=width) for width in ("under", "over")], "outline")
