"""VLAA-Thinking's reward of open answers: how much better a reward model likes the reply than the reference answer.

    1 - exp(-beta (S(reply) - S(reference)))    where that is positive, else 0

The paper does not give beta; 1 is our choice.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from pivot.records import Example
from pivot.reward._contract import Scorer, unjudged


def reward(reply: str, example: Example, *, beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0, score: Scorer) -> float:
    """In [0, 1), rising with the score and 0 for whatever is no better than the example's answer."""
    if example.answer is None:
        return unjudged(f"example {example.id} has no answer to be better than")
    gain = float(score(reply, example)) - float(score(example.answer, example))
    if not math.isfinite(gain):
        return unjudged("the learned reward is not finite")
    return -math.expm1(-beta * gain) if gain > 0 else 0.0
