"""Names of the files in a folder as one array: a million of them take some tens of megabytes, where as many paths would take hundreds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pivot.files import hash_bytes
from pivot.records import BadInput

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2"})


@dataclass(frozen=True)
class Listing:
    """Sorted names of pictures, relative to a folder. Their bytes stand one behind the other; `ends` says where each one ends."""

    folder: Path
    joined: np.ndarray  # uint8
    ends: np.ndarray  # int64

    @classmethod
    def of(cls, folder: Path, below: str = "") -> Listing:
        """The pictures that lie in a folder, or in the one of that name in it; none further down."""
        try:
            with os.scandir(folder / below) as entries:
                found = sorted(os.fsencode(entry.name) for entry in entries if is_picture(entry.name) and entry.is_file())
        except OSError as failed:
            raise BadInput(f"{folder / below} cannot be read ({failed.strerror}); check the path") from None
        prefix = os.fsencode(below) + b"/" if below else b""
        return cls._joined(folder, [prefix + name for name in found])

    @classmethod
    def _joined(cls, folder: Path, names: Sequence[bytes]) -> Listing:
        return cls(folder, np.frombuffer(b"".join(names), np.uint8), np.cumsum([len(name) for name in names], dtype=np.int64))

    @classmethod
    def behind(cls, parts: Sequence[Listing]) -> Listing:
        """Listings of one folder, one behind the other."""
        starts = np.cumsum([0, *(len(part.joined) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(parts[0].folder, np.concatenate([part.joined for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.joined[start : int(self.ends[index])].tobytes())

    def first(self, size: int) -> Listing:
        """Its first names."""
        ends = self.ends[:size]
        return Listing(self.folder, self.joined[: int(ends[-1]) if len(ends) else 0], ends)

    def fingerprint(self) -> str:
        """Of the names."""
        return hash_bytes(self.joined.tobytes() + self.ends.tobytes())


ABOUT = frozenset({"readme", "license", "licence", "notice"})  # texts about a folder, and of none of its pictures


def alone(folder: Path, ending: str, pictures: Path) -> list[str]:
    """Sorted names of the files in a folder that end so and that none of `pictures` is called like."""
    listed = Listing.of(pictures)
    called = {os.path.splitext(listed[number])[0] for number in range(len(listed))}
    with os.scandir(folder) as entries:
        stems = (os.path.splitext(entry.name) for entry in entries if not entry.name.startswith("."))
        return sorted(stem + kind for stem, kind in stems if kind == ending and stem not in called and stem.lower() not in ABOUT)


def is_picture(name: str) -> bool:
    """Whether a file is called as pictures are."""
    return os.path.splitext(name)[1].lower() in PICTURES and not name.startswith(".")


def folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as failed:
        raise BadInput(f"{folder} cannot be read ({failed.strerror}); check the path") from None
