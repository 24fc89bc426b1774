"""Linear probe: what a linear classifier reads off frozen features.

Classifiers, on features at the tap (or behind the projector): L2 logistic regression by L-BFGS, its C found on a validation split by
CLIP's search (wide steps, then halved around the best) and then fitted anew on training and validation items together; the prototype
classifier, whose weights are the L2-normalised mean features of each class, without a bias; the vote of the nearest neighbours; and
on request the first classifier again on few items a class (`shots`), mean over several draws, whose C the same validation items choose.

Where examples carry truth about objects, an item is an object: its feature is the mean of the patch tokens under its mask, weighted by
how much of each patch it covers, and its labels are its kind and attributes. Otherwise an item is a whole image with its pooled feature
and its class as target `class`: the answer of examples that have `meta["class"]`, which readers `classes` and `labelled` set. Items of
one image, and the images of one pair, never straddle splits. An item of a class that training lacks counts as wrong.

Nothing above the tap is read, with two exceptions that must be asked for and are counted in `above_tap/class`, the blocks that were run
above it: `pooling=attention`, through the attention head of the encoder's own source; and `texts`, the CLIP or SigLIP model that the
encoder came from, for `zero_shot/class`: hidden states at the tap pass through the ORIGINAL's upper blocks, norm, head and projection and
are held against the class names in its text tower. So this says how far an encoder, post-trained below its tap, still speaks to its
old texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pivot.files import hash_json
from pivot.probe._contract import Instrument
from pivot.probe._items import Items, Shares, Split, Task, collect
from pivot.progress import tell
from pivot.records import BadInput, Example, Measurement

if TYPE_CHECKING:  # recipes read the knobs below without torch: what computes imports where it does
    import torch
    from torch import nn

    from pivot.encoder import Encoder


@dataclass(frozen=True)
class Probe(Instrument):
    """The linear probe and its knobs. `MAIN` are its headline metrics, all of them accuracies on test items."""

    MAIN: ClassVar = ("mean", "kind", "colour", "texture", "orientation", "class")
    TESTS: ClassVar = True

    # Those that the data lack are skipped.
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("kind", "colour", "texture", "orientation", "class")
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15  # shares of the groups; the rest is for training
    test: Annotated[float, Field(gt=0, lt=1)] = 0.35  # where nothing else is given to measure on
    subset: Annotated[int, Field(ge=1)] | None = None  # images to train and validate on, drawn at random from all that there are
    pooling: Literal["tap", "mean", "class", "attention"] = "tap"  # of whole images; "tap" is what the encoder's tap says
    lowest: Annotated[float, Field(ge=-12, le=12)] = -6.0  # log10 of C
    highest: Annotated[float, Field(ge=-12, le=12)] = 6.0
    halvings: Annotated[int, Field(ge=0, le=20)] = 4  # from steps of two decades to an eighth of one
    neighbours: Annotated[int, Field(ge=1)] = 20
    shots: tuple[Annotated[int, Field(ge=1)], ...] = ()  # training items of each class, as in (1, 2, 4, 8, 16)
    draws: Annotated[int, Field(ge=1)] = 5  # of these items
    texts: str | None = None  # the original CLIP or SigLIP: a folder or hf:ID
    prompt: str = "a photo of a {}."  # what its text tower is told of a class

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise BadInput(f"validation {self.validation:g} and test {self.test:g} leave nothing to train on; give shares of a sum below 1")
        if self.lowest > self.highest:
            raise BadInput(f"lowest {self.lowest:g} is above highest {self.highest:g}; swap them")
        if "{}" not in self.prompt:
            raise BadInput(f"prompt {self.prompt!r} has no {{}} for the class's name; put it in")

    @property
    def place(self) -> str:
        return super().place + ("" if self.pooling == "tap" else f"-{self.pooling}")

    @property
    def shares(self) -> Shares:
        """How items are split."""
        return Shares(self.validation, self.test, self.subset, self.seed)

    def run(self, encoders: Mapping[str, Encoder], data: Sequence[Example], on: Sequence[Example] | None = None) -> Iterator[Measurement]:
        """One measurement per encoder, all on the same items and splits, so that they can be compared item by item."""
        geometries = tuple(dict.fromkeys(encoder.geometry for encoder in encoders.values()))
        found = collect(data, geometries)
        task = self.shares.within(found) if on is None else self.shares.across(found, collect(on, geometries))
        targets = [target for target in self.targets if _classes(task.fit.labels(target), task.split.train)]
        if not targets:
            there = sorted({name for item in found.items for name in item.labels})
            has = [f"{name} ({_counted(task.fit.labels(name), task.split.train)})" for name in there]
            raise BadInput(
                f"probe linear: none of the targets {', '.join(self.targets)} has two classes of at least two training items each; "
                f"the data have {', '.join(has) or 'none'}; give more data, or other targets"
            )
        if found.regions is not None and (self.pooling != "tap" or self.texts):
            given = f"texts={self.texts}" if self.texts else f"pooling '{self.pooling}'"
            raise BadInput(f"probe linear: {given} is about whole images, and the items of these data are objects; leave it out")
        texts = self._texts(task) if self.texts else None
        for arm, encoder in encoders.items():
            yield self._measure(arm, encoder, task, targets, texts)

    def rows(self, encoder: Encoder, items: Items) -> torch.Tensor:
        """(items, D) on the encoder's device: on a CPU the mapped file of the cache, without a copy."""
        from pivot.probe._fits import mapped

        if items.regions is None:
            found = self.features(encoder, items.images, "pooled")
        else:
            found = self.features(encoder, items.images, "regions", regions=items.regions[encoder.geometry])
        return mapped(found).to(encoder.model.device)

    def prepared(self, encoder: Encoder) -> Encoder:
        """The encoder at the precision and with the pooling that are asked for."""
        from pivot.probe._above import Through, opened, own_source

        encoder = super().prepared(encoder)
        if self.pooling == "tap" or isinstance(encoder, Through):
            return encoder
        if self.pooling != "attention":
            return encoder.tapped(pooling=self.pooling)
        return Through.of(encoder, opened(self.texts or own_source(encoder), "pooling"), projected=False)

    def _measure(
        self, arm: str, encoder: Encoder, task: Task, targets: Sequence[str], texts: tuple[nn.Module, Sequence[str], torch.Tensor] | None
    ) -> Measurement:
        from pivot.probe._above import Through

        encoder, plain = self.prepared(encoder), super().prepared(encoder)
        fit = self.rows(encoder, task.fit)
        test = fit if task.test is task.fit else self.rows(encoder, task.test)
        metrics: dict[str, float] = {}
        hits: dict[str, list[float]] = {}
        for number, target in enumerate(targets):
            tell(f"linear probe of {arm}, targets", number, len(targets))
            right, facts = self.classify(fit, task.fit.labels(target), test, task.test.labels(target), task.split)
            hits |= {f"{metric}{target}": found for metric, found in right.items()}
            metrics |= {f"{fact}/{target}": value for fact, value in facts.items()}
        tell(f"linear probe of {arm}, targets", len(targets), len(targets))
        made_of = [encoder.fingerprint()]
        if texts:
            through = Through.of(plain, texts[0], projected=True)
            hits["zero_shot/class"] = self._zero_shot(through, task, *texts[1:])
            made_of.append(through.fingerprint())
            metrics["above_tap/class"] = float(through.blocks_above)
        elif isinstance(encoder, Through):
            metrics["above_tap/class"] = float(encoder.blocks_above)
        ids = {target: [task.test.items[i].id for i in task.split.test if target in task.test.items[i].labels] for target in targets}
        items = {metric: dict(zip(ids[metric.rpartition("/")[2]], found, strict=True)) for metric, found in hits.items()}
        metrics |= {metric: sum(found) / len(found) if found else float("nan") for metric, found in hits.items()}
        parts: dict[str, list[str]] = {}  # each classifier's mean over targets
        for metric in hits:
            parts.setdefault("".join(metric.rpartition("/")[:2]) + "mean", []).append(metric)
        metrics |= {mean: sum(metrics[name] for name in names) / len(names) for mean, names in parts.items()}
        of = self.of(task.fingerprint)
        return Measurement(
            kind="probe",
            name=f"linear{self.place}",
            metrics=metrics,
            n=len(set().union(*ids.values())),
            unit="image" if task.fit.regions is None else "object",
            arm=arm,
            fingerprint=hash_json([*made_of, of]),
            of=of,
            items=items,
            parts=parts,
        )

    def classify(
        self, fit: torch.Tensor, names: Sequence[str | None], test: torch.Tensor, truth: Sequence[str | None], split: Split
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Per classifier 1 or 0 for each labelled test item, of few shots the share of draws that are right; and facts of the fit."""
        import torch

        from pivot.probe._fits import Labelled, Search

        classes = _classes(names, split.train)
        tested = [i for i in split.test if truth[i] is not None]
        of = Labelled.of(fit, names, test, (split.train, split.validation, tested), classes)
        numbers = torch.tensor([classes.index(name) if name in classes else -1 for name in (truth[i] for i in tested)], device=fit.device)

        def right(guess: torch.Tensor) -> torch.Tensor:
            return (guess == numbers).double()

        search = Search(self.lowest, self.highest, self.halvings)
        c, near = search.best(of, of.train)
        found = {
            "": right(of.logistic(c, of.fitted, near)),
            "prototype/": right(of.prototypes()),
            "knn/": right(of.neighbours(self.neighbours)),
            "majority/": right(of.majority()),
        }
        for k in self.shots:
            drawn = [of.shots(k, draw, self.seed) for draw in range(self.draws)]
            few, _ = search.best(of, drawn[0])
            found[f"{k}-shot/"] = torch.stack([right(of.logistic(few, rows)) for rows in drawn]).mean(0)
        return {metric: hits.tolist() for metric, hits in found.items()}, {"C": c, "trained": float(len(of.fitted))}

    def _texts(self, task: Task) -> tuple[nn.Module, list[str], torch.Tensor]:
        """The original, the classes of all items, and what its text tower makes of their names."""
        from pivot.probe._above import embedded, opened

        classes = sorted({item.labels["class"] for side in (task.fit, task.test) for item in side.items})
        # of synonyms, as in "tench, Tinca tinca", the first
        said = [self.prompt.replace("{}", name.partition(",")[0].replace("_", " ").strip()) for name in classes]
        assert self.texts
        original = opened(self.texts, "texts")
        return original, classes, embedded(original, self.texts, said)

    def _zero_shot(self, through: Encoder, task: Task, classes: Sequence[str], embeddings: torch.Tensor) -> list[float]:
        """1 or 0 for each test item: whether its class's text is the nearest by cosine."""
        from pivot.probe._fits import mapped

        items = [task.test.items[i] for i in task.split.test]
        rows = mapped(
            replace(self, pooling="tap", at="encoder").features(through, [task.test.images[item.image] for item in items], "pooled")
        )
        guesses = [classes[int(number)] for some in rows.split(4096) for number in (some @ embeddings.T).argmax(1)]
        return [float(guess == item.labels["class"]) for guess, item in zip(guesses, items, strict=True)]


def _classes(names: Sequence[str | None], train: Sequence[int]) -> list[str]:
    """Classes with at least two training items, sorted; none unless there are two such classes."""
    classes = sorted(name for name, count in _sizes(names, train).items() if count >= 2)
    return classes if len(classes) >= 2 else []


def _counted(names: Sequence[str | None], train: Sequence[int]) -> str:
    """How many classes there are, and how many of them `_classes` would take."""
    enough = sum(count >= 2 for count in _sizes(names, train).values())
    return f"{len(set(names) - {None})} classes, {enough} of them with two training items"


def _sizes(names: Sequence[str | None], train: Sequence[int]) -> Counter[str]:
    """Class -> training items."""
    return Counter(name for name in (names[i] for i in train) if name is not None)
