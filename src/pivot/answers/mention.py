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
RIGHT = r"(?:right|correct|true|it|the (?:right |correct )?(?:answer|one|choice|option))"
CHOOSE = r"(?:cho+s(?:e|ing)|pick(?:ing)?|select(?:ing)?|tak(?:e|ing)|say(?:ing)?|go(?:ing)?[ \t]+(?:with|for))"
THINK = (
    r"(?:think|believe|say|agree)(?:[ \t]+that)?"
    r"(?:[ \t]*(?:(?:it|this|that)(?:['’]s|[ \t]+is)|the[ \t]+(?:(?:right|correct)[ \t]+)?(?:answer|one|choice|option)[ \t]+is))?"
)
DENIAL = re.compile(
    r"(?:(?:\b(?:not|never|cannot|cant|nor)|n['’]t)(?:[ \t]+(?:really|actually|quite|exactly|necessarily|likely|probably))?"
    rf"(?:[ \t]+(?:{CHOOSE}|{THINK}))?"
    r"|\b(?:no|neither|than|instead of|except|(?:any(?:thing|one)?|every(?:thing)?|all) but|rule[sd]? out)"
    r"|(?<!no )(?<!not )(?<!t )(?<!a )(?<!any )(?<!without )(?<!beyond )\bdoubt(?: that)?(?: it(?:['’]s| is))?)"
    r"(?:\s+(?:a|an|the|at|on|in|to|be|option|choice))*[\s(\[*\"'$]*$",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"[\])*\"'.]?(?:\s(?!not\b|never\b)\w+)?\s(?:(?:is|was|are|were|seems|looks|(?:must|would|can|could) be)(?:\s\w+ly)?\s"
    rf"(?:wrong|incorrect|false|untrue|impossible|not {RIGHT})"
    rf"|(?:(?:is|was)n['’]t|can(?:not|['’]t) be|(?:could|would)n['’]t be) {RIGHT})\b",
    re.IGNORECASE,
)
# Said of the right choice too, where the question asks which one it is said of.
EXCLUDED = re.compile(
    r"[\])*\"'.]?(?:\s(?!not\b|never\b)\w+)?\s(?:"
    r"(?:is|was|seems|looks|(?:must|can|could|should|may) be|has been)(?:\s\w+ly)?\s(?:"
    r"(?:ruled out|excluded|eliminated|discarded|dismissed|unlikely|implausible|improbable|not (?:\w+ly )?(?:likely|possible|plausible)))"
    r"|(?:do(?:es)?|did|can|could|would|will)(?:\snot|n['’]t|not)\s(?:(?:really|quite|seem to)\s)?(?:match|fit|work|apply|hold)"
    r"|won['’]t\s(?:match|fit|work|apply|hold))\b",
    re.IGNORECASE,
)
ASKS_EXCLUDED = re.compile(r"\b(?:not|except|odd|unlike(?:ly)?|differs?|different|excluded|eliminated|ruled out)\b|n['’]t\b", re.IGNORECASE)
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


def denied(mention: Mention, reply: str, question: str = "") -> bool:
    """Whether it is only named to be denied: "not red", "anything but red", "red is wrong", and "red does not fit" unless that is what is
    asked for. Slices keep the look-back short."""
    before = reply[max(0, mention.start - 64) : mention.start]
    if DENIAL.search(before) or DENIED.match(reply, mention.end) or ASKED.match(reply, mention.end):
        return True
    return bool(EXCLUDED.match(reply, mention.end)) and not ASKS_EXCLUDED.search(question)
