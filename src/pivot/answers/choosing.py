"""One of several choices."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pivot.answers.mention import CONCLUSION, EVIDENCE, LEAVES_OPEN, SENTENCE, TAKEN_BACK, WORD, Mention, denied, normal

NO_IDEA = re.compile(r"\s(?:idea|doubt|clue|question|matter|problem|wonder)\b", re.IGNORECASE)  # a "no" that answers nothing
ASKS_FRONT = re.compile(r"^(?!.*\bbehind\b).*(?:\bin front\b|\bhides\b)", re.IGNORECASE | re.DOTALL)
# What follows or precedes the name of the thing that is in front. A word may stand between: "red shape", "is clearly", "behind the".
FRONT_AFTER = re.compile(
    r"(?:\s+(?!not\b|never\b)\w+)?(?:\s+(?:is|lies|stands|sits))?(?:\s+\w+ly)?\s+(?:in front\b|covers\b|hides\b(?!\s+behind\b))",
    re.IGNORECASE,
)
FRONT_BEFORE = re.compile(
    r"(?:\bin front\b(?:(?!\bis\b)[^.,;!?\n])*\bis|(?<!not )(?:\bbehind|\bhidden by|\bcovered by))(?:\s+(?:a|an|the))?\s*$", re.IGNORECASE
)

JOINED = re.compile(r"(?:\s+\w+)?[\s,]*(?:\b(?:or|and)\b|[/&])(?:\s+(?:a|an|the))?\s*", re.IGNORECASE)


def choice(reply: str, choices: Sequence[str], several: bool = True, question: str = "") -> str | None:
    """The choice that the reply settles on. `several`: it may name others on its way."""
    reply = unicodedata.normalize("NFKC", reply)
    named = [m for m in _named(reply, choices) if not denied(m, reply, question)]
    if {c.casefold() for c in choices} == {"yes", "no"}:
        named = [m for m in named if not (m.value.casefold() == "no" and NO_IDEA.match(reply, m.end))]
        other = next((m for m in named if m.value != named[0].value), None)
        between = reply[named[0].end : other.start] if other else ""
        left_open = LEAVES_OPEN.fullmatch(between) or between.strip() in ("and", "&") or TAKEN_BACK.search(between)
        return named[0].value if named and not left_open else None
    if several:
        named = _concluded(named, reply)
        if len({m.value for m in named}) > 1 and ASKS_FRONT.match(question):
            named = _in_front(named, reply)
    return named[0].value if len({m.value for m in named}) == 1 else None


def _concluded(named: list[Mention], reply: str) -> list[Mention]:
    """The mentions that count: those of the last conclusion, if there is one, and of what takes it back; none in evidence, unless there
    is nothing else."""
    start = max((m.end() for m in CONCLUSION.finditer(reply) if named and m.end() <= named[-1].start), default=0)
    if start:
        named = [m for m in named if m.start >= start]
        sentence = SENTENCE.match(reply, named[0].end)
        end = sentence.end() if sentence else start
        back = TAKEN_BACK.search(reply, end)
        named = [m for m in named if m.start < end or (back and m.start >= back.end())]
    stated = reply[:start] + EVIDENCE.sub(lambda found: " " * len(found[0]), reply[start:])
    return [m for m in named if stated[m.start] != " "] or named


def _in_front(named: list[Mention], reply: str) -> list[Mention]:
    """The mentions of which the reply says that they are in front; none if it is said of two at once ("red or blue is in front")."""
    front = []
    for last, m in zip([None, *named], named, strict=False):
        before, after = reply[max(0, m.start - 64) : m.start], reply[m.end : m.end + 64]
        if FRONT_AFTER.match(after) or FRONT_BEFORE.search(before):
            if last and JOINED.fullmatch(reply, last.end, m.start):
                return []
            front.append(m)
    return front


def _named(reply: str, choices: Sequence[str]) -> list[Mention]:
    """Choices in order of appearance, as whole words, the longest where several begin ("light blue" is not "blue")."""
    words = list(WORD.finditer(reply))
    keys = [word.group().casefold() for word in words]
    wanted: dict[str, list[tuple[list[str], str]]] = {}
    for option in sorted(choices, key=len, reverse=True):
        if key := normal(option).split():
            wanted.setdefault(key[0], []).append((key, option))
    named: list[Mention] = []
    at = 0
    while at < len(words):
        step = 1
        for key, option in wanted.get(keys[at], ()):
            letter = len(option) == 1 and option.isalpha()
            if keys[at : at + len(key)] == key and (not letter or words[at].group() == option):
                step = len(key)
                named.append(Mention(option, words[at].start(), words[at + step - 1].end()))
                break
        at += step
    return named
