"""How alike reply and answer are as texts, in [0, 1]: ROUGE-L, BLEU or ANLS, against the best of the example's answers.

The longest common subsequence and the edit distance are computed a row at a time in the bits of one integer (Hyyrö; Myers), because
a table of 20,000 words by 200 would take seconds a reply.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from pivot import answers
from pivot.records import Example
from pivot.reward._contract import unjudged


def reward(
    reply: str,
    example: Example,
    *,
    measure: Literal["rouge_l", "bleu", "anls"] = "rouge_l",
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.5,
) -> float:
    """The likeness to the answer or, where `meta["answers"]` lists several, to the nearest of them; one alone need not be in a list.

    Case, punctuation and extra space do not count; for ANLS punctuation does. `threshold`: what ANLS counts as nothing alike.
    """
    listed = example.meta.get("answers") or example.answer
    truths = [str(one) for one in (listed if isinstance(listed, list | tuple) else [listed]) if one is not None]
    if not any(answers.normal(truth) for truth in truths):
        return unjudged(f"example {example.id} has no answer with words")
    if measure == "anls":
        return max(anls(reply, truth, threshold) for truth in truths)
    compared = rouge_l if measure == "rouge_l" else bleu
    said = answers.normal(reply).split()
    return max(compared(said, answers.normal(truth).split()) for truth in truths)


def rouge_l(said: Sequence[str], truth: Sequence[str]) -> float:
    """F1 of the longest common subsequence."""
    common = common_length(said, truth)
    return 2 * common / (len(said) + len(truth)) if common else 0.0


def bleu(said: Sequence[str], truth: Sequence[str], longest: int = 4) -> float:
    """Geometric mean of clipped n-gram precisions up to `longest`, times the penalty for brevity.

    One sentence rarely has a common 4-gram, so those above words are smoothed by one (Lin and Och), and a short answer has fewer orders.
    """
    orders = min(longest, len(truth), len(said))
    logs = 0.0
    for n in range(1, orders + 1):
        mine, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (said, truth))
        smooth = n > 1
        shared = sum((mine & theirs).values()) + smooth
        if not shared:
            return 0.0
        logs += math.log(shared / (sum(mine.values()) + smooth))
    if not orders:
        return 0.0
    return math.exp(logs / orders + min(0.0, 1 - len(truth) / len(said)))


def anls(said: str, truth: str, threshold: float = 0.5) -> float:
    """1 - edit distance over the longer's length; 0 at the threshold and beyond. Case and extra space do not count."""
    said, truth = (" ".join(text.casefold().split()) for text in (said, truth))
    longer, shorter = max(len(said), len(truth)), min(len(said), len(truth))
    if not longer or longer - shorter >= threshold * longer:  # so many must be inserted that it is far in any case
        return float(said == truth)
    far = edits(said, truth) / longer
    return 1 - far if far < threshold else 0.0


def common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence."""
    if len(one) > len(other):
        one, other = other, one
    places: dict[Hashable, int] = {}
    for i, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(one)) - 1
    row = full  # a zero bit where the length grows
    for item in other:
        match = row & places.get(item, 0)
        row = ((row + match) | (row - match)) & full
    return len(one) - row.bit_count()


def edits(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Levenshtein distance."""
    if not one or not other:
        return len(one) + len(other)
    places: dict[Hashable, int] = {}
    for i, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << i
    full, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, distance = full, 0, len(one)  # where a column's entries rise and fall by one
    for item in other:
        match = places.get(item, 0)
        x = match | down
        diagonal = (((match & up) + up) ^ up) | match
        right, left = down | (~(diagonal | up) & full), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = ((right << 1) | 1) & full, (left << 1) & full
        up, down = left | (~(x | right) & full), right & x
    return distance
