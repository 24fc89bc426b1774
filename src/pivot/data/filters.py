"""The paper's data filters, as rules over a summary of rows: which rows, in which order, is a pure function of summary, rule and seed.

A word is what stands between white space. What is counted is the chosen response; of one of several turns, all that the assistant says.
The paper does not say so, nor whether its Under30 set may hold special tokens (here it may), nor whether its scales are nested (here each
is the start of the next), nor what is drawn where r is 0: here a new distribution holds exactly r % of long or special rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pivot import progress
from pivot.data.talk import turns_of
from pivot.records import BadInput, Example
from pivot.world.dice import Dice

SPECIAL = ("<think>", "<review>")
SHORT, BRIEF, LONG = 30, 60, 100  # words: Under30 has fewer, NoThink has fewer, what is shifted has more
SEED, SIZE = 777, 20_000
NONE = -1  # words of a row without a chosen response
RULES = "under30, nothink, shift:PERCENT, nested:N,N,... or official20k"


@dataclass(frozen=True)
class Summary:
    """Of each row how many words its chosen response has, and whether a special token."""

    words: np.ndarray  # (rows,) int64
    special: np.ndarray  # (rows,) bool

    @property
    def marked(self) -> np.ndarray:
        """Rows that a new distribution has a share of."""
        return (self.words > LONG) | self.special


@dataclass(frozen=True)
class Picked:
    """Rows by number, in order. `counts`: how many of what there are, and how many were taken."""

    numbers: Sequence[int]
    counts: Mapping[str, int]


def summary(examples: Sequence[Example]) -> Summary:
    """Look at every row's text, and at no picture."""
    words, special = np.full(len(examples), NONE, np.int64), np.zeros(len(examples), bool)
    for number, example in enumerate(examples):
        said = chosen(example)
        if said is not None:
            words[number] = len(said.split())
            special[number] = any(token in said for token in SPECIAL)
        progress.tell("words of rows", number + 1, len(examples))
    return Summary(words, special)


def chosen(example: Example) -> str | None:
    """What the assistant says in the chosen response; None where there is none."""
    found = next((response for response in example.responses if response.role == "chosen"), None)
    if found is None:
        return None
    return "\n".join(turn["content"] for turn in turns_of(found.text, "assistant") if turn["role"] == "assistant")


def pick(rule: str, rows: Summary, size: int = SIZE, seed: int = SEED) -> dict[str, Picked]:
    """The sets that a rule makes, by what their names end with: nested ones by their sizes, any other alone and by none."""
    name, _, given = rule.partition(":")
    if name == "nested":
        return nested(rows, _numbers(given, rule), seed)
    if name == "shift":
        return {"": shifted(rows, _percent(given, rule), size, seed)}
    if rule == "under30":
        return {"": _drawn(f"with fewer than {SHORT} words", (rows.words != NONE) & (rows.words < SHORT), size, seed, rows)}
    if rule == "nothink":
        brief = (rows.words != NONE) & (rows.words < BRIEF) & ~rows.special
        return {"": _drawn(f"with fewer than {BRIEF} words and no special token", brief, size, seed, rows)}
    raise BadInput(f"no rule '{rule}'; give {RULES}")


def _drawn(what: str, fits: np.ndarray, size: int, seed: int, rows: Summary) -> Picked:
    pool = np.flatnonzero(fits)
    counts = {"rows": len(rows.words), "without a chosen response": int((rows.words == NONE).sum()), what: len(pool)}
    return Picked(_some(pool, size, seed, what), {**counts, "taken": size})


def shifted(rows: Summary, percent: int, size: int, seed: int) -> Picked:
    """A new distribution: `percent` of its rows, rounded, are long or special, the others are not; all in one random order."""
    marked, others = np.flatnonzero(rows.marked), np.flatnonzero(~rows.marked & (rows.words != NONE))
    share = (size * percent + 50) // 100
    what = f"with more than {LONG} words or a special token"
    taken = [*_some(marked, share, seed, what), *_some(others, size - share, seed, f"not {what}")]
    counts = {"rows": len(rows.words), "without a chosen response": int((rows.words == NONE).sum()), what: len(marked)}
    return Picked(Dice("order", seed).shuffled(taken), {**counts, "taken": size, f"taken {what}": share})


def nested(rows: Summary, sizes: Sequence[int], seed: int) -> dict[str, Picked]:
    """One seeded shuffle of all rows, cut at each size: every set begins as the next smaller one."""
    order = _some(np.arange(len(rows.words)), max(sizes), seed, "of any kind")
    return {f"-{size}": Picked(order[:size], {"rows": len(rows.words), "taken": size}) for size in sorted(set(sizes))}


def _some(pool: np.ndarray, size: int, seed: int, what: str) -> list[int]:
    """So many of these rows in random order, the same on every machine."""
    if size > len(pool):
        raise BadInput(f"{size:,} rows {what} are asked for, and there are {len(pool):,}; ask for fewer, or give more data")
    return Dice("filter", seed).some(pool.tolist(), size)


def _percent(given: str, rule: str) -> int:
    if not given.isdecimal() or int(given) > 100:
        raise BadInput(f"rule '{rule}': which share? Write shift:PERCENT, a whole number from 0 to 100, as in shift:80")
    return int(given)


def _numbers(given: str, rule: str) -> list[int]:
    parts = given.replace("_", "").split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise BadInput(f"rule '{rule}': which sizes? Write nested:N,N,..., as in nested:3000,5000,10000")
    return [int(part) for part in parts]


def path(out: Path, ending: str) -> Path:
    """Where a set of that ending is written."""
    return out.with_name(f"{out.stem}{ending}{out.suffix}")
