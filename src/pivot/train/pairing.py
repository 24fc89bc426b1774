"""Which attempts of a model at a row make preference pairs, and which of these are taken. Numbers and text: no model, no disk.

Two methods. `correctness`: a right attempt against a wrong one. `dropout`: an attempt against one that begins as it does and was
continued without the pictures, which then says what is likely and not what is seen.

Which pairs are taken decides how long the two sides are. Were one of them longer on the whole, training would learn length: so among
all pairs that could be taken, those are sought whose lengths differ by nothing in sum, and in each pair by little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Literal, NamedTuple

from pivot.train.wanted import Known, Method, Settings

IMAGE = "<image>"  # as in data/turns.py: a response that says it could not be trained on


@dataclass(frozen=True)
class Attempt:
    """One response to a row. `tokens`: without the one that ends it. `reward`: None if it is not judged, or could not be (`failed`).

    One that was continued shares its first `kept` tokens with the attempt number `begun`.
    """

    text: str
    tokens: int
    origin: Literal["sampled", "data", "continued"] = "sampled"
    finished: bool = True
    reward: float | None = None
    failed: str | None = None
    begun: int | None = None
    kept: int = 0

    @property
    def usable(self) -> bool:
        """Whether it can stand in a pair: one that was cut off would teach to end in the middle."""
        return self.finished and bool(self.text.strip()) and IMAGE not in self.text

    @property
    def said(self) -> str:
        """Its text up to white space: what differs in nothing else is the same."""
        return " ".join(self.text.split())

    def right(self, threshold: float) -> bool | None:
        """Whether it was judged right; None if nobody judged it."""
        return None if self.reward is None else self.reward >= threshold


@dataclass(frozen=True)
class Record:
    """What was tried at one row, for which methods, and what its answer is. `failed`: why nothing could be tried."""

    row: int
    id: str
    methods: tuple[Method, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    failed: str | None = None
    answer: Known = "none"


class Pair(NamedTuple):
    """Two attempts at one row, by number, and how many tokens each has."""

    method: Method
    chosen: int
    rejected: int
    tokens: tuple[int, int]

    @property
    def longer(self) -> int:
        """Tokens that the chosen one has more."""
        return self.tokens[0] - self.tokens[1]

    def shares(self, other: Pair) -> bool:
        return self.chosen == other.chosen or self.rejected == other.rejected


# ---- what could be taken


def candidates(record: Record, threshold: float) -> dict[Method, list[Pair]]:
    """All pairs of a row by each of its methods, none twice. What an earlier attempt says, up to white space, is not said anew."""
    found, told = dict[Method, list[Pair]](), set[tuple[str, str]]()
    for method in record.methods:
        found[method] = []
        for pair in (_correctness if method == "correctness" else _dropout)(record.attempts, threshold):
            said = (record.attempts[pair.chosen].said, record.attempts[pair.rejected].said)
            if said not in told and said[0] != said[1]:
                told.add(said)
                found[method].append(pair)
    return found


def _correctness(attempts: Sequence[Attempt], threshold: float) -> Iterator[Pair]:
    told = dict[str, int]()
    for number, attempt in enumerate(attempts):
        if attempt.origin == "sampled" and attempt.usable and attempt.reward is not None:
            told.setdefault(attempt.said, number)
    right = [number for number in told.values() if attempts[number].right(threshold)]
    wrong = [number for number in told.values() if not attempts[number].right(threshold)]
    for chosen, rejected in product(right, wrong):
        yield Pair("correctness", chosen, rejected, (attempts[chosen].tokens, attempts[rejected].tokens))


def _dropout(attempts: Sequence[Attempt], threshold: float) -> Iterator[Pair]:
    """Where attempts are judged, these pairs, too, must be of a right one and a wrong one."""
    for number, attempt in enumerate(attempts):
        if attempt.begun is None or not attempt.usable or attempt.right(threshold):
            continue
        begun = attempts[attempt.begun]
        if continuable(begun, threshold):
            yield Pair("dropout", attempt.begun, number, (begun.tokens, attempt.tokens))


def continuable(attempt: Attempt, threshold: float) -> bool:
    """Whether an attempt may be the chosen one of a pair whose other begins as it does."""
    return attempt.usable and attempt.begun is None and attempt.tokens >= 2 and attempt.right(threshold) is not False


def lacking(record: Record, settings: Settings, before: float) -> Literal["route", "threshold"] | None:
    """Which setting asks for attempts that were not made at a row, as these were made with the threshold `before`."""
    methods = settings.methods(record.answer) if record.methods else ()  # one that cannot be read is tried by none
    if not set(methods) <= set(record.methods):
        return "route"
    begins = [attempt for attempt in record.attempts if attempt.origin == settings.chosen and continuable(attempt, settings.threshold)]
    return "threshold" if "dropout" in methods and not all(continuable(attempt, before) for attempt in begins) else None


def reason(attempts: Sequence[Attempt], method: Method, threshold: float) -> str:
    """Why a row has no pair by a method."""
    if method == "dropout":
        begun = any(continuable(attempt, threshold) for attempt in attempts)
        return "continued without pictures it says the same, is right or has no end" if begun else "nothing long enough to continue"
    judged = {attempt.right(threshold) for attempt in attempts if attempt.origin == "sampled" and attempt.usable} - {None}
    return "all right" if judged == {True} else "all wrong" if judged == {False} else "no attempt that is whole and judged"


# ---- what is taken


def balanced(groups: Sequence[Sequence[Pair]], most: int) -> list[list[Pair]]:
    """Of each group up to `most` pairs, of which no two share an attempt, so that both sides are as long in sum as can be found.

    Begins with the pairs of likest lengths and then exchanges pairs: those first that bring the sum nearest to zero for the least
    difference within a pair, until no single exchange brings it nearer. A group that has a pair never goes without.
    """
    taken = [_alike(group, most) for group in groups]
    total = sum(pair.longer for group in taken for pair in group)
    while total:
        before, changed = total, set[int]()
        for _, number, slot, pair in sorted(_exchanges(groups, taken, total), key=lambda one: one[:3]):
            step = pair.longer - taken[number][slot].longer
            if number not in changed and abs(total + step) < abs(total):
                taken[number][slot] = pair
                changed.add(number)
                total += step
        if total == before:
            break
    return taken


def _alike(group: Sequence[Pair], most: int) -> list[Pair]:
    taken = list[Pair]()
    for pair in sorted(group, key=lambda pair: abs(pair.longer)):
        if len(taken) < most and not any(pair.shares(other) for other in taken):
            taken.append(pair)
    return taken


def _exchanges(
    groups: Sequence[Sequence[Pair]], taken: Sequence[Sequence[Pair]], total: int
) -> Iterator[tuple[tuple[float, int], int, int, Pair]]:
    """What could stand in place of a taken pair and would bring the sum nearer to zero: its price, group, place and itself."""
    for number, (group, mine) in enumerate(zip(groups, taken, strict=True)):
        for slot, old in enumerate(mine):
            for pair in group:
                step = pair.longer - old.longer
                if abs(total + step) >= abs(total) or any(pair.shares(other) for at, other in enumerate(mine) if at != slot):
                    continue
                yield ((abs(pair.longer) - abs(old.longer)) / abs(step), -abs(step)), number, slot, pair


def lengths(pairs: Collection[Pair]) -> dict[str, float]:
    """Mean tokens of both sides, what is left between them, and the mean difference within a pair."""
    chosen, rejected = (fmean(pair.tokens[side] for pair in pairs) for side in (0, 1))
    within = fmean(abs(pair.longer) for pair in pairs)
    return {"chosen": chosen, "rejected": rejected, "difference": chosen - rejected, "within": within}
