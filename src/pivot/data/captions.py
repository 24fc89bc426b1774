"""Pictures with captions: rows {image, caption | text | captions}, or a folder of pictures with a .txt file of the same name beside each.

The caption is the chosen response to an empty prompt. Of several the first one counts, and all stand in `meta["captions"]`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pivot.data.lazy import MANY, Lazy
from pivot.data.reading import Read, Root, Row, first, first_of, look, root
from pivot.data.saying import missing, of_role, reply, spread
from pivot.data.tables.listing import Listing, alone, folders, is_picture
from pivot.data.tables.table import table
from pivot.files import hash_json
from pivot.records import BadInput, Example, Response
from pivot.seen import ROWS, Seen

SAID = ("caption", "text", "captions")  # fields that a caption stands in
OTHERS = ("question", "conversations", "messages", "prompt", "chosen", "ds_name", "gt")  # fields of other formats
GLANCE = 50


@dataclass(frozen=True)
class Captioned(Lazy[Example]):
    """Pictures in a folder, each with its text beside it."""

    root: Root
    names: Listing

    def __len__(self) -> int:
        return len(self.names)

    def one(self, index: int) -> Example:
        name = self.names[index]
        beside = self.root.path(f"{os.path.splitext(name)[0]}.txt")
        try:
            said = beside.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as failed:
            raise BadInput(f"caption cannot be read: {beside} ({failed}); write it, or remove its picture") from None
        return Example(id=os.path.splitext(name)[0], images=(self.root.path(name),), prompt="", responses=(Response(said),))

    def where(self, index: int) -> str:
        """The place of a picture, for messages."""
        return str(self.root.folder / self.names[index])

    def orphans(self) -> list[Path]:
        """Texts in these folders whose picture is not there: no rows, and perhaps meant to be."""
        places = [self.root.folder / name for name in _shards(self.root.folder) or ()]
        return [place / name for place in places for name in alone(place, ".txt", place)]

    def fingerprint(self) -> str:
        """Of the names, and, as long as these are not more than MANY, of size and time of the files."""
        files = [self.root.folder / self.names[index] for index in range(len(self) if len(self) <= MANY else 0)]
        return hash_json([self.names.fingerprint(), [[look(file), look(file.with_suffix(".txt"))] for file in files]])


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read | Captioned:
    """Open a .json, .jsonl or .parquet file, a folder of them, or a folder of pictures and texts, or of folders of these."""
    if (shards := _shards(Path(path))) is not None:
        names = Listing.behind([Listing.of(Path(path), name) for name in shards])
        return Captioned(Root(Path(path), links), names.first(first_of(len(names), size)))
    return Read(first(table(path), size), example, root(path, images, links))


def knows(seen: Seen) -> bool:
    """A picture and its caption, and nothing that another format has."""
    if seen.kind == "folder":
        return not any(name.lower().endswith(ROWS) for name in seen.inside) and _shards(seen.path) is not None
    other = any(map(seen.has, OTHERS))
    return seen.kind in ("rows", "parquet") and seen.has("image") and any(map(seen.has, SAID)) and not other


def _shards(path: Path) -> list[str] | None:
    """The folders that hold pictures with texts: this one, or those in it."""
    if not path.is_dir():
        return None
    if _captioned(path):
        return [""]
    inside = folders(path)
    return inside if inside and _captioned(path / inside[0]) else None


def _captioned(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) and Path(entry.path).with_suffix(".txt").exists() for entry in islice(entries, GLANCE))


def example(row: Row) -> Example:
    """One row."""
    key = next((key for key in SAID if row.plain.get(key) is not None), SAID[0])
    said = row.get(key)
    several = list(said) if isinstance(said, list | tuple) else [said]
    if not several:
        raise row.wrong(f"'{key}' is an empty list")
    texts = [row.said(one, f"'{key}'") for one in several]
    beside = row.beside("image", key)
    if isinstance(said, list | tuple):
        beside["meta"] = {**beside["meta"], "captions": tuple(texts)}
    return Example(id=row.id, images=row.pictures("image"), prompt="", responses=(Response(texts[0]),), **beside)


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as {id, image, caption}."""
    which = of_role(example, "chosen")
    if which is None or not pictures:
        lack = "chosen response" if pictures else "picture"
        raise BadInput(f"row {example.id} has no {lack}, which a row of captions must have; drop it, or write another format")
    lost = ["pictures but the first"] if len(pictures) > 1 else []
    caption = {"caption": reply(which.text, lost)}
    lost += ["prompt"] if example.prompt else []
    plain, left = spread(example, {"id": example.id, "image": pictures[0], **caption})
    return plain, lost + left + missing(example, [which])
