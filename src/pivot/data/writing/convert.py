"""Examples of any format as another: LLaVA's rows, TRL's, ours, or whatever reader can say a row, as .json, .jsonl or .parquet.

A parquet file holds its pictures' bytes. Rows in JSON name files: a picture that is one keeps the name that it has in its folder, unless
copies are asked for; any other becomes a file beside the rows, in `images/` and there in a folder named as they are. No picture is
encoded anew. What a format has no place for is counted by name. Nothing but one row, or one group of them, is held in memory.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pivot import lookup, progress
from pivot.data.lazy import Lazy
from pivot.data.reading import Root
from pivot.data.saying import exact, sayable
from pivot.data.tables.table import JSON, PARQUET
from pivot.data.writing import write as own
from pivot.data.writing.beside import Apart, Names, called, inside
from pivot.files import sweep_beside, to_json, whole_file, whole_folder
from pivot.records import BadInput, Example

FORMATS = {".json": "llava", ".jsonl": "trl", ".ndjson": "trl", ".parquet": "trl", "": "rows"}  # where nobody says which
IMAGES = "images"
RowOf = Callable[[Example, Sequence[Any]], tuple[dict[str, Any], list[str]]]  # a reader's `row`


@dataclass(frozen=True)
class Subset(Lazy[Example]):
    """Some examples of a sequence, by number, perhaps each made into another."""

    examples: Sequence[Example]
    numbers: Sequence[int]
    made: Callable[[int, Example], Example] = lambda _number, example: example

    def __len__(self) -> int:
        return len(self.numbers)

    def one(self, index: int) -> Example:
        return self.made(self.numbers[index], self.examples[self.numbers[index]])

    @property
    def root(self) -> Root | None:
        """The folder of pictures."""
        return getattr(self.examples, "root", None)

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        return place(self.examples, self.numbers[index])


@dataclass
class Written:
    """What is written so far. `root`: the folder of pictures, where the rows do not lie in it. `lost`: rows by what they lack now."""

    out: Path
    format: str
    root: Path | None = None
    rows: int = 0
    copied: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def source(self) -> str:
        """The one line that reads it."""
        return f"{self.format},{self.out}" + (f",images={self.root}" if self.root else "")


def write(
    examples: Sequence[Example], out: Path, to: str | None = None, *, copy: bool = False, root: Path | None = None
) -> Iterator[Written]:
    """Write examples as rows of a format; yields the same record again and again, which says what is done and in the end how to read it.

    `to`: a reader that can say a row, by default what FORMATS has for the kind of file that `out` is. `copy`: pictures that are files,
    too. `root`: the folder that their names begin in, by default that of the data. A file is there whole or not at all.
    """
    format = to or default(out)
    named(out, format)
    for path in (out, copies_of(out)):
        sweep_beside(path)
    if format == "rows":
        yield from _rows(examples, out)
        return
    row = row_of(format)
    if out.suffix in PARQUET:
        yield from _parquet(examples, out, format, row, root or root_of(examples))
        return
    try:
        yield from _json(examples, out, format, row, None if copy else root or root_of(examples), root or root_of(examples))
    except Apart:
        yield from _json(examples, out, format, row, None, root or root_of(examples))


def default(out: Path) -> str:
    """The format of a file, where nobody says."""
    if out.suffix not in FORMATS:
        raise BadInput(f"{out}: what is to be written? Give a name that ends in .json, .jsonl or .parquet, or a folder")
    return FORMATS[out.suffix]


def named(out: Path, format: str) -> None:
    """A `BadInput` where a format cannot be written, or not under such a name."""
    if format == "rows":
        if out.suffix in (*JSON, *PARQUET):
            raise BadInput(f"{out}: rows are written as a folder; give a name without {out.suffix}")
        return
    row_of(format)
    if out.suffix not in (*JSON, *PARQUET):
        raise BadInput(f"{out}: rows of {format} are written as .json, .jsonl or .parquet; give a name that ends so")


def copies_of(out: Path) -> Path:
    """Where copies of pictures lie that rows in JSON name."""
    return out.parent / IMAGES / out.stem


def row_of(format: str) -> RowOf:
    """How a format says an example; a `BadInput` where it can only be read."""
    lookup.find("data", format)
    found = getattr(importlib.import_module(format if "." in format else f"pivot.data.{format}"), "row", None)
    if found is None:
        raise BadInput(f"'{format}' can be read but not written; write {', '.join(written())}")
    return found


def written() -> list[str]:
    """Names of the formats that can be written."""
    modules = {name: importlib.import_module(f"pivot.data.{name}") for name in lookup.names("data")}
    return sorted(name for name, module in modules.items() if name == "rows" or hasattr(module, "row"))


def root_of(examples: Sequence[Example]) -> Path | None:
    """The folder that names of the data's pictures begin in, if it has one."""
    folder = getattr(getattr(examples, "root", None), "folder", None)
    return Path(folder) if folder is not None else None


def place(examples: Sequence[Example], number: int) -> str:
    """Where a row lies, for messages."""
    where = getattr(examples, "where", None)
    return where(number) if where else f"row {number}"


# ---- our own folder


def _rows(examples: Sequence[Example], out: Path) -> Iterator[Written]:
    found = Written(out, "rows")

    def held(_number: int, example: Example) -> Example:
        odd = [key for key, value in example.meta.items() if not exact(value)]
        found.lost.update(f"meta.{key}" for key in odd)
        return replace(example, meta={key: value for key, value in example.meta.items() if key not in odd}) if odd else example

    with whole_folder(out) as unfinished:
        for found.rows in own.write(Subset(examples, range(len(examples)), held), unfinished):
            yield found
    yield found


# ---- JSON


def _json(examples: Sequence[Example], out: Path, format: str, row: RowOf, kept: Path | None, home: Path | None) -> Iterator[Written]:
    found, array = Written(out, format), out.suffix == ".json"
    copies = copies_of(out)
    with ExitStack() as stack:
        unfinished = stack.enter_context(whole_file(out))
        file = stack.enter_context(unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"))
        opened = list[Path]()

        def beside() -> Path:
            if not opened:
                if copies.exists():
                    raise BadInput(f"{copies} exists already, where pictures would be written; give another path, or remove it first")
                opened.append(stack.enter_context(whole_folder(copies)))
            return opened[0]

        names = Names(kept, home, f"{IMAGES}/{out.stem}/", beside)
        file.write("[\n" if array else "")
        for number, example in enumerate(examples):
            pictures = [
                _at(examples, number, names.of, source, example, f"{number:06d}-{which}") for which, source in enumerate(example.images)
            ]
            plain, lost = _at(examples, number, row, example, pictures)
            text, lost = _text(plain, lost, example)
            file.write(f"{',' if array and number else ''}{text}\n")
            found.rows, found.copied = number + 1, names.copied
            found.lost.update(set(lost))
            yield found
        file.write("]\n" if array else "")
        file.close()
    if names.staying and home and os.path.abspath(home) != os.path.abspath(out.parent):
        found.root = home
    yield found


def _text(row: dict[str, Any], lost: list[str], example: Example) -> tuple[str, list[str]]:
    """A row as JSON. Values that came from other kinds of files, and that JSON has no word for, are left out and named."""
    odd = [key for key in _meta(example, row, lost) if not exact(row[key])]
    rest = {key: value for key, value in row.items() if key not in odd}
    try:
        return to_json(rest), [*lost, *(f"meta.{key}" for key in odd)]
    except TypeError as failed:
        raise BadInput(f"row {example.id} cannot be written ({failed}); keep plain values in it") from None


def _meta(example: Example, row: dict[str, Any], lost: list[str]) -> list[str]:
    """Fields of a row that say what the example's `meta` does, and not what the format has under the same name."""
    return [key for key in example.meta if key in row and f"meta.{key}" not in lost]


def _at(examples: Sequence[Example], number: int, act: Callable[..., Any], *given: Any) -> Any:
    """What goes wrong with a picture is said with the place of its row."""
    try:
        return act(*given)
    except BadInput as wrong:
        raise BadInput(f"{place(examples, number)}: {wrong}") from None


# ---- parquet


def _parquet(examples: Sequence[Example], out: Path, format: str, row: RowOf, home: Path | None) -> Iterator[Written]:
    from pivot.data.writing.columns import Columns, Embedded  # pyarrow takes a while to import

    found, columns = Written(out, format), Columns()
    present = Counter[str]()  # rows that have a field of `meta`

    def said(number: int, example: Example) -> tuple[dict[str, Any], list[str]]:
        pictures = [Embedded(source, inside(source, home) or called(source)) for source in example.images]
        plain, lost = _at(examples, number, row, example, pictures)
        odd = [key for key in _meta(example, plain, lost) if plain[key] is None or not sayable(plain[key])]
        return {key: value for key, value in plain.items() if key not in odd}, [*lost, *(f"meta.{key}" for key in odd)]

    for number, example in enumerate(examples):
        gone = next((source for source in example.images if isinstance(source, Path | str) and not os.path.exists(source)), None)
        if gone is not None:  # known now, not after an hour of writing
            raise BadInput(f"{place(examples, number)}: image not found: {gone}; check the data's image root, or drop the row")
        plain, lost = said(number, example)
        free = _meta(example, plain, lost)
        _at(examples, number, columns.see, plain, free)
        present.update(free)
        found.lost.update(set(lost))
        progress.tell(f"columns of {out.name}, rows", number + 1, len(examples))
    found.lost.update({f"meta.{key} but as JSON text": present[key] for key in columns.texts})
    plain_rows = (said(number, example)[0] for number, example in enumerate(examples))
    with whole_file(out) as unfinished:
        for found.rows in columns.write(plain_rows, unfinished):
            yield found
    yield found
