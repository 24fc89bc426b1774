"""Pictures with a map of class numbers each: SceneParse150's `images/SPLIT/x.jpg` with `annotations/SPLIT/x.png`, or two plain folders.

A map has a number for each pixel, as grey or as the index of a palette; 0 is what nobody labelled. It is read when its row is asked for,
and must be of its picture's size. What the numbers stand for is said by SceneParse150's `objectInfo150.txt`, where that is there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from pivot.data.lazy import MANY, Lazy
from pivot.data.reading import Root, first_of, look
from pivot.data.tables.listing import Listing, alone, folders, is_picture
from pivot.files import hash_json
from pivot.pictures import opened, turned
from pivot.records import BadInput, Example, Truth
from pivot.seen import ROWS, Seen

MASKS = ("annotations", "masks", "labels")  # what the folder of maps is called
IMAGES = "images"
NAMES = "objectInfo150.txt"  # a head, then a line a class: its number first, its names last, apart by tabs
UNLABELLED = "unlabelled"
GLANCE = 50


@dataclass(frozen=True)
class Masks(Lazy[Example]):
    """Pictures in one folder, and in another for each of them a map under the same name."""

    root: Root
    maps: Root
    names: Listing
    table: Path  # of the classes' names; need not be there

    @cached_property
    def class_names(self) -> Mapping[int, str]:
        """Class number -> its name; {} where nobody says."""
        return _class_names(self.table)

    def __len__(self) -> int:
        return len(self.names)

    def one(self, index: int) -> Example:
        name = self.names[index]
        image, mask = self.root.path(name), self.maps.path(f"{os.path.splitext(name)[0]}.png")
        return Example(id=os.path.splitext(name)[0], images=(image,), prompt="", truth=_truth(image, mask))

    def where(self, index: int) -> str:
        """The place of a picture, for messages."""
        return str(self.root.folder / self.names[index])

    def orphans(self) -> list[Path]:
        """Maps whose picture is not there: no rows, and perhaps meant to be."""
        return [self.maps.folder / name for name in alone(self.maps.folder, ".png", self.root.folder)]

    def fingerprint(self) -> str:
        """Of the names, and, as long as these are not more than MANY, of size and time of the files."""
        files = [self.root.folder, self.maps.folder]
        inside = range(len(self)) if len(self) <= MANY else range(0)
        names = [(self.names[index], f"{os.path.splitext(self.names[index])[0]}.png") for index in inside]
        return hash_json(
            [self.names.fingerprint(), [[look(folder / name) for folder, name in zip(files, both, strict=True)] for both in names]]
        )


def read(
    path: str, *, split: str | None = None, images: str = IMAGES, masks: str | None = None, size: int | None = None, links: bool = False
) -> Masks:
    """Open a folder that holds the folders `images` and `masks` (by default the one of annotations, masks, labels that is there).

    `split`: the folder in both of these that is meant, as training or validation. `links` may lead out of the folder.
    """
    whole = Path(path)
    maps = masks or next((name for name in MASKS if (whole / name).is_dir()), MASKS[0])
    places = [whole / name / (split or "") for name in (images, maps)]
    for place in places:
        if not place.is_dir():
            inside = ", ".join(folders(place.parent)[:5]) if place.parent.is_dir() else ""
            raise BadInput(
                f"folder not found: {place}; check {'split=' if split else 'images= and masks='} ({inside or 'no folders'} there)"
            )
    names = Listing.of(places[0])
    if not len(names):
        inside = ", ".join(folders(places[0])[:5])
        raise BadInput(f"{places[0]} holds no pictures; {f'give split= one of {inside}' if inside else 'check the path'}")
    return Masks(Root(places[0], links), Root(places[1], links), names.first(first_of(len(names), size)), whole / NAMES)


def knows(seen: Seen) -> bool:
    """A folder of pictures beside one of maps, and no file of rows."""
    rows = any(name.lower().endswith(ROWS) for name in seen.inside)
    maps = next((name for name in MASKS if name in seen.inside), None)
    return seen.kind == "folder" and IMAGES in seen.inside and maps is not None and not rows and _holds_maps(seen.path / maps)


def _holds_maps(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    inside = [folder, *(folder / name for name in folders(folder))]
    return any(is_picture(entry.name) for one in inside for entry in islice(os.scandir(one), GLANCE))


def _class_names(table: Path) -> Mapping[int, str]:
    """Each class by the first of its names, by all of them where another one begins with the same."""
    try:
        lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    said = {int(line[0]): line[-1].strip() for line in lines if len(line) > 1 and line[0].strip().isdecimal()}
    firsts = Counter(names.split(",")[0] for names in said.values())
    found = {number: names.split(",")[0] if firsts[names.split(",")[0]] == 1 else names for number, names in said.items()}
    return {0: UNLABELLED, **found} if found else {}


def _truth(image: Path, mask: Path) -> Truth:
    with opened(image) as picture:
        upright = picture.size[::-1] if turned(picture) else picture.size
    with opened(mask) as found:
        if found.mode not in ("L", "P", "1") and not found.mode.startswith("I"):
            raise BadInput(f"{mask} is in colour ({found.mode}), not a map of class numbers; save it as grey or with a palette")
        numbers = np.asarray(found).astype(np.int64)
    if numbers.shape != upright[::-1]:
        raise BadInput(
            f"{mask} is of {numbers.shape[1]} x {numbers.shape[0]} pixels, its picture of {upright[0]} x {upright[1]}; mend one of them"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() <= 255:
        raise BadInput(f"{mask} has class numbers up to {numbers.max()}; only 0 to 255 can be held")
    return Truth(numbers.astype(np.uint8), (), np.zeros(numbers.shape, bool))
