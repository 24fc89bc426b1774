"""What a picture holds, before it has pixels. Lengths are whole units of a canvas 384 units wide, whatever the size in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from pivot.world.dice import Dice

CANVAS = 384

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (236, 200, 30),
    "purple": (140, 50, 170),
    "orange": (240, 120, 20),
}
KINDS = ("circle", "square", "triangle", "diamond", "cross", "ring")
# Never named in any question, answer or caption: the linear probe asks for them, so no stage may have taught them.
TEXTURES = ("stripes", "lines", "dashes")
ORIENTATIONS = ("level", "upright", "rising", "falling")

# Class ids of the class map; 0 is background.
CLASSES = ("background", *KINDS, "panel", "glyph", "bar", "arrow")

PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True)
class Shape:
    """A filled outline with a two-tone pattern. (x, y) is its centre, r about half its width."""

    kind: str
    colour: str
    texture: str
    orientation: str
    x: int
    y: int
    r: int


@dataclass(frozen=True)
class Panel:
    """A plain rectangle under glyphs; (x, y) is its centre."""

    colour: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Glyph:
    """One character of the bitmap font; (x, y) is its centre, `dot` the side of one font pixel in units."""

    letter: str
    ink: str
    x: int
    y: int
    dot: int


@dataclass(frozen=True)
class Bar:
    """A bar of a chart that stands on the floor y; `value` counts grid steps."""

    colour: str
    value: int
    x: int
    y: int
    width: int
    step: int


@dataclass(frozen=True)
class Arrow:
    """A straight arrow from (x, y) to (to_x, to_y). `label` is "A>B" in an arrow diagram, empty for grid lines (no head)."""

    label: str
    x: int
    y: int
    to_x: int
    to_y: int


Item = Shape | Panel | Glyph | Bar | Arrow


@dataclass(frozen=True)
class Scene:
    """Items in painting order: later ones hide earlier ones."""

    ground: int  # grey level of the background
    items: tuple[Item, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(item for item in self.items if isinstance(item, Shape))

    def digest(self) -> str:
        """Two scenes share this exactly when they are the same scene."""
        return blake2b(repr(self).encode(), digest_size=16).hexdigest()


def place(x: int, y: int) -> str:
    """The word for where a point lies on a 3 x 3 grid."""
    return PLACES[min(y * 3 // CANVAS, 2) * 3 + min(x * 3 // CANVAS, 2)]


def shape(dice: Dice, kind: str, colour: str, x: int, y: int, r: int) -> Shape:
    """A shape whose texture and orientation are drawn at random, so that nothing else tells them."""
    return Shape(kind, colour, dice.pick(TEXTURES), dice.pick(ORIENTATIONS), x, y, r)


def cells(dice: Dice, n: int) -> list[tuple[int, int, int]]:
    """n places (x, y, r) in different cells of a 3 x 3 grid, jittered so that neighbours never touch and `place` stays true."""
    spots = []
    for cell in dice.some(range(9), n):
        r = dice.between(40, 56)
        x, y = 64 + 128 * (cell % 3), 64 + 128 * (cell // 3)
        spots.append((x + dice.between(-7, 7), y + dice.between(-7, 7), r))
    return spots


def ground(dice: Dice) -> int:
    return dice.between(208, 250)


def write(text: str, ink: str, x: int, y: int, dot: int) -> tuple[Glyph, ...]:
    """Glyphs in a row, centred on (x, y); a glyph is 5 dots wide, with one dot between two."""
    left = x - (len(text) * 6 - 1) * dot // 2
    return tuple(Glyph(letter, ink, left + (6 * i * dot) + 5 * dot // 2, y, dot) for i, letter in enumerate(text))
