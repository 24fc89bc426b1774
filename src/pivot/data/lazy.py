"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

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
