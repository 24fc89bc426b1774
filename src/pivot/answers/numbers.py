"""A number, in digits or in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from pivot.answers.mention import LEAVES_OPEN, Mention, denied, last

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: i for i, word in enumerate(UNITS.split())} | {word: 20 + 10 * i for i, word in enumerate(TENS.split())}
# A minus is a sign only where nothing stands before it that it could be taken from.
SIGN = r"(?<![\w)\]])(?<![\d)\]]\s)[-−]"
# Of another magnitude: "12 thousand", "twelve dozen", "12 and a half"; behind such a word stands the rest of one ("two hundred and five").
GREAT = r"(?:(?:hundred|thousand|million|billion|trillion)(?:th)?s?|dozens?|and\s+a\s+(?:half|third|quarter))\b"
REST = "".join(f"(?<!{word} )(?<!{word} and )" for word in ("hundred", "thousand", "million"))
# No part of a power ("10^3") or of a version ("3.0.1").
WHOLE = rf"(?!\w|\s?\^|\*\*\d|\.\d|[\s-]{{1,3}}{GREAT})"
# Atomic, or of "1,200 thousand" the 1 would be left. At most eight groups, or one long run of them would be tried from each of its commas.
FIGURE = r"(?>\d{1,3}(?:,\d{3}){1,8}(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
DIGITS = rf"(?<![\w.^])(?<!\^\s)(?<!\w\*\*){REST}(?P<sign>{SIGN})?(?P<digits>{FIGURE}){WHOLE}"
SMALL, ROUND, UNIT = UNITS.replace(" ", "|"), TENS.replace(" ", "|"), "|".join(UNITS.split()[1:10])
SPELT = rf"\b{REST}(?:(?P<tens>{ROUND})(?:[-\s](?P<unit>{UNIT}))?|(?P<small>{SMALL}))\b(?![\s-]{{1,3}}{GREAT})"
NUMBER = re.compile(f"{DIGITS}|{SPELT}", re.IGNORECASE)
MINUS = re.compile(r"\b(?:minus|negative)\s{1,3}$", re.IGNORECASE)
# Between two numbers of which neither is meant by itself: "11-12", "11 to 12", "15 minus 3", "11, maybe 12".
RANGE = re.compile(
    r"[ \t]*(?:[-‐‑–—−~]|\.{2,}|…)[ \t]*|\s+(?:minus|(?:up\s+)?to|till|until|through)\s+"
    r"|[\s,;.?!(]*(?:but\s+)?(?:maybe|perhaps|possibly|(?:it\s+)?(?:could|might|may)\s+(?:also\s+)?be)\s+",
    re.IGNORECASE,
)
BETWEEN = re.compile(r"\bbetween\s{1,3}$", re.IGNORECASE)
LISTS = re.compile(r"[,;]?\s+(?:(?:and|&|\.{3}|…)[,;]?\s+)?|;|[,;]?(?:\.{3}|…)[,;]?\s*")
TAG = re.compile(r"</?\w{1,16}>")
ANNOUNCED = re.compile(
    r"^\W*(?:(?:the|my|final)\s+){0,3}(?:answer|result|count|number|total)s?(?:\s+(?:is|are))?\W*$", re.IGNORECASE
)  # no word of a sentence


def number(reply: str) -> str | None:
    """The last number of the reply in plain decimal form: "3", "-0.5"."""
    found = _numbers(reply)
    if _listed(found, reply):
        return None
    found = [m for m in found if not denied(m, reply)]
    counted = [m for m in found if reply[m.start : m.end].lower() != "one"] or found
    if not counted or _open(found[: found.index(counted[-1])], counted[-1], reply):
        return None
    return last(counted, reply)


def marked(words: str) -> str:
    """The words with each number in digits as one word of its own, alike only where the values are: "-5" is no "5", and "5.0" is."""
    parts, at = [], 0
    for m in _numbers(words):
        if words[m.end - 1].isdigit():
            parts += [words[at : m.start], "n" + m.value.replace("-", "m").replace(".", "p")]
            at = m.end
    return "".join([*parts, words[at:]])


def _numbers(reply: str) -> list[Mention]:
    """Every number with its sign, in order."""
    found: list[Mention] = []
    for match in NUMBER.finditer(reply):
        if match["digits"]:
            value = Decimal(match["digits"].replace(",", ""))
        else:
            value = Decimal(sum(VALUES[word.lower()] for word in (match["tens"], match["unit"], match["small"]) if word))
        start, negative = match.start(), bool(match["sign"])
        if minus := MINUS.search(reply, max(0, start - 12), start):
            behind = found and not reply[found[-1].end : minus.start()].strip(" )]")  # what it is taken from
            start, negative = (start, negative) if behind else (minus.start(), not negative)
        found.append(Mention(_plain(value.copy_negate() if negative else value), start, match.end()))
    return found


def _open(before: Sequence[Mention], settled: Mention, reply: str) -> bool:
    """Whether the last number and the one before it are the ends of a range, or that one is a guess beside it. "One" is a pronoun, but
    not where a number in words follows: "one or two"."""
    if not before or before[-1].value == settled.value:
        return False
    start, end = before[-1].start, before[-1].end
    if reply[start:end].lower() == "one" and not reply[settled.start : settled.end].isalpha():
        return False
    if RANGE.fullmatch(reply, end, settled.start) or LEAVES_OPEN.fullmatch(reply, end, settled.start):
        return True
    return bool(BETWEEN.search(reply, max(0, start - 12), start)) and reply[end : settled.start].strip().lower() in ("and", "&")


def _listed(found: Sequence[Mention], reply: str) -> bool:
    """Whether the reply is a bare list of different numbers, "4, 3", which settles on none. "1,2" is read as one who counts would."""
    if len({m.value for m in found}) < 2:
        return False
    gaps = [reply[one.end : m.start] for one, m in pairwise(found)]
    around = ANNOUNCED.sub("", TAG.sub("", reply[: found[0].start])) + TAG.sub("", reply[found[-1].end :])
    return not re.search(r"\w", around) and all(LISTS.fullmatch(gap) for gap in gaps)


def _plain(value: Decimal) -> str:
    """Decimal form without trailing zeros or a negative zero. `normalize` would round to the context's 28 digits."""
    plain = format(value, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain
