"""A number, equal or not: "3", "3.0" and "three" are one."""

from __future__ import annotations

from decimal import Decimal

from pivot import answers
from pivot.records import Example
from pivot.reward._contract import unjudged


def reward(reply: str, example: Example) -> float:
    """1 if the number that the reply settles on is the example's."""
    truth = answers.number(example.answer or "")
    if truth is None:
        return unjudged(f"the answer of {example.id} is no number")
    said = answers.number(reply)
    return float(said is not None and Decimal(said) == Decimal(truth))
