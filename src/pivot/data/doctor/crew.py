"""Some data opened in as many processes as asked for, each of which does its pieces of the work.

Pieces are the same for any number of processes and come back in order.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pivot import recipe
from pivot.data.doctor.checks import Fault
from pivot.records import CheckFailed, Example

if TYPE_CHECKING:
    from pivot.data.doctor.fits import Limit

WORTH = 5000  # rows for each process: it takes 1 s to start, 8 s with a model's processor, and a row 0.3 ms and its picture as many more
CAP = 1000  # findings of a kind that are kept in words

T = TypeVar("T")
R = TypeVar("R")
Found = list[tuple[int, Fault]]  # each with the number of its row


@dataclass(frozen=True)
class Words:
    """What was found in words, by code: number of the row and what exactly. No more than CAP of a code are kept."""

    by: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, found: Iterable[tuple[int, Fault]]) -> None:
        """Keep these, the first one of a row."""
        for number, fault in found:
            kept = self.by.setdefault(fault.code, {})
            if len(kept) < CAP:
                kept.setdefault(number, fault.says)


@dataclass(frozen=True)
class Data:
    """Data by the line that names it, and what its rows must fit into. Each process opens it and makes that limit anew."""

    line: str
    load: Callable[[], Limit] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Data, (self.line, self.load)

    @cached_property
    def examples(self) -> Sequence[Example]:
        return recipe.read(self.line)

    @cached_property
    def limit(self) -> Limit | None:
        return self.load() if self.load else None

    @property
    def tagged(self) -> bool:
        return bool(getattr(self.examples, "tagged", False))


class Crew(Protocol):
    """Maps a function of data and piece over pieces, in order."""

    def __call__(self, act: Callable[[Data, T], R], pieces: Sequence[T]) -> Iterator[R]: ...


@contextmanager
def crew(data: Data, workers: int) -> Iterator[Crew]:
    """So many processes that look at data; with one or none, this one."""
    if workers <= 1:
        yield lambda act, pieces: (act(data, piece) for piece in pieces)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _open, (data,)) as pool:
        try:
            yield lambda act, pieces: pool.map(partial(_do, act), pieces)
        except BrokenProcessPool:
            raise CheckFailed("a process that looked at the data died, perhaps for lack of memory; run again with --workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


_opened: list[Data] = []  # in a process of a crew: what it looks at


def _open(data: Data) -> None:
    _opened[:] = [data]


def _do(act: Callable[[Data, Any], Any], piece: Any) -> Any:
    return act(_opened[0], piece)


def pieces(size: int, each: int) -> list[range]:
    """The numbers below `size`, `each` at a time."""
    return [range(start, min(start + each, size)) for start in range(0, size, each)]
