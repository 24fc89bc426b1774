"""The benchmark's own rule: 1 for a reply that it counts as right. World items are rewarded as they are measured."""

from __future__ import annotations

from pivot import answers
from pivot.records import BadInput, Example
from pivot.reward._contract import unjudged


def reward(reply: str, example: Example) -> float:
    """What `answers.grade` says, by the example's answer kind."""
    try:
        return answers.grade(reply, example)
    except BadInput as ungradable:  # of the example: reading a reply raises nothing
        return unjudged(str(ungradable))
