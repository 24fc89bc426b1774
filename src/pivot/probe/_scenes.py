"""Images with class maps: which of them train heads, and what heads say of the others held against the truth.

Shapes: B images, P patches, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pivot.files import hash_bytes, hash_json
from pivot.pictures import fingerprint
from pivot.probe._apart import hold_apart
from pivot.probe._patches import Areas, Counts, Filled, Labels, Macro, majority, one_hot, union
from pivot.progress import tell
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from pivot.encoder.geometry import Geometry
    from pivot.records import Picture

AT_ONCE = 16  # images that are counted at a time: 0.1 GB at 576 patches and 151 classes
FEWEST = 20  # images, or pairs of them; fewer leave so few for a test that its shares say nothing


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with class maps, and per geometry which share of each patch each class fills."""

    ids: list[str]
    groups: list[str]  # images of one group are in one split, and are drawn as one
    images: list[Picture]
    areas: Mapping[Geometry, Areas]
    names: Mapping[int, str]  # class number -> name, as far as the data say
    maps: Sequence[str]  # hashes of the class maps

    @cached_property
    def fingerprint(self) -> str:
        """Of the images and of what is known about them, whatever patches encoders have."""
        return hash_json([fingerprint(self.images), self.groups, self.maps])


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the scenes: those to train on, or those to measure on."""

    scenes: Scenes
    rows: np.ndarray

    @property
    def groups(self) -> list[str]:
        return [self.scenes.groups[row] for row in self.rows]

    def fingerprint(self) -> str:
        """Of the scenes, and of which of them it has."""
        return hash_json([self.scenes.fingerprint, self.rows.tolist()])


def collect(data: Sequence[Example], geometries: Sequence[Geometry]) -> Scenes:
    """Walk through the data once, and leave out what has no image, or no class map."""
    ids: set[str] = set()
    kept: list[str] = []
    groups: list[str] = []
    images: list[Picture] = []
    maps: list[str] = []
    filled: dict[Geometry, list[Filled]] = {geometry: [] for geometry in geometries}
    for done, example in enumerate(data, 1):
        tell("reading class maps", done, len(data))
        if example.id in ids:
            raise BadInput(f"probe segment: the data have id {example.id} more than once; give every example an id of its own")
        ids.add(example.id)
        if not example.images or example.truth is None:
            continue
        kept.append(example.id)
        groups.append(str(example.meta.get("pair") or example.id))
        images.append(example.images[0])
        maps.append(hash_json([example.truth.classes.shape, hash_bytes(example.truth.classes.tobytes())]))
        for geometry, found in filled.items():
            found.append(Filled.of(example.truth.classes, geometry))
    areas = {geometry: Areas.of(found, geometry.grid) for geometry, found in filled.items() if found}
    if not all(one.classes.any() for one in areas.values()) or not areas:
        raise BadInput("probe segment: the data have no maps of classes (truth); give the world, or pictures with masks")
    return Scenes(kept, groups, images, areas, getattr(data, "class_names", {}), maps)


def apart(data: Sequence[Example], on: Sequence[Example], geometries: Sequence[Geometry]) -> tuple[Part, Part]:
    """All of `data` to train on, all of `on` to measure on."""
    train, test = collect(data, geometries), collect(on, geometries)
    hold_apart("segment", train.images, list(zip(test.ids, test.images, strict=True)))
    return Part(train, np.arange(len(train.images))), Part(test, np.arange(len(test.images)))


def split(data: Sequence[Example], geometries: Sequence[Geometry], share: float, seed: int) -> tuple[Part, Part]:
    """A share of the data to measure on, by whole groups, in an order that only their names and the seed decide."""
    scenes = collect(data, geometries)
    groups = sorted(set(scenes.groups), key=lambda group: hash_bytes(f"{seed} {group}".encode()))
    test = round(share * len(groups))
    if len(groups) < FEWEST or not 0 < test < len(groups):
        counts = f"{len(groups) - test} to train, {test} to test"
        advice = f"give at least {FEWEST}, some of them to each"
        raise BadInput(f"probe segment: {len(groups)} images with class maps, a pair as one, are too few ({counts}); {advice}")
    tested = set(groups[:test])
    inside = np.array([group in tested for group in scenes.groups])
    return Part(scenes, np.flatnonzero(~inside)), Part(scenes, np.flatnonzero(inside))


@dataclass(frozen=True)
class Found:
    """What was counted of some images, one row an image or a group of them."""

    patches: Counts
    pixels: Counts

    def macros(self) -> dict[str, Macro]:
        return {
            "recall": self.patches.recall,
            "precision": self.patches.precision,
            "miou": self.patches.iou,
            "miou_pixels": self.pixels.iou,
        }


@dataclass(frozen=True, eq=False)
class Task:
    """What heads are set: what trains them, what they are measured on, and how one encoder's patches lie on that."""

    train: Part
    test: Part
    geometry: Geometry
    labels: Labels

    def areas(self, part: Part) -> Areas:
        return part.scenes.areas[self.geometry]

    @cached_property
    def classes(self) -> int:
        return 1 + max(int(self.areas(part).classes.max()) for part in (self.train, self.test))

    @property
    def names(self) -> Mapping[int, str]:
        said = {**self.train.scenes.names, **self.test.scenes.names}
        return {number: said.get(number, f"class {number}") for number in range(self.classes)}

    @cached_property
    def items(self) -> list[str]:
        """The groups that are measured."""
        return list(dict.fromkeys(self.test.groups))

    def targets(self, shares: np.ndarray) -> np.ndarray:
        """(B, P, C) what a head is to say."""
        return union(shares) if self.labels == "union" else one_hot(majority(shares), self.classes)

    def marked(self, said: Iterator[tuple[np.ndarray, np.ndarray]]) -> Found:
        """Held against the truth, image by image: (B, P, C) what is said to be in patches, and (B, P) which one class of each."""
        counts: list[tuple[Counts, Counts]] = []
        areas, start = self.areas(self.test), 0
        for several, one in said:
            rows = self.test.rows[start : start + len(one)]
            start += len(one)
            shares = areas.dense(rows, self.classes)
            inside = shares.any(axis=-1, keepdims=True)
            pixels = shares * areas.scale[rows, None, None]
            spread = one_hot(one, self.classes) * pixels.sum(axis=-1, keepdims=True)
            counts.append((Counts.of(self.targets(shares), several & inside), Counts.of(pixels, spread)))
        number = {name: i for i, name in enumerate(self.items)}
        groups = np.array([number[name] for name in self.test.groups])
        return Found(*(Counts.joined(parts).grouped(groups, len(number)) for parts in zip(*counts, strict=True)))

    @cached_property
    def often(self) -> np.ndarray:
        """(C,) in which share of the training patches each class is to be found."""
        counts, patches, areas = np.zeros(self.classes), 0, self.areas(self.train)
        for start in range(0, len(self.train.rows), AT_ONCE):
            shares = areas.dense(self.train.rows[start : start + AT_ONCE], self.classes)
            counts += self.targets(shares).sum(axis=(0, 1))
            patches += int(shares.any(axis=-1).sum())
        return counts / max(patches, 1)

    @cached_property
    def constant(self) -> Found:
        """What saying the same of every patch gives: the classes that are in more than half of them, or else the most frequent one."""
        most = self.often.argmax()
        several = (self.often > 0.5) | (np.arange(self.classes) == most)
        rows, columns = self.geometry.grid

        def always() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(self.test.rows), AT_ONCE):
                shape = (len(self.test.rows[start : start + AT_ONCE]), rows * columns)
                yield np.broadcast_to(several, (*shape, self.classes)), np.full(shape, most)

        return self.marked(always())
