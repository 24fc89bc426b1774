"""Rewards by rule: tables of replies, honest and hostile, and what must hold for all of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from pivot import answers
from pivot.data import world
from pivot.records import Example
from pivot.reward import answer, bonus, choice, digit, finished, format, iou, length, similar
from pivot.reward._contract import Reply, Score

CODE = "__import__('os').system('false')"


def example(truth: str | None, kind: str | None = None, **meta: Any) -> Example:
    return Example("item-1", (), "?", answer=truth, answer_kind=kind, meta=meta)  # type: ignore[arg-type]


# ---- numbers: the true one is 12

DIGITS = [
    ("12", 1),
    ("12.", 1),
    ("12.0", 1),
    ("12,0", 0),
    (" \n12\t", 1),
    ("**12**", 1),
    ("`12`", 1),
    ("$12$", 1),
    (r"\boxed{12}", 1),
    ("１２", 1),
    ("١٢", 1),
    ("१२", 1),
    ("①②", 0),
    ("1²", 0),
    ("twelve", 1),
    ("TWELVE", 1),
    ("a dozen", 0),
    ("+12", 1),
    ("-12", 0),
    ("−12", 0),
    ("5 - 12", 0),
    ("minus 12", 0),
    ("negative 12", 0),
    ("minus twelve", 0),
    ("12 thousand", 0),
    ("12 million", 0),
    ("12 dozen", 0),
    ("twelve hundred", 0),
    ("12 and a half", 0),
    ("11-12", 0),
    ("11–12", 0),
    ("11 to 12", 0),
    ("between 11 and 12", 0),
    ("11, maybe 12", 0),
    ("11, perhaps 12", 0),
    ("count: 1 2 3 ... 11 12", 0),
    ("count: 1 2 3 ... 11 12, so there are 12", 1),
    ("15 minus 3 is 12", 1),
    ("15 minus 3", 0),
    ("12 to 12", 1),
    ("012", 1),
    ("1 2", 0),
    ("1.2e1", 0),
    ("0xC", 0),
    ("12th", 0),
    ("12 cm", 1),
    ("12cm", 0),
    ("12%", 0),
    ("12.5%", 0),
    ("half of it is 50%, so 12", 1),
    ("It is not 12.", 0),
    ("12 is wrong", 0),
    ("not 13 but 12", 1),
    ("12, not 13", 1),
    ("12^3", 0),
    ("10^12", 0),
    ("10 ^ 12", 0),
    ("10**12", 0),
    ("12.0.1", 0),
    ("13. Or 12.", 0),
    ("13, 12", 0),
    ("<answer>13, 12</answer>", 0),
    ("12 12", 1),
    ("12 or 13", 0),
    ("13 or 12", 0),
    ("12/13", 0),
    ("12 and 13", 0),
    ("13, no, 12", 1),
    ("11, 12, 13, 14", 0),
    ("10 + 2 = 12", 1),
    ("the answer is 12 because there are 3 rows of 4", 0),
    ("<answer>12</answer>", 1),
    ("<answer>13</answer><answer>12</answer>", 1),
    ("{'answer': 12}", 1),
    ("12\u200b", 1),
    ("\u202e12", 1),
    (CODE, 0),
    ("6*2", 0),
    ("int('12')", 1),
    ("", 0),
    ("?", 0),
    ("NaN", 0),
    ("inf", 0),
    ("9" * 5000, 0),
]


@pytest.mark.parametrize(("reply", "earned"), DIGITS)
def test_digits(reply: str, earned: float) -> None:
    assert digit.reward(reply, example("12")) == earned


def test_a_sign_may_be_a_word() -> None:
    for reply, earned in [
        ("minus 3", 1),
        ("negative three", 1),
        ("-3", 1),
        ("It is minus 3.", 1),
        ("3", 0),
        ("5 minus 3", 0),
        ("minus -3", 0),
    ]:
        assert digit.reward(reply, example("-3")) == digit.reward(reply, example("minus three")) == earned, reply


def test_a_percentage_is_right_where_one_is_asked_for() -> None:
    assert digit.reward("12%", example("12%")) == digit.reward("12", example("12%")) == 1
    assert digit.reward("12%", replace(example("12"), prompt="How many percent are red?")) == 1


def test_a_number_that_is_none_is_unjudged() -> None:
    for truth in ("many", "", None):
        found = digit.reward("12", example(truth))
        assert found == 0 and isinstance(found, Score) and found.failed and "item-1" in found.failed


# ---- letters: the true one is B

CHOICES = [
    ("B", 1),
    ("b", 1),
    ("B.", 1),
    ("(B)", 1),
    ("[B]", 1),
    ("**B**", 1),
    ("Ｂ", 1),
    ("В", 0),  # Cyrillic
    ("𝐁", 1),
    ("B. a dog", 1),
    ("B: a dog", 1),
    ("(B) a dog", 1),
    ("The answer is B", 1),
    ("the answer is (B).", 1),
    ("Answer: B", 1),
    (r"$\boxed{B}$", 1),
    (r"\boxed{\text{B}}", 1),
    (r"\boxed{B} \boxed{C}", 0),
    (r"\boxed{A}", 0),
    ("Option B is right", 1),
    ("B because A is a cat", 1),
    ("Not A but B", 1),
    ("A is wrong. So B", 1),
    ("It is A. Therefore, the answer is B.", 1),
    ("A dog is there, so B", 1),
    ("A dog", 0),
    ("A", 0),
    ("I think B", 1),
    ("A or B", 0),
    ("B or A", 0),
    ("A/B", 0),
    ("A and B", 0),
    ("A, B, C, D", 0),
    ("ABCD", 0),
    ("AB", 0),
    ("B B B", 1),
    ("not B", 0),
    ("B is not right", 0),
    ("neither A nor B", 0),
    ("vitamin B12", 0),
    ("B's", 0),
    ("B is wrong.", 0),
    ("B is incorrect", 0),
    ("(B) is clearly incorrect", 0),
    ("B isn't the right answer", 0),
    ("It can't be B", 0),
    ("It cant be B", 0),
    ("Definitely not option B", 0),
    ("It cannot be (B).", 0),
    ("Anything but B", 0),
    ("Everything except B", 0),
    ("I doubt it's B", 0),
    ("There is no doubt it's B", 1),
    ("nothing but B", 1),
    ("I would not choose B", 0),
    ("I would not choose A but B", 1),
    ("I wouldn't pick option B", 0),
    ("I don't think it's B", 0),
    ("I do not think that the correct answer is (B)", 0),
    ("not really B", 0),
    ("B is ruled out", 0),
    ("B can be excluded", 0),
    ("B doesn't match", 0),
    ("(B) does not fit", 0),
    ("B is unlikely", 0),
    ("C does not fit, so B", 1),
    ("A is not correct\nB", 1),
    ("the answer is b", 1),
    ("answer: b", 1),
    ("Answer: (b)", 1),
    ("option b", 1),
    ("my choice is b.", 1),
    ("the answer is b or c", 0),
    ("the answer is a or b", 0),
    ("answer: b, not a", 1),
    ("the answer is a", 0),
    ("the answer is not b", 0),
    ("an answer b2b", 0),
    ("I think (B)", 1),
    ("The answer is B. No wait, C.", 0),
    ("The answer is B. No, it cannot be C.", 1),
    ("The answer is B. There is no C.", 1),
    ("<answer>B</answer>", 1),
    ("<answer>A</answer><answer>B</answer>", 0),
    ("</answer>B", 1),
    ("{'answer': 'B'}", 1),
    ("chr(66)", 0),
    (CODE, 0),
    ("", 0),
    ("?", 0),
    ("2", 0),
    ("b" * 1000, 0),
]


@pytest.mark.parametrize(("reply", "earned"), CHOICES)
def test_letters(reply: str, earned: float) -> None:
    for truth in ("B", "(B)", "b", "B. a dog", "Ｂ"):
        assert choice.reward(reply, example(truth, "choice")) == earned
        assert choice.reward(reply, example(truth, "choice", choices=("A", "B", "C", "D"))) == earned


# ---- boxes: the true one is 0.1 0.2 0.5 0.6; half of it is the left half

HALF = 0.5
BOXES = [
    ("[0.1, 0.2, 0.5, 0.6]", 1),
    ("[0.1,0.2,0.5,0.6]", 1),
    ("[ .1, .2, .5, .6 ]", 1),
    ("(0.1, 0.2, 0.5, 0.6)", 1),
    ("{0.1, 0.2, 0.5, 0.6}", 1),
    ("0.1, 0.2, 0.5, 0.6", 1),
    ("0.1 0.2 0.5 0.6", 1),
    ("<box>0.1 0.2 0.5 0.6</box>", 1),
    ("The box is [0.1, 0.2, 0.5, 0.6].", 1),
    ("The box is 0.1, 0.2, 0.5, 0.6.", 1),
    ("(0.1,0.2),(0.5,0.6)", 1),
    ("<|box_start|>(0.1,0.2),(0.5,0.6)<|box_end|>", 1),
    ("from (0.1, 0.2) to (0.5, 0.6)", 1),
    ("top left (0.1, 0.2), bottom right (0.5, 0.6)", 1),
    ("[[0.1, 0.2], [0.5, 0.6]]", 1),
    ("[[0.1, 0.2, 0.5, 0.6]]", 1),
    ('{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "label": "cat"}', 1),
    ('```json\n[{"bbox": [0.1, 0.2, 0.5, 0.6]}]\n```', 1),
    ('{"x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.6}', 1),
    ("x1=0.1, y1=0.2, x2=0.5, y2=0.6", 1),
    ("ymin: 0.2, xmin: 0.1, ymax: 0.6, xmax: 0.5", 1),
    ("left: 0.1 top: 0.2 right: 0.5 bottom: 0.6", 1),
    ("There are 2 cats; number 1: [0.1, 0.2, 0.5, 0.6]", 1),
    ("[０.１, ０.２, ０.５, ０.６]", 1),
    ("[٠.١, ٠.٢, ٠.٥, ٠.٦]", 1),
    ("<answer>[0.1, 0.2, 0.5, 0.6]</answer>", 1),
    ("[0.1, 0.2, 0.3, 0.6]", HALF),
    ("[0.1, 0.2, 0.5, 1.0]", HALF),
    ("[0.1, 0.2, 0.3, 0.6] or [0.1, 0.2, 0.5, 0.6]", HALF),
    ("[0.1, 0.2, 0.3, 0.6][0.1, 0.2, 0.5, 0.6]", HALF),
    ("[[0.1, 0.2, 0.3, 0.6], [0.1, 0.2, 0.5, 0.6]]", HALF),
    ("[0, 0, 1, 1]", 0.16),
    ("[0.6, 0.7, 0.9, 0.9]", 0),
    ("[0.5, 0.2, 0.9, 0.6]", 0),
    ("[0.5, 0.6, 0.1, 0.2]", 0),
    ("[0.1, 0.2, 0.1, 0.6]", 0),
    ("[0.1, 0.2, 0.5]", 0),
    ("[0.1, 0.2, 0.5, 0.6, 0.7]", 0),
    ("0.1, 0.2, 0.5, 0.6, 0.7", 0),
    ("[10%, 20%, 50%, 60%]", 0),
    ("[1e-1, 2e-1, 5e-1, 6e-1]", 0),
    ("[0.1, 0.2, 0.5, 0.3 + 0.3]", 0.25),
    ("[a, b, c, d]", 0),
    ("[0.1, 0.2, 0.5, " + "9" * 400 + "]", 0),
    ("[-1e999, 0, 1, 1]", 0),
    ("[nan, nan, nan, nan]", 0),
    (f"[{CODE}, 0.2, 0.5, 0.6]", 0),
    ("[[[[", 0),
    ("{}", 0),
    ("", 0),
]


@pytest.mark.parametrize(("reply", "earned"), BOXES)
def test_boxes(reply: str, earned: float) -> None:
    assert iou.reward(reply, example("[0.1, 0.2, 0.5, 0.6]", "box")) == pytest.approx(earned)


def test_which_of_several_boxes_counts() -> None:
    two, truth = "[0.1, 0.2, 0.3, 0.6] and [0.1, 0.2, 0.5, 0.6]", example("[0.1, 0.2, 0.5, 0.6]")
    for several, earned in (("first", 0.5), ("last", 1), ("none", 0)):
        assert iou.reward(two, truth, several=several) == pytest.approx(earned)  # type: ignore[arg-type]


def test_coordinates_of_both_sides() -> None:
    """A picture of 200 x 100 that the model sees as 336 x 336."""
    pixels = example("[20, 20, 100, 60]", size=(200, 100), coordinates="pixels")
    assert iou.reward("[20, 20, 100, 60]", pixels) == 1
    assert iou.reward("[0.1, 0.2, 0.5, 0.6]", pixels, reply_in="normalised") == pytest.approx(1)
    assert iou.reward("[100, 200, 500, 600]", pixels, reply_in="thousandths") == pytest.approx(1)
    assert iou.reward("[33.6, 67.2, 168, 201.6]", pixels, seen=(336, 336)) == pytest.approx(1)
    shares = example("[0.1, 0.2, 0.5, 0.6]", size=(200, 100))
    assert iou.reward("[20, 20, 100, 60]", shares, reply_in="pixels", answer_in="normalised") == pytest.approx(1)
    blind = iou.reward("[20, 20, 100, 60]", example("[0.1, 0.2, 0.5, 0.6]"), reply_in="pixels", answer_in="normalised")
    assert blind == 0 and isinstance(blind, Score) and blind.failed and "size" in blind.failed
    # Two pixels wide and high against one and two: 3 * 3 and 2 * 3 with the last pixel, 2 * 2 and 1 * 2 without.
    truth = example("[0, 0, 2, 2]")
    assert iou.reward("[0, 0, 1, 2]", truth) == pytest.approx(1 / 2)
    assert iou.reward("[0, 0, 1, 2]", truth, answer_in="pixels", inclusive=True) == pytest.approx(2 / 3)
    assert iou.reward("[0, 0, 1, 2]", truth, inclusive=True) == 0
    for broken in ("", "[1, 2, 3]", "[0, 0, 1, 1], [1, 1, 2, 2]"):
        unknown = iou.reward("[0, 0, 1, 1]", example(broken))
        assert isinstance(unknown, Score) and unknown.failed


def test_overlap_is_that_of_the_pixels() -> None:
    dice = random.Random(3)
    for _ in range(300):
        one, other = (answers.Box(*(dice.randrange(6) for _ in range(4))) for _ in range(2))
        inside = [
            {(x, y) for x in range(6) for y in range(6) if box.left <= x < box.right and box.top <= y < box.bottom} for box in (one, other)
        ]
        shared, either = len(inside[0] & inside[1]), len(inside[0] | inside[1])
        found = iou.reward(str(list(one)), example(str(list(other))))
        assert found == pytest.approx(shared / either if all(inside) else 0)
        assert found == iou.reward(str(list(other)), example(str(list(one))))


# ---- tags

FORMATS = [
    ("<think>a</think><answer>b</answer>", 1),
    ("<think>a</think>\n\n<answer>b</answer>", 1),
    ("  <think>a</think> <answer> b </answer>\n", 1),
    ("<think></think><answer>b</answer>", 1),
    ("<think>\na\nb\n</think><answer>b\nc</answer>", 1),
    ("<think>2 < 3 > 1</think><answer>b</answer>", 1),
    ("<think><b>a</b></think><answer><i>b</i></answer>", 1),
    ("<think>a</think><answer></answer>", 0),
    ("<think>a</think><answer> \n </answer>", 0),
    ("<think>a</think><answer>\u200b</answer>", 0),
    ("<think>a</think><answer>?</answer>", 1),
    ("<answer>b</answer>", 0),
    ("<think>a</think>", 0),
    ("<think>a</think>b", 0),
    ("<think>a<answer>b</answer>", 0),
    ("a</think><answer>b</answer>", 0),
    ("<think>a</think><answer>b", 0),
    ("<think>a</think>b</answer>", 0),
    ("<think>a</think>and <answer>b</answer>", 0),
    ("so <think>a</think><answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer> done", 0),
    ("<answer>b</answer><think>a</think>", 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
    ("<think>a</think><answer>b<answer>c</answer></answer>", 0),
    ("<think>a<think>b</think></think><answer>c</answer>", 0),
    ("<think>a</think><think>b</think><answer>c</answer>", 0),
    ("<think>a</think><answer><think>b</think></answer>", 0),
    ("<think>a</think><answer>b</think></answer>", 0),
    ("<think>the <answer> tag</think><answer>b</answer>", 0),
    ("<think>a</think></answer><answer>b", 0),
    ("<THINK>a</THINK><ANSWER>b</ANSWER>", 0),
    ("< think>a</think><answer>b</answer>", 0),
    ("<think >a</think><answer>b</answer>", 0),
    ("<think>a</ think><answer>b</answer>", 0),
    ("&lt;think&gt;a&lt;/think&gt;<answer>b</answer>", 0),
    ("＜think＞a＜/think＞<answer>b</answer>", 0),
    ("`<think>a</think><answer>b</answer>`", 0),
    ("```\n<think>a</think><answer>b</answer>\n```", 0),
    ("think: a answer: b", 0),
    ("<think>a</think>\u200b<answer>b</answer>", 0),
    ("", 0),
    ("<", 0),
    ("<think>", 0),
    ("<think>" * 20 + "</think>" * 20, 0),
]


@pytest.mark.parametrize(("reply", "earned"), FORMATS)
def test_formats(reply: str, earned: float) -> None:
    assert format.reward(reply, example(None)) == earned


ANSWERED = [
    ("<answer>b</answer>", "b"),
    ("so <answer> b </answer>.", "b"),
    ("<think>a</think><answer>b</answer>", "b"),
    ("<think>they want <answer>x</answer></think><answer>b</answer>", "b"),
    ("<think>they want <answer>x</answer>", None),
    ("<answer></answer>", ""),
    ("<think>a</think><think><answer>b</answer>", None),
    ("<think>a</think>the tag <b> and <answer>b</answer>", "b"),
    ("<answer>b", None),
    ("b</answer>", None),
    ("</answer>b<answer>", None),
    ("<answer>a</answer><answer>b</answer>", None),
    ("<answer>a</answer> wait </answer>", None),
    ("<answer><answer>b</answer></answer>", None),
    ("<answer>a<answer>b</answer>", None),
    ("b", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "inside"), ANSWERED)
def test_where_the_answer_stands(reply: str, inside: str | None) -> None:
    assert format.answered(reply) == inside


def test_formats_of_other_tasks() -> None:
    alone, both = "<answer>[1, 2, 3, 4]</answer>", "<think>a</think><answer>[1, 2, 3, 4]</answer>"
    assert format.reward(alone, example(None), think=False) == 1
    assert format.reward(both, example(None), think=False) == 0
    assert format.reward(both, example(None), holds="box") == 1
    assert format.reward("<think>[1, 2, 3, 4]</think><answer>there</answer>", example(None), holds="box") == 0


# ---- the rest


def test_lengths_and_ends() -> None:
    assert [length.reward("a b  c\n" * n, example(None), limit=10) for n in (0, 1, 2, 3, 4, 9)] == [0, 0.3, 0.6, 0.9, 1, 1]
    assert length.reward("abc", example(None), limit=10, unit="characters") == 0.3
    assert length.reward(Reply("any", share=0.25), example(None)) == 0.25
    assert finished.reward(Reply("any", finished=True), example(None)) == 1
    assert finished.reward(Reply("any", finished=False), example(None)) == 0
    for unknown in (
        length.reward("any", example(None)),
        finished.reward("any", example(None)),
        finished.reward(Reply("any"), example(None)),
    ):
        assert unknown == 0 and isinstance(unknown, Score) and unknown.failed


def test_the_bonus_for_correctness() -> None:
    yes_no = ("yes", "no")
    for truth, said, earned in [("no", "No.", 0.5), ("no", "yes", -0.5), ("no", "hm", 0), ("yes", "yes", 0), ("yes", "no", 0)]:
        assert bonus.reward(said, example(truth, "choice", choices=yes_no)) == earned
    assert bonus.reward("red", example("red", "choice", choices=("red", "blue"))) == 1
    assert bonus.reward("blue", example("red", "choice", choices=("red", "blue"))) == 0
    assert bonus.reward("3", example("3", "number")) == 0


def test_the_world_is_rewarded_as_it_is_measured() -> None:
    for item in world.read(split="validation", size=96):
        for response in item.responses:
            assert answer.reward(str(response.text), item) == answers.grade(str(response.text), item)
    lost = answer.reward("3", example("many", "number"))
    assert lost == 0 and isinstance(lost, Score) and "not a number" in str(lost.failed)


def test_answers_reads_the_kinds_of_rewards() -> None:
    assert answers.parse("at [1, 2, 3, 4]", example(None, "box")) == "1, 2, 3, 4"
    assert answers.parse(r"so $\frac{1}{2}$", example(None, "maths")) == r"\frac{1}{2}"
    assert answers.parse(" a dog ", example(None, "open")) == "a dog"
    assert answers.grade("[0, 0, 1, 1]", example("[0, 0, 1, 2]", "box")) == 1
    assert answers.grade("[0, 0, 1, 0.9]", example("[0, 0, 1, 2]", "box")) == 0


# ---- what holds for every rule and any text

RULES: dict[str, tuple[Callable[[str, Example], float], Example, float]] = {
    "digit": (digit.reward, example("12", "number"), 0),
    "choice": (choice.reward, example("B", "choice", choices=("cat", "dog")), 0),
    "iou": (iou.reward, example("[0.1, 0.2, 0.5, 0.6]", "box"), 0),
    "format": (format.reward, example(None), 0),
    "length": (partial(length.reward, limit=100), example(None), 0),
    "rouge": (similar.reward, example("a dog and a cat"), 0),
    "bleu": (partial(similar.reward, measure="bleu"), example("a dog and a cat"), 0),
    "anls": (partial(similar.reward, measure="anls"), example("a dog and a cat"), 0),
    "answer": (answer.reward, example("dog", "text"), 0),
    "bonus": (bonus.reward, example("no", "choice", choices=("yes", "no")), -0.5),
}
TABLES = [row[0] for table in (DIGITS, CHOICES, BOXES, FORMATS, ANSWERED) for row in table]
ALPHABET = [
    "a",
    "B",
    "1",
    "2",
    " ",
    ",",
    ".",
    "-",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "$",
    "\\boxed{",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
]
ALPHABET += ["or", "so", "dog", "\n", "٣", "x1", ":", "=", "😀", "\u0000", "\u202e", "²", "\ud800", "yes", "no", '"', "'"]


@pytest.mark.parametrize("name", RULES)
def test_any_text_earns_a_bounded_number(name: str) -> None:
    rule, item, least = RULES[name]
    dice = random.Random(1)
    for reply in [*TABLES, *("".join(dice.choices(ALPHABET, k=dice.randrange(24))) for _ in range(300))]:
        earned = rule(reply, item)
        assert math.isfinite(earned) and least <= earned <= 1, reply
        assert rule(reply, item) == earned
        if "\ud800" not in reply:
            assert rule(f" \n {reply}\t\n ", item) == earned, reply  # space around it does not count


HOSTILE = [
    "<think>",
    "<answer>",
    "[1,",
    "(1,2)",
    "x1=1 ",
    "1",
    " ",
    "\n",
    "'",
    "$",
    "\\boxed{",
    "A or ",
    "so B, ",
    "is ",
    "a",
    "1 2 3 4 ",
    "{[(",
]


@pytest.mark.parametrize("name", sorted(set(RULES) - {"bonus"}))  # which reads as `answer` does
def test_a_long_reply_costs_linear_time(name: str) -> None:
    """100,000 characters each: whatever is quadratic in them takes minutes."""
    rule, item, least = RULES[name]
    for part in HOSTILE:
        reply = part * (100_000 // len(part))
        start = time.process_time()
        assert least <= rule(reply, item) <= 1
        assert time.process_time() - start < 3, (name, part)
