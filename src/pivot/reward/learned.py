"""A learned reward model's score, as it is or scaled. The model itself is training's affair: it stands behind `score`."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from pivot.records import Example
from pivot.reward._contract import Scorer, unjudged

Finite = Annotated[float, Field(allow_inf_nan=False)]


def reward(reply: str, example: Example, *, scale: Finite = 1.0, bias: Finite = 0.0, score: Scorer) -> float:
    """`scale * score + bias`. (LLaVA-RLHF scales instead of whitening.)"""
    found = scale * float(score(reply, example)) + bias
    return found if math.isfinite(found) else unjudged("the learned reward is not finite")
