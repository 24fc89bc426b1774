"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from pivot.files import hash_json
from pivot.records import Example

MANY = 20_000  # rows; of more, not each one is looked at
T_co = TypeVar("T_co", covariant=True)


class Lazy(Sequence[T_co]):
    """Random access for whoever can make `one` item and knows how many there are. A slice is a list."""

    @abstractmethod
    def one(self, index: int) -> T_co:
        """The item of that number, which lies in [0, len)."""

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | list[T_co]:
        size = len(self)
        if isinstance(index, slice):
            return [self.one(i) for i in range(*index.indices(size))]
        if not -size <= index < size:
            raise IndexError(index)
        return self.one(index % size)


@dataclass(frozen=True)
class View(Lazy[Example]):
    """Examples, each changed as `one` says."""

    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)


def fingerprint(examples: Sequence[Example]) -> str:
    """Changes when a row says something else. Rows that can tell so without being made have a method of this name.

    Of others every row's text is read, though not its pictures; of more than MANY, as many as that spread evenly.
    """
    own = getattr(examples, "fingerprint", None)
    if own is not None:
        return str(own())
    sampled = min(len(examples), MANY)
    rows = (examples[i * len(examples) // sampled] for i in range(sampled))
    return hash_json([[row.id, row.prompt, [said.text for said in row.responses], row.answer] for row in rows])
