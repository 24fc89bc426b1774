"""Pictures of rows that name files: what they are called, and copies of those that cannot stay where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pivot.data.writing.write import content, safe, store
from pivot.records import Example

if TYPE_CHECKING:
    from pivot.records import Picture


class Apart(Exception):
    """Some pictures lie in the data's folder and some do not: rows have one folder of pictures, so all must be copied."""


@dataclass
class Names:
    """What pictures are called. `kept`: the folder in which they may stay; None if all are copied. `beside`: where copies go, once there
    are any; `prefix`: what their names begin with.
    """

    kept: Path | None
    home: Path | None
    prefix: str
    beside: Callable[[], Path]
    staying: bool = False
    copied: int = 0

    def of(self, source: Picture, example: Example, label: str) -> str:
        """The name of one picture of an example. `label`: what no other picture is called, should it need a name of its own."""
        name = inside(source, self.home)
        if name and self.kept and not self.copied:
            self.staying = True
            return name
        if self.staying:
            raise Apart
        folder = self.beside()
        if not name:
            (folder / "rows").mkdir(exist_ok=True)
            self.copied += 1
            return self.prefix + store(source, folder, f"rows/{label}-{_label(source, example)}")
        copy = folder / "files" / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content(source))
            self.copied += 1
        return f"{self.prefix}files/{name}"


def inside(source: Picture, home: Path | None) -> str | None:
    """The name of a file within a folder."""
    if home is None or not isinstance(source, Path | str):
        return None
    path, folder = os.path.abspath(source), os.path.join(os.path.abspath(home), "")
    return path.removeprefix(folder).replace(os.sep, "/") if path.startswith(folder) else None


def _label(source: Picture, example: Example) -> str:
    """What to call a picture: as it was called, else as its row is."""
    name = called(source)
    return safe(Path(name).stem if name else example.id)


def called(source: Picture) -> str | None:
    """What a picture was called where it comes from."""
    name = Path(source).name if isinstance(source, Path | str) else getattr(source, "name", None)
    return name if isinstance(name, str) else None
