"""What a linear probe classifies: objects or whole images with labels, and which of them train, choose and are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pivot.files import hash_bytes, hash_json
from pivot.pictures import fingerprint
from pivot.probe._apart import hold_apart
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from pivot.encoder.geometry import Geometry
    from pivot.records import Picture

FEWEST = 20  # images, or pairs of them; fewer leave so few for a test that its shares say nothing


@dataclass(frozen=True)
class Item:
    """One thing to classify."""

    id: str
    image: int  # index into the images
    group: str  # items of one group are in one split
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Items:
    """The items of a data set. `regions` holds per geometry and image the patch weights (n, P) of its objects."""

    images: list[Picture]
    items: list[Item]
    regions: Mapping[Geometry, list[np.ndarray]] | None  # None: items are whole images

    def of(self, groups: set[str]) -> Items:
        """Those of some groups, so that no others' features are computed."""
        items = [item for item in self.items if item.group in groups]
        kept = sorted({item.image for item in items})
        where = {image: number for number, image in enumerate(kept)}
        moved = [Item(item.id, where[item.image], item.group, item.labels) for item in items]
        regions = self.regions and {geometry: [rows[image] for image in kept] for geometry, rows in self.regions.items()}
        return Items([self.images[image] for image in kept], moved, regions)

    def labels(self, target: str) -> list[str | None]:
        """Each item's label; None where it has none."""
        return [item.labels.get(target) for item in self.items]

    @property
    def named(self) -> dict[int, str]:
        """Each image that has an item, with the name of its group."""
        return {item.image: item.group for item in self.items}

    @property
    def marks(self) -> list[object]:
        """All that is measured of them beside their pictures, for a fingerprint."""
        return [[item.id, item.group, dict(item.labels)] for item in self.items]


@dataclass(frozen=True)
class Split:
    """Indices of items: `train` and `validation` of those that a classifier is fitted on, `test` of those that it is measured on."""

    train: list[int]
    validation: list[int]
    test: list[int]


@dataclass(frozen=True)
class Task:
    """Items to fit on, items to measure on (the same object unless these are other data), and how they are split."""

    fit: Items
    test: Items
    split: Split

    @property
    def fingerprint(self) -> str:
        """Of all that is measured."""
        sides = [self.fit] if self.test is self.fit else [self.fit, self.test]
        return hash_json([[fingerprint(side.images), side.marks] for side in sides])


@dataclass(frozen=True)
class Shares:
    """How items are split: shares of the groups, and how many training images are kept. The seed draws both."""

    validation: float
    test: float
    subset: int | None
    seed: int

    def within(self, found: Items) -> Task:
        """Train and measure on one data set."""
        groups = self._ordered(found)
        test = round(self.test * len(groups))
        rest = self._subset(found, groups[test:])
        validation = round(self.validation * len(groups) * (1 if self.subset is None else len(rest) / max(1, len(groups) - test)))
        self._enough(groups, len(rest) - validation, validation, test)
        kept = found.of({*groups[:test], *rest}) if len(rest) < len(groups) - test else found
        chosen, tested = set(rest[:validation]), set(groups[:test])
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        for index, item in enumerate(kept.items):
            parts[2 if item.group in tested else 1 if item.group in chosen else 0].append(index)
        return Task(kept, kept, Split(*parts))

    def across(self, found: Items, on: Items) -> Task:
        """Train on one data set, measure on another."""
        if (found.regions is None) != (on.regions is None):
            raise BadInput(
                "probe linear: of the data and those to measure on, one has objects and the other images with labels; give two alike"
            )
        groups = self._ordered(found)
        rest = self._subset(found, groups)
        validation = round(self.validation * len(rest))
        self._enough(groups, len(rest) - validation, validation, len(on.items))
        kept, chosen = found.of(set(rest)) if len(rest) < len(groups) else found, set(rest[:validation])
        hold_apart("linear", [kept.images[image] for image in kept.named], [(name, on.images[image]) for image, name in on.named.items()])
        parts: tuple[list[int], list[int]] = ([], [])
        for index, item in enumerate(kept.items):
            parts[item.group in chosen].append(index)
        return Task(kept, on, Split(*parts, list(range(len(on.items)))))

    def _ordered(self, found: Items) -> list[str]:
        """Groups in an order that only their names and the seed decide."""
        return sorted({item.group for item in found.items}, key=lambda group: hash_bytes(f"{self.seed} {group}".encode()))

    def _subset(self, found: Items, groups: Sequence[str]) -> list[str]:
        """The first groups in that order, as many as have `subset` images: drawn from all, not class by class."""
        if self.subset is None:
            return list(groups)
        images: dict[str, set[int]] = {}
        for item in found.items:
            images.setdefault(item.group, set()).add(item.image)
        ends = np.cumsum([len(images[group]) for group in groups])
        if not len(ends) or ends[-1] < self.subset:
            there = int(ends[-1]) if len(ends) else 0
            raise BadInput(
                f"probe linear: a subset of {self.subset} images cannot be drawn from {there} to train on; lower it or leave it out"
            )
        return list(groups[: int(np.searchsorted(ends, self.subset)) + 1])

    def _enough(self, groups: Sequence[str], train: int, validation: int, test: int) -> None:
        if len(groups) < FEWEST or min(test, validation, train) < 1:
            counts = f"{train} to train, {validation} to validate, {test} to test"
            advice = f"give at least {FEWEST}, some of them to each"
            raise BadInput(f"probe linear: {len(groups)} images with labels, a pair as one, are too few ({counts}); {advice}")


def collect(data: Sequence[Example], geometries: Sequence[Geometry]) -> Items:
    """Walk through the data once. Objects that one of the encoders cannot see at all are left out for every one."""
    images: list[Picture] = []
    objects: list[Item] = []
    whole: list[Item] = []
    regions: dict[Geometry, list[np.ndarray]] = {geometry: [] for geometry in geometries}
    ids: set[str] = set()
    for example in data:
        if example.id in ids:
            raise BadInput(f"probe linear: the data have id {example.id} more than once; give every example an id of its own")
        ids.add(example.id)
        if not example.images:
            continue
        group = str(example.meta.get("pair") or example.id)
        if "class" in example.meta and example.answer is not None:
            whole.append(Item(example.id, len(images), group, {"class": example.answer}))
        seen: dict[Geometry, list[np.ndarray]] = {geometry: [] for geometry in geometries}
        # Named after the group, which intervals draw as one: a pair of twins is hardly more than one picture.
        prefix = f"{example.id}/" if group == example.id else f"{group}/{example.id.replace('/', '_')}:"
        for i, thing in enumerate(example.truth.objects if example.truth else ()):
            covered = {geometry: geometry.coverage(thing.mask).ravel() for geometry in geometries}
            if any(weights.sum() <= 0 for weights in covered.values()):
                continue
            for geometry, weights in covered.items():
                seen[geometry].append((weights / weights.sum()).astype(np.float32))
            objects.append(Item(f"{prefix}{i}", len(images), group, {"kind": thing.kind, **thing.attributes}))
        for geometry, rows in seen.items():
            patches = geometry.grid[0] * geometry.grid[1]
            regions[geometry].append(np.stack(rows) if rows else np.zeros((0, patches), np.float32))
        images.append(example.images[0])
    if objects:
        return Items(images, objects, regions)
    if not whole:
        raise BadInput(
            "probe linear: the data have neither objects (truth) nor labels (meta['class'], and the answer its name); "
            "give the world, class folders (classes) or rows of images and labels (labelled)"
        )
    kept = [item.image for item in whole]
    alone = [Item(item.id, number, item.group, item.labels) for number, item in enumerate(whole)]
    return Items([images[image] for image in kept], alone, None)
