"""Read the answer out of a free reply and compare it with the truth. Benchmarks and rewards share these rules; no torch.

Reading never looks at the true answer: a reply is one guess, whoever asks. A reply that leaves it open ("red or blue") is none.

- choice  one of `meta["choices"]`. Of yes and no, the first that is said decides. Of other choices the one that is named and
          not denied ("not red", "red is wrong"). A short answer may name only one. An explained one that names several must settle on one:
          1. If it concludes ("so ...", "therefore ...", "the answer ..."), only that sentence counts.
          2. What follows "because" or "since" in a sentence is evidence and does not count.
          3. Where the question is what stands in front, the one counts that is said to ("red is in front of blue", "behind the red
             one"), whatever else is named.
          If several are left, the reply is open. Single letters must have their case, or every article would be an A.
- number  the last number, in digits of any script or in words below a hundred. "one" counts only where no other number
          stands, because it is a pronoun as well ("the red one"). Ordinals, digits inside words, powers and what is denied ("not 3") are no
          numbers. A reply that is a bare list of several settles on none.
- text    what stands after the last colon, else the last quoted part, else the last run of capitals and digits, else what
          follows the last "is", "says", "reach" and the like, else all of it. Compared without case, punctuation and extra space.
- box     the first four numbers that stand together as a list, two points, four labelled sides or bare. Right from an overlap of a
          half on, which asks that both speak in the same coordinates.
- maths   the last formula, as it is written: boxed, else between dollars or their like, else what the last sentence comes to. Of
          two different boxes the last counts only if it concludes or takes back the one before.
          Whether two are equal is for the reward `maths`: it takes a library and a time limit.
- open    all of it. How good it is, only a model can say.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple, get_args

from pivot.records import AnswerKind, BadInput, Example


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
# What takes back what was said before it: "No, wait: B".
TAKEN_BACK = re.compile(
    r"[.,;:!?\n—-]\s{0,4}(?:oh,? |but )?(?:no|wait|actually|sorry|correction|hold on|scratch that|on second thought)\b", re.IGNORECASE
)
NO_IDEA = re.compile(r"\s(?:idea|doubt|clue|question|matter|problem|wonder)\b", re.IGNORECASE)  # a "no" that answers nothing


def parse(reply: str, example: Example) -> str | None:
    """What the reply answers, in the form of the example's answer kind; None if it answers nothing."""
    if example.answer_kind == "choice":
        choices = example.meta.get("choices")
        if not choices:
            raise BadInput(f"example {example.id} is a choice without choices; give them in meta['choices']")
        return choice(reply, choices, several=example.meta.get("style") != "short", question=_question(example))
    if example.answer_kind == "number":
        return number(reply)
    if example.answer_kind == "text":
        return text(reply)
    if example.answer_kind == "box":
        found = boxes(reply)
        return ", ".join(format(side, ".10g") for side in found[0]) if found else None
    if example.answer_kind == "maths":
        return formula(reply)
    if example.answer_kind == "open":
        return reply.strip() or None
    raise BadInput(f"example {example.id} has no answer kind, hence no rule; known: {', '.join(get_args(AnswerKind))}")


def _question(example: Example) -> str:
    """What was said last before the reply."""
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1]["content"]


def same(parsed: str | None, example: Example) -> bool:
    """Whether a parsed answer is the example's. Numbers are equal as numbers, words without case, punctuation and extra space."""
    if example.answer is None:
        raise BadInput(f"example {example.id} has no answer to compare with; give one or leave it out of the benchmark")
    if example.answer_kind in ("maths", "open"):
        raise BadInput(
            f"example {example.id} has answer kind '{example.answer_kind}', which words cannot compare; use reward {example.answer_kind}"
        )
    if example.answer_kind == "box" and len(boxes(example.answer)) != 1:
        raise BadInput(f"example {example.id} has answer '{example.answer}', which is not one box; mend it or its answer kind")
    if parsed is None:
        return False
    if example.answer_kind == "box":
        return overlap(boxes(parsed)[0], boxes(example.answer)[0]) >= 0.5
    if example.answer_kind != "number":
        return normal(parsed) == normal(example.answer)
    truth = number(example.answer)
    if truth is None:
        raise BadInput(f"example {example.id} has answer '{example.answer}', which is not a number; mend it or its answer kind")
    return Decimal(parsed) == Decimal(truth)


def grade(reply: str, example: Example) -> float:
    """1 for a right reply, 0 for any other."""
    return float(same(parse(reply, example), example))


def normal(words: str) -> str:
    """The words without case, punctuation and extra space; compatible characters (full-width letters, ligatures) count as one."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", words).casefold()))


def _last(mentions: Sequence[Mention], reply: str) -> str | None:
    """The last mention, unless the reply leaves open whether it is that one or the one before."""
    if not mentions:
        return None
    last = mentions[-1]
    if len(mentions) > 1 and mentions[-2].value != last.value and LEAVES_OPEN.fullmatch(reply, mentions[-2].end, last.start):
        return None
    return last.value


# ---- choice

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
    named = [m for m in _named(reply, choices) if not _denied(m, reply)]
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


def _denied(mention: Mention, reply: str) -> bool:
    """Whether it is only named to be denied: "not red", "anything but red", "red is wrong". Slices keep the look-back short."""
    return bool(DENIAL.search(reply[max(0, mention.start - 40) : mention.start]) or DENIED.match(reply, mention.end))


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


# ---- number

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
    found = [m for m in found if not _denied(m, reply)]
    counted = [m for m in found if reply[m.start : m.end].lower() != "one"]
    return _last(counted or found, reply)


def _listed(found: Sequence[Mention], reply: str) -> bool:
    """Whether the reply is a bare list of different numbers, "4, 3", which settles on none. "1,2" is read as one who counts would."""
    if len({m.value for m in found}) < 2:
        return False
    gaps = [reply[last.end : m.start] for last, m in pairwise(found)]
    around = TAG.sub("", reply[: found[0].start]) + TAG.sub("", reply[found[-1].end :])
    return not re.search(r"\w", around) and all(LISTS.fullmatch(gap) for gap in gaps)


def _plain(value: Decimal) -> str:
    """Decimal form without trailing zeros or a negative zero. `normalize` would round to the context's 28 digits."""
    plain = format(value, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain


# ---- text

QUOTED = re.compile(r"[\"“”«]([^\"“”«»]+)[\"“”»]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)")
CAPITALS = re.compile(r"(?<!\w)[A-Z0-9]+(?:[ -][A-Z0-9]+)*(?!\w)")
LEAD = re.compile(r"\b(?:is|are|was|says|say|reads|read|shows|spells|reach)\b", re.IGNORECASE)


def text(reply: str) -> str | None:
    """The part of the reply that holds the answer, normalised."""
    reply = unicodedata.normalize("NFKC", reply).strip()
    tail = re.split(r":\s", reply)[-1]
    if normal(tail):
        reply = tail
    quoted = [Mention(m[1] or m[2], m.start(), m.end()) for m in QUOTED.finditer(reply)]
    capitals = [Mention(m[0], m.start(), m.end()) for m in CAPITALS.finditer(reply)] if re.search(r"[a-z]", reply) else []
    for mentions in (quoted, capitals):
        if mentions:
            settled = _last(mentions, reply)
            return normal(settled) or None if settled else None
    after = LEAD.split(reply)[-1]
    return normal(after) or normal(reply) or None


# ---- box


class Box(NamedTuple):
    """Two corners, in whatever coordinates."""

    left: float
    top: float
    right: float
    bottom: float


SIDES = {"x1": 0, "xmin": 0, "left": 0, "y1": 1, "ymin": 1, "top": 1, "x2": 2, "xmax": 2, "right": 2, "y2": 3, "ymax": 3, "bottom": 3}
SIDE = re.compile(r"(?<!\w)[\"']?([xy]_?(?:min|max|[12])|left|top|right|bottom)[\"']?\s*+[:=]", re.IGNORECASE)
# Possessive, or a long run of digits would be tried from each of its ends.
COORDINATE = re.compile(r"(?<![\w.])(?:(?<![\d)\]])[-−])?+(?:\d++(?:\.\d++)?+|\.\d++)(?![\w%])")
LIST = re.compile(r"[\[({]([^\[\](){}]*+)[\])}]")
BETWEEN = " ,;\t\r\n\"'"
JOINS = re.compile(r"[^\d.!?{}]{0,24}")  # one corner and the other: "],[", " to ", ", bottom right "
FAR = 1e6  # no picture is so large: what lies beyond is no place in one


def boxes(reply: str) -> list[Box]:
    """The boxes that a reply gives, in its order: those in brackets or, if there are none, four numbers in a row."""
    reply = unicodedata.normalize("NFKC", reply)
    found: list[Box] = []
    corner: tuple[list[float], int] | None = None
    for bracket in LIST.finditer(reply):
        sides = _sides(bracket[1])
        if corner and len(sides) == 2 and JOINS.fullmatch(reply, corner[1], bracket.start()):
            sides = [*corner[0], *sides]
        corner = (sides, bracket.end()) if len(sides) == 2 else None
        if len(sides) == 4:
            found.append(Box(*sides))
    return found or _bare(reply)


def _sides(words: str) -> list[float]:
    """The numbers of a list that holds nothing else, in the order left, top, right, bottom if they are labelled; else none."""
    labels = SIDE.findall(words)
    words = SIDE.sub(" ", words)
    if COORDINATE.sub("", words).strip(BETWEEN):
        return []
    sides = [float(number.replace("−", "-")) for number in COORDINATE.findall(words)]
    if not all(abs(side) < FAR for side in sides):
        return []
    if not labels:
        return sides
    places = [SIDES[label.lower().replace("_", "")] for label in labels]
    return [side for _, side in sorted(zip(places, sides, strict=True))] if sorted(places) == [0, 1, 2, 3] and len(sides) == 4 else []


def _bare(reply: str) -> list[Box]:
    """Runs of exactly four numbers with nothing but commas, space and labels between."""
    if len(labels := list(SIDE.finditer(reply))) >= 4:
        last = COORDINATE.search(reply, labels[3].end())
        return [Box(*sides)] if last and len(sides := _sides(reply[labels[0].start() : last.end()])) == 4 else []
    runs: list[list[re.Match[str]]] = []
    for number in COORDINATE.finditer(reply):
        if runs and not reply[runs[-1][-1].end() : number.start()].strip(BETWEEN):
            runs[-1].append(number)
        else:
            runs.append([number])
    rows = [_sides(reply[run[0].start() : run[-1].end()]) for run in runs if len(run) == 4]
    return [Box(*row) for row in rows if len(row) == 4]


def overlap(one: Box, other: Box, edge: float = 0.0) -> float:
    """Intersection over union; 0 for a box without an area. `edge` is added to each width and height."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(0.0, right - left + edge) * max(0.0, bottom - top + edge)

    if any(box.right <= box.left or box.bottom <= box.top for box in (one, other)):
        return 0.0
    corners = max(one.left, other.left), max(one.top, other.top), min(one.right, other.right), min(one.bottom, other.bottom)
    shared = area(*corners)
    return shared / (area(*one) + area(*other) - shared)


# ---- maths

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
            return (_last(found, reply) or "").strip() or None
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
