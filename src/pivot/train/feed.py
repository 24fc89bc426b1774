"""From row numbers to what goes through the scorer: rows made ahead by threads, gathered to batches, cut to micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import tee
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from pivot.data.collate import Row, collate
from pivot.objective._contract import Counts
from pivot.records import Example
from pivot.train.order import cut, pieces, share
from pivot.train.settings import Settings

AHEAD = 32  # rows at least that are made before they are asked for, or a batch of them: of 384 px in fp32 a row takes 1.7 MB
In = TypeVar("In")
Out = TypeVar("Out")
RowLogps = Sequence[np.ndarray]  # per response: (s,) log-probabilities of its supervised tokens, or other numbers of them
Made = tuple[Row, RowLogps | None]  # a row, and its reference if there is one
Told = Mapping[str, Sequence[RowLogps]]  # what a batch says of its rows, by name: their reference, their advantages
_reading = Lock()  # readers of data need not be safe for threads; what takes time, decoding pictures, comes after them


@dataclass(frozen=True)
class Micro:
    """Rows that go through the scorer at once, with what is told of them. A filler keeps step with processes that have more rows."""

    rows: Sequence[Row]
    told: Told = field(default_factory=dict)
    filler: bool = False

    def batch(self, counts: Counts | None = None) -> dict[str, Any]:
        """What the scorer reads, and with the whole batch's counts what the objective reads as well."""
        told = {name: [[torch.from_numpy(numbers) for numbers in row] for row in rows] for name, rows in self.told.items()}
        return {**collate(self.rows), "counts": counts, **facts(self.rows), **told}

    def alone(self, number: int) -> Micro:
        """One of its rows, as if it were all there is."""
        return Micro([self.rows[number]], {name: [rows[number]] for name, rows in self.told.items()})


@dataclass(frozen=True)
class Portion:
    """What one process takes of a batch: its rows in the batch's order, and the same cut to micro-batches.

    `again`: the rows were learned from before, and are not read anew. `metrics`, `flops`, `seconds`: of what had to be done first.
    """

    rows: Sequence[Row]
    micros: Sequence[Micro]
    again: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0
    seconds: float = 0.0


@dataclass
class Data:
    """Examples as an objective wants them, and their reference once it is known."""

    examples: Sequence[Example]
    reference: Callable[[int], RowLogps] | None = None  # of a row number

    def portions(
        self,
        batches: Iterable[Sequence[int]],
        encode: Callable[[Example], Row],
        ahead: Ahead,
        settings: Settings,
        process: int,
        processes: int,
    ) -> Iterator[Portion]:
        """The share of one process in each batch of row numbers."""

        def make(number: int) -> Made:
            return encode(read(self.examples, number)), None if self.reference is None else self.reference(number)

        plan, again = tee((batch, share(batch, process, processes)) for batch in batches)
        # A process without a share makes a row all the same, to keep step with the others.
        made = ahead.map(make, (number for batch, own in plan for number in own or batch[:1]), max(AHEAD, settings.batch // processes))
        for batch, own in again:
            found = [next(made) for _ in own or batch[:1]]
            rows = [row for row, _ in found[: len(own)]]
            told = {} if self.reference is None else {"reference": [logps for _, logps in found if logps is not None]}
            yield Portion(rows, micros(rows, told, pieces(len(batch), settings.micro, processes), found[0][0]))


def read(examples: Sequence[Example], number: int) -> Example:
    """The example of that number, for whichever thread asks."""
    with _reading:
        example = examples[number]
        for picture in (*example.images, *(image for response in example.responses for image in response.images or ())):
            if isinstance(picture, Image.Image):
                picture.load()  # Pillow decodes an opened file when it is first looked at, and rows may share it
        return example


def micros(rows: Sequence[Row], told: Told, number: int, filler: Row) -> list[Micro]:
    """Rows in `number` micro-batches of like lengths: padding costs time, and order within an update changes no sum."""
    by_length = sorted(range(len(rows)), key=lambda n: -rows[n].length)
    found = []
    for piece in cut(by_length, number):
        if not piece:
            found.append(Micro([filler], filler=True))
            continue
        found.append(Micro([rows[n] for n in piece], {name: [of[n] for n in piece] for name, of in told.items()}))
    return found


def facts(rows: Sequence[Row]) -> dict[str, Any]:
    """What an objective may read of rows beside their log-probabilities."""
    return {"said": [said(row) for row in rows], "roles": [row.roles for row in rows]}


def said(row: Row) -> list[list[int]]:
    """Per response, the tokens that are supervised, in the order of their log-probabilities."""
    found: list[list[int]] = [[] for _ in row.branches]
    for trunk in row.trunks:
        for number in trunk.responses:
            spans = (trunk.span, row.branches[number])
            found[number] = [token for span in spans for token, counts in zip(span.ids, span.supervised, strict=True) if counts]
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
    """Makes things ahead in threads, in order. What is made depends on nothing but its input, so this changes no result.

    Without workers each thing is made when it is asked for.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead") if workers else None

    def map(self, make: Callable[[In], Out], inputs: Iterable[In], ahead: int) -> Iterator[Out]:
        """`make` of each input, in order, up to `ahead` of them before they are asked for. What one raises comes at its turn."""
        if self._pool is None:
            yield from map(make, inputs)
            return
        waiting: deque[Future[Out]] = deque()
        try:
            for one in inputs:
                waiting.append(self._pool.submit(make, one))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Wait for what is being worked on, drop the rest."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
