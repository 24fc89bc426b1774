"""Segmentation probe: which classes a head finds in each patch of a frozen encoder's features.

The head reads the patch tokens at the tap (or behind the projector), each channel standardised: there is no norm behind a tap, and
of two encoders that see the same the one with the larger features would learn faster. What the head is to say of a patch is the union of
the classes in it (several, each by itself with BCE; class 0 only where it is alone) or their majority (one, by cross-entropy). It begins
as one that says of every patch how often each class is anywhere: begun at random it says half of all classes, and where steps are few
recall rewards that. Areas are exact, on the patches of what the encoder's own processor shows it of a picture; a class that fills less of
a patch than a 256th is not in it, and patches outside of the picture are left out.

`recall` is the headline: TP / (TP + FN) of each class over all patches of all measured images, said where its probability is over one
half (by majority: where its logit is the highest), and then the mean over classes that are there at all. A head that says everything
has a recall of 1, hence `precision`, how much of what was said of a class is true, mean over the classes that were said at all, and
`miou`, intersection over union of the same patches, mean over the classes that are there. `miou_pixels` spreads the class with the
highest logit over the pixels of each patch, of the part of the picture that the encoder sees (a pixel between patches belongs to each
by its area), against the class map. By union a head is not told how much of a patch a class fills and draws small things too large:
for that number, train by majority. Class 0 counts as any other.
`majority/...` is what saying the same of every patch gives: the classes that are in more than half of the training patches, or else the
most frequent one.

All are means over `repeats` heads, which differ in their seed, and `spread/recall` is their standard deviation. What is measured is the
head after its last epoch. `best=true` takes the epoch of the highest recall on the measured images themselves, as published numbers do:
an optimistic number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pivot.files import hash_json
from pivot.markup import thumbnail
from pivot.pictures import picture
from pivot.probe._contract import Instrument
from pivot.probe._patches import Labels, majority, one_hot
from pivot.probe._scenes import Found, Part, Task, apart, split
from pivot.progress import tell
from pivot.records import BadInput, Example, Measurement, Shown

if TYPE_CHECKING:  # recipes read the knobs below without torch: what computes imports where it does
    import torch

    from pivot.encoder import Encoder

PICTURES = 6
SIDE, EXACT = 192, 96  # pixels of a picture's longer side: what is kept of it, and what is kept without loss
OUTSIDE = "outside the picture"


@dataclass(frozen=True)
class Probe(Instrument):
    """The segmentation probe and its knobs."""

    MAIN: ClassVar = ("recall", "precision", "miou", "miou_pixels")
    TESTS: ClassVar = True

    head: Literal["mlp", "linear", "transformer"] = "mlp"
    labels: Labels = "union"
    width: Annotated[int, Field(ge=1)] = 1024  # of the hidden layer; in a transformer, of those in its blocks, whose tokens have a quarter
    repeats: Annotated[int, Field(ge=1)] = 3  # heads
    test: Annotated[float, Field(gt=0, lt=1)] = 0.35  # share of the images that is measured on, where none are given for that
    epochs: Annotated[int, Field(ge=1)] = 5
    head_batch: Annotated[int, Field(ge=1)] = 32  # images a step of a head
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4  # where the rate ends
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    warmup: Annotated[int, Field(ge=0)] = 500  # steps
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.2  # of all steps, that it takes at most: small data have fewer than 500
    best: bool = False  # the best epoch by the recall of the measured images, not the last one

    def __post_init__(self) -> None:
        if self.floor > self.rate:
            raise BadInput(f"floor {self.floor:g} is above rate {self.rate:g}, which falls to it; lower it")

    def run(self, encoders: Mapping[str, Encoder], data: Sequence[Example], on: Sequence[Example] | None = None) -> Iterator[Measurement]:
        """One measurement per encoder, all on the same images and splits, so that they can be compared image by image."""
        geometries = tuple(dict.fromkeys(encoder.geometry for encoder in encoders.values()))
        parts = split(data, geometries, self.test, self.seed) if on is None else apart(data, on, geometries)
        tasks = {geometry: Task(*parts, geometry, self.labels) for geometry in geometries}
        for arm, encoder in encoders.items():
            yield self._measure(arm, encoder, tasks[encoder.geometry])

    def tokens(self, encoder: Encoder, part: Part) -> np.ndarray:
        """(N, P, D), on disk."""
        tokens = self.features(encoder, part.scenes.images, "tokens")
        rows, columns = encoder.geometry.grid
        if tokens.shape[1] != rows * columns:
            raise BadInput(
                f"probe segment: {tokens.shape[1]} tokens at the {self.at} are not the {rows} x {columns} patches; set another `at`"
            )
        return tokens

    def _measure(self, arm: str, encoder: Encoder, task: Task) -> Measurement:
        train = self.tokens(encoder, task.train)
        test = train if task.test.scenes is task.train.scenes else self.tokens(encoder, task.test)
        heads = [self.taught(task, train, test, encoder.model.device, number) for number in range(self.repeats)]
        said = {metric: [found.macros()[metric] for found, _ in heads] for metric in self.MAIN}
        metrics = {metric: float(np.mean([macro.value for macro in macros])) for metric, macros in said.items()}
        metrics |= {f"majority/{metric}": macro.value for metric, macro in task.constant.macros().items()}
        if self.repeats > 1:
            metrics["spread/recall"] = float(np.std([macro.value for macro in said["recall"]], ddof=1))
        each = np.mean([macro.each for macro in said["recall"]], axis=0)
        metrics |= {f"recall/{task.names[number]}": float(value) for number, value in enumerate(each) if not np.isnan(value)}
        pulls = {metric: np.mean([macro.items for macro in macros], axis=0).tolist() for metric, macros in said.items()}
        of = self.of(*(part.fingerprint() for part in (task.train, task.test)))
        return Measurement(
            kind="probe",
            name=f"segment{self.place}",
            metrics=metrics,
            n=len(task.test.rows),
            unit="image",
            arm=arm,
            fingerprint=hash_json([encoder.fingerprint(), of]),
            of=of,
            items={metric: dict(zip(task.items, values, strict=True)) for metric, values in pulls.items() if np.isfinite(metrics[metric])},
            shown=self._shown(task, heads[0][1]),
        )

    def taught(self, task: Task, train: np.ndarray, test: np.ndarray, device: torch.device, number: int) -> tuple[Found, np.ndarray]:
        """One head on the measured images: what is counted of it, and (N, P) the class that it holds each patch for."""
        from pivot.probe import _heads

        lesson = _heads.Lesson(train, task.areas(task.train), task.train.rows, task.often)
        seed = int(np.random.default_rng([self.seed, number]).integers(2**31))
        what = f"head {number + 1} of {self.repeats}"
        marked: list[tuple[Found, np.ndarray]] = []
        for epoch, head in enumerate(_heads.train(lesson, self, seed, device, lambda done, total: tell(what, done, total)), 1):
            if self.best or epoch == self.epochs:
                maps: list[np.ndarray] = []
                found = task.marked(self._said(_heads.logits(head, test, task.test.rows), maps))
                marked.append((found, np.concatenate(maps)))
        return max(marked, key=lambda one: one[0].patches.recall.value)

    def _said(self, logits: Iterable[np.ndarray], maps: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(B, P, C) which classes are said to be in patches, and (B, P) which one of each; the latter are added to `maps` too."""
        for several in logits:
            if not np.isfinite(several).all():
                raise BadInput(f"probe segment: a head's training ran away (not finite); give a lower rate than {self.rate:g}")
            maps.append(several.argmax(axis=-1))
            yield several > 0 if self.labels == "union" else one_hot(maps[-1], several.shape[-1]), maps[-1]

    def _shown(self, task: Task, found: np.ndarray) -> list[Shown]:
        """Some of the measured images, evenly spread over them, as the first head has them."""
        chosen = np.linspace(0, len(task.test.rows) - 1, min(PICTURES, len(task.test.rows))).astype(int)
        areas, pictures = task.areas(task.test), []
        for at, row in zip(chosen, task.test.rows[chosen], strict=True):
            shares = areas.dense([row], task.classes)
            truth = majority(shares * task.targets(shares))[0]  # of what is asked for: by union, the ground only where it is alone
            guess = np.where(truth < 0, truth, found[at])
            names = {str(number): task.names[number] if number >= 0 else OUTSIDE for number in sorted({*truth.tolist(), *guess.tolist()})}
            inside = truth >= 0
            pictures.append(
                Shown(
                    id=task.test.scenes.ids[row],
                    picture=thumbnail(task.geometry.under(picture(task.test.scenes.images[row])), SIDE, EXACT)["uri"],
                    found=guess.reshape(areas.grid).tolist(),
                    truth=truth.reshape(areas.grid).tolist(),
                    says=f"{(guess == truth)[inside].mean():.0%} of the patches as the truth has them",
                    names=names,
                )
            )
        return pictures
