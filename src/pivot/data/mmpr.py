"""MMPR: pairs as JSON lines {image, question, chosen, rejected}, in many files that a meta.json names.

    meta.json: {name: {"root": folder of pictures, "annotation": file of rows, "repeat_time": 1, ...}, ...}

An entry's rows come `repeat_time` times: 0 leaves it out, and of what is left behind the point the first part of the rows, rounded down.
Published paths begin with the name of the data's own folder, whatever that is called now. Where a question says no `<image>`, all
pictures come first, each on a line. A .gif that is not there, as the published rows name some, is the .jpg beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pivot.data.reading import Read, Root, Row, Unsafe, first, root
from pivot.data.saying import missing, pair, question, reply, spread
from pivot.data.tables.table import Chosen, Plain, Table, joined, table
from pivot.data.talk import placed
from pivot.files import hash_json
from pivot.records import BadInput, Example, Response
from pivot.seen import Seen
from pivot.seen import seen as look

META = "meta.json"


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read:
    """Open a folder with meta.json, that file, or one .jsonl file of rows.

    `images`: the folder that the entries' roots lie in, by default that of meta.json; of one file of rows the folder of its pictures.
    """
    file = Path(path) / META if (Path(path) / META).is_file() else Path(path)
    found = look(file) if file.is_file() else Seen(file, "other")
    pictures = root(file, images, links)
    if file.name == META and not _is_meta(found):
        raise BadInput(
            f"{file} is no list of data sets {{name: {{root, annotation, ...}}}}; check the file, or name one of its .jsonl files"
        )
    rows = _entries(file, found.first, pictures.folder) if _is_meta(found) else table(file)
    return Read(first(rows, size), example, pictures)


def knows(seen: Seen) -> bool:
    """A list of data sets with their annotations, or rows of question, chosen and rejected."""
    if seen.kind == "folder":
        return META in seen.inside and _is_meta(look(seen.path / META))
    other = any(map(seen.has, ("ds_name", "conversations", "responses", "gt", "prompt")))
    return _is_meta(seen) or (seen.kind == "rows" and seen.has("question", "chosen", "rejected") and not other)


def _is_meta(seen: Seen) -> bool:
    entries = list(seen.first.values()) if seen.kind in ("object", "rows") else []
    return bool(entries) and all(isinstance(entry, Mapping) and "annotation" in entry for entry in entries)


def example(row: Row) -> Example:
    """One row."""
    if isinstance(row.plain, Rooted):
        row = replace(row, root=_root(row.plain.folder, row.root.links))
    images = tuple(_there(image) if isinstance(image, Path) else image for image in row.pictures("image"))
    return Example(
        id=row.id,
        images=images,
        prompt=placed(row.text("question"), len(images)),
        responses=(Response(row.text("chosen")), Response(row.text("rejected"), role="rejected")),
        **row.beside("image", "question", "chosen", "rejected"),
    )


@lru_cache(maxsize=4096)
def _root(folder: Path, links: bool) -> Root:
    return Root(folder, links)


def _there(image: Path) -> Path:
    """A .gif that is not there may have become a .jpg."""
    other = image.with_suffix(".jpg")
    return other if image.suffix == ".gif" and not image.exists() and other.exists() else image


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as a row of an annotation file."""
    chosen, rejected = pair(example, "mmpr")
    lost = list[str]()
    image = {} if not pictures else {"image": pictures[0] if len(pictures) == 1 else list(pictures)}
    said = {"question": question(example, lost), "chosen": reply(chosen.text, lost), "rejected": reply(rejected.text, lost)}
    plain, left = spread(example, {"id": example.id, **image, **said}, taken=["image"])
    return plain, lost + left + missing(example, [chosen, rejected])


# ---- meta.json


class Rooted(dict[str, Any]):
    """A row that knows the folder of its pictures. It is no field: a row must not name one of its own."""

    def __init__(self, plain: Plain, folder: Path) -> None:
        super().__init__(plain)
        self.folder = folder


@dataclass(frozen=True)
class Entry(Table):
    """The rows of one entry, each with its entry's name and folder of pictures."""

    name: str
    folder: Path
    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def one(self, index: int) -> Plain:
        return Rooted({**self.table.one(index), "dataset": self.name}, self.folder)

    def where(self, index: int) -> str:
        return self.table.where(index)

    def fingerprint(self) -> str:
        return hash_json([self.name, self.table.fingerprint()])


def _entries(file: Path, meta: Mapping[str, Any], pictures: Path) -> Table:
    found, absent = list[Table](), list[str]()
    for name, entry in meta.items():
        repeat = entry.get("repeat_time", 1)
        if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 <= repeat < math.inf:
            raise BadInput(f"{file}: repeat_time of '{name}' is {repeat!r}; give a number of times, 0 to leave it out")
        if not repeat:
            continue
        annotation = _located(file.parent, entry["annotation"], f"{file}: annotation of '{name}'")
        if not annotation.is_file():
            absent.append(f"{name} ({annotation})")
            continue
        folder = _located(pictures, entry.get("root") or "", f"{file}: root of '{name}'")
        found += _repeated(Entry(name, folder.absolute(), table(annotation)), repeat)  # as `_root` keeps it, wherever one works next
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise BadInput(f"{file}: no rows found of {', '.join(absent[:3])}{more}; unpack its annotations, or set repeat_time to 0")
    if not found:
        raise BadInput(f"{file} names no rows: repeat_time is 0 everywhere; give at least one data set a repeat_time")
    return joined(found)


def _located(base: Path, given: Any, what: str) -> Path:
    """The path below a folder, with as many of its first parts left out as it takes to find it. One that is nowhere loses the first."""
    if not isinstance(given, str) or ".." in Path(given).parts:
        raise Unsafe(f"{what} is {given!r}; give a path within {base}")
    parts = Path(given.lstrip("/")).parts
    places = [base.joinpath(*parts[left:]) for left in range(len(parts))] or [base]
    return next((place for place in places if place.exists()), places[min(1, len(places) - 1)])


def _repeated(entry: Entry, repeat: float) -> list[Table]:
    """So many times, and the first part of the rows."""
    part = int(round((repeat - int(repeat)) * len(entry), 6))
    return [entry] * int(repeat) + ([Chosen(entry, range(part))] if part else [])
