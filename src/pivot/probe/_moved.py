"""How far one encoder is from another: of its weights, and of the features that both have of the same images. Pure arithmetic.

Shapes: B images, P patches, D width of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional as F

from pivot.probe._similar import Moments, cka

Layers = Mapping[str, Tensor]  # tokens (B, P, D) by layer


def relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """|B - A| / |A| over all pairs (A, B) together. What was all zeros and is not any more has moved without a measure: infinity."""
    moved = math.fsum(float((b.to(a.device).double() - a.double()).square().sum()) for a, b in pairs)
    length = math.fsum(float(a.double().square().sum()) for a, _ in pairs)
    return math.sqrt(moved / length) if length else math.inf if moved else 0.0


def cosines(x: Tensor, y: Tensor) -> list[float]:
    """Of each image, the mean over patches of the cosine between two encoders' tokens (B, P, D).

    Equal tokens have no angle, not even one of rounding, and neither have two that are nothing but zeros.
    """
    found = F.cosine_similarity(x.double(), y.double(), dim=2).masked_fill((x == y).all(dim=2), 1)
    return found.mean(dim=1).tolist()


class Drift:
    """Several encoders' features beside a first one's, on images that come a batch at a time. What must be kept of all of them are
    moments: three matrices (D, D) of float64 for a layer and encoder.
    """

    def __init__(self, arms: Sequence[str]) -> None:
        self.cosines: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}  # by arm and layer, of each image
        self._first: dict[str, Moments] = {}
        self._own: dict[str, dict[str, Moments]] = {arm: {} for arm in arms}
        self._both: dict[str, dict[str, Moments]] = {arm: {} for arm in arms}

    def add(self, first: Layers, others: Mapping[str, Layers]) -> None:
        """More images, as the first encoder sees them and as the others do."""
        for layer, x in first.items():
            flat = x.flatten(0, 1)
            self._first.setdefault(layer, Moments()).add(flat, flat)
            for arm, layers in others.items():
                y = layers[layer].flatten(0, 1)
                self.cosines[arm].setdefault(layer, []).extend(cosines(x, layers[layer]))
                self._own[arm].setdefault(layer, Moments()).add(y, y)
                self._both[arm].setdefault(layer, Moments()).add(flat, y)

    def cka(self, arm: str) -> dict[str, float]:
        """By layer, over all patches of all images; unbiased."""
        return {
            layer: cka(self._both[arm][layer].sums(), first.sums(), self._own[arm][layer].sums()) for layer, first in self._first.items()
        }
