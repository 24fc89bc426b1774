"""Whether a reply ended by itself. As a term with weight 8: LLaVA-RLHF's penalty for replies that were cut off."""

from __future__ import annotations

from pivot.records import Example
from pivot.reward._contract import Reply, unjudged


def reward(reply: str, example: Example) -> float:
    """1 for a reply that the model ended, 0 for one that reached the limit."""
    if not isinstance(reply, Reply) or reply.finished is None:
        return unjudged("whether the reply was cut off is not known here")
    return float(reply.finished)
