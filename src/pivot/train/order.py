"""Which rows an update reads: a pure function of (seed, epoch, step), whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from pivot.world.dice import Dice

T = TypeVar("T")


def order(seed: int, epoch: int, examples: int) -> list[int]:
    """The rows of one epoch in the order in which they are read; the same on every machine."""
    return Dice("order", seed, epoch).shuffled(range(examples))


def batches(examples: int, batch: int, seed: int = 0, epochs: int = 1, start: int = 0) -> Iterator[list[int]]:
    """Row numbers of each update from number `start` on. The last one of an epoch holds what is left."""
    per_epoch = math.ceil(examples / batch)
    for epoch in range(start // per_epoch, epochs):
        rows = order(seed, epoch, examples)
        for step in range(max(start - epoch * per_epoch, 0), per_epoch):
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
