"""Knowledge: arithmetic, ordering, odd one out, following arrows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from pivot.world.dice import Dice
from pivot.world.draft import COLOUR_NAMES, SHAPE_NAMES, Claim, Draft, place_words
from pivot.world.glyphs import LETTERS, LOOKALIKE
from pivot.world.scene import Arrow, Glyph, Item, Panel, Scene, Shape, ground, shape, write

CORNERS = ("top left", "top right", "bottom left", "bottom right")


def arithmetic(dice: Dice) -> Draft:
    """The sum of two numbers on panels. Four neighbouring sums are drawn, then which is true, then digits that give it."""
    low = dice.between(2, 7)
    sums = dice.shuffled(range(low, low + 4))
    total = sums[0]
    first = dice.between(max(1, total - 5), min(5, total - 1))
    digits = (first, total - first)
    items: list[Item] = []
    y = dice.between(120, 264)
    for x, digit in zip((104, 280), digits, strict=True):
        cx, cy = x + dice.between(-16, 16), y + dice.between(-32, 32)
        items += [Panel(dice.pick(COLOUR_NAMES), cx, cy, 120, 144), *write(str(digit), "white", cx, cy, 16)]

    def claim(value: int) -> Claim:
        return Claim(str(value), str(value), f"the numbers add up to {value}.")

    wrong = tuple((claim(s), "off by one" if abs(s - total) == 1 else "sum made up") for s in sums[1:])
    question = dice.pick(("what is the sum of the two numbers?", "what do the two numbers add up to?"))
    return Draft(Scene(ground(dice), tuple(items)), question, claim(total), wrong, (1, 3), "number", tuple(map(str, range(2, 11))))


def ordering(dice: Dice) -> Draft:
    """The colours of three shapes from small to large. Wrong ones are any three of the five other orders."""
    colours = dice.some(COLOUR_NAMES, 3)
    radii = (dice.between(28, 32), dice.between(44, 48), dice.between(60, 64))
    spots = dice.shuffled((72, 192, 312))
    items = tuple(
        shape(dice, dice.pick(SHAPE_NAMES), c, x + dice.between(-6, 6), dice.between(90, 294), r)
        for c, x, r in zip(colours, spots, radii, strict=True)
    )

    def claim(order: Sequence[str]) -> Claim:
        listed = ", ".join(order)
        return Claim(listed, listed, f"from small to large: {listed}.")

    _, *others = permutations(colours)
    wrong = tuple((claim(order), "relation flipped") for order in dice.shuffled(dice.aside().some(others, 3)))
    question = dice.pick(("list the colours from the smallest to the largest shape.", "sort the colours by size, smallest shape first."))
    # Painted in random order, so that nothing about layers tells the size.
    order = dice.shuffled(range(3))
    return Draft(Scene(ground(dice), tuple(items[i] for i in order)), question, claim(colours), wrong, (0, 1, 2), "text")


def odd_one(dice: Dice) -> Draft:
    """Four shapes, three alike; where is the other one? It differs in kind or in colour, which the question does not say."""
    kind, other_kind = dice.some(SHAPE_NAMES, 2)
    colour, other_colour = dice.some(COLOUR_NAMES, 2)
    order = dice.shuffled(CORNERS)
    odd = (other_kind, colour) if dice.coin() else (kind, other_colour)
    # One pattern and one size for all four, or another shape could be the odd one by those.
    plain = shape(dice, kind, colour, 0, 0, dice.between(44, 60))
    items: list[Shape] = []
    for name in order:
        x, y = (96 if "left" in name else 288), (96 if "top" in name else 288)
        look = odd if name == order[0] else (kind, colour)
        items.append(replace(plain, kind=look[0], colour=look[1], x=x + dice.between(-20, 20), y=y + dice.between(-20, 20)))

    def claim(name: str) -> Claim:
        return Claim(name, name, f"the odd one is {place_words(name)}.")

    wrong = tuple((claim(name), "relation flipped") for name in order[1:])
    question = dice.pick(("where is the odd one out?", "one shape is unlike the others. where is it?"))
    return Draft(Scene(ground(dice), tuple(items)), question, claim(order[0]), wrong, (0,), "choice", CORNERS)


def arrows(dice: Dice) -> Draft:
    """Follow one or two arrows round a ring of four lettered nodes."""
    letters = dice.some(LETTERS, 4)
    # A letter and its lookalike never stand in one diagram, so that a misreading is never another node.
    while any(LOOKALIKE[a] in letters for a in letters):
        letters = dice.some(LETTERS, 4)
    corners = [
        (x + dice.between(-12, 12), y + dice.between(-12, 12)) for x, y in dice.shuffled(((76, 76), (308, 76), (76, 308), (308, 308)))
    ]
    steps = dice.between(1, 2)
    links: list[Arrow] = []
    for i in range(4):
        (x, y), (to_x, to_y) = corners[i], corners[(i + 1) % 4]
        # Stop short of both nodes, so that the head shows: 64 units from their centres, along the line.
        long = max(abs(to_x - x), abs(to_y - y))
        cut_x, cut_y = (to_x - x) * 64 // long, (to_y - y) * 64 // long
        links.append(Arrow(f"{letters[i]}>{letters[(i + 1) % 4]}", x + cut_x, y + cut_y, to_x - cut_x, to_y - cut_y))
    nodes: list[Item] = []
    for letter, (x, y) in zip(letters, corners, strict=True):
        nodes += [Panel("white", x, y, 104, 128), Glyph(letter, "black", x, y, 16)]
    target = letters[steps]

    def claim(letter: str) -> Claim:
        return Claim(letter, letter, f"from {letters[0]} you reach {letter}.")

    # Two nodes, each with its lookalike: had only the target one, the two alike would give it away.
    other, error = dice.aside().pick(((letters[3], "relation flipped"), (letters[3 - steps], "off by one")))
    rivals = [(other, error), (LOOKALIKE[target], "glyph misread"), (LOOKALIKE[other], "object made up")]
    wrong = tuple((claim(letter), error) for letter, error in dice.shuffled(rivals))
    way = "one arrow" if steps == 1 else "two arrows"
    question = dice.pick((f"start at {letters[0]} and follow {way}. where are you?", f"which letter is {way} after {letters[0]}?"))
    region = (*range(steps), *range(4, 4 + 2 * (steps + 1)))
    return Draft(Scene(ground(dice), (*links, *nodes)), question, claim(target), wrong, region, "text")
