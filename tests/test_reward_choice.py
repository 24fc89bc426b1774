"""Choices that are called by letters, by their texts or by both, and rows whose true answer is none of them."""

from __future__ import annotations

from typing import Any

import pytest

from pivot.records import Example
from pivot.reward import choice
from pivot.reward._contract import Score


def example(truth: str | None, choices: Any = None, prompt: Any = "?") -> Example:
    return Example("item-1", (), prompt, answer=truth, answer_kind="choice", meta={"choices": choices} if choices is not None else {})


def test_a_choice_may_be_said_by_its_text() -> None:
    animals = ("cat", "dog", "red dog", "bird")
    for reply, earned in [("dog", 1), ("a dog", 1), ("the red dog", 0), ("cat or dog", 0), ("fish", 0), ("A", 0), ("B", 1), ("D. dog", 0)]:
        assert choice.reward(reply, example("B", animals)) == earned, reply
    for reply, earned in [
        ("dog", 1),
        ("it is the dog", 1),
        ("cat", 0),
        ("dog or cat", 0),
        ("the answer is a dog", 1),
        ("not really dog", 0),
    ]:
        assert choice.reward(reply, example("dog", animals)) == earned, reply


FIVES = ("5", "10", "15", "20")
NUMBERS = [
    ("A", FIVES, "5", 1),
    ("A", FIVES, "5, since 10 / 2 = 5", 1),
    ("A", FIVES, "5.0", 1),
    ("A", FIVES, r"\boxed{5}", 1),
    ("A", FIVES, "It is 5, half of 10", 0),
    ("A", FIVES, "-5", 0),
    ("A", FIVES, "2.5", 0),
    ("A", FIVES, "5 or 10", 0),
    ("B", FIVES, "5, since 10 / 2 = 5", 0),
    ("B", FIVES, "It is 5, half of 10", 0),
    ("B", FIVES, "10", 1),
    ("B", FIVES, "5", 0),
    ("B", ("4", "5", "6", "7"), "5", 1),
    ("B", ("4", "5", "6", "7"), "The answer is 5", 1),
    ("B", ("4", "5", "6", "7"), "The answer is 6", 0),
    ("B", ("4", "5", "6", "7"), "(B) 5", 1),
    ("B", ("4", "5", "6", "7"), "2", 0),
    ("A", ("5", "-5"), "5", 1),
    ("A", ("5", "-5"), "-5", 0),
    ("A", ("5", "-5"), "minus 5", 0),
    ("B", ("5", "-5"), "it is −5", 1),
    ("5", ("5", "-5"), "-5", 0),
    ("5", ("5", "-5"), "5", 1),
    ("A", ("50", "50%"), "50", 1),
    ("A", ("50", "50%"), "50%", 0),
    ("A", ("50", "50%"), "A", 1),
    ("B", ("50", "50%"), "it is 50", 0),  # as words they are one
    ("A", ("0.5", "5"), "0.5", 1),
    ("A", ("1,000", "1"), "1000", 1),
    ("A", ("3 dogs", "4 dogs"), "there are 3 dogs", 1),
    ("A", ("+", "-"), "+", 1),
    ("A", ("+", "-"), "-", 0),
]


@pytest.mark.parametrize(("truth", "choices", "reply", "earned"), NUMBERS)
def test_choices_may_be_numbers_of_one_sign(truth: str, choices: tuple[str, ...], reply: str, earned: float) -> None:
    assert choice.reward(reply, example(truth, choices)) == earned


def test_choices_may_be_letters_themselves() -> None:
    for truth, choices, reply, earned in [
        ("A", "xy", "x", 1),
        ("A", "xy", "y", 0),
        ("F", "MF", "F", 1),
        ("B", "MF", "F", 1),
        ("B", "MF", "M", 0),
        ("B", "MF", "B", 1),
        ("B", "AB", "B or C", 0),
        ("B", "ab", "the answer is b", 1),
        ("A", "ab", "it is a dog", 0),
        ("p.m.", ("a.m.", "p.m."), "p.m.", 1),
        ("p.m.", ("a.m.", "p.m."), "a.m.", 0),
        ("a.m.", ("p.m.", "a.m."), "a.m.", 1),
        ("B. dog", ("A. cat", "B. dog"), "B", 1),
    ]:
        assert choice.reward(reply, example(truth, tuple(choices))) == earned, (truth, choices, reply)


def test_there_are_as_many_letters_as_choices() -> None:
    for many in (5, 8, 9, 14, 26):
        words = tuple(f"w{at}" for at in range(many))
        last = choice.LETTERS[many - 1]
        for reply in (last, last.lower(), words[-1], f"({last}) {words[-1]}", f"The answer is {last}", f"answer: {last.lower()}"):
            assert choice.reward(reply, example(last, words)) == 1, (many, reply)
            assert choice.reward(reply, example("A", words)) == 0
        for right in ("A", last):
            for reply in (f"I think {right}", f"{right}, I believe", f"as I see it: {right}", f"so I say {right}, because I count"):
                assert choice.reward(reply, example(right, words)) == 1, (many, reply)
    for reply, earned in [("P", 1), ("(p)", 1), ("I say P", 1), ("A or P", 0), ("A, as P is on the line", 0)]:  # no choices known
        assert choice.reward(reply, example("P")) == earned, reply
    assert choice.reward("A, as P is on the line", example("A")) == 1


def test_what_is_asked_for_may_be_what_does_not_fit() -> None:
    asked = "Which one does not fit?"
    for prompt in (asked, [{"role": "user", "content": "look"}, {"role": "user", "content": asked}]):
        assert choice.reward("B does not fit", example("B", ("cat", "dog"), prompt)) == 1
        assert choice.reward("dog doesn't match", example("dog", ("cat", "dog"), prompt)) == 1
    assert choice.reward("B does not fit", example("B", ("cat", "dog"), "Which fits?")) == 0


@pytest.mark.parametrize(
    ("truth", "choices"),
    [
        ("dog", None),
        ("dog house", ("cat", "dog")),
        ("C", ("cat", "dog")),
        ("J", tuple("abcdefghi")),
        ("?", ("cat", "dog")),
        ("", ("cat", "dog")),
        (None, ("cat", "dog")),
        ("dog", ("dog", "Dog")),
        ("B", "AB"),
        ("B", 2),
        ("B", {"A": "cat", "B": "dog"}),
    ],
)
def test_an_answer_that_is_no_choice_is_unjudged(truth: str | None, choices: Any) -> None:
    for reply in ("B", "dog", "J", ""):
        found = choice.reward(reply, example(truth, choices))
        assert found == 0 and isinstance(found, Score) and found.failed and "item-1" in found.failed
