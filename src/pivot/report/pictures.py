"""Items as pictures: what a probe found of an image under each arm, side by side.

Measurements may come from elsewhere. What is no picture and no map that a page can bear is named and left out, and what is shown has been
decoded and encoded anew, so that nothing but pixels reaches the page.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pivot.markup import thumbnail
from pivot.records import BadInput, Measurement, Shown

Facts = dict[str, Any]
SHOWN = 6  # items of a measurement
LARGEST = 192  # pixels of the longer side
DRAWN = 96  # up to so many pixels a picture is a drawing and stays as it is; a larger one becomes a JPEG
HEAVIEST = 1_000_000  # characters of a picture
FINEST = 96  # patches on one side of a map
CLASS = re.compile(r"-1|\d{1,9}")  # -1 is what lies outside of the picture
URI = re.compile(r"data:image/(?:png|jpeg);base64,(?P<content>[A-Za-z0-9+/]+={0,2})")


def shown(stored: Any) -> Shown:
    """One item as a measurement's file has it, or a `BadInput` that says why a page cannot show it."""
    try:
        one = Shown(**stored)
    except TypeError as why:
        raise BadInput(f"a picture of it is none that this version knows ({why})") from None
    if not isinstance(one.id, str) or not isinstance(one.says, str) or not _are_names(one.names):
        raise BadInput("a picture of it has an id, words or names that are no texts")
    if not isinstance(one.picture, str) or len(one.picture) > HEAVIEST or not URI.fullmatch(one.picture):
        raise BadInput(f"the picture of {one.id} is no PNG or JPEG of at most {HEAVIEST / 1e6:g} MB within the file")
    for what, rows in {"map": one.found, "truth": one.truth}.items():
        if fault := _fault(rows, bool(one.names)):
            raise BadInput(f"the {what} of {one.id} {fault}")
    return one


def _are_names(names: Any) -> bool:
    return isinstance(names, Mapping) and all(CLASS.fullmatch(key) and isinstance(name, str) for key, name in names.items())


def _fault(rows: Any, classes: bool) -> str:
    """What is wrong with rows of patches; '' for nothing."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        return "has no rows of patches"
    if len({len(row) for row in rows}) > 1:
        return "has rows of unlike length"
    if max(len(rows), len(rows[0])) > FINEST:
        return f"has {len(rows)} x {len(rows[0])} patches, more than {FINEST} on a side"
    values = [value for row in rows for value in row]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values):
        return "holds what is no number"
    if classes and not all(-1 <= value < 1e9 and value == int(value) for value in values):
        return "holds what is no class number"
    return "" if classes or all(0 <= value <= 1 for value in values) else "holds what is no share from 0 to 1"


def gallery(arms: Mapping[str, Measurement], leave_out: Callable[[str, str], None]) -> list[Facts]:
    """Up to `SHOWN` items, each with the map of every arm that has one. `leave_out` is told the arm and why.

    Of what is said, lines that all arms have are the item's (`says`), the others the arm's (`said`).
    """
    found: list[Facts] = []
    for item in dict.fromkeys(one.id for measured in arms.values() for one in measured.shown):
        of = {arm: one for arm, measured in arms.items() for one in measured.shown if one.id == item}
        arm, first = next(iter(of.items()))
        try:
            picture = thumbnail(_content(first), LARGEST, DRAWN)
        except BadInput as why:
            leave_out(arm, f"the picture of {item}: {why}")
            continue
        # Of class maps it is said how well they fit, even where all arms' fit alike.
        common = [line for line in _lines(first) if not first.names and all(line in _lines(one) for one in of.values())]
        found.append(
            {
                "id": item,
                "picture": picture,
                "says": common,
                "said": {arm: [line for line in _lines(one) if line not in common] for arm, one in of.items()},
                "names": dict(first.names),
                "truth": first.truth,
                "found": {arm: of[arm].found if arm in of else None for arm in arms},
            }
        )
        if len(found) == SHOWN:
            break
    return found


def _lines(one: Shown) -> list[str]:
    return [line for line in one.says.splitlines() if line.strip()]


def _content(one: Shown) -> bytes:
    match = URI.fullmatch(one.picture)
    assert match, "checked when it was read"
    try:
        return base64.b64decode(match["content"], validate=True)
    except ValueError:
        raise BadInput("is no base64") from None


def classes(items: Sequence[Facts]) -> dict[int, str]:
    """Number and name of every class that occurs in the items, by number."""
    found: dict[int, str] = {}
    for item in items:
        grids = [item["truth"], *(grid for grid in item["found"].values() if grid)]
        for number in {int(value) for grid in grids for row in grid for value in row}:
            found.setdefault(number, item["names"].get(str(number), f"class {number}"))
    return dict(sorted(found.items()))
