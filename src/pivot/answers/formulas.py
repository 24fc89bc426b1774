"""The mathematics that a reply ends in, as it is written."""

from __future__ import annotations

import re

from pivot.answers.mention import CONCLUSION, TAKEN_BACK, Mention, last
from pivot.answers.numbers import number

BRACE = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\.|[{}]", re.DOTALL)
DELIMITER = re.compile(r"\$\$?|\\[()\[\]]")
CLOSES = {"$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}
COMES_TO = re.compile(r"\b(?:is|are|be|equals|gives|get|yields|obtain|therefore|thus|hence|so|answer|result)\b|:(?=\s)", re.IGNORECASE)
WORDS = re.compile(r"(?<!\\)(?<!\\text\{)\b(?!(?:sqrt|sin|cos|tan|log|ln|exp|pi|or|and|cm|mm|km|kg|deg)\b)[^\W\d_]{3,}\b", re.IGNORECASE)


def formula(reply: str) -> str | None:
    """The mathematics that the reply ends in, as it is written and without delimiters; None if two are left open or there is none."""
    boxed = _boxed(reply)
    if len({"".join(m.value.split()) for m in boxed}) > 1:
        between = reply[boxed[-2].end : boxed[-1].start]
        if not (TAKEN_BACK.search(between) or CONCLUSION.search(between)):
            return None
    for found in (boxed, _delimited(reply)):
        if found:
            return (last(found, reply) or "").strip() or None
    sentences = [line.strip() for line in reply.splitlines() if line.strip()]
    tail = COMES_TO.split(sentences[-1])[-1].strip(" \t,.;:!*") if sentences else ""
    if tail and not WORDS.search(tail):
        return tail
    return number(reply)


def _boxed(reply: str) -> list[Mention]:
    """What stands in boxes, the innermost where they nest. One pass, so that a thousand that never close cost no more."""
    found: list[Mention] = []
    opened: list[tuple[bool, int, int]] = []  # a box?, where it begins, where its inside does
    for brace in BRACE.finditer(reply):
        if brace[0].endswith("{") and brace[0] != "\\{":
            opened.append((len(brace[0]) > 1, brace.start(), brace.end()))
        elif brace[0] == "}" and opened:
            boxed, start, inside = opened.pop()
            if boxed and not (found and found[-1].start >= inside):
                found.append(Mention(reply[inside : brace.start()], start, brace.end()))
    return found


def _delimited(reply: str) -> list[Mention]:
    """Formulas between dollars and their like. As in Markdown, a dollar with space on its inner side is money."""
    found: list[Mention] = []
    opened: re.Match[str] | None = None
    for mark in DELIMITER.finditer(reply):
        if opened and mark[0] == CLOSES[opened[0]]:
            inside = reply[opened.end() : mark.start()]
            money = mark[0] == "$" and inside != inside.rstrip()
            if inside.strip() and not money:
                found.append(Mention(inside, opened.start(), mark.end()))
            opened = mark if money else None
        elif mark[0] in CLOSES and not (mark[0] == "$" and reply[mark.end() : mark.end() + 1].isspace()):
            opened = mark
    return found
