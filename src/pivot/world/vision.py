"""Vision-Centric: counting, relation, who is in front, twins."""

from __future__ import annotations

from dataclasses import replace

from pivot.world.dice import Dice
from pivot.world.draft import COLOUR_NAMES, SHAPE_NAMES, YES_NO, Claim, Draft, verdict
from pivot.world.scene import Scene, Shape, cells, ground, shape

SIDES = ("left", "right", "above", "below")
PLURALS = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in SHAPE_NAMES}


def counting(dice: Dice) -> Draft:
    """How many circles, or how many red shapes? One to six of them among others."""
    low = dice.between(1, 3)
    options = dice.shuffled(range(low, low + 4))
    value = options[0]
    by_kind = dice.coin()
    names = SHAPE_NAMES if by_kind else COLOUR_NAMES
    asked, *rest = dice.shuffled(names)
    spots = cells(dice, value + dice.between(1, 3))
    items = []
    for i, spot in enumerate(spots):
        name = asked if i < value else dice.pick(rest)
        look = (name, dice.pick(COLOUR_NAMES)) if by_kind else (dice.pick(SHAPE_NAMES), name)
        items.append(shape(dice, *look, *spot))
    what = PLURALS[asked] if by_kind else f"{asked} shapes"

    def claim(count: int) -> Claim:
        return Claim(str(count), str(count), f"the number of {what} is {count}.")

    wrong = tuple(
        (claim(n), "off by one" if abs(n - value) == 1 else "object made up" if n > value else "object overlooked") for n in options[1:]
    )
    question = dice.pick((f"how many {what} are there?", f"count the {what}."))
    return Draft(Scene(ground(dice), tuple(items)), question, claim(value), wrong, tuple(range(value)), "number", tuple("123456"))


def relation(dice: Dice) -> Draft:
    """Where is the circle, seen from the square? One of four sides, never a diagonal."""
    a, b = dice.some(SHAPE_NAMES, 2)
    order = dice.shuffled(SIDES)
    side = order[0]
    gap, drift = dice.between(136, 210), dice.between(-28, 28)
    dx, dy = {"left": (-gap, drift), "right": (gap, drift), "above": (drift, -gap), "below": (drift, gap)}[side]
    r = (dice.between(40, 54), dice.between(40, 54))
    # The other shape lies where both fit on the canvas.
    x = dice.between(60 + max(0, -dx), 324 - max(0, dx))
    y = dice.between(60 + max(0, -dy), 324 - max(0, dy))
    items = (shape(dice, a, dice.pick(COLOUR_NAMES), x + dx, y + dy, r[0]), shape(dice, b, dice.pick(COLOUR_NAMES), x, y, r[1]))

    def claim(name: str) -> Claim:
        words = {"left": "left of", "right": "right of"}.get(name, name)
        return Claim(name, name, f"the {a} is {words} the {b}.")

    wrong = tuple((claim(name), "relation flipped") for name in order[1:])
    question = dice.pick((f"where is the {a}, seen from the {b}?", f"on which side of the {b} is the {a}?"))
    return Draft(Scene(ground(dice), items), question, claim(side), wrong, (0, 1), "choice", SIDES)


def front(dice: Dice) -> Draft:
    """Two shapes overlap and a third stands apart: what colour is the one in front?"""
    options = dice.some(COLOUR_NAMES, 4)
    kinds = [dice.pick(("circle", "square", "diamond")) for _ in range(2)] + [dice.pick(SHAPE_NAMES)]
    near, far = dice.between(64, 76), dice.between(64, 76)
    cx, cy = dice.between(120, 264), dice.between(110, 170)
    dx, dy = dice.pick(((68, 24), (-68, 24), (68, -24), (-68, -24), (40, 48), (-40, -48)))
    back = shape(dice, kinds[0], options[1], cx - dx // 2, cy - dy // 2, far)
    ahead = shape(dice, kinds[1], options[0], cx + dx // 2, cy + dy // 2, near)
    apart = shape(dice, kinds[2], options[2], dice.between(60, 324), 328, dice.between(36, 48))
    flip = dice.coin()  # the pair is as often below the third shape as above it
    items = tuple(replace(s, y=384 - s.y) if flip else s for s in (back, ahead, apart))

    def claim(colour: str) -> Claim:
        return Claim(colour, colour, f"the {colour} shape is in front.")

    errors = {options[1]: "relation flipped", options[2]: "attribute swapped", options[3]: "object made up"}
    wrong = tuple((claim(c), errors[c]) for c in dice.shuffled(options[1:]))
    question = dice.pick(
        ("what colour is the shape in front?", "two shapes overlap. what colour is the one that hides a part of the other?")
    )
    return Draft(Scene(ground(dice), items), question, claim(options[0]), wrong, (0, 1), "choice", COLOUR_NAMES)


def twins(dice: Dice) -> Draft:
    """Two pictures that differ in one shape's colour or place only; the same question has opposite answers."""
    return _twin_colour(dice) if dice.coin() else _twin_side(dice)


def _twin_colour(dice: Dice) -> Draft:
    kinds = dice.some(SHAPE_NAMES, dice.between(3, 4))
    said, other, *more = dice.some(COLOUR_NAMES, 4)
    spots = cells(dice, len(kinds))
    around = tuple(shape(dice, k, dice.pick(COLOUR_NAMES), *spot) for k, spot in zip(kinds[1:], spots[1:], strict=True))
    own = shape(dice, kinds[0], said, *spots[0])

    def claim(colour: str) -> Claim:
        return verdict(colour == said, colour, f"the {kinds[0]} is {colour}")

    question = f"is the {kinds[0]} {said}?"
    spare = tuple((claim(c), "attribute swapped") for c in more)
    return _pair(dice, question, own, replace(own, colour=other), around, claim(said), claim(other), "attribute swapped", spare)


def _twin_side(dice: Dice) -> Draft:
    kinds = dice.some(SHAPE_NAMES, 3)
    centres = {"left": (64, 192), "right": (320, 192), "top": (192, 64), "bottom": (192, 320)}
    said, other, *more = dice.shuffled(tuple(centres))
    r = dice.between(40, 56)
    jitter = dice.between(-7, 7), dice.between(-7, 7)
    own = shape(dice, kinds[0], dice.pick(COLOUR_NAMES), centres[said][0] + jitter[0], centres[said][1] + jitter[1], r)
    moved = replace(own, x=centres[other][0] + jitter[0], y=centres[other][1] + jitter[1])
    corners = dice.some(((64, 64), (320, 64), (64, 320), (320, 320), (192, 192)), 2)
    around = tuple(shape(dice, k, dice.pick(COLOUR_NAMES), *spot, dice.between(40, 56)) for k, spot in zip(kinds[1:], corners, strict=True))

    def claim(side: str) -> Claim:
        return verdict(side == said, side, f"the {kinds[0]} is at the {side}")

    question = f"is the {kinds[0]} at the {said}?"
    spare = tuple((claim(side), "relation flipped") for side in more)
    return _pair(dice, question, own, moved, around, claim(said), claim(other), "relation flipped", spare)


def _pair(
    dice: Dice,
    question: str,
    yes: Shape,
    no: Shape,
    around: tuple[Shape, ...],
    said: Claim,
    other: Claim,
    error: str,
    spare: tuple[tuple[Claim, str], ...],
) -> Draft:
    """The two members; which of them comes first is a fair draw."""
    grey = ground(dice)
    positive = Draft(Scene(grey, (yes, *around)), question, said, ((other, error), *spare), (0,), "choice", YES_NO)
    negative = Draft(Scene(grey, (no, *around)), question, other, ((said, error), *spare), (0,), "choice", YES_NO)
    first, second = (positive, negative) if dice.coin() else (negative, positive)
    return replace(first, twin=second)
