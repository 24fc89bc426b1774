"""A column of a parquet file by groups of rows, which is how parquet is read: a group from its first row on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pivot.files import cache_folder, hash_json
from pivot.records import BadInput

Mark = tuple[int, int]  # a file's size and time of change in ns when its rows were indexed: what is read later must be of the same file
BROKEN = (pa.ArrowException, OSError)
PIECE, ROWS = 8 << 20, 64  # bytes, and rows at most, that are made at once
LARGE = 32 << 20  # bytes of a group that is read in pieces, too: 4,000 pictures are 400 MB, and reading a small one at once is faster
VERSION = 2  # of what a copy holds


def mark(file: Path) -> Mark:
    """What tells this file from a later one of its name."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def unchanged(file: Path, known: Mark) -> None:
    """Refuse a file that has changed."""
    if mark(file) != known:
        raise BadInput(f"{file} has changed since its rows were indexed; start again")


@lru_cache(maxsize=1024)
def _facts(file: Path, known: Mark) -> pq.FileMetaData:  # which would take 0.1 s to read again in a file of 10,000 groups
    unchanged(file, known)
    return pq.read_metadata(file)


@lru_cache(maxsize=1024)
def ends(file: Path, known: Mark) -> list[int]:
    """Number of the first row behind each group."""
    facts = _facts(file, known)
    return list(accumulate(facts.row_group(group).num_rows for group in range(facts.num_row_groups)))


@lru_cache(maxsize=1024)
def _folder(file: Path, known: Mark, column: str) -> str:
    return hash_json([VERSION, str(file.resolve()), *known, column])


@dataclass(frozen=True)
class Group:
    """One column of one group of rows."""

    file: Path
    mark: Mark
    column: str
    number: int

    @cached_property
    def rows(self) -> int:
        return int(_facts(self.file, self.mark).row_group(self.number).num_rows)

    @cached_property
    def size(self) -> int:
        """Bytes of it, uncompressed."""
        facts = _facts(self.file, self.mark).row_group(self.number)
        leaves = map(facts.column, range(facts.num_columns))
        return sum(leaf.total_uncompressed_size for leaf in leaves if f"{leaf.path_in_schema}.".startswith(f"{self.column}."))

    def kept(self) -> Path:
        """Where its copy is or would be."""
        return cache_folder() / "pictures" / _folder(self.file, self.mark, self.column) / f"{self.number}.arrow"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, some at a time. Of a large group no more than a page and these are in memory."""
        rows = min(max(PIECE * self.rows // max(self.size, 1), 1), ROWS)
        buffer = 1 << 20 if self.size > LARGE else 0
        unchanged(self.file, self.mark)
        with pq.ParquetFile(self.file, metadata=_facts(self.file, self.mark), pre_buffer=False, buffer_size=buffer) as opened:
            for batch in opened.iter_batches(rows, row_groups=[self.number], columns=[self.column], use_threads=False):
                unchanged(self.file, self.mark)
                yield batch
