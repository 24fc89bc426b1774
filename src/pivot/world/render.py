"""From a scene to pixels, in whole numbers only, so that every machine draws the same picture.

A pixel p of a picture `size` pixels wide has its centre at (2p + 1) * CANVAS units of 1 / (2 * size); all lengths are
brought to that unit before they are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np

from pivot.records import Thing, Truth
from pivot.world.glyphs import BITMAPS
from pivot.world.scene import CANVAS, CLASSES, COLOURS, Arrow, Bar, Glyph, Item, Panel, Scene, Shape

INKS = {**COLOURS, "black": (24, 24, 24), "white": (246, 246, 246), "grey": (176, 176, 176)}
_CLASS = {name: index for index, name in enumerate(CLASSES)}
_BITMAPS = {letter: np.array(rows, dtype=bool) for letter, rows in BITMAPS.items()}


@dataclass(frozen=True)
class Drawing:
    """Pixels (H, W, 3) and, per pixel, the index of the item seen there plus one (0: background)."""

    pixels: np.ndarray
    owner: np.ndarray

    def seen(self, items: tuple[int, ...]) -> np.ndarray:
        """(H, W) bool: where any of these items is visible."""
        mask = np.zeros(self.owner.shape, dtype=bool)
        for item in items:
            mask |= self.owner == item + 1
        return mask


def draw(scene: Scene, size: int) -> Drawing:
    """Paint the items in order."""
    pixels = np.full((size, size, 3), scene.ground, dtype=np.uint8)
    owner = np.zeros((size, size), dtype=np.int16)
    centres = (2 * np.arange(size, dtype=np.int64) + 1) * CANVAS
    for index, item in enumerate(scene.items):
        left, top, right, bottom = _box(item)
        # First and last pixel whose centre can lie in the box.
        x0, x1 = max(left * size // CANVAS, 0), min(right * size // CANVAS + 1, size)
        y0, y1 = max(top * size // CANVAS, 0), min(bottom * size // CANVAS + 1, size)
        if x0 >= x1 or y0 >= y1:
            continue
        xs, ys = centres[None, x0:x1], centres[y0:y1, None]
        inside, shade = _PAINT[type(item)](item, xs, ys, 2 * size)
        bright = np.array(INKS[_ink(item)], dtype=np.uint8)
        window = pixels[y0:y1, x0:x1]
        window[inside] = bright
        if shade is not None:
            window[inside & shade] = bright // 2
        owner[y0:y1, x0:x1][inside] = index + 1
    return Drawing(pixels, owner)


def truth(scene: Scene, drawing: Drawing, region: tuple[int, ...], caption: str = "") -> Truth:
    """Exact truth: class map, a mask per object, the region of the items asked about."""
    lookup = np.array([0, *(_CLASS[_class(item)] for item in scene.items)], dtype=np.uint8)
    things = tuple(
        Thing(_class(item), _attributes(item), drawing.owner == index + 1)
        for index, item in enumerate(scene.items)
        if not isinstance(item, Arrow) or item.label
    )
    return Truth(lookup[drawing.owner], things, drawing.seen(region), caption)


def _ink(item: Item) -> str:
    match item:
        case Glyph():
            return item.ink
        case Arrow():
            return "black" if item.label else "grey"
        case _:
            return item.colour


def _class(item: Item) -> str:
    match item:
        case Shape():
            return item.kind
        case Arrow():
            # Grid lines of a chart belong to the background.
            return "arrow" if item.label else "background"
        case _:
            return type(item).__name__.lower()


def _attributes(item: Item) -> dict[str, str]:
    match item:
        case Shape():
            return {"colour": item.colour, "texture": item.texture, "orientation": item.orientation}
        case Glyph():
            return {"letter": item.letter}
        case Bar():
            return {"colour": item.colour, "value": str(item.value)}
        case Arrow():
            return {"label": item.label}
        case Panel():
            return {"colour": item.colour}


def _box(item: Item) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in canvas units; nothing is painted outside."""
    match item:
        case Shape():
            return item.x - item.r - 1, item.y - item.r - 1, item.x + item.r + 1, item.y + item.r + 1
        case Panel():
            return item.x - item.width // 2, item.y - item.height // 2, item.x + item.width // 2, item.y + item.height // 2
        case Glyph():
            return item.x - 3 * item.dot, item.y - 4 * item.dot, item.x + 3 * item.dot, item.y + 4 * item.dot
        case Bar():
            return item.x - item.width // 2, item.y - item.value * item.step, item.x + item.width // 2, item.y
        case Arrow():
            edge = 20
            return (
                min(item.x, item.to_x) - edge,
                min(item.y, item.to_y) - edge,
                max(item.x, item.to_x) + edge,
                max(item.y, item.to_y) + edge,
            )


Painted = tuple[np.ndarray, np.ndarray | None]


def _shape(item: Shape, xs: np.ndarray, ys: np.ndarray, unit: int) -> Painted:
    dx, dy, r = xs - item.x * unit, ys - item.y * unit, item.r * unit
    ax, ay = np.abs(dx), np.abs(dy)
    match item.kind:
        case "circle":
            inside = dx * dx + dy * dy <= r * r
        case "square":
            inside = np.maximum(ax, ay) * 20 <= 17 * r
        case "triangle":
            inside = (20 * ax <= 11 * (dy + r)) & (4 * dy <= 3 * r)
        case "diamond":
            inside = ax + ay <= r
        case "cross":
            inside = (np.minimum(ax, ay) * 10 <= 3 * r) & (np.maximum(ax, ay) <= r)
        case _:  # ring
            squared = dx * dx + dy * dy
            inside = (squared <= r * r) & (squared * 4 >= r * r)
    return inside, _pattern(item, dx, dy, unit)


def _pattern(item: Shape, dx: np.ndarray, dy: np.ndarray, unit: int) -> np.ndarray:
    """Where the dark tone goes. `along` runs across the stripes, `beside` with them."""
    along, beside = {
        "level": (dy, dx),
        "upright": (dx, dy),
        "rising": (dx + dy, dx - dy),
        "falling": (dx - dy, dx + dy),
    }[item.orientation]
    # Four pixels from stripe to stripe at 48 px; a diagonal needs 7/5 of that in dx + dy.
    period = 32 * unit if item.orientation in ("level", "upright") else 45 * unit
    if item.texture == "stripes":
        return along % period * 2 < period
    if item.texture == "lines":
        return along % period * 4 < period
    return (along % period * 2 < period) & (beside % (2 * period) < period)


def _panel(item: Panel, xs: np.ndarray, ys: np.ndarray, unit: int) -> Painted:
    return (np.abs(xs - item.x * unit) * 2 <= item.width * unit) & (np.abs(ys - item.y * unit) * 2 <= item.height * unit), None


def _glyph(item: Glyph, xs: np.ndarray, ys: np.ndarray, unit: int) -> Painted:
    # Twice the coordinates, because a glyph 5 dots wide has its corner on a half dot.
    column = (2 * (xs - item.x * unit) + 5 * item.dot * unit) // (2 * item.dot * unit)
    row = (2 * (ys - item.y * unit) + 7 * item.dot * unit) // (2 * item.dot * unit)
    inside = (column >= 0) & (column < 5) & (row >= 0) & (row < 7)
    bitmap = _BITMAPS[item.letter]
    return inside & bitmap[np.clip(row, 0, 6), np.clip(column, 0, 4)], None


def _bar(item: Bar, xs: np.ndarray, ys: np.ndarray, unit: int) -> Painted:
    floor, height = item.y * unit, item.value * item.step * unit
    return (np.abs(xs - item.x * unit) * 2 <= item.width * unit) & (ys <= floor) & (ys >= floor - height), None


def _arrow(item: Arrow, xs: np.ndarray, ys: np.ndarray, unit: int) -> Painted:
    ux, uy = item.to_x - item.x, item.to_y - item.y
    length2 = ux * ux + uy * uy
    dx, dy = xs - item.x * unit, ys - item.y * unit
    ahead = dx * ux + dy * uy  # how far along, times the length
    off = np.abs(dx * uy - dy * ux)  # how far beside, times the length
    length = isqrt(length2)
    half = 6 if item.label else 3
    inside = (ahead >= 0) & (ahead <= length2 * unit) & (off <= half * unit * length)
    if item.label:
        back = length2 * unit - ahead  # from the tip
        inside &= back >= 24 * unit * length
        inside |= (back >= 0) & (back <= 40 * unit * length) & (off * 2 <= back)
    return inside, None


_PAINT: dict[type[Item], Callable[..., Painted]] = {Shape: _shape, Panel: _panel, Glyph: _glyph, Bar: _bar, Arrow: _arrow}
