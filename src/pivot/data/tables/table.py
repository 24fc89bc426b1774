"""Rows of plain values in files, by number: JSON arrays, JSON lines, parquet, and several such files as one.

Nothing but an index is held in memory. What a file holds is known here; what it means, the formats say (`reading.py`).
"""

from __future__ import annotations

import bisect
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pivot.data.lazy import Lazy
from pivot.data.tables.index import Index
from pivot.data.tables.index import index as indexed
from pivot.files import hash_json
from pivot.records import BadInput

Plain = Mapping[str, Any]
JSON, PARQUET = (".json", ".jsonl", ".ndjson"), (".parquet",)


class Table(Lazy[Plain]):
    """Rows by number. Reading one that is damaged is a `BadInput` that says where it lies."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The place of a row, for messages."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with any row. It costs no reading: hashes are kept with the index."""


def table(path: Path | str) -> Table:
    """The rows of one file, or of all the parquet files (else JSON files) in a folder and below it, in the order of their names."""
    path = Path(path)
    if not path.is_dir():
        return _file(path)
    names = [name for name in inside(path) if not Path(name).name.startswith(".")]
    for kind in (PARQUET, JSON):
        if files := [path / name for name in names if name.lower().endswith(kind)]:
            return joined([_file(file) for file in files])
    raise BadInput(f"{path} holds no rows: there is no .parquet, .jsonl or .json file in it; check the path")


def inside(folder: Path) -> list[str]:
    """Files in a folder and below it, by name. A folder of a million pictures takes a second or two."""
    found = [os.path.relpath(os.path.join(here, name), folder) for here, _, names in os.walk(folder) for name in names]
    return sorted(found)


def _file(path: Path) -> Table:
    if path.suffix.lower() in PARQUET:
        from pivot.data.tables.parquet import ParquetTable  # pyarrow takes a while to import

        return ParquetTable.of(path)
    return JsonTable(path, indexed(path))


@dataclass(frozen=True)
class JsonTable(Table):
    """Objects in a JSON file, read from their place in it when they are asked for."""

    file: Path
    found: Index

    def __len__(self) -> int:
        return len(self.found.spans)

    def raw(self, number: int) -> bytes:
        """What a row says, as it stands in the file."""
        start, end = map(int, self.found.spans[number])
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except FileNotFoundError:
            raise BadInput(f"data not found: {self.file} is not there any more; put it back, or start again") from None

    def one(self, index: int) -> Plain:
        said = self.raw(index)
        try:
            found = json.loads(said)
        except ValueError as broken:
            raise BadInput(f"{self.where(index)}: it is not JSON ({broken}); correct it or drop it") from None
        except RecursionError:
            raise BadInput(f"{self.where(index)}: it is nested too deeply to be a row; drop it") from None
        if not isinstance(found, dict):
            raise BadInput(f"{self.where(index)}: it is no object in {{}}; correct it or drop it")
        return found

    def where(self, index: int) -> str:
        if self.found.layout == "array":
            return f"row {index} of {self.file}"
        lines, left = 1, int(self.found.spans[index, 0])
        try:
            with self.file.open("rb") as file:  # blank lines are no rows, but editors count them
                while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                    lines, left = lines + chunk.count(b"\n"), left - len(chunk)
        except OSError:  # the file is gone, of which whoever reads the row tells
            return f"row {index} of {self.file}"
        return f"line {lines} of {self.file}"

    def fingerprint(self) -> str:
        return self.found.hash


@dataclass(frozen=True)
class Joined(Table):
    """Several tables, one behind the other."""

    tables: tuple[Table, ...]

    @cached_property
    def ends(self) -> list[int]:
        return list(accumulate(map(len, self.tables)))

    def __len__(self) -> int:
        return self.ends[-1] if self.tables else 0

    def part(self, index: int) -> tuple[Table, int]:
        """The table that a row is in, and its number there."""
        which = bisect.bisect_right(self.ends, index)
        return self.tables[which], index - (self.ends[which] - len(self.tables[which]))

    def one(self, index: int) -> Plain:
        of, number = self.part(index)
        return of.one(number)

    def where(self, index: int) -> str:
        of, number = self.part(index)
        return of.where(number)

    def fingerprint(self) -> str:
        return hash_json([[one.fingerprint(), len(one)] for one in self.tables])


@dataclass(frozen=True)
class Chosen(Table):
    """Some rows of a table, in an order of their own."""

    table: Table
    numbers: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def one(self, index: int) -> Plain:
        return self.table.one(int(self.numbers[index]))

    def where(self, index: int) -> str:
        return self.table.where(int(self.numbers[index]))

    def fingerprint(self) -> str:
        numbers = self.numbers if isinstance(self.numbers, range) else list(map(int, self.numbers))
        return hash_json([self.table.fingerprint(), str(numbers)])


def joined(tables: Sequence[Table]) -> Table:
    """Tables as one."""
    return tables[0] if len(tables) == 1 else Joined(tuple(tables))
