"""From rows of files to examples: what readers of formats share.

A reader is one module of this folder. It exports

    read(path, *, images=None, links=False, size=None) -> Sequence[Example]
    knows(seen: Seen) -> bool                                whether a file or folder is of this format (`pivot.seen`)
    row(example, pictures) -> (row, lost)                    if the format can be written: the row that says the example, `pictures`
                                                             standing for its images, and the names of what of it there is no place for
                                                             (`saying.py`)

and says what a row means in one function `Row -> Example`, which it hands to `Read`. Rows come from anyone: each value is checked where
it is taken, and no name of a picture may lead out of the folder of pictures.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pivot.data.lazy import MANY, Lazy
from pivot.data.tables.table import Chosen, Plain, Table
from pivot.files import hash_json
from pivot.records import AnswerKind, BadInput, Example

if TYPE_CHECKING:
    from pivot.records import Picture

OWN = ("answer", "answer_kind", "task", "domain")  # fields of an example that any format may have beside its own


class Unsafe(BadInput):
    """A name that leads where a row may not lead."""


@dataclass(frozen=True)
class Root:
    """The folder of pictures. `links`: links in it may lead out of it."""

    folder: Path
    links: bool = False

    @cached_property
    def _lexical(self) -> str:
        return os.path.abspath(self.folder)

    @cached_property
    def _real(self) -> str:
        return os.path.realpath(self.folder)

    def path(self, name: str) -> Path:
        """The file of that name; one out of the folder is `Unsafe`. Whether it is there is not looked at."""
        found = os.path.normpath(os.path.join(self._lexical, name))
        if "\0" in name or not _within(found, self._lexical):
            raise Unsafe(f"{name!r} leads out of {self.folder}; put the picture there, or name the folder of pictures with images=")
        if not self.links and not _within(_followed(found), self._real):
            raise Unsafe(f"{name!r} is a link out of {self.folder}; put the picture there, or allow links with links=true")
        return Path(found)


def _followed(path: str) -> str:
    """The path without links. Only the last of its parts is looked at for each picture."""
    whole = os.path.join(_resolved(os.path.dirname(path)), os.path.basename(path))
    return os.path.realpath(whole) if os.path.islink(whole) else whole


@lru_cache(maxsize=1 << 14)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


@dataclass(frozen=True)
class Row:
    """One row with its place, for messages. What is taken from it is checked."""

    plain: Plain
    number: int
    root: Root
    place: Callable[[int], str]

    def wrong(self, what: str) -> BadInput:
        """The error that says what is wrong with this row."""
        return BadInput(f"{self.place(self.number)}: {what}; correct the row or drop it")

    def get(self, key: str) -> Any:
        """What must be there."""
        if self.plain.get(key) is None:
            raise self.wrong(f"'{key}' is missing (there is: {', '.join(self.plain) or 'nothing'})")
        return self.plain[key]

    def text(self, key: str) -> str:
        """A text that must be there."""
        return self.said(self.get(key), f"'{key}'")

    def said(self, value: Any, what: str) -> str:
        """A value that must be text."""
        if not isinstance(value, str):
            raise self.wrong(f"{what} is no text but {_short(value)}")
        return value

    @property
    def id(self) -> str:
        """Its id as text; its number where it has none."""
        given = self.plain.get("id")
        return str(self.number if given is None or given == "" else given)

    def pictures(self, key: str) -> tuple[Picture, ...]:
        """One picture or a list of them: names in the folder of pictures, data URIs, bytes, or what a parquet file holds. None is none."""
        given = self.plain.get(key)
        if given is None:
            return ()
        return tuple(self._picture(one, key) for one in (given if isinstance(given, list | tuple) else [given]))

    def _picture(self, given: Any, key: str) -> Picture:
        if isinstance(given, Mapping):  # as the Hub's images are written where they are not decoded
            given = given.get("bytes") if given.get("bytes") is not None else given.get("path")
        if isinstance(given, bytes) or (hasattr(given, "read") and not isinstance(given, str)):
            return given
        name = self.said(given, f"'{key}'")
        if name.startswith("data:"):
            try:
                return base64.b64decode(name.partition(",")[2], validate=True)
            except binascii.Error as broken:
                raise self.wrong(f"'{key}' is a data URI that cannot be decoded ({broken})") from None
        if not name or "://" in name:
            raise self.wrong(f"'{key}' names no file but {_short(name)}")
        try:
            return self.root.path(name)
        except Unsafe as unsafe:
            raise Unsafe(f"{self.place(self.number)}: {unsafe}") from None

    def beside(self, *used: str) -> dict[str, Any]:
        """What a row says beside its format's own fields: fields of an example by their names, all others as its `meta`."""
        rest = {key: value for key, value in self.plain.items() if key not in used and key != "id"}
        own = {key: rest.pop(key) for key in OWN if isinstance(rest.get(key), str) and _fits(key, rest[key])}
        return {**own, "meta": frozen(rest)}


def _fits(key: str, value: str) -> bool:
    return key != "answer_kind" or value in get_args(AnswerKind)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def frozen(value: Any) -> Any:
    """JSON has lists only; records hold tuples."""
    if isinstance(value, Mapping):
        return {key: frozen(inner) for key, inner in value.items()}
    return tuple(frozen(inner) for inner in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Read(Lazy[Example]):
    """The rows of a table as a format understands them.

    `told`: the options that change what `make` makes. `tagged`: whether rows of the format must say `<image>` for each of their pictures,
    so that a row without it has a fault; in other formats pictures are placed by rule.
    """

    table: Table
    make: Callable[[Row], Example]
    root: Root
    told: Mapping[str, Any] = field(default_factory=dict)
    tagged: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def one(self, index: int) -> Example:
        return self.make(Row(self.table.one(index), index, self.root, self.table.where))

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        return self.table.where(index)

    def fingerprint(self) -> str:
        """Of what its rows say, and, as long as these are not more than MANY, of size and time of the pictures that they name."""
        name = f"{self.make.__module__}.{self.make.__qualname__}"
        return hash_json([name, self.told, self.table.fingerprint(), self._looks() if len(self) <= MANY else []])

    def _looks(self) -> list[Any]:
        named = set[str]()
        for index in range(len(self)):
            try:
                named |= {str(image) for image in self.one(index).images if isinstance(image, Path)}
            except BadInput:  # what is wrong with a row is said when it is asked for
                continue
        return [look(name) for name in sorted(named)]


def look(name: Path | str) -> tuple[int, int] | None:
    """Size and time of a file; None if it cannot be looked at."""
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def root(path: Path | str, images: str | None, links: bool) -> Root:
    """The folder of pictures: the given one, else where the rows lie."""
    folder = Path(os.path.expanduser(images)) if images else Path(path) if Path(path).is_dir() else Path(path).parent
    if images and not folder.is_dir():
        raise BadInput(f"folder of pictures not found: {images}; check images=")
    return Root(folder, links)


def first(table: Table, size: int | None) -> Table:
    """The first `size` rows; all for None."""
    kept = first_of(len(table), size)
    return table if kept == len(table) else Chosen(table, range(kept))


def first_of(there: int, size: int | None) -> int:
    """How many rows of those that are there are wanted."""
    if size is not None and size < 1:
        raise BadInput(f"size {size}: give at least one row, or leave it out for all")
    return there if size is None else min(size, there)
