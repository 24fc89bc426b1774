"""Which rows an update reads: a pure function of (seed, epoch, step) and of how long rows are, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from pivot.data.lengths import Lengths
from pivot.world.dice import Dice

POOL = 50  # batches' worth of rows that are sorted by length together: more would make batches of neighbouring epochs alike
T = TypeVar("T")


def order(seed: int, epoch: int, examples: int) -> list[int]:
    """The rows of one epoch in the order in which they are read; the same on every machine."""
    return Dice("order", seed, epoch).shuffled(range(examples))


def grouped(seed: int, epoch: int, batch: int, lengths: Lengths, apart: bool) -> list[int]:
    """The same rows in an order whose batches hold rows of like length; `apart`: with pictures or without, but where one kind runs out.

    Shuffled rows are sorted in pools; batches of all pools are shuffled, so that no epoch goes from long to short. A batch that is
    not full comes last.
    """
    kinds = [lengths.pictures > 0, lengths.pictures == 0] if apart else [np.ones(len(lengths), bool)]
    full, left = list[list[int]](), list[int]()
    for number, kind in enumerate(kinds):
        rows = Dice("order", seed, epoch, number).shuffled(np.flatnonzero(kind).tolist())
        whole = len(rows) - len(rows) % batch
        for start in range(0, whole, POOL * batch):
            pool = sorted(rows[start : min(start + POOL * batch, whole)], key=lambda row: (lengths.pictures[row], lengths.text[row]))
            full += [pool[at : at + batch] for at in range(0, len(pool), batch)]
        left += rows[whole:]
    mixed = [left[at : at + batch] for at in range(0, len(left), batch)]
    partial = mixed.pop() if mixed and len(mixed[-1]) < batch else []
    return [row for rows in (*Dice("batches", seed, epoch).shuffled([*full, *mixed]), partial) for row in rows]


def per_epoch(examples: int, batch: int, drop_last: bool = False) -> int:
    """Updates of one epoch. Its last one holds what is left, unless that is dropped."""
    return examples // batch if drop_last else math.ceil(examples / batch)


def batches(
    examples: int,
    batch: int,
    seed: int = 0,
    epochs: int = 1,
    start: int = 0,
    drop_last: bool = False,
    lengths: Lengths | None = None,
    apart: bool = False,
) -> Iterator[list[int]]:
    """Row numbers of each update from number `start` on. With `lengths`, an update's rows are of like length."""
    steps = per_epoch(examples, batch, drop_last)
    for epoch in range(start // steps, epochs):
        rows = order(seed, epoch, examples) if lengths is None else grouped(seed, epoch, batch, lengths, apart)
        for step in range(max(start - epoch * steps, 0), steps):
            yield rows[step * batch : (step + 1) * batch]


def share(batch: Sequence[int], process: int, processes: int) -> list[int]:
    """The rows of a batch that one process takes."""
    return list(batch[process::processes])


def pieces(batch: int, micro: int, processes: int) -> int:
    """Micro-batches that every process runs: as many as the one with most rows needs, since wrappers wait for each other."""
    return math.ceil(math.ceil(batch / processes) / micro)


def cut(rows: Sequence[T], number: int) -> list[list[T]]:
    """Rows in `number` runs of nearly equal length, some perhaps empty."""
    size, longer = divmod(len(rows), number)
    ends = [piece * size + min(piece, longer) for piece in range(number + 1)]
    return [list(rows[a:b]) for a, b in pairwise(ends)]
