"""Preference pairs as a set of MMPR: one file of rows, their pictures, and the meta.json that names both. `mmpr` reads the folder.

Pictures are called by what they hold, so that rows which show the same one share its file, and keep their own bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pivot.data.mmpr import META, row
from pivot.data.saying import exact
from pivot.data.writing.write import content, store
from pivot.files import hash_bytes, to_json, whole_file, write_json
from pivot.records import Example

if TYPE_CHECKING:
    from pivot.records import Picture

IMAGES, PAIRS = "images", "pairs.jsonl"


def write(examples: Iterable[Example], folder: Path) -> Iterator[list[str]]:
    """Write rows and pictures; yields, row by row, names of what a row of MMPR has no place for."""
    (folder / IMAGES).mkdir(exist_ok=True)
    with (
        whole_file(folder / PAIRS) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        for example in examples:
            plain, lost = row(example, [_stored(picture, folder) for picture in example.images])
            odd = [key for key in example.meta if key in plain and not exact(plain[key])]
            file.write(to_json({key: value for key, value in plain.items() if key not in odd}) + "\n")
            yield [*lost, *(f"meta.{key}" for key in odd)]


def finish(folder: Path, name: str, rows: int) -> None:
    """Make the folder a set of MMPR."""
    entry = {"root": "", "annotation": PAIRS, "data_augment": False, "repeat_time": 1, "length": rows}
    write_json(folder / META, {name: entry})


def _stored(picture: Picture, folder: Path) -> str:
    held = content(picture)
    return store(held, folder, f"{IMAGES}/{hash_bytes(held)[:24]}")
