"""Where rows lie: which file and which row of it, however tables are joined or chosen from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pivot.data.mix import Mix
from pivot.data.tables.table import Chosen, Joined, JsonTable

CHUNK = 1 << 20  # bytes


def origin(examples: Sequence[Any], number: int) -> tuple[str, int]:
    """What a row is read from. Rows that are given several times, as by MMPR's `repeat_time`, have one origin."""
    rows, table, own = _leaf(examples, number)
    return str(getattr(table, "file", id(rows))), own


def _leaf(rows: Sequence[Any], number: int) -> tuple[Sequence[Any], Any, int]:
    """The data that a row is of, the table that holds it, if there is one, and its number there."""
    while isinstance(rows, Mix):
        part, number = rows.place(number)
        rows = part.rows
    table = getattr(rows, "table", None) or getattr(rows, "lines", None)
    while isinstance(table, Joined | Chosen):
        table, number = table.part(number) if isinstance(table, Joined) else (table.table, int(table.numbers[number]))
    return rows, table, number


def places(examples: Sequence[Any], numbers: Iterable[int]) -> Iterator[str]:
    """The place of each row, for messages. Of lines in order each is counted once, where each row alone would count from the beginning."""
    counted = dict[str, tuple[int, int]]()  # of a file: so many bytes hold so many ends of lines
    for number in numbers:
        _, table, own = _leaf(examples, number)
        if not isinstance(table, JsonTable) or table.found.layout != "lines":
            where = getattr(examples, "where", None)
            yield where(number) if where else f"row {number}"
            continue
        start = int(table.found.spans[own, 0])
        before, ends = counted.get(str(table.file), (0, 0))
        before, ends = (before, ends) if before <= start else (0, 0)
        try:
            with table.file.open("rb") as file:
                file.seek(before)
                while before < start and (chunk := file.read(min(start - before, CHUNK))):
                    before, ends = before + len(chunk), ends + chunk.count(b"\n")
        except OSError:
            yield table.where(own)
            continue
        counted[str(table.file)] = (before, ends)
        yield f"line {ends + 1} of {table.file}"
