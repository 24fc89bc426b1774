"""What a path holds, at a glance: enough for readers to say whether it is of their format. Nothing is read beyond the first row."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pivot import lookup
from pivot.plain import parse
from pivot.records import BadInput

ROWS = (".parquet", ".jsonl", ".json")  # how files of rows end, in the order in which one is looked for
Kind = Literal["folder", "rows", "parquet", "object", "yaml", "other"]
GLANCE, LONGEST = 1 << 16, 64 << 20  # bytes read at first, and at most, to see one row
DEPTH, MOST = 3, 1000  # levels of folders, and entries of each but the top one, that are looked at


@dataclass(frozen=True)
class Seen:
    """A path, what kind of thing it is, and what its first row or its one object says. Of a parquet file the row's values are not read."""

    path: Path
    kind: Kind
    first: Mapping[str, Any] = field(default_factory=dict)
    inside: frozenset[str] = frozenset()  # names in a folder

    def has(self, *keys: str) -> bool:
        """Whether the first row has all these fields."""
        return all(key in self.first for key in keys)


def seen(path: Path) -> Seen:
    """Look at a path. A folder that holds rows in files (parquet or JSON) and none of the names below shows the first of these."""
    if path.is_dir():
        inside = frozenset(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        return Seen(path, "folder", {}, inside)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Seen(path, "parquet", _columns(path))
    if suffix in (".yaml", ".yml"):
        try:
            plain = parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
        except RecursionError:
            return Seen(path, "other")
        return Seen(path, "yaml", plain if isinstance(plain, Mapping) else {})
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _json(path)
    return Seen(path, "other")


def _columns(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise BadInput(f"data not found: {path}; check the path") from None
    except (pa.ArrowException, OSError) as broken:
        raise BadInput(f"{path} is no parquet file that can be read ({broken}); fetch it again") from None
    return {field.name: str(field.type) for field in schema}


def _json(path: Path) -> Seen:
    """The first row of an array or of lines; an object that is all there is."""
    size = GLANCE
    while True:
        with path.open("rb") as file:
            text = file.read(size).decode("utf-8-sig", errors="ignore")
        start = text.lstrip()
        body = start.removeprefix("[").lstrip()
        try:
            first, end = json.JSONDecoder().raw_decode(body)
        except RecursionError:
            return Seen(path, "other")
        except ValueError:
            if size >= min(LONGEST, path.stat().st_size):
                return Seen(path, "other")
            size *= 16
            continue
        alone = not start.startswith("[") and path.suffix.lower() == ".json" and not body[end:].strip() and len(text.encode()) <= size
        return Seen(path, "object" if alone and "\n" in body.strip() else "rows", first if isinstance(first, Mapping) else {})


def reader_of(path: Path) -> str | None:
    """The name of the reader that knows what is there; None if none does. Where several do, a `BadInput` names them."""
    try:
        claims = _claims(path)
    except FileNotFoundError:
        raise BadInput(f"data not found: {path}; check the path") from None
    if len(claims) > 1:
        raise BadInput(f"{path} may be read as {' or '.join(claims)}; say which, as in {claims[0]},{path}")
    return claims[0] if claims else None


def _claims(path: Path) -> list[str]:
    found = seen(path)
    claims = [name for name in lookup.names("data") if _knows(name, found)]
    if not claims and found.kind == "folder":  # files of rows in a folder, perhaps one of many parts
        rows = _rows_in(path)
        claims = [name for name in lookup.names("data") if rows and _knows(name, seen(rows))]
    return claims


def _rows_in(folder: Path) -> Path | None:
    """A file of rows near the top of a folder: it may hold a million pictures, too, so not all of it is looked at."""
    level = [folder]
    for depth in range(DEPTH):
        entries = [entry for one in level for entry in _entries(one, MOST if depth else None)]
        for kind in ROWS:
            if files := [entry for entry in entries if entry.lower().endswith(kind)]:
                return Path(files[0])
        level = [Path(entry) for entry in entries if os.path.isdir(entry)][:MOST]
    return None


def _entries(folder: Path, most: int | None) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(entry.path for entry in islice(found, most) if not entry.name.startswith("."))


def _knows(name: str, found: Seen) -> bool:
    knows = getattr(importlib.import_module(f"pivot.data.{name}"), "knows", None)
    return knows is not None and bool(knows(found))
