"""Rows of plain values as parquet: a type for each column, found by looking at all rows first, and pictures by their own bytes.

A row that is read back is equal to the one that was written, so a type is never widened: what differs from row to row (a number here,
text there, or objects with other keys) has no type. A column that a format does not need is then written as JSON text and named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pivot.data.writing.write import content
from pivot.files import to_json
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.records import Picture

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as the Hub stores them
WITH_PICTURES, WITHOUT = 100, 4096  # rows of a group: a picture costs the reading of its group
FULL = 64 << 20  # bytes of pictures that end a group before its rows do
SHORT = 1 << 31  # whole numbers below are floats, too, without being rounded


class Mixed(ValueError):
    """Values that have no type in common."""


@dataclass(frozen=True)
class Embedded:
    """A picture that is to lie in a column. Its bytes are read when the row is written."""

    source: Picture
    name: str | None

    def plain(self) -> dict[str, Any]:
        return {"bytes": content(self.source), "path": self.name}


@dataclass
class Columns:
    """What the columns of all rows are. `texts`: those written as JSON text."""

    kinds: dict[str, pa.DataType] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)

    def see(self, row: Mapping[str, Any], free: Collection[str]) -> None:
        """Take one row into account. `free`: fields that may become text."""
        for key, value in row.items():
            try:
                self.kinds[key] = unified(self.kinds.get(key, pa.null()), kind(value))
            except Mixed as mixed:
                if key not in free:
                    raise BadInput(f"'{key}' {mixed}, which no column of a parquet file can hold; write a .jsonl file instead") from None
                self.kinds.setdefault(key, pa.string())
                self.texts.add(key)

    @property
    def schema(self) -> pa.Schema:
        if not self.kinds:
            raise BadInput("there are no rows, hence no columns to write; check the data")
        return pa.schema([(key, pa.string() if key in self.texts else kind) for key, kind in self.kinds.items()])

    def fitted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as the columns hold it."""
        return {key: self._value(key, value) for key, value in row.items()}

    def _value(self, key: str, value: Any) -> Any:
        if key in self.texts:
            return None if value is None else to_json(value)
        if pa.types.is_list(self.kinds[key]) and isinstance(value, Embedded):
            value = [value]
        return _embedded(value)

    def write(self, rows: Iterator[Mapping[str, Any]], file: Path) -> Iterator[int]:
        """Write rows in groups; yields how many are written."""
        size = WITH_PICTURES if any(kind in (PICTURE, pa.list_(PICTURE)) for kind in self.kinds.values()) else WITHOUT
        schema, done = self.schema, 0
        with pq.ParquetWriter(file, schema) as out:
            for group in _groups(map(self.fitted, rows), size):
                out.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
                done += len(group)
                yield done


def _groups(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    group, held = list[dict[str, Any]](), 0
    for row in rows:
        group.append(row)
        held += sum(map(_bytes, row.values()))
        if len(group) >= size or held >= FULL:
            yield group
            group, held = [], 0
    if group:
        yield group


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return len(value.get("bytes") or b"") if isinstance(value.get("bytes"), bytes) else 0
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _embedded(value: Any) -> Any:
    if isinstance(value, Embedded):
        return value.plain()
    return [_embedded(one) for one in value] if isinstance(value, list | tuple) else value


def kind(value: Any) -> pa.DataType:
    """The type of a value, exactly."""
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, Embedded):
        return PICTURE
    if isinstance(value, Mapping):
        if not value or not all(isinstance(key, str) for key in value):
            raise Mixed("holds an object without keys")
        return pa.struct([(key, kind(inner)) for key, inner in value.items()])
    if isinstance(value, list | tuple):
        found = pa.null()
        for one in value:
            found = unified(found, kind(one))
        return pa.list_(found)
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(1 << 63) <= value < 1 << 63:
            raise Mixed("holds a number of more than 64 bits")
        return pa.int32() if -SHORT <= value < SHORT else pa.int64()
    try:
        return pa.scalar(value).type
    except pa.ArrowException:
        raise Mixed(f"holds a {type(value).__name__}") from None


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds values of both as they are."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = {one, other}
    if numbers == {pa.int32(), pa.int64()} or numbers == {pa.int32(), pa.float64()}:
        return pa.int64() if pa.int64() in numbers else pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(unified(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        mine, theirs = _fields(one), _fields(other)
        if mine.keys() == theirs.keys():
            return pa.struct([(key, unified(mine[key], theirs[key])) for key in mine])
    for single, several in ((one, other), (other, one)):
        if single.equals(PICTURE) and several.equals(pa.list_(PICTURE)):
            return several
    raise Mixed(f"is {_said(one)} in one row and {_said(other)} in another")


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}


def _said(kind: pa.DataType) -> str:
    for of, word in ((pa.types.is_list, "a list"), (pa.types.is_struct, "an object"), (pa.types.is_string, "text")):
        if of(kind):
            return word
    return str(kind)
