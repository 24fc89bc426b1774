"""Several data sets as one, by weight and seeded: `of: {NAME: {read: llava, path: ..., weight: 2}, OTHER: "world,size=500"}`.

Each part gets its share of all rows, exact to one row (largest remainder); which part a row is of, and which of the part's rows, are
functions of the seed, the size and the parts' names, weights and sizes. A part's rows come in an order of its own, and again in another
one when all have come. Without `size` it is the largest at which no row of any part comes twice. Ids begin with the part's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from pivot import lookup
from pivot.data.lazy import Lazy, fingerprint
from pivot.files import hash_json
from pivot.knobs import Wrong, fill
from pivot.oneline import described
from pivot.records import BadInput, Example

GOLDEN, LEFT, RIGHT = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's, as in `world.dice`


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    name: str
    rows: Sequence[Example]
    weight: float


@dataclass(frozen=True)
class Mix(Lazy[Example]):
    """Rows of several parts. Of each row two numbers are held: its part, and its place there."""

    parts: tuple[Part, ...]
    size: int
    seed: int

    def __len__(self) -> int:
        return self.size

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """(size,) number of the part, and number of the row in it."""
        counts = shares([part.weight for part in self.parts], self.size)
        which = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[shuffled(self.size, "parts", self.seed)]
        number = np.empty(self.size, np.int64)
        for at, part in enumerate(self.parts):
            number[which == at] = rounds(len(part.rows), counts[at], part.name, self.seed)
        return which, number

    def place(self, index: int) -> tuple[Part, int]:
        """The part that a row is of, and its number there."""
        which, number = self._drawn
        return self.parts[which[index]], int(number[index])

    def one(self, index: int) -> Example:
        part, number = self.place(index)
        example = part.rows[number]
        return replace(example, id=f"{part.name}/{example.id}")

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        part, number = self.place(index)
        where = getattr(part.rows, "where", None)
        return where(number) if where else f"row {number} of {part.name}"

    def fingerprint(self) -> str:
        """Of the parts, and of what decides how they are mixed."""
        return hash_json([[[part.name, part.weight, fingerprint(part.rows)] for part in self.parts], self.size, self.seed])


def read(path: str | None = None, *, of: Mapping[str, Any], size: int | None = None, seed: int = 0) -> Mix:
    """Open a mixture. `path` is not used: each part names its own. `of`: parts by name, each with the reader and options of a data set,
    or named in one line, and with its `weight`, by default 1.
    """
    if not of:
        raise BadInput("mix: of names no data; give at least one, as in of={a: {read: llava, path: a.json, weight: 2}}")
    parts = tuple(part(str(name), given) for name, given in of.items())
    if size is None:
        size = largest(parts)
    if size < 1:
        raise BadInput(f"mix: size {size}; give at least one row, or leave it out for as many as there are without repeats")
    return Mix(parts, size, seed)


def part(name: str, given: Any, place: str | None = None) -> Part:
    """One data set by its description, in one line or with reader and options: what `of` takes, here and in other readers. `place`:
    what messages call it there.
    """
    called = place or f"mix: part '{name}'"
    plain = described(given) if isinstance(given, str) else given
    if not isinstance(plain, Mapping) or not isinstance(plain.get("read"), str):
        raise BadInput(f"{called} must be one line that names data, or a mapping with 'read' and its options, not {given!r}")
    weight = plain.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise BadInput(f"{called.split(':')[0]}: weight of '{name}' is {weight!r}; give a number above 0")
    reader = lookup.find("data", plain["read"])
    try:
        options = fill(reader, {key: value for key, value in plain.items() if key != "weight"}, own={"read": ...})
    except Wrong as wrong:
        raise BadInput(f"{'.'.join([place or f'mix: of.{name}', *map(str, wrong.place)])}: {wrong.message}") from None
    rows = reader(**{key: value for key, value in options.items() if key != "read"})
    if not len(rows):
        raise BadInput(f"{called} has no rows; check its path and its filters")
    return Part(name, rows, float(weight))


def largest(parts: Sequence[Part]) -> int:
    """The most rows at which no part gives one twice."""
    weights = [_decimal(part.weight) for part in parts]
    return int(min(len(part.rows) * sum(weights) / weight for part, weight in zip(parts, weights, strict=True)))


def shares(weights: Sequence[float], size: int) -> list[int]:
    """How many of `size` rows each part gets: its share rounded down, and one more where most was cut off, the first of equals first."""
    given = list(map(_decimal, weights))
    exact = [size * weight / sum(given) for weight in given]
    counts = [int(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda at: counts[at] - exact[at])
    for at in order[: size - sum(counts)]:
        counts[at] += 1
    return counts


def _decimal(weight: float) -> Fraction:
    """A weight as it was written: 0.3 and 0.7 make 1."""
    return Fraction(repr(weight))


def rounds(there: int, wanted: int, *key: int | str) -> np.ndarray:
    """(wanted,) numbers below `there`: all of them in one order, then all in another, and so on."""
    drawn = [shuffled(there, *key, round) for round in range(-(-wanted // there))]
    return np.concatenate([np.zeros(0, np.int64), *drawn])[:wanted]


def shuffled(there: int, *key: int | str) -> np.ndarray:
    """(there,) numbers in an order that the key decides: the same on every machine and with every version of numpy."""
    start = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, there + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(LEFT)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(RIGHT)
        return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")
