"""What a row holds in a column of a parquet file: walked to where rows are read in order, from a copy where they are not.

A picture costs the reading of all that stand in front of it in its group, 10 ms in a group of a hundred. In order that is nothing.
Shuffled, every row lies in another group; so a group that was left with hardly a row used is copied into the cache when it is asked for
again, and a row of it then is a piece of a mapped file. Copies take the room of the pictures; they may be deleted at any time.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, cast

import pyarrow as pa

from pivot.data.tables.groups import BROKEN, Group, unchanged
from pivot.data.tables.walks import Walks
from pivot.files import FULL, hash_bytes, sweep_cache, whole_file
from pivot.records import BadInput

RESERVE = 10 << 30  # bytes of the disk that copies leave free: a run's checkpoints need them
OPEN = 128  # copies that stay open
DELETED = {errno.ENOENT, errno.EEXIST, errno.ESTALE}  # the last two where a folder was deleted on the way
LASTING = {errno.EROFS, errno.EACCES, errno.EPERM, *FULL}

_walks = Walks()
_given_up = set[Path]()  # folders that cannot be written to
_uncopied = set[Group]()  # that cannot be copied, for what is in them
_locks = tuple(Lock() for _ in range(16))  # of groups: one thread reads or copies a group, the others wait for what it finds


def value(group: Group, row: int) -> Any:
    """What a row of a group holds, as Python has it."""
    with _locks[hash(group.kept()) % len(_locks)]:  # a file may go by several names, and has one copy
        try:
            return _found(group, row).as_py()
        except BaseException:  # a way that came to damage leads no further
            _walks.end(group)
            raise


def _found(group: Group, row: int) -> pa.Scalar:
    walk = _walks.of(group)
    if walk and (found := walk.at(row)) is not None:
        return found
    passed = walk is not None
    del walk  # what it holds may be 200 MB, and a copy takes as many
    copied = _copied(group)
    if copied is None and (passed or group in _walks.left):
        copied = _copy(group)
    return copied[row] if copied is not None else _walks.begin(group).at(row)


@dataclass(frozen=True)
class Copy:
    """A mapped copy of a group, equal rows of it once: `first` has for each row the first one that is as it is, `rows` what those hold."""

    rows: pa.ChunkedArray
    first: pa.ChunkedArray

    def __getitem__(self, row: int) -> pa.Scalar:
        return self.rows[self.first[row].as_py()]


def _copied(group: Group) -> Copy | None:
    """The copy of a group if there is one."""
    try:
        return _mapped(group, group.kept())
    except BROKEN:
        return None


@lru_cache(maxsize=OPEN)
def _mapped(group: Group, kept: Path) -> Copy:
    unchanged(group.file, group.mark)
    with pa.memory_map(str(kept)) as mapped, pa.ipc.open_file(mapped) as copied:
        found = copied.read_all()  # slices of the mapped file: nothing of it is read yet
    if len(found) != group.rows or found.num_columns != 2:
        raise pa.ArrowInvalid(f"{kept} is a copy of something else")
    return Copy(*found.columns)


def _copy(group: Group) -> Copy | None:
    """Copy a group; None if that cannot be, which costs time and not the run."""
    kept = group.kept()
    folder = kept.parent.parent
    if folder in _given_up or group in _uncopied:
        return None
    _walks.end(group)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _leave_room(folder, group.size)
        _write(group, kept)
        return _mapped(group, kept)
    except (BadInput, *BROKEN) as failed:
        unchanged(group.file, group.mark)
        _learn(failed, group, kept)
        return None


_sweep = cache(sweep_cache)  # once in a process: there may be 10,000 copies


def _learn(failed: Exception, group: Group, kept: Path) -> None:
    """What cannot be copied for good is not tried again; what was deleted in the meantime is."""
    folder, numbers, cause = kept.parent.parent, set[int | None](), cast(BaseException | None, failed)
    while cause is not None:
        numbers.add(getattr(cause, "errno", None))
        cause = cause.__context__  # a BadInput of `whole_file` has the system's error there
    stands_in_the_way = any(os.path.lexists(above) and not os.path.isdir(above) for above in kept.parents)
    deleted = not stands_in_the_way and bool(numbers & DELETED)
    if numbers & LASTING or stands_in_the_way or (isinstance(failed, BadInput) and not deleted):
        if folder not in _given_up:
            _given_up.add(folder)
            told = f"shuffled pictures in parquet are read slowly, for they cannot be copied to {folder}: {failed}"
            logging.getLogger(__name__).warning("%s; PIVOT_CACHE=FOLDER puts the cache elsewhere", told)
    elif not deleted:
        _uncopied.add(group)


def _leave_room(folder: Path, size: int) -> None:
    if shutil.disk_usage(folder).free < size + RESERVE:
        raise BadInput(f"less than {RESERVE >> 30} GB of its disk would stay free")


def _write(group: Group, kept: Path) -> None:
    with whole_file(kept) as unfinished:
        batches = _once(group)
        first = next(batches)
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, first.schema) as out:
            for batch in chain([first], batches):  # more than the group takes in parquet, which may store equal bytes of unequal rows once
                _leave_room(kept.parent, batch.nbytes)
                out.write_batch(batch)


def _once(group: Group) -> Iterator[pa.RecordBatch]:
    """A group's rows, None in place of one that came before, and beside each the number of the first one like it."""
    seen, passed = dict[str, int](), 0
    for batch in group.batches():
        column = batch.column(group.column)
        first = [seen.setdefault(hash_bytes(pickle.dumps(value.as_py())), row) for row, value in enumerate(column, passed)]
        new = [number if row == passed + number else None for number, row in enumerate(first)]
        column = column.take(pa.array(new, pa.int64())) if None in new else column
        yield pa.RecordBatch.from_arrays([column, pa.array(first, pa.int64())], names=["row", "first"])
        passed += len(column)
