"""Numbers of a map over patches, against the share of each patch that a region covers. Pure arithmetic.

Maps are not negative and not all zero; cover lies in 0..1, with some region and some of the rest. A patch that a region covers by half
counts half as region and half as the rest.
"""

from __future__ import annotations

import numpy as np


def energy(found: np.ndarray, cover: np.ndarray) -> float:
    """How much of the map lies in the region, over how much of the picture does: 1 of a map that knows nothing."""
    return float((found * cover).sum() / found.sum() / cover.mean())


def pointing(found: np.ndarray, cover: np.ndarray) -> float:
    """How likely a point thrown into the patch with the largest value hits the region; of several that are largest, the mean."""
    return float(cover[found == found.max()].mean())


def auc(found: np.ndarray, cover: np.ndarray) -> float:
    """The chance that a point of the region has a larger value than one of the rest; ties count by half."""
    hits, misses = _by_value(found, cover)
    return float((misses * (hits.cumsum() - hits / 2)).sum() / hits.sum() / misses.sum())


def average_precision(found: np.ndarray, cover: np.ndarray) -> float:
    """The mean, over points of the region, of the share of region among all that has at least their value."""
    hits, misses = _by_value(found, cover)
    return float((hits * hits.cumsum() / (hits + misses).cumsum()).sum() / hits.sum())


def chance(cover: np.ndarray) -> float:
    """The average precision of patches in random order, in the mean over all orders. Of few patches it is above the region's share.

    At place k of N a patch has cover c, those before it have k - 1 others: its term is (c^2 + sum of c times each other) / k.
    """
    patches, total = cover.size, cover.sum()
    square = np.square(cover).mean()
    other = (total**2 - patches * square) / (patches * (patches - 1))  # mean product of two patches
    harmonic = (1 / np.arange(1, patches + 1)).sum()
    return float((square * harmonic + other * (patches - harmonic)) / total)


def entropy(found: np.ndarray) -> float:
    """How scattered a map is: 1 where all patches have the same, 0 where one has it all."""
    shares = found[found > 0] / found.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(found.size))


def _by_value(found: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value of a map, largest first: how much region and how much of the rest has it."""
    _, group = np.unique(-found.ravel(), return_inverse=True)
    return np.bincount(group, cover.ravel()), np.bincount(group, 1 - cover.ravel())
