"""Where two texts differ, word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

PAIRS = 30_000  # of equal words, one of each text. 700 words of English make 4,000; of more, words that recur often are no anchors
WORD = re.compile(r"\S+\s*|^\s+")  # with the white space behind it; what stands before the first is one of its own


@dataclass(frozen=True)
class Run:
    """A piece of a text, and whether the other text has it too."""

    text: str
    common: bool


def difference(one: str, other: str) -> tuple[list[Run], list[Run]]:
    """Both texts in pieces, in order. Pieces in common are the same words on both sides; white space makes no difference."""
    mine, theirs = WORD.findall(one), WORD.findall(other)
    found: tuple[list[Run], list[Run]] = ([], [])
    ours, others = ([word.strip() for word in words] for words in (mine, theirs))
    counts = Counter(others)
    many = sum(count * counts[word] for word, count in Counter(ours).items()) > PAIRS
    matcher = SequenceMatcher(None, ours, others, autojunk=many)
    for kind, a, a_end, b, b_end in matcher.get_opcodes():
        for side, words in ((0, mine[a:a_end]), (1, theirs[b:b_end])):
            if words:
                found[side].extend(_runs(words, kind == "equal"))
    return found


def _runs(words: Sequence[str], common: bool) -> list[Run]:
    """One piece; white space at its end stands apart from what is marked."""
    text = "".join(words)
    bare = text.rstrip()
    if common or bare == text or not bare:
        return [Run(text, common)]
    return [Run(bare, False), Run(text[len(bare) :], True)]
