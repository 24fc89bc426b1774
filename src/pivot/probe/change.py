"""What moved: how far an encoder's weights and features are from those of the one that it was made from, layer by layer.

Of the weights, the length of the difference over the length of the original's, |B - A| / |A|, over all weights of a block, and of its
attention, its norms and the rest apart. Of the features, on the same images: the cosine between the two encoders' tokens of the same
patch, mean over an image's patches; and linear CKA (unbiased) over all patches of all images, which does not mind a rotation or a
scale. A cosine that fell while CKA stayed is a space that was turned, and not one that says something else.

Layers are those up to the tap, embeddings first, and the projector where all encoders have one; nothing above the tap counts. The
headlines are means over blocks. What is large is not thereby good: beside it stands what the probes find in the features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pivot.files import hash_json
from pivot.pictures import fingerprint
from pivot.probe._contract import Instrument
from pivot.progress import tell
from pivot.records import BadInput, Example, Measurement

if TYPE_CHECKING:  # recipes read the knobs below without torch: what computes imports where it does
    from torch import Tensor

    from pivot.encoder import Encoder
    from pivot.encoder.encoder import At
    from pivot.probe._moved import Drift
    from pivot.records import Picture

BLOCK = re.compile(r"(.*/)?(block-\d+|features)")  # the last is all of a model whose blocks nobody knows
# What a weight of a block belongs to, by its name in any family; the first that fits.
PARTS = (("attention", re.compile(r"attn|attention")), ("norms", re.compile(r"norm|layer_?scale|grn|(^|[._])ln(_|\d|[.]|$)")))


@dataclass(frozen=True)
class Probe(Instrument):
    """What moved between the first encoder and each of the others. The only knobs are how features are computed."""

    MAIN: ClassVar = ("weights", "cka", "cosine")
    READS: ClassVar = "original"

    batch: Annotated[int, Field(ge=1)] = 16  # all layers of two encoders are held: 3 GB for a big one, and 0.9 GB for its moments

    def __post_init__(self) -> None:
        if self.at != "encoder":
            raise BadInput(
                f"probe change at '{self.at}': it reads all layers, and the projector where all encoders have one; leave 'at' out"
            )

    def run(self, encoders: Mapping[str, Encoder], data: Sequence[Example], on: Sequence[Example] | None = None) -> Iterator[Measurement]:
        """One measurement per encoder but the first, which all others are held against."""
        (first, reference), *others = encoders.items()
        if not others:
            raise BadInput(f"probe change: nothing to hold '{first}' against; give the original encoder first and then another")
        for arm, encoder in others:
            compatible(first, reference, arm, encoder)
        images = pictures(data)
        mark = self.of(reference.fingerprint(), fingerprint(list(images.values())), list(images))
        at: At = "projector" if _projectors(list(encoders.values())) else "encoder"
        drift = self._drift({arm: self.prepared(encoder) for arm, encoder in encoders.items()}, list(images.values()), at)
        for arm, encoder in others:
            items = {f"cosine/{layer}": dict(zip(images, values, strict=True)) for layer, values in drift.cosines[arm].items()}
            features = {f"cka/{layer}": value for layer, value in drift.cka(arm).items()}
            features |= {metric: math.fsum(values.values()) / len(values) for metric, values in items.items()}
            if not all(map(math.isfinite, features.values())):
                raise BadInput(f"encoder {first} or {arm}: features are not finite; its weights are broken, or do not bear this precision")
            metrics = weights(reference, encoder, at) | features
            parts = {name: of for name in self.MAIN if (of := _headline(name, metrics))}
            yield Measurement(
                kind="probe",
                name="change",
                metrics=metrics | {name: math.fsum(metrics[part] for part in of) / len(of) for name, of in parts.items()},
                n=len(images),
                unit="image",
                arm=arm,
                fingerprint=hash_json([encoder.fingerprint(), mark]),
                of=mark,
                items=items,
                parts=parts,
            )

    def _drift(self, encoders: Mapping[str, Encoder], images: Sequence[Picture], at: At) -> Drift:
        """All encoders beside the first, each of which reads every image once."""
        from pivot.encoder import layers
        from pivot.probe._moved import Drift

        first, *others = encoders
        drift, names = Drift(others), layers.names(encoders[first], at)
        streams = [layers.layers(encoder.tapped(pooling="mean"), images, self.batch, at) for encoder in encoders.values()]
        for done, batch in enumerate(zip(*streams, strict=True), 1):
            seen = [{name: layer.tokens for name, layer in zip(names, one, strict=True)} for one in batch]
            drift.add(seen[0], dict(zip(others, seen[1:], strict=True)))
            tell("images compared", min(done * self.batch, len(images)), len(images))
        return drift


def weights(reference: Encoder, encoder: Encoder, at: At = "encoder") -> dict[str, float]:
    """The relative change of each layer's weights up to the tap, and of each part of a block."""
    from pivot.encoder import layers
    from pivot.probe._moved import relative

    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    others = layers.weights(encoder, at)
    for layer, parameters in layers.weights(reference, at).items():
        for name, parameter in parameters.items():
            inside = [f"weights/{layer}/{part(name)}"] if "block-" in layer else []
            for metric in (f"weights/{layer}", *inside):
                pairs.setdefault(metric, []).append((parameter.detach(), others[layer][name].detach()))
    return {metric: relative(of) for metric, of in pairs.items()}


def part(name: str) -> str:
    """What a weight of a block belongs to: attention, norms (and scales), or mlp, which is all the rest, convolutions too."""
    return next((part for part, pattern in PARTS if pattern.search(name)), "mlp")


def compatible(first: str, reference: Encoder, arm: str, encoder: Encoder) -> None:
    """Raise unless two encoders differ in the values of their weights alone."""
    shapes = [{name: tuple(parameter.shape) for name, parameter in one.model.named_parameters()} for one in (reference, encoder)]
    kinds = [one.model.config.model_type for one in (reference, encoder)]
    how = f"probe change: '{first}' and '{arm}' cannot be held against each other"
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        what = f"{kinds[0]} and {kinds[1]}" if kinds[0] != kinds[1] else "their weights have other names or shapes"
        raise BadInput(f"{how}: they are of different architectures ({what}); give an encoder and what was trained from it")
    if (reference.tap.layer, reference.tap.norm, reference.grid) != (encoder.tap.layer, encoder.tap.norm, encoder.grid):
        raise BadInput(f"{how}: they are read at different places or on images of different sizes; give both the same")


def pictures(data: Sequence[Example]) -> dict[str, Picture]:
    """The first picture of each example that has one, by the example's id."""
    found: dict[str, Picture] = {}
    for example in data:
        if example.id in found:
            raise BadInput(f"probe change: the data have id {example.id} more than once; give every example an id of its own")
        if example.images:
            found[example.id] = example.images[0]
    if not found:
        raise BadInput("probe change: the data have no pictures; give some that have")
    return found


def _projectors(encoders: Sequence[Encoder]) -> bool:
    """Whether all have one, of one shape."""
    shapes = [one.projector and {name: p.shape for name, p in one.projector.named_parameters()} for one in encoders]
    return shapes[0] is not None and all(shape == shapes[0] for shape in shapes)


def _headline(of: str, metrics: Mapping[str, float]) -> list[str]:
    """The metrics of blocks; of an encoder that is read below all of them, the embeddings'."""
    every = [metric for metric in metrics if metric.startswith(f"{of}/")]
    blocks = [metric for metric in every if BLOCK.fullmatch(metric.removeprefix(f"{of}/"))]
    return blocks or [metric for metric in every if metric.endswith("/embeddings")]
