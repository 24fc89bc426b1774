"""OCR & Chart: a word, a number, a bar of a chart, a field of a form."""

from __future__ import annotations

from pivot.world.dice import Dice
from pivot.world.draft import COLOUR_NAMES, Claim, Draft
from pivot.world.glyphs import LETTERS, LOOKALIKE
from pivot.world.scene import CANVAS, Arrow, Bar, Item, Panel, Scene, ground, write

# Leading digits whose lookalike is no zero either: a misread number keeps its length.
LEADING = "12345678"
INKS = ("black", "red", "green", "blue", "purple")


def word(dice: Dice) -> Draft:
    """Read three letters. Wrong readings take one of two letters for its lookalike, or both."""
    letters = "".join(dice.pick(LETTERS) for _ in range(3))

    def claim(text: str) -> Claim:
        return Claim(text, text, f"the word is {text}.")

    i, j = dice.aside().some(range(3), 2)
    rivals = (misread(letters, i), misread(letters, j), misread(misread(letters, i), j))
    wrong = tuple((claim(text), "glyph misread") for text in dice.shuffled(rivals))
    question = dice.pick(("which word is written here?", "what does the word say?"))
    return Draft(_line(dice, letters), question, claim(letters), wrong, (0, 1, 2), "text")


def number(dice: Dice) -> Draft:
    """Read a number of three digits. Wrong readings slip at one of two digits or at both: a lookalike, or the last one too far."""
    digits = dice.pick(LEADING) + str(dice.below(10)) + str(dice.below(10))

    def claim(text: str) -> Claim:
        return Claim(text, text, f"the number is {text}.")

    aside = dice.aside()
    i, j = sorted(aside.some(range(3), 2))
    near = j == 2 and aside.coin()

    def slipped(text: str) -> str:
        # Exchanging 0-1, 2-3, ... undoes itself, as taking lookalikes does.
        return text[:2] + str(int(text[2]) ^ 1) if near else misread(text, j)

    once = misread(digits, i)
    errors = {once: "glyph misread", slipped(digits): "off by one" if near else "glyph misread", slipped(once): "glyph misread"}
    wrong = tuple((claim(text), errors[text]) for text in dice.shuffled((digits, *errors)) if text != digits)
    question = dice.pick(("which number is written here?", "what number do you read?"))
    return Draft(_line(dice, digits), question, claim(digits), wrong, (0, 1, 2), "text")


def bars(dice: Dice) -> Draft:
    """How high is the red bar? Grid lines stand one step apart."""
    colours = dice.some(COLOUR_NAMES, dice.between(3, 4))
    low = dice.between(1, 3)
    options = dice.shuffled(range(low, low + 4))
    value = options[0]
    heights = [value] + [dice.between(1, 6) for _ in colours[1:]]
    floor, step = 344 + dice.between(-8, 8), 48
    grid = tuple(Arrow("", 16, floor - step * i, CANVAS - 16, floor - step * i) for i in range(7))
    pitch = 336 // len(colours)
    places = dice.shuffled(range(len(colours)))
    drawn = tuple(
        Bar(c, h, 24 + pitch // 2 + pitch * p, floor, pitch * 3 // 5, step) for c, h, p in zip(colours, heights, places, strict=True)
    )

    def claim(height: int) -> Claim:
        return Claim(str(height), str(height), f"the {colours[0]} bar is {height} steps high.")

    wrong = tuple((claim(h), "off by one" if abs(h - value) == 1 else "height made up") for h in options[1:])
    question = dice.pick((f"how high is the {colours[0]} bar?", f"what is the value of the {colours[0]} bar?"))
    return Draft(Scene(ground(dice), grid + drawn), question, claim(value), wrong, (len(grid),), "number", tuple("123456"))


def form(dice: Dice) -> Draft:
    """What stands in field B? Three rows of a label and a number of two digits."""
    labels = dice.some(LETTERS, 3)
    while any(LOOKALIKE[label] in labels for label in labels):
        labels = dice.some(LETTERS, 3)
    values: list[str] = []
    while len(values) < 3:
        value = dice.pick(LEADING) + str(dice.below(10))
        if value not in values and all(misread(value, i) not in values for i in (0, 1)):
            values.append(value)
    top, left = dice.between(64, 88), dice.between(56, 96)
    rows: list[tuple[Item, ...]] = []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + 112 * i
        rows.append((Panel("white", left + 168, y, 208, 88), *write(label, "blue", left, y, 11), *write(value, "black", left + 168, y, 11)))
    asked = dice.below(3)

    def claim(value: str) -> Claim:
        return Claim(value, value, f"field {labels[asked]} says {value}.")

    # Two fields' values, each with a misreading: nothing tells which field was asked for. Values that share their misreadings are
    # too close for that.
    true, aside = values[asked], dice.aside()
    other = aside.pick([value for value in values if value not in (true, misread(misread(true, 0), 1))])
    mine, its = (misread(value, aside.below(2)) for value in (true, other))
    errors = {mine: "glyph misread", other: "attribute swapped", its: "attribute made up"}
    wrong = tuple((claim(value), errors[value]) for value in dice.shuffled((true, *errors)) if value != true)
    question = dice.pick((f"what stands in field {labels[asked]}?", f"which number is in row {labels[asked]}?"))
    items = tuple(item for row in rows for item in row)
    return Draft(Scene(ground(dice), items), question, claim(values[asked]), wrong, tuple(range(4 * asked, 4 * asked + 4)), "text")


def misread(text: str, position: int) -> str:
    """`text` with one character taken for its lookalike; doing it twice gives `text` again."""
    return text[:position] + LOOKALIKE[text[position]] + text[position + 1 :]


def _line(dice: Dice, text: str) -> Scene:
    """Characters two pixels a dot at 48 px, somewhere on the picture, with one coloured panel apart from them."""
    y = dice.between(72, CANVAS - 72)
    x = CANVAS // 2 + dice.between(-40, 40)
    glyphs = write(text, dice.pick(INKS), x, y, 16)
    panel = Panel(dice.pick(COLOUR_NAMES), dice.between(80, 304), (y + 192) % CANVAS, dice.between(60, 200), dice.between(40, 72))
    return Scene(ground(dice), (*glyphs, panel))
