"""A number, in digits or in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from pivot.answers.mention import Mention, denied, last

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: i for i, word in enumerate(UNITS.split())} | {word: 20 + 10 * i for i, word in enumerate(TENS.split())}
# A minus is a sign only where nothing stands before it that it could be taken from.
SIGN = r"(?<![\w)\]])(?<![\d)\]]\s)[-−]"
# No part of a power ("10^3") or of a version ("3.0.1").
WHOLE = r"(?!\w|\s?\^|\*\*\d|\.\d)"
DIGITS = rf"(?<![\w.^])(?<!\^\s)(?<!\w\*\*)(?P<sign>{SIGN})?(?P<digits>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+){WHOLE}"
SMALL, ROUND, UNIT = UNITS.replace(" ", "|"), TENS.replace(" ", "|"), "|".join(UNITS.split()[1:10])
SPELT = rf"\b(?<!hundred )(?<!hundred and )(?:(?P<tens>{ROUND})(?:[-\s](?P<unit>{UNIT}))?|(?P<small>{SMALL}))\b(?!\s(?:hundred|thousand))"
NUMBER = re.compile(f"{DIGITS}|{SPELT}", re.IGNORECASE)
LISTS = re.compile(r"[,;]?\s+(?:(?:and|&)\s+)?|;")
TAG = re.compile(r"</?\w{1,16}>")
ANNOUNCED = re.compile(r"^\W*(?:(?:the|my|final)\s+){0,3}(?:answer|result)s?(?:\s+(?:is|are))?\W*$", re.IGNORECASE)  # no word of a sentence


def number(reply: str) -> str | None:
    """The last number of the reply in plain decimal form: "3", "-0.5"."""
    found: list[Mention] = []
    for match in NUMBER.finditer(reply):
        if match["digits"]:
            value = Decimal(match["digits"].replace(",", ""))
            value = value.copy_negate() if match["sign"] else value
        else:
            value = Decimal(sum(VALUES[word.lower()] for word in (match["tens"], match["unit"], match["small"]) if word))
        found.append(Mention(_plain(value), match.start(), match.end()))
    if _listed(found, reply):
        return None
    found = [m for m in found if not denied(m, reply)]
    counted = [m for m in found if reply[m.start : m.end].lower() != "one"]
    return last(counted or found, reply)


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
