"""General: existence, attribute, naming, joint."""

from __future__ import annotations

from pivot.world.dice import Dice
from pivot.world.draft import COLOUR_NAMES, SHAPE_NAMES, YES_NO, Claim, Draft, verdict
from pivot.world.scene import Scene, cells, ground, shape


def existence(dice: Dice) -> Draft:
    """Is there a red circle? Never two of the kind; half of the scenes also have another shape in the colour asked for."""
    kind, *others = dice.some(SHAPE_NAMES, 5)
    colour, first, second = dice.some(COLOUR_NAMES, 3)
    there = verdict(True, colour, f"the {kind} is {colour}")
    swapped = [verdict(False, c, f"the {kind} is {c}") for c in (first, second)]
    absent = verdict(False, "none", f"there is no {kind}")

    # Yes in half of the cases; "no" is a shape in another colour or no such shape, alike often.
    state = "same" if dice.coin() else dice.pick(("other", "absent"))
    if state == "same":
        answer = there
        wrong = dice.shuffled(((swapped[0], "attribute swapped"), (absent, "object overlooked")))
        wrong.append((swapped[1], "attribute swapped"))
    elif state == "other":
        answer = swapped[0]
        wrong = [(there, "attribute swapped"), (swapped[1], "attribute swapped"), (absent, "object overlooked")]
    else:
        answer = absent
        wrong = [(there, "object made up"), *((claim, "object made up") for claim in swapped)]

    spots = cells(dice, dice.between(3, 5))
    around = [(other, dice.pick(COLOUR_NAMES)) for other in others[: len(spots) - 1]]
    if dice.coin():
        around[0] = (around[0][0], colour)
    own = [] if state == "absent" else [(kind, colour if state == "same" else first)]
    items = tuple(shape(dice, k, c, *spot) for (k, c), spot in zip(own + around, spots, strict=False))
    question = dice.pick((f"is there a {colour} {kind}?", f"do you see a {colour} {kind}?"))
    return Draft(Scene(ground(dice), items), question, answer, tuple(wrong), (0,) if own else (), "choice", YES_NO)


def attribute(dice: Dice) -> Draft:
    """What colour is the circle? Every shape in the scene is of another kind."""
    kinds = dice.some(SHAPE_NAMES, dice.between(3, 5))
    options = dice.some(COLOUR_NAMES, 4)
    colours = [options[0]] + [dice.pick(COLOUR_NAMES) for _ in kinds[1:]]
    items = tuple(shape(dice, k, c, *spot) for k, c, spot in zip(kinds, colours, cells(dice, len(kinds)), strict=True))

    def claim(colour: str) -> Claim:
        return Claim(colour, colour, f"the {kinds[0]} is {colour}.")

    wrong = tuple((claim(c), "attribute swapped" if c in colours else "attribute made up") for c in options[1:])
    question = dice.pick((f"what colour is the {kinds[0]}?", f"which colour does the {kinds[0]} have?"))
    return Draft(Scene(ground(dice), items), question, claim(options[0]), wrong, (0,), "choice", COLOUR_NAMES)


def naming(dice: Dice) -> Draft:
    """What is the red shape? Every shape in the scene has another colour."""
    colours = dice.some(COLOUR_NAMES, dice.between(3, 5))
    options = dice.some(SHAPE_NAMES, 4)
    kinds = [options[0]] + [dice.pick(SHAPE_NAMES) for _ in colours[1:]]
    items = tuple(shape(dice, k, c, *spot) for k, c, spot in zip(kinds, colours, cells(dice, len(kinds)), strict=True))

    def claim(kind: str) -> Claim:
        return Claim(kind, kind, f"the {colours[0]} shape is a {kind}.")

    wrong = tuple((claim(k), "attribute swapped" if k in kinds else "object made up") for k in options[1:])
    question = dice.pick((f"what is the {colours[0]} shape?", f"which shape is {colours[0]}?"))
    return Draft(Scene(ground(dice), items), question, claim(options[0]), wrong, (0,), "choice", SHAPE_NAMES)


def joint(dice: Dice) -> Draft:
    """The circle is red and the square is blue: true? Either both hold or exactly one does."""
    kinds = dice.some(SHAPE_NAMES, dice.between(3, 4))
    said = (dice.pick(COLOUR_NAMES), dice.pick(COLOUR_NAMES))
    off = [[c for c in dice.shuffled(COLOUR_NAMES) if c != said[side]] for side in (0, 1)]

    def changed(side: int, nth: int) -> tuple[str, str]:
        return (off[0][nth], said[1]) if side == 0 else (said[0], off[1][nth])

    side = dice.below(2)
    if dice.coin():
        seen, rivals = said, [changed(side, 0), changed(1 - side, 0), changed(side, 1)]
    else:
        seen, rivals = changed(side, 0), [said, changed(side, 1), changed(1 - side, 0)]

    def claim(pair: tuple[str, str]) -> Claim:
        sentence = f"the {kinds[0]} is {pair[0]} and the {kinds[1]} is {pair[1]}"
        return verdict(pair == said, f"{pair[0]} and {pair[1]}", sentence)

    colours = [*seen, *(dice.pick(COLOUR_NAMES) for _ in kinds[2:])]
    items = tuple(shape(dice, k, c, *spot) for k, c, spot in zip(kinds, colours, cells(dice, len(kinds)), strict=True))
    question = f"the {kinds[0]} is {said[0]} and the {kinds[1]} is {said[1]}: is that true?"
    wrong = tuple((claim(pair), "attribute swapped") for pair in rivals)
    return Draft(Scene(ground(dice), items), question, claim(seen), wrong, (0, 1), "choice", YES_NO)
