"""What a reply names, and which signs say that it means it, denies it or leaves it open."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


class Mention(NamedTuple):
    """An answer that a reply names, and where."""

    value: str
    start: int
    end: int


WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
LEAVES_OPEN = re.compile(r"[\s,.;?!]*(?:\bor\b|/)(?:\s+(?:a|an|the|at|on|in|to|maybe|perhaps))*\s*", re.IGNORECASE)
CONCLUSION = re.compile(
    r"(?:^|[,.:;!?\n—-]|\band) ?\bso\b(?!\s+(?:that|far|much|many))|\b(?:therefore|thus|hence|answer|conclusion)\b", re.IGNORECASE
)
EVIDENCE = re.compile(r"\b(?:because|since)\b[^.!?;\n]*", re.IGNORECASE)
SENTENCE = re.compile(r"[^.!?;\n]*")
# Right before what it denies, and right behind it.
DENIAL = re.compile(
    r"(?:\b(?:not|never|no|neither|nor|than|instead of|cannot|cant|except|(?:any(?:thing|one)?|every(?:thing)?|all) but|rule[sd]? out)"
    r"|n['’]t|(?<!no )(?<!not )(?<!t )(?<!a )(?<!any )(?<!without )(?<!beyond )\bdoubt(?: that)?(?: it(?:['’]s| is))?)"
    r"(?:\s+(?:a|an|the|at|on|in|to|be|option|choice))*[\s(\[*\"'$]*$",
    re.IGNORECASE,
)
RIGHT = r"(?:right|correct|true|it|the (?:right |correct )?(?:answer|one|choice|option))"
DENIED = re.compile(
    r"[\])*\"'.]?(?:\s(?!not\b|never\b)\w+)?\s(?:(?:is|was|are|were|seems|looks|(?:must|would|can|could) be)(?:\s\w+ly)?\s"
    rf"(?:wrong|incorrect|false|untrue|impossible|not {RIGHT})"
    rf"|(?:(?:is|was)n['’]t|can(?:not|['’]t) be|(?:could|would)n['’]t be) {RIGHT})\b",
    re.IGNORECASE,
)
# A question that the reply itself says no to: "A? No."
ASKED = re.compile(r"[\])*\"']{0,2}\s?\?\s{0,3}(?:no|nope|wrong)\s{0,3}(?:[.,;:!\n—-]|$)", re.IGNORECASE)
# What takes back what was said before it: "No, wait: B".
TAKEN_BACK = re.compile(
    r"[.,;:!?\n—-]\s{0,4}(?:oh,? |but )?(?:no|wait|actually|sorry|correction|hold on|scratch that|on second thought)\b", re.IGNORECASE
)


def normal(words: str) -> str:
    """The words without case, punctuation and extra space; compatible characters (full-width letters, ligatures) count as one."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", words).casefold()))


def last(mentions: Sequence[Mention], reply: str) -> str | None:
    """The last mention, unless the reply leaves open whether it is that one or the one before."""
    if not mentions:
        return None
    found = mentions[-1]
    if len(mentions) > 1 and mentions[-2].value != found.value and LEAVES_OPEN.fullmatch(reply, mentions[-2].end, found.start):
        return None
    return found.value


def denied(mention: Mention, reply: str) -> bool:
    """Whether it is only named to be denied: "not red", "anything but red", "red is wrong". Slices keep the look-back short."""
    before = reply[max(0, mention.start - 40) : mention.start]
    return bool(DENIAL.search(before) or DENIED.match(reply, mention.end) or ASKED.match(reply, mention.end))
