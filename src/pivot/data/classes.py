"""Pictures in a folder for each class, ImageNet's layout: `CLASS/*.jpg`, or `train/CLASS/*.jpg` with `split=train`.

The answer is the class's folder, or what a file of names calls it (`names`); `meta["class"]` is its number in the order of folders.
Only names are held in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pivot import progress
from pivot.data import masks
from pivot.data.called import names_in
from pivot.data.lazy import MANY, Lazy
from pivot.data.reading import Root, first_of, look
from pivot.data.tables.listing import Listing, folders, is_picture
from pivot.files import hash_json
from pivot.records import BadInput, Example
from pivot.seen import Seen

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})
BESIDE = frozenset({".txt", ".csv", ".md", ".tsv", ""})  # kinds of files that tell of classes and are no rows
GLANCE = 50  # entries of a folder that are looked at


@dataclass(frozen=True)
class Classes(Lazy[Example]):
    """The pictures of all classes, class by class. `ends`: number of the first picture behind each class; `called`: the classes' names."""

    root: Root
    names: Listing
    classes: Sequence[str]
    ends: np.ndarray
    called: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def one(self, index: int) -> Example:
        number = int(np.searchsorted(self.ends, index, side="right"))
        name = self.names[index]
        meta = {"class": number}
        return Example(id=name, images=(self.root.path(name),), prompt="", answer=self.called[number], answer_kind="text", meta=meta)

    def where(self, index: int) -> str:
        """The place of a picture, for messages."""
        return str(self.root.folder / self.names[index])

    def fingerprint(self) -> str:
        """Of the names, and, as long as these are not more than MANY, of size and time of the files."""
        looks = [look(self.root.folder / self.names[index]) for index in range(len(self))] if len(self) <= MANY else []
        return hash_json([list(self.called), self.names.fingerprint(), looks])


def read(
    path: str,
    *,
    split: str | None = None,
    names: str | None = None,
    limit: int | None = None,
    size: int | None = None,
    links: bool = False,
) -> Classes:
    """Open a folder of classes. `names`: a file of what they are called, see `called.names_in`; without it, as their folders.

    `limit`: pictures of each class, the first by name; `size`: of all; `links` may lead out of the folder.
    """
    folder = Path(path) / split if split else Path(path)
    if split and not folder.is_dir():
        raise BadInput(f"{path} has no split '{split}'; it holds {', '.join(folders(Path(path))[:5]) or 'no folders'}")
    if limit is not None and limit < 1:
        raise BadInput(f"limit {limit}: give at least one picture of each class, or leave it out for all")
    found, classes = list[Listing](), folders(folder)
    for number, name in enumerate(classes):
        listed = Listing.of(folder, name)
        found.append(listed if limit is None else listed.first(limit))
        progress.tell(f"pictures of {folder.name}, classes", number + 1, len(classes))
    if not sum(map(len, found)):
        inside = [name for name in classes if name.lower() in SPLITS]
        raise BadInput(f"{folder} has no folders with pictures in them; {f'give split={inside[0]}' if inside else 'check the path'}")
    whole, known = Listing.behind(found), names_in(names) if names else {}
    if names and (nameless := next((name for name in classes if name not in known), None)):
        raise BadInput(f"names of classes: {names} has none for folder {nameless}; add it")
    ends = np.cumsum([len(one) for one in found])
    called = tuple(known.get(name, name) for name in classes)
    return Classes(Root(folder, links), whole.first(first_of(len(whole), size)), tuple(classes), ends, called)


def knows(seen: Seen) -> bool:
    """Folders of pictures without captions, perhaps below splits. No rows beside them."""
    if seen.kind != "folder" or not seen.inside or masks.knows(seen):
        return False
    if any(os.path.splitext(name)[1].lower() not in BESIDE and not (seen.path / name).is_dir() for name in islice(seen.inside, GLANCE)):
        return False
    inside = folders(seen.path)
    if inside and inside[0].lower() in SPLITS and not _pictures(seen.path / inside[0]):
        return _classes(seen.path / inside[0])
    return _classes(seen.path)


def _classes(folder: Path) -> bool:
    """Whether the first folder in it that holds pictures has no captions beside them. A class may have none, in this split or by now."""
    held = (found for name in folders(folder)[:GLANCE] if (found := _pictures(folder / name)))
    return any(not path.with_suffix(".txt").exists() for path in next(held, []))


def _pictures(folder: Path) -> list[Path]:
    """Pictures that lie in a folder, as far as a glance shows."""
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in islice(entries, GLANCE) if is_picture(entry.name)]
