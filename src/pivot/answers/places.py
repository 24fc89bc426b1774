"""Boxes, and how far two of them overlap."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class Box(NamedTuple):
    """Two corners, in whatever coordinates."""

    left: float
    top: float
    right: float
    bottom: float


SIDES = {"x1": 0, "xmin": 0, "left": 0, "y1": 1, "ymin": 1, "top": 1, "x2": 2, "xmax": 2, "right": 2, "y2": 3, "ymax": 3, "bottom": 3}
SIDE = re.compile(r"(?<!\w)[\"']?([xy]_?(?:min|max|[12])|left|top|right|bottom)[\"']?\s*+[:=]", re.IGNORECASE)
# Possessive, or a long run of digits would be tried from each of its ends.
COORDINATE = re.compile(r"(?<![\w.])(?:(?<![\d)\]])[-−])?+(?:\d++(?:\.\d++)?+|\.\d++)(?![\w%])")
LIST = re.compile(r"[\[({]([^\[\](){}]*+)[\])}]")
BETWEEN = " ,;\t\r\n\"'"
JOINS = re.compile(r"[^\d.!?{}]{0,24}")  # one corner and the other: "],[", " to ", ", bottom right "
FAR = 1e6  # no picture is so large: what lies beyond is no place in one


def boxes(reply: str) -> list[Box]:
    """The boxes that a reply gives, in its order: those in brackets or, if there are none, four numbers in a row."""
    reply = unicodedata.normalize("NFKC", reply)
    found: list[Box] = []
    corner: tuple[list[float], int] | None = None
    for bracket in LIST.finditer(reply):
        sides = _sides(bracket[1])
        if corner and len(sides) == 2 and JOINS.fullmatch(reply, corner[1], bracket.start()):
            sides = [*corner[0], *sides]
        corner = (sides, bracket.end()) if len(sides) == 2 else None
        if len(sides) == 4:
            found.append(Box(*sides))
    return found or _bare(reply)


def _sides(words: str) -> list[float]:
    """The numbers of a list that holds nothing else, in the order left, top, right, bottom if they are labelled; else none."""
    labels = SIDE.findall(words)
    words = SIDE.sub(" ", words)
    if COORDINATE.sub("", words).strip(BETWEEN):
        return []
    sides = [float(number.replace("−", "-")) for number in COORDINATE.findall(words)]
    if not all(abs(side) < FAR for side in sides):
        return []
    if not labels:
        return sides
    places = [SIDES[label.lower().replace("_", "")] for label in labels]
    return [side for _, side in sorted(zip(places, sides, strict=True))] if sorted(places) == [0, 1, 2, 3] and len(sides) == 4 else []


def _bare(reply: str) -> list[Box]:
    """Runs of exactly four numbers with nothing but commas, space and labels between."""
    if len(labels := list(SIDE.finditer(reply))) >= 4:
        last = COORDINATE.search(reply, labels[3].end())
        return [Box(*sides)] if last and len(sides := _sides(reply[labels[0].start() : last.end()])) == 4 else []
    runs: list[list[re.Match[str]]] = []
    for number in COORDINATE.finditer(reply):
        if runs and not reply[runs[-1][-1].end() : number.start()].strip(BETWEEN):
            runs[-1].append(number)
        else:
            runs.append([number])
    rows = [_sides(reply[run[0].start() : run[-1].end()]) for run in runs if len(run) == 4]
    return [Box(*row) for row in rows if len(row) == 4]


def overlap(one: Box, other: Box, edge: float = 0.0) -> float:
    """Intersection over union; 0 for a box without an area. `edge` is added to each width and height."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(0.0, right - left + edge) * max(0.0, bottom - top + edge)

    if any(box.right <= box.left or box.bottom <= box.top for box in (one, other)):
        return 0.0
    corners = max(one.left, other.left), max(one.top, other.top), min(one.right, other.right), min(one.bottom, other.bottom)
    shared = area(*corners)
    return shared / (area(*one) + area(*other) - shared)
