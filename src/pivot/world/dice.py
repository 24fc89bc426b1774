"""A random stream of our own: the same integers from the same key on every machine, Python and numpy version."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Dice:
    """SplitMix64, seeded by the hash of a key."""

    def __init__(self, *key: int | str) -> None:
        self._state = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")

    def aside(self) -> Dice:
        """A stream of its own, decided by where this one stands. This one goes on as if nothing had been drawn."""
        return Dice("aside", self._state)

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        # Multiply and shift: the bias is below 2**-50 for every n used here.
        return ((z ^ (z >> 31)) * n) >> 64

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def coin(self) -> bool:
        return self.below(2) == 0

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], k: int) -> list[T]:
        """k different ones, in random order."""
        pool = list(options)
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.some(options, len(options))
