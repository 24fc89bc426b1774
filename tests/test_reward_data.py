"""Rewards where the data is several ways at once or broken: a row earns nothing and says why, and ends no training."""

from __future__ import annotations

from typing import Any

import pytest

from pivot.chat import Scripted
from pivot.records import Example
from pivot.reward import iou, judge, similar
from pivot.reward._contract import Score, check, made, scored


def example(truth: str | None, kind: str | None = None, prompt: Any = "?", **meta: Any) -> Example:
    return Example("item-1", (), prompt, answer=truth, answer_kind=kind, meta=meta)  # type: ignore[arg-type]


SIZES = [None, (), (0, 0), (200, 0), (-200, 100), ("200", "100"), [200], (200, 100, 3), 200, "20", {"w": 200, "h": 100}]
SIZES += [(float("nan"), 100), (float("inf"), 100), (None, None), ([200], [100])]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_picture_without_a_size_is_unjudged(size: Any) -> None:
    pixels = example("[20, 20, 100, 60]", size=size, coordinates="pixels")
    for found in (iou.reward("[0.1, 0.2, 0.5, 0.6]", pixels, reply_in="normalised"), iou.reward("[1, 2, 3, 4]", pixels, seen=(336, 336))):
        assert found == 0 and isinstance(found, Score) and "meta['size']" in str(found.failed)
    assert iou.reward("[20, 20, 100, 60]", pixels) == 1  # where both are pixels it is not asked for


@pytest.mark.parametrize("coordinates", ["px", ["pixels"], 3, {"pixels": 1}], ids=str)
def test_coordinates_that_nobody_knows_are_unjudged(coordinates: Any) -> None:
    for knobs in ({}, {"reply_in": "pixels"}, {"answer_in": "pixels"}):
        found = iou.reward("[20, 20, 100, 60]", example("[20, 20, 100, 60]", size=[200, 100], coordinates=coordinates), **knobs)  # type: ignore[arg-type]
        assert found == 0 and isinstance(found, Score) and "coordinates" in str(found.failed)


def test_the_row_knows_its_coordinates_better_than_the_recipe() -> None:
    row = example("[20, 20, 100, 60]", size=[200, 100], coordinates="pixels")
    assert iou.reward("[0.1, 0.2, 0.5, 0.6]", row, reply_in="normalised", answer_in="thousandths") == pytest.approx(1)
    assert iou.reward("[100, 200, 500, 600]", row, reply_in="thousandths", answer_in="normalised") == pytest.approx(1)


def test_one_answer_alone_needs_no_list() -> None:
    for measure in ("rouge_l", "bleu", "anls"):
        for answers in ("dog", ["dog"], ("dog",), ["cat", "dog"]):
            row = example("bird", answers=answers)
            assert similar.reward("dog", row, measure=measure) == 1 and similar.reward("d", row, measure=measure) < 0.5  # type: ignore[arg-type]
        assert similar.reward("12", example(None, answers=12), measure=measure) == 1  # type: ignore[arg-type]
        assert similar.reward("0", example(None, answers=[0, None]), measure=measure) == 1  # type: ignore[arg-type]
        for answers in ([None], ["", "?!"]):
            found = similar.reward("dog", example(None, answers=answers), measure=measure)  # type: ignore[arg-type]
            assert found == 0 and isinstance(found, Score) and found.failed


def test_the_threshold_of_anls_is_a_knob() -> None:
    """One edit of four: a distance of 0.25."""
    for threshold, earned in ((0.2, 0), (0.25, 0), (0.26, 0.75), (1.0, 0.75)):
        assert similar.reward("cats", example("cat"), measure="anls", threshold=threshold) == earned


def test_the_judge_is_asked_what_was_asked_last() -> None:
    script = Scripted(lambda prompt: "Yes")
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}, {"role": "user", "content": "third"}]
    judge.reward("a dog", example("dog", prompt=turns), ask=script.ask)
    assert "third" in script.asked[0] and "first" not in script.asked[0]


def test_rows_of_one_name_are_scored_each_by_its_own_prompt() -> None:
    """The same id and reply under two questions, as two sets in one mix may have them."""
    rows = [("a dog", example("dog", prompt=prompt)) for prompt in ("what is it?", "what else is it?", "what is it?")]
    assert [item.prompt for _, item in scored(check("learned"), rows)] == ["what is it?", "what else is it?"]


def test_a_term_may_have_the_name_of_the_rule() -> None:
    rule = made({"name": "mixed", "weight": 2, "terms": {"digit": {"name": "format", "weight": 0.5}, "other": {"name": "digit"}}})
    found = rule("12", example("12", "number"))
    assert found == 3 and found.parts == {"digit": 2, "other": 1}
    both = rule("<think></think><answer>12</answer>", example("12", "number"))
    assert both == 3.5 and both.parts == {"digit": 2.5, "other": 1} and sum(both.parts.values()) == both
