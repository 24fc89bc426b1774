"""Think and answer tags: whether a reply keeps to them, and what stands in the answer. `mixed` can read answers with it.

Found by searching for the tags, not with one expression: a reply of nothing but opening tags must not cost quadratic time.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

from pivot import answers
from pivot.records import Example

THINK, THOUGHT = "<think>", "</think>"
ANSWER, ANSWERED = "<answer>", "</answer>"


def reward(reply: str, example: Example, *, think: bool = True, holds: Literal["text", "box"] = "text") -> float:
    """1 if the reply is a think block and an answer block, each once and in this order, with nothing but space around them.

    `think` false: the answer block alone is asked for. `holds` box: a box must be readable in the answer (VLM-R1's format of REC).
    The answer must say something; the thought may be empty.
    """
    rest = reply.strip()
    if think:
        if not rest.startswith(THINK):
            return 0.0
        thought, closed, rest = rest[len(THINK) :].partition(THOUGHT)
        if not closed or any(tag in thought for tag in (THINK, ANSWER, ANSWERED)):
            return 0.0
        rest = rest.lstrip()
    inside = answered(rest)
    if inside is None or not _says(inside) or THINK in rest or THOUGHT in rest:
        return 0.0
    if not (rest.startswith(ANSWER) and rest.endswith(ANSWERED)):
        return 0.0
    return float(holds == "text" or bool(answers.boxes(inside)))


def _says(inside: str) -> bool:
    """Whether anything in it can be seen: no space, and no sign without a shape of its own."""
    return any(unicodedata.category(sign)[0] not in "CZ" for sign in inside)


def answered(reply: str) -> str | None:
    """What stands in the answer block, or None if there is none or more than one.

    A finished thought in front does not count: it may speak of tags. What stands in an unfinished one is no answer.
    Of two answer blocks none is taken, or a reply could guess twice.
    """
    head, closed, rest = reply.partition(THOUGHT)
    thinks = head.lstrip().startswith(THINK)
    if thinks and not closed:
        return None
    thought = thinks and closed
    if thought:
        reply = rest
    before, opened, inside = reply.partition(ANSWER)
    if thought and before.rfind(THINK) > before.rfind(THOUGHT):
        return None
    inside, closed, after = inside.partition(ANSWERED)
    if not opened or not closed or any(tag in part for part in (before, inside, after) for tag in (ANSWER, ANSWERED)):
        return None
    return inside.strip()
