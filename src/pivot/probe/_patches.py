"""Classes in patches: how much of each they fill, what a head should say of it, and how well it did. Pure arithmetic.

Shapes: N images (B of them at a time), P patches, C classes, G groups of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from pivot.encoder.geometry import Geometry

Labels = Literal["union", "majority"]
LEAST = 1 / 256  # a class is in a patch from here on: one pixel in a patch of 16 x 16, what is left of it at an encoder's own size


@dataclass(frozen=True)
class Areas:
    """Which share of each patch each class fills. Most patches hold one class or two, so only these are kept: 9 bytes each.

    Image i has the entries `starts[i]` up to `starts[i + 1]`.
    """

    grid: tuple[int, int]
    starts: np.ndarray  # (N + 1,)
    patches: np.ndarray
    classes: np.ndarray
    shares: np.ndarray
    scale: np.ndarray  # (N,) pixels of the picture in a patch

    @classmethod
    def of(cls, images: Sequence[Filled], grid: tuple[int, int]) -> Self:
        """Images side by side."""
        return cls(
            grid,
            np.cumsum([0, *(len(one.shares) for one in images)]),
            np.concatenate([one.patches for one in images]),
            np.concatenate([one.classes for one in images]),
            np.concatenate([one.shares for one in images]),
            np.array([one.scale for one in images]),
        )

    def dense(self, images: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
        """(B, P, C) of some images."""
        found = np.zeros((len(images), self.grid[0] * self.grid[1], classes), np.float32)
        for row, image in enumerate(images):
            entries = slice(self.starts[image], self.starts[image + 1])
            found[row, self.patches[entries], self.classes[entries]] = self.shares[entries]
        return found


@dataclass(frozen=True)
class Filled:
    """The entries of one image."""

    patches: np.ndarray
    classes: np.ndarray
    shares: np.ndarray
    scale: float

    @classmethod
    def of(cls, numbers: np.ndarray, geometry: Geometry) -> Self:
        """Of a class map (H, W), by exact areas."""
        present = np.flatnonzero(np.bincount(numbers.ravel(), minlength=1))
        covered = np.stack([geometry.coverage(numbers == number).ravel() for number in present])
        rows, patches = np.nonzero(covered >= LEAST)
        top, left, bottom, right = geometry.window(*numbers.shape)
        seen = (bottom - top) * geometry.share[0] * (right - left) * geometry.share[1]
        shares = covered[rows, patches].astype(np.float32)
        return cls(patches.astype(np.int32), present[rows].astype(np.uint8), shares, seen / covered.shape[1])


def union(shares: np.ndarray) -> np.ndarray:
    """(B, P, C) whether a class is in a patch. Class 0, the ground or what nobody labelled, is only where no other is."""
    held = shares > 0
    held[..., 0] &= ~held[..., 1:].any(axis=-1)
    return held


def majority(shares: np.ndarray) -> np.ndarray:
    """(B, P) the class that fills most of a patch, of equal ones the first; -1 where a patch lies outside of the picture."""
    return np.where(shares.any(axis=-1), shares.argmax(axis=-1), -1)


def one_hot(numbers: np.ndarray, classes: int) -> np.ndarray:
    """(B, P, C) of class numbers (B, P); nothing where they are negative."""
    return numbers[..., None] == np.arange(classes)


@dataclass(frozen=True)
class Counts:
    """How much there is of each class, how much was said to be, and how much of both at once: (N, C) patches or pixels each."""

    both: np.ndarray
    truth: np.ndarray
    said: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, said: np.ndarray) -> Self:
        """Of (B, P, C): amounts, or whether."""
        return cls(*(amount.sum(axis=1, dtype=np.float64) for amount in (np.minimum(truth, said), truth, said)))

    @classmethod
    def joined(cls, parts: Sequence[Counts]) -> Self:
        """Images side by side."""
        return cls(*(np.concatenate([getattr(part, key) for part in parts]) for key in ("both", "truth", "said")))

    def grouped(self, groups: np.ndarray, count: int) -> Counts:
        """Images of one group as one: `groups` (N,) says which of `count` each is in."""

        def added(amount: np.ndarray) -> np.ndarray:
            found = np.zeros((count, amount.shape[1]))
            np.add.at(found, groups, amount)
            return found

        return Counts(added(self.both), added(self.truth), added(self.said))

    @property
    def recall(self) -> Macro:
        """Of the classes that are there."""
        return Macro(self.both, self.truth)

    @property
    def precision(self) -> Macro:
        """Of the classes that are said at least once: of one that never is there is none."""
        return Macro(self.both, self.said)

    @property
    def iou(self) -> Macro:
        """Intersection over union of the classes that are there: the same ones for every encoder, whatever it says beside them."""
        there = self.truth.any(axis=0)
        return Macro(self.both[:, there], (self.truth + self.said - self.both)[:, there])


@dataclass(frozen=True)
class Macro:
    """The mean over classes of top / bottom, each summed over all images: no mean of anything that an image has of its own.

    `items` are what stands for one: the value, plus the image's pull on it to first order, which is to say how far the tops of its
    classes lie above what these classes' ratios promise for its bottoms. Their mean is the value itself, and as images are drawn again
    it moves as the value does: the delta method. They may lie outside of [0, 1].
    """

    top: np.ndarray  # (G, C)
    bottom: np.ndarray

    @property
    def each(self) -> np.ndarray:
        """(C,) the ratio of each class, NaN of one that is not there."""
        bottom = self.bottom.sum(axis=0)
        return np.divide(self.top.sum(axis=0), bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)

    @property
    def value(self) -> float:
        """NaN if no class is there."""
        there = self.each[~np.isnan(self.each)]
        return float(there.mean()) if len(there) else float("nan")

    @property
    def items(self) -> np.ndarray:
        """(G,)."""
        there = ~np.isnan(self.each)
        top, bottom, ratio = self.top[:, there], self.bottom[:, there], self.each[there]
        return self.value + len(top) * ((top - ratio * bottom) / bottom.sum(axis=0)).mean(axis=1)
