"""How long a reply is. With a negative weight in `mixed`, a price of length (LLaVA-RLHF: -10)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from pivot.records import Example
from pivot.reward._contract import Reply, unjudged

WORD = re.compile(r"\S+")


def reward(
    reply: str, example: Example, *, limit: Annotated[int, Field(gt=0)] | None = None, unit: Literal["words", "characters"] = "words"
) -> float:
    """The reply's share of the allowed length, at most 1. Without `limit` it is that of the tokens which the sampler allows."""
    if limit is not None:
        length = len(reply) if unit == "characters" else sum(1 for _ in WORD.finditer(reply))
        return min(1.0, length / limit)
    if not isinstance(reply, Reply) or reply.share is None:
        return unjudged("the share of the allowed tokens is not known here; give the reward 'length' a limit")
    return min(1.0, max(0.0, reply.share))
