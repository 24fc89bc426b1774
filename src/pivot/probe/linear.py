"""Linear probe: what a linear classifier reads off frozen features.

Two classifiers, on features at the tap (or behind the projector): L2 logistic regression by L-BFGS, its C found on a validation
split by CLIP's search (wide steps, then halved around the best) and then fitted anew on training and validation items together;
and the prototype classifier, whose weights are the L2-normalised mean features of each class, without a bias.

Where examples carry truth about objects, an item is an object: its feature is the mean of the patch tokens under its mask,
weighted by how much of each patch it covers, and its labels are its kind and attributes. Otherwise an item is a whole image with
its pooled feature and the label in `meta["label"]` as target `class`. Items of one image, and the images of one pair, never
straddle splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from pivot.files import hash_bytes, hash_json
from pivot.pictures import fingerprint
from pivot.probe._contract import Instrument
from pivot.records import BadInput, Example, Measurement

if TYPE_CHECKING:  # recipes read the knobs below without torch: what computes imports where it does
    import torch

    from pivot.encoder import Encoder
    from pivot.encoder.geometry import Geometry
    from pivot.probe._logistic import Classifier
    from pivot.records import Picture

FEWEST = 20  # images, or pairs of them; fewer leave so few for a test that its shares say nothing
SEARCH_TOLERANCE = 1e-5  # the search needs which C is best, not the last digits of its fit


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


@dataclass(frozen=True)
class Split:
    """Indices of items."""

    train: list[int]
    validation: list[int]
    test: list[int]


@dataclass(frozen=True)
class Probe(Instrument):
    """The linear probe and its knobs. `MAIN` are its headline metrics, all of them accuracies on test items."""

    MAIN: ClassVar = ("mean", "kind", "colour", "texture", "orientation", "class")

    # Those that the data lack are skipped.
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("kind", "colour", "texture", "orientation", "class")
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15  # shares of the groups; the rest is for training
    test: Annotated[float, Field(gt=0, lt=1)] = 0.35
    lowest: Annotated[float, Field(ge=-12, le=12)] = -6.0  # log10 of C
    highest: Annotated[float, Field(ge=-12, le=12)] = 6.0
    halvings: Annotated[int, Field(ge=0, le=20)] = 4  # from steps of two decades to an eighth of one

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise BadInput(f"validation {self.validation:g} and test {self.test:g} leave nothing to train on; give shares of a sum below 1")
        if self.lowest > self.highest:
            raise BadInput(f"lowest {self.lowest:g} is above highest {self.highest:g}; swap them")

    def run(self, encoders: Mapping[str, Encoder], data: Sequence[Example], on: Sequence[Example] | None = None) -> Iterator[Measurement]:
        """One measurement per encoder, all on the same items and splits, so that they can be compared item by item."""
        geometries = {arm: encoder.geometry for arm, encoder in encoders.items()}
        found = collect(data, tuple(dict.fromkeys(geometries.values())))
        split = self.split(found.items)
        labels = {target: [item.labels.get(target) for item in found.items] for target in self.targets}
        labels = {target: names for target, names in labels.items() if _classes(names, split.train)}
        if not labels:
            has = sorted({name for item in found.items for name in item.labels}) or ["none"]
            raise BadInput(
                f"probe linear: none of the targets {', '.join(self.targets)} has two classes in the data; it has {', '.join(has)}"
            )
        for arm, encoder in encoders.items():
            features = self.rows(encoder, found, geometries[arm])
            yield self._measure(arm, encoder, found, split, labels, features)

    def rows(self, encoder: Encoder, found: Items, geometry: Geometry) -> torch.Tensor:
        """(items, D)."""
        import torch

        if found.regions is None:
            return torch.from_numpy(np.array(self.features(encoder, found.images, "pooled")))
        return torch.from_numpy(np.array(self.features(encoder, found.images, "regions", regions=found.regions[geometry])))

    def split(self, items: Sequence[Item]) -> Split:
        """Whole groups, in an order that only their names and the seed decide."""
        groups = sorted({item.group for item in items}, key=lambda group: hash_bytes(f"{self.seed} {group}".encode()))
        test, validation = round(self.test * len(groups)), round(self.validation * len(groups))
        train = len(groups) - test - validation
        if len(groups) < FEWEST or min(test, validation, train) < 1:
            counts = f"{train} to train, {validation} to validate, {test} to test"
            advice = f"give at least {FEWEST}, some of them to each"
            raise BadInput(f"probe linear: {len(groups)} images with labels, a pair as one, are too few ({counts}); {advice}")
        where = {group: i for i, group in enumerate(groups)}
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        for index, item in enumerate(items):
            place = where[item.group]
            parts[0 if place < test else 1 if place < test + validation else 2].append(index)
        return Split(train=parts[2], validation=parts[1], test=parts[0])

    def _measure(
        self,
        arm: str,
        encoder: Encoder,
        found: Items,
        split: Split,
        labels: Mapping[str, Sequence[str | None]],
        features: torch.Tensor,
    ) -> Measurement:
        metrics: dict[str, float] = {}
        items: dict[str, dict[str, float]] = {}
        for target, names in labels.items():
            right, c = self.classify(features, names, split)
            tested = [found.items[i].id for i in split.test if names[i] is not None]
            for metric, hits in right.items():
                name = f"{metric}{target}"
                items[name] = dict(zip(tested, hits, strict=True))
                metrics[name] = sum(hits) / len(hits) if hits else float("nan")
            metrics[f"C/{target}"] = c
        parts = {f"{metric}mean": [f"{metric}{target}" for target in labels] for metric in ("", "prototype/", "majority/")}
        metrics.update({mean: sum(metrics[name] for name in names) / len(names) for mean, names in parts.items()})
        marks = [[item.id, item.group, dict(item.labels)] for item in found.items]
        return Measurement(
            kind="probe",
            name=f"linear{self.place}",
            metrics=metrics,
            n=len({i for target in labels for i in split.test if labels[target][i] is not None}),
            unit="image" if found.regions is None else "object",
            arm=arm,
            fingerprint=hash_json([encoder.fingerprint(), fingerprint(found.images), marks, asdict(self)]),
            items=items,
            parts=parts,
        )

    def classify(self, features: torch.Tensor, names: Sequence[str | None], split: Split) -> tuple[dict[str, list[float]], float]:
        """1 or 0 per labelled test item, by logistic regression, by prototypes and by the most frequent class; and the C found.

        A test item of a class that training lacks counts as wrong.
        """
        import torch

        from pivot.probe._logistic import Logistic

        classes = _classes(names, split.train)
        number = {name: i for i, name in enumerate(classes)}
        rows = {part: [i for i in getattr(split, part) if names[i] in number] for part in ("train", "validation")}
        tested = [i for i in split.test if names[i] is not None]
        y = torch.tensor([-1 if name is None else number.get(name, -1) for name in names])
        c = self.search(features, y, rows["train"], rows["validation"], len(classes))
        fitted = rows["train"] + rows["validation"]
        logistic = Logistic(features[fitted], y[fitted], len(classes)).fit(c)
        guesses = {
            "": logistic.scores(features[tested]).argmax(1),
            "prototype/": prototypes(features[fitted], y[fitted], len(classes), features[tested]),
            "majority/": torch.bincount(y[fitted]).argmax().expand(len(tested)),
        }
        return {metric: (guess == y[tested]).double().tolist() for metric, guess in guesses.items()}, c

    def search(self, features: torch.Tensor, y: torch.Tensor, train: list[int], validation: list[int], classes: int) -> float:
        """The C that is best on the validation items: most right, then least log-loss. Without any it is the middle of the range."""
        import torch

        from pivot.probe._logistic import Logistic

        if not validation:
            return float(10 ** ((self.lowest + self.highest) / 2))
        problem = Logistic(features[train], y[train], classes)
        fits: dict[float, Classifier] = {}
        marks: dict[float, tuple[float, float]] = {}

        def attempt(exponent: float) -> None:
            if exponent in fits or not self.lowest <= exponent <= self.highest:
                return
            nearest = min(fits, key=lambda other: abs(other - exponent), default=None)
            start = None if nearest is None else fits[nearest]
            fits[exponent] = problem.fit(10**exponent, start, tolerance=SEARCH_TOLERANCE)
            logp = torch.log_softmax(fits[exponent].scores(features[validation]), dim=1)
            right = (logp.argmax(1) == y[validation]).double().mean()
            marks[exponent] = (float(right), float(logp.gather(1, y[validation, None]).mean()))

        step = 2.0
        for i in range(int((self.highest - self.lowest) / step) + 1):
            attempt(self.lowest + i * step)
        for _ in range(self.halvings):
            step /= 2
            best = max(marks, key=lambda exponent: marks[exponent])
            attempt(best - step)
            attempt(best + step)
        return float(10 ** max(marks, key=lambda exponent: marks[exponent]))


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
        if "label" in example.meta:
            whole.append(Item(example.id, len(images), group, {"class": str(example.meta["label"])}))
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
        raise BadInput("probe linear: the data have neither objects (truth) nor labels (meta['label']); give the world or class folders")
    kept = [item.image for item in whole]
    return Items([images[i] for i in kept], whole, None)


def prototypes(x: torch.Tensor, y: torch.Tensor, classes: int, asked: torch.Tensor) -> torch.Tensor:
    """The class whose L2-normalised mean of L2-normalised features is nearest by cosine, for each asked feature."""
    import torch

    unit = torch.nn.functional.normalize(x.double(), dim=1)
    means = torch.zeros(classes, x.shape[1], dtype=unit.dtype).index_add_(0, y, unit)
    return (asked.double() @ torch.nn.functional.normalize(means, dim=1).T).argmax(1)


def _classes(names: Sequence[str | None], train: Sequence[int]) -> list[str]:
    """Classes with at least two training items, sorted; none unless there are two such classes."""
    counts = Counter(name for name in (names[i] for i in train) if name is not None)
    classes = sorted(name for name, count in counts.items() if count >= 2)
    return classes if len(classes) >= 2 else []
