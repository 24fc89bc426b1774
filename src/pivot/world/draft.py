"""What a task family writes: a scene, a question, the true claim and wrong claims that name their error.

Two rules keep text alone from paying, and every family follows them:
1. Of a set of claims each is as likely to be true as any other, whatever else the text says. It is drawn from a distribution
   that treats its members alike, and then a fair draw says which is true; or wrong ones are made from the true one by changes
   that undo themselves and can be combined, so that the same set comes of any member. Changing the truth in one place for each
   wrong claim would not do: the others would gather round it. A yes/no question has one yes among its claims, true in half of the
   items: all claims together tell what that half tells, and no more.
2. Claims of one question have one form; only the words that the picture decides differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from pivot.records import AnswerKind
from pivot.world.scene import COLOURS, KINDS, Scene


@dataclass(frozen=True)
class Claim:
    """One possible answer: `value` is what is graded, `short` and `explained` are two ways to say it."""

    value: str
    short: str
    explained: str


@dataclass(frozen=True)
class Draft:
    """One item before it is rendered. `region` indexes the scene's items; `twin` is the near-identical partner."""

    scene: Scene
    question: str
    answer: Claim
    wrong: tuple[tuple[Claim, str], ...]
    region: tuple[int, ...]
    kind: AnswerKind
    choices: tuple[str, ...] | None = None
    twin: Draft | None = None


YES_NO = ("yes", "no")
COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = KINDS


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def verdict(true: bool, evidence: str, sentence: str) -> Claim:
    """A yes/no claim carries what decided it, so that two wrong ones can differ."""
    word = "yes" if true else "no"
    return Claim(word, f"{word}, {evidence}", f"{word}, {sentence}.")


def place_words(name: str) -> str:
    """'top left' -> 'at the top left'; the sides read better with 'on'."""
    return {"left": "on the left", "right": "on the right", "centre": "in the centre"}.get(name, f"at the {name}")
