"""From row numbers to what goes through the scorer: rows encoded ahead in the background, cut to micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from pivot.data.collate import Row, collate
from pivot.objective._contract import Counts
from pivot.records import Example
from pivot.train.order import cut, pieces, share

AHEAD = 2  # batches that wait, encoded, beside the one in work
In = TypeVar("In")
Out = TypeVar("Out")
RowLogps = Sequence[np.ndarray]  # per response: (s,) log-probabilities of its supervised tokens


@dataclass(frozen=True)
class Micro:
    """Rows that go through the scorer at once, with their reference. A filler keeps step with processes that have more rows."""

    rows: Sequence[Row]
    reference: Sequence[RowLogps] | None = None
    filler: bool = False

    def batch(self, counts: Counts | None = None) -> dict[str, Any]:
        """What the scorer reads, and with the whole batch's counts what the objective reads as well."""
        batch = {**collate(self.rows), "counts": counts}
        if self.reference is not None:
            batch["reference"] = [[torch.from_numpy(logps) for logps in row] for row in self.reference]
        return batch


@dataclass(frozen=True)
class Portion:
    """What one process takes of a batch: its rows in the batch's order, and the same cut to micro-batches."""

    rows: Sequence[Row]
    micros: Sequence[Micro]


@dataclass
class Data:
    """Examples as an objective wants them, and their reference once it is known."""

    examples: Sequence[Example]
    reference: Callable[[int], RowLogps] | None = None  # of a row number

    def portion(self, batch: Sequence[int], encode: Callable[[Example], Row], micro: int, process: int, processes: int) -> Portion:
        """The share of one process in a batch of row numbers."""
        own = share(batch, process, processes)
        rows = [encode(self.examples[number]) for number in own]
        reference = None if self.reference is None else [self.reference(number) for number in own]
        number = pieces(len(batch), micro, processes)
        filler = rows[0] if rows else encode(self.examples[batch[0]])
        return Portion(rows, micros(rows, reference, number, filler))


def micros(rows: Sequence[Row], reference: Sequence[RowLogps] | None, number: int, filler: Row) -> list[Micro]:
    """Rows in `number` micro-batches of like lengths: padding costs time, and order within an update changes no sum."""
    by_length = sorted(range(len(rows)), key=lambda n: -rows[n].length)
    found = []
    for piece in cut(by_length, number):
        if not piece:
            found.append(Micro([filler], filler=True))
            continue
        found.append(Micro([rows[n] for n in piece], None if reference is None else [reference[n] for n in piece]))
    return found


def count(rows: Sequence[Row], k: int) -> Counts:
    """What rows of k responses hold. Supervised tokens of a trunk count in each of its branches, as the scorer counts them."""
    tokens = [0] * k
    for row in rows:
        for trunk in row.trunks:
            for number in trunk.responses:
                tokens[number] += sum(trunk.span.supervised) + sum(row.branches[number].supervised)
    return Counts(len(rows), tuple(tokens))


class Ahead:
    """Does work ahead in one background thread. It depends on nothing but its input, so this changes no result.

    One thread, and all encoding in it: a tokenizer's settings are shared state.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    def map(self, work: Callable[[In], Out], inputs: Iterable[In]) -> Iterator[Out]:
        """`work` of each input, in order."""
        waiting: deque[Future[Out]] = deque()
        try:
            for one in inputs:
                waiting.append(self._pool.submit(work, one))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Wait for what is being worked on, drop the rest."""
        self._pool.shutdown(cancel_futures=True)
