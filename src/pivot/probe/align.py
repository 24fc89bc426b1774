"""Alignment: do the pictures that an encoder finds alike have captions that a language model finds alike?

Mutual k-NN (Huh et al., 2024), with the choices of their code. Both sides are pooled layer by layer: vision over patches or by class
token, every block up to the tap; text over the caption's own tokens, every hidden state of a causal LLM. Values beyond the 0.95
quantile of a side's |x| are clamped, each row is brought to length 1, and what counts is the share of an item's k nearest neighbours
on one side that are its neighbours on the other too. The headline is the maximum over all pairs of layers.

A maximum over pairs is an optimist: so `last/mutual_knn` is of the last layers alone, at the tap and before the LLM's head,
`chance/mutual_knn` is what unrelated features share, k / (n - 1), and `permuted/mutual_knn` the same maximum over pairs once captions
and pictures no longer belong together, that is, chance and what the choice of a pair adds to it.

CKA and CKNNA compare the same features at the pair of layers that mutual k-NN chose. Both are unbiased: 0 is chance, whatever the
widths. `biased/cka` is the usual one, which is well above 0 for unrelated features wider than they are many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pivot.files import hash_json
from pivot.pictures import fingerprint
from pivot.probe._contract import DTYPES, Instrument
from pivot.records import BadInput, Example, Measurement

if TYPE_CHECKING:  # recipes read the knobs below without torch: what computes imports where it does
    import torch

    from pivot.encoder import Encoder
    from pivot.records import Picture

FEWEST = 10  # captions for each of the k neighbours: among fewer, chance alone is a tenth


@dataclass(frozen=True)
class Captioned:
    """Pictures and their captions, item by item."""

    ids: list[str]
    images: list[Picture]
    captions: list[str]


@dataclass(frozen=True)
class Side:
    """One side's layers: pooled features of all items, the value that they are clamped at, and who is near to whom."""

    layers: list[np.ndarray]  # (N, D) each
    limit: float
    near: list[torch.Tensor]  # (N, k) each

    def prepared(self, layer: int, device: torch.device) -> torch.Tensor:
        """(N, D) features of one layer as they are compared."""
        from pivot.probe import _similar

        return _similar.prepared(self.layers[layer], self.limit, device)


@dataclass(frozen=True)
class Probe(Instrument):
    """Alignment with a language model, and its knobs."""

    MAIN: ClassVar = ("mutual_knn", "cka", "cknna")

    llm: Annotated[str, Field(min_length=1)] = "base"  # a causal LLM, or an MLLM whose LLM is meant
    k: Annotated[int, Field(ge=1)] = 10
    pooling: Literal["tap", "mean", "class"] = "tap"  # of vision
    most: Annotated[int, Field(ge=20)] = 1024  # captions

    def __post_init__(self) -> None:
        if self.most < FEWEST * self.k:
            raise BadInput(f"most={self.most} captions are too few for k={self.k}; give at least {FEWEST * self.k}, or a lower k")

    def run(self, encoders: Mapping[str, Encoder], data: Sequence[Example], on: Sequence[Example] | None = None) -> Iterator[Measurement]:
        """One measurement per encoder, all on the same pictures and captions and against the same features of them."""
        from pivot.probe import _texts

        found = self.collect(data)
        device = next(iter(encoders.values())).model.device
        texts = _texts.read(self.llm, found.captions, dtype=DTYPES[self.precision], device=device, batch=self.batch)
        text = self.side([texts[:, layer] for layer in range(texts.shape[1])], f"LLM {self.llm}", device)
        for arm, encoder in encoders.items():
            yield self._measure(arm, encoder, found, text, device)

    def collect(self, data: Sequence[Example]) -> Captioned:
        """The first `most` examples with a picture and a caption: the caption that is the truth about it, else the chosen response."""
        kept: dict[str, tuple[Picture, str]] = {}
        without = 0
        for example in data:
            caption = caption_of(example)
            if not caption or not example.images:
                without += 1
                continue
            if example.id in kept:
                raise BadInput(f"probe align: the data have id {example.id} more than once; give every example an id of its own")
            kept[example.id] = example.images[0], caption
            if len(kept) == self.most:
                break
        if len(kept) < FEWEST * self.k:
            said = f"{len(kept)} captions{f' ({without} rows have no picture or no caption)' if without else ''}"
            raise BadInput(f"probe align: {said} are too few for k={self.k}; give at least {FEWEST * self.k}, or a lower k")
        return Captioned(list(kept), [image for image, _ in kept.values()], [caption for _, caption in kept.values()])

    def side(self, layers: list[np.ndarray], whose: str, device: torch.device) -> Side:
        """Layers, ready to be compared. What is not finite is a `BadInput`."""
        from pivot.probe import _similar

        limit = _similar.quantile(layers)
        if not np.isfinite(limit):
            raise BadInput(f"{whose}: features are not finite; its weights are broken, or do not bear this precision")
        return Side(layers, limit, [_similar.neighbours(_similar.prepared(layer, limit, device), self.k) for layer in layers])

    def _measure(self, arm: str, encoder: Encoder, found: Captioned, text: Side, device: torch.device) -> Measurement:
        from pivot.encoder.layers import pooled

        layers = pooled(self.prepared(encoder), found.images, self.pooling, at=self.at, batch=self.batch)
        # Embeddings are a picture's colours, and of class tokens one constant: blocks alone, if there are any.
        named = [name for name in layers if not name.endswith("embeddings")] or list(layers)
        vision = self.side([layers[name] for name in named], f"encoder {arm}", device)
        metrics, items = self.compare(vision, text, found.ids, device)
        # The number that it has among all of them, embeddings included, as on the other side.
        metrics["layer/vision"] = float(list(layers).index(named[int(metrics["layer/vision"])]))
        weights = f"{text.limit:.4g}"  # the LLM's name says little of them; more digits would tell devices apart
        of = self.of(found.ids, fingerprint(found.images), found.captions, weights)
        return Measurement(
            kind="probe",
            name=f"align{self.place}",
            metrics=metrics,
            n=len(found.ids),
            unit="caption",
            arm=arm,
            fingerprint=hash_json([encoder.fingerprint(), of]),
            of=of,
            items=items,
        )

    def compare(
        self, vision: Side, text: Side, ids: Sequence[str], device: torch.device
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Metrics of two sides, and what is known item by item."""
        import torch

        from pivot.probe import _similar

        n = len(ids)
        pairs = list(product(range(len(vision.near)), range(len(text.near))))
        shares = [_similar.shared(vision.near[i], text.near[j]) for i, j in pairs]
        best = max(range(len(pairs)), key=lambda pair: float(shares[pair].mean()))
        moved = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed)).to(device)
        # Item moved[i]'s caption is now that of picture i: its neighbours, by the numbers of pictures.
        back = moved.argsort()
        apart = [back[near][moved] for near in text.near]
        items = {"mutual_knn": shares[best], "last/mutual_knn": shares[-1]}
        metrics = {
            "mutual_knn": float(shares[best].mean()),
            **self.kernels(vision, text, *pairs[best], device),
            "layer/vision": float(pairs[best][0]),
            "layer/text": float(pairs[best][1]),
            "last/mutual_knn": float(shares[-1].mean()),
            **{f"last/{name}": value for name, value in self.kernels(vision, text, *pairs[-1], device).items() if "/" not in name},
            "chance/mutual_knn": self.k / (n - 1),
            "permuted/mutual_knn": max(float(_similar.shared(vision.near[i], apart[j]).mean()) for i, j in pairs),
        }
        return metrics, {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in items.items()}

    def kernels(self, vision: Side, text: Side, i: int, j: int, device: torch.device) -> dict[str, float]:
        """CKA and CKNNA of one layer of each side."""
        from pivot.probe import _similar

        x, y = vision.prepared(i, device), text.prepared(j, device)
        sums = _similar.sums(x, y), _similar.sums(x, x), _similar.sums(y, y)
        return {
            "cka": _similar.cka(*sums),
            "biased/cka": _similar.cka(*sums, _similar.Sums.biased),
            "cknna": _similar.cknna(x, y, vision.near[i], text.near[j]),
        }


def caption_of(example: Example) -> str:
    """What is said about the picture: as truth, else as the chosen response; empty if nothing is."""
    if example.truth is not None and example.truth.caption.strip():
        return example.truth.caption.strip()
    chosen = next((response.text for response in example.responses if response.role == "chosen"), "")
    return chosen.strip() if isinstance(chosen, str) else ""
