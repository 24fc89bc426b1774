"""Rows of a parquet file by number.

Parquet is made to be read in groups of rows, so text goes once into an Arrow file in the cache that is mapped and read row by row.
Pictures stay where they are: a row holds `Inside`, whose bytes are read when they are asked for (`copies.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pivot import progress
from pivot.data.tables.groups import BROKEN, Mark, mark
from pivot.data.tables.inside import Inside
from pivot.data.tables.table import Plain, Table
from pivot.files import cache_folder, hash_file, hash_json, sweep_cache, whole_file, write_text
from pivot.records import BadInput, Uncached

BATCH = 4096  # rows of one piece of the Arrow file
FEW = 64  # rows read at once where pictures must be read to know which rows have one
VERSION = 1  # of what the Arrow file holds


@dataclass(frozen=True)
class ParquetTable(Table):
    """One file: its text in `kept`, its pictures where they are."""

    file: Path
    kept: Path
    rows: int
    pictures: tuple[str, ...]  # columns
    hash: str
    mark: Mark

    @classmethod
    def of(cls, file: Path) -> ParquetTable:
        """Open a file; the first time its text is copied into the cache."""
        try:
            known = mark(file)
            with pq.ParquetFile(file) as opened:
                schema, rows = opened.schema_arrow, opened.metadata.num_rows
        except FileNotFoundError:
            raise BadInput(f"data not found: {file}; check the path") from None
        except BROKEN as broken:
            raise BadInput(f"{file} is no parquet file that can be read ({broken}); fetch it again") from None
        pictures = tuple(field.name for field in schema if _holds_pictures(field.type))
        kept = cache_folder() / "index" / f"{hash_json([VERSION, str(file.resolve()), *known])}.arrow"
        said = _hash(kept, rows) or _copy(file, kept, pictures)
        return cls(file, kept, rows, pictures, hash_json([known[0], said]), known)

    def __len__(self) -> int:
        return self.rows

    @cached_property
    def _text(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self.kept)))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_text"}  # a mapped file does not travel to other processes

    def one(self, index: int) -> Plain:
        try:
            row: dict[str, Any] = self._text.get_batch(index // BATCH).slice(index % BATCH, 1).to_pylist()[0]
        except BROKEN as broken:
            raise BadInput(f"{self.where(index)}: its copy {self.kept} is damaged ({broken}); delete that and start again") from None
        given = {key: value for key, value in row.items() if value is not None}  # a row has all columns, but not the fields of all
        return {key: self._held(key, value, index) if key in self.pictures else value for key, value in given.items()}

    def _held(self, column: str, names: Any, row: int) -> Any:
        """What stands for the pictures of a row: as many as it holds. Of each the copy has a list with its name, or None."""
        if names is None:
            return None
        if isinstance(names, list):
            there = [(number, name["path"]) for number, name in enumerate(names) if name is not None]
            return tuple(Inside(self.file, column, row, self.mark, number, name) for number, name in there)
        return Inside(self.file, column, row, self.mark, None, names["path"])

    def where(self, index: int) -> str:
        return f"row {index} of {self.file}"

    def fingerprint(self) -> str:
        return self.hash


# ---- the copy


def _holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column is one of pictures: bytes, or bytes beside a path as the Hub stores images, or lists of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _hash(kept: Path, rows: int) -> str | None:
    """The hash of a copy of so many rows; None if there is no such copy or it is damaged."""
    try:
        said = kept.with_suffix(".hash").read_text()
        with pa.memory_map(str(kept)) as mapped, pa.ipc.open_file(mapped) as copied:
            last = copied.num_record_batches - 1
            there = last * BATCH + copied.get_batch(last).num_rows if last >= 0 else -1
    except (UnicodeDecodeError, *BROKEN):
        return None
    return said if there == rows and re.fullmatch("[0-9a-f]{64}", said) else None


def _copy(file: Path, kept: Path, pictures: Sequence[str]) -> str:
    """Write the copy: text as it is, of pictures whether they are there and how they are called. Returns its hash."""
    sweep_cache(kept.parent)
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened, whole_file(kept) as unfinished:
            rows, done = opened.metadata.num_rows, 0
            batches = _even(_text(opened, pictures))
            first = next(batches, None)
            if first is None:
                first = pa.RecordBatch.from_pylist([], schema=pa.schema([]))
            with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, first.schema) as out:
                for batch in chain([first], batches):
                    out.write_batch(batch)
                    done += len(batch)
                    progress.tell(f"index of {file.name}, rows", done, rows)
            said = hash_file(unfinished)
            write_text(kept.with_suffix(".hash"), said)
    except BadInput as unwritten:
        raise Uncached(f"{unwritten}; PIVOT_CACHE=FOLDER puts the cache elsewhere") from None
    except BROKEN as broken:
        raise BadInput(f"{file} is damaged ({broken}); fetch it again") from None
    return said


def _text(opened: pq.ParquetFile, pictures: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All but the pictures' bytes, which are not even read where a path stands beside them."""
    paths = [opened.schema.column(number).path for number in range(len(opened.schema))]
    named = {column for column in pictures if any(path.startswith(f"{column}.") and path.endswith(".path") for path in paths)}
    wanted = [path for path in paths if path.partition(".")[0] not in named or path.endswith(".path")]
    size = BATCH if named == set(pictures) else FEW
    # pyarrow does not read dictionaries within lists of several groups at once
    coded = any(_decoded(field.type) != field.type for field in opened.schema_arrow)
    groups = [[group] for group in range(opened.num_row_groups)] if coded else [None]
    for batch in chain.from_iterable(opened.iter_batches(batch_size=size, row_groups=group, columns=wanted) for group in groups):
        columns = [
            _name(column) if name in pictures else _value(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _value(column: pa.Array) -> pa.Array:
    """Dictionaries may change from batch to batch, which an Arrow file cannot hold."""
    return column.cast(_decoded(column.type))


def _decoded(kind: pa.DataType) -> pa.DataType:
    """A type with values in place of dictionaries."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_decoded(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_decoded(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([inner.with_type(_decoded(inner.type)) for inner in map(kind.field, range(kind.num_fields))])
    return kind


def _name(column: pa.Array) -> pa.Array:
    """In place of pictures: {"path": name or None}, or None where there is none; a list of these where there are lists."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pa.ListArray.from_arrays(column.offsets.cast(pa.int32()), _name(column.values), mask=column.is_null())
    if pa.types.is_struct(column.type) and "path" in [column.type.field(n).name for n in range(column.type.num_fields)]:
        paths = column.field("path").cast(pa.string())
    else:
        paths = pa.nulls(len(column), pa.string())
    return pa.StructArray.from_arrays([paths], ["path"], mask=column.is_null())


def _even(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, BATCH at a time, so that a row's number says where it lies."""
    waiting, size = list[pa.RecordBatch](), 0
    for batch in batches:
        waiting.append(batch)
        size += len(batch)
        if size >= BATCH:
            whole = pa.Table.from_batches(waiting).combine_chunks()
            full = size - size % BATCH
            yield from whole.slice(0, full).to_batches(max_chunksize=BATCH)
            waiting, size = whole.slice(full).to_batches(), size - full
    if size:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
