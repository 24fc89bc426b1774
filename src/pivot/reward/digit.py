"""A number, equal or not: "3", "3.0" and "three" are one."""

from __future__ import annotations

import re
from decimal import Decimal

from pivot import answers
from pivot.records import Example
from pivot.reward._contract import unjudged

PERCENT = re.compile(r"%|\bper ?cent", re.IGNORECASE)
HUNDREDTHS = re.compile(r"\d\s?(?:[%٪％]|per ?cent\b)", re.IGNORECASE)


def reward(reply: str, example: Example) -> float:
    """1 if the number that the reply settles on is the example's. A percentage is another number, unless it is what is asked for."""
    truth = answers.number(example.answer or "")
    if truth is None:
        return unjudged(f"the answer of {example.id} is no number")
    if not PERCENT.search(f"{example.answer} {example.prompt}"):
        reply = HUNDREDTHS.sub("0x", reply)  # a digit inside a word, which is no number
    said = answers.number(reply)
    return float(said is not None and Decimal(said) == Decimal(truth))
