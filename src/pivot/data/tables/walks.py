"""Groups of rows that are being read in order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import pyarrow as pa

from pivot.data.tables.groups import Group

GROUPS = 4  # that are walked through at a time,
WALKED = 256 << 20  # and bytes of them, if they are more than one: a page of a large group may be all of it
WINDOW = 32 << 20  # bytes of a walk that stay at hand: threads do not read in perfect order
SPARSE = 4  # a walk that used less than one row in so many was no reading in order


@dataclass
class Walk:
    """A way through a group from its first row on, and never back: of what lies behind, WINDOW bytes are at hand."""

    group: Group
    used: set[int] = field(default_factory=set)
    passed: int = 0  # rows
    full: int = 0  # of them, those that hold something
    held: deque[tuple[int, pa.Array]] = field(default_factory=deque)  # each with its first row

    @cached_property
    def ahead(self) -> Iterator[pa.RecordBatch]:
        return self.group.batches()

    def at(self, row: int) -> pa.Scalar | None:
        """A row of the group; None if it is too far behind."""
        while row >= self.passed:
            batch = next(self.ahead, None)
            if batch is None:
                raise pa.ArrowInvalid(f"group {self.group.number} of rows ends early")
            column = batch.column(self.group.column)
            self.held.append((self.passed, column))
            self.passed, self.full = self.passed + len(column), self.full + len(column) - column.null_count
            while len(self.held) > 1 and sum(column.nbytes for _, column in self.held) > WINDOW:
                self.held.popleft()
        for start, column in reversed(self.held):
            if start <= row:
                self.used.add(row)
                return column[row - start]
        return None

    @property
    def sparse(self) -> bool:
        """Whether hardly a row was used of those that were passed."""
        return len(self.used) * SPARSE < self.full


@dataclass
class Walks:
    """The last few groups that were walked through, and which ones before them were left with hardly a row used."""

    lock: Lock = field(default_factory=Lock)
    going: OrderedDict[Group, Walk] = field(default_factory=OrderedDict)
    left: set[Group] = field(default_factory=set)

    def of(self, group: Group) -> Walk | None:
        """The way that this group is being walked, if it is."""
        with self.lock:
            if group in self.going:
                self.going.move_to_end(group)
            return self.going.get(group)

    def begin(self, group: Group) -> Walk:
        """A new way through a group, from its beginning."""
        walk = Walk(group)
        with self.lock:
            self.going.pop(group, None)
            self._make_room(group.size, GROUPS - 1)
            self.going[group] = walk
        return walk

    def end(self, group: Group) -> None:
        """Forget a way, and others that leave no room for all of this group."""
        with self.lock:
            self.going.pop(group, None)
            self._make_room(group.size, GROUPS)

    def _make_room(self, size: int, groups: int) -> None:
        while self.going and (len(self.going) > groups or sum(one.size for one in self.going) + size > WALKED):
            group, walk = self.going.popitem(last=False)
            if walk.sparse:
                self.left.add(group)
