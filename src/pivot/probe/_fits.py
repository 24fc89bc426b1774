"""The classifiers of the linear probe on one target: fitted on some features, asked about others.

Features are read where they lie, on disk or on a GPU. Shapes: N items, D features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pivot.probe._logistic import Classifier, Logistic
from pivot.probe._near import neighbours, prototypes
from pivot.records import BadInput

SEARCH_TOLERANCE = 1e-7  # as near the minimum as float32 tells: fits that stop sooner do as if a strong penalty were the best
STEP = 2.0  # decades between the first C of the search
BLOCK = 8192  # items whose scores are held at a time


def mapped(rows: np.ndarray) -> Tensor:
    """An array as a tensor on the same memory, a mapped file included. It is only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class Labelled:
    """Features with class ids: `x` and `y` to fit on, `asked` to be measured on. -1 is no label, or a class that there is none of in x."""

    x: Tensor  # (N, D)
    y: Tensor  # (N,)
    train: Tensor  # rows of x
    validation: Tensor
    asked: Tensor
    rows: Tensor  # of asked
    classes: int

    @classmethod
    def of(
        cls, x: Tensor, names: Sequence[str | None], asked: Tensor, split: tuple[Sequence[int], ...], classes: Sequence[str]
    ) -> Labelled:
        """`split`: rows of x to train and to validate, without those of other classes, and rows of `asked`."""
        number = {name: i for i, name in enumerate(classes)}
        y = torch.tensor([-1 if name is None else number.get(name, -1) for name in names], device=x.device)
        train, validation, rows = (torch.tensor(part, dtype=torch.long, device=x.device) for part in split)
        return cls(x, y, train[y[train] >= 0], validation[y[validation] >= 0], asked, rows, len(classes))

    @property
    def fitted(self) -> Tensor:
        """Rows of x that a classifier is fitted on once its C is known."""
        return torch.cat([self.train, self.validation])

    def prototypes(self) -> Tensor:
        """The guess for each of the asked rows."""
        return prototypes(self.x, self.y, self.fitted, self.classes, self.asked, self.rows)

    def neighbours(self, k: int) -> Tensor:
        """The guess for each of the asked rows."""
        return neighbours(self.x, self.y, self.fitted, self.classes, self.asked, self.rows, k)

    def majority(self) -> Tensor:
        """The same guess for each of the asked rows."""
        return torch.bincount(self.y[self.fitted]).argmax().expand(len(self.rows))

    def logistic(self, c: float, fitted: Tensor, start: Classifier | None = None) -> Tensor:
        """The guess for each of the asked rows. `start`: a classifier that may be near."""
        classifier = Logistic(self.x, self.y, self.classes, fitted).fit(c, start)
        return torch.cat([scores.argmax(1) for scores in _scores(classifier, self.asked, self.rows)])

    def shots(self, k: int, draw: int, seed: int) -> Tensor:
        """k training rows of each class, at random. A class with fewer is a `BadInput`."""
        counts = torch.bincount(self.y[self.train], minlength=self.classes)
        if (fewest := int(counts.min())) < k:
            raise BadInput(f"probe linear: shots {k}, but a class has only {fewest} training items; give at most {fewest}, or more data")
        order = self.train[torch.from_numpy(np.random.default_rng([seed, k, draw]).permutation(len(self.train))).to(self.train.device)]
        by_class = order[self.y[order].argsort(stable=True)]
        starts = counts.cumsum(0) - counts
        return torch.cat([by_class[int(start) : int(start) + k] for start in starts])


@dataclass(frozen=True)
class Search:
    """CLIP's search for C: seven exponents two decades apart, then both sides of the best, ever nearer."""

    lowest: float  # log10
    highest: float
    halvings: int

    def best(self, of: Labelled, train: Tensor) -> tuple[float, Classifier | None]:
        """The C that is best on the validation items, most right, then least log-loss, and its classifier. Without any the middle one."""
        if not len(of.validation):
            return float(10 ** ((self.lowest + self.highest) / 2)), None
        problem = Logistic(of.x, of.y, of.classes, train)
        fits: dict[float, Classifier] = {}
        marks: dict[float, tuple[float, float]] = {}

        def attempt(exponent: float) -> None:
            if exponent in fits or not self.lowest <= exponent <= self.highest:
                return
            nearest = min(fits, key=lambda other: abs(other - exponent), default=None)
            start = None if nearest is None else fits[nearest]
            fits[exponent] = problem.fit(10**exponent, start, tolerance=SEARCH_TOLERANCE)
            marks[exponent] = _mark(fits[exponent], of)

        for i in range(int((self.highest - self.lowest) / STEP) + 1):
            attempt(self.lowest + i * STEP)
        for halving in range(1, self.halvings + 1):
            best = max(marks, key=lambda exponent: marks[exponent])
            attempt(best - STEP / 2**halving)
            attempt(best + STEP / 2**halving)
        best = max(marks, key=lambda exponent: marks[exponent])
        return float(10**best), fits[best]


def _mark(classifier: Classifier, of: Labelled) -> tuple[float, float]:
    """Share of validation items that are right, and their mean log-probability."""
    right, logp = 0.0, 0.0
    for rows, scores in zip(of.validation.split(BLOCK), _scores(classifier, of.x, of.validation), strict=True):
        of_truth = torch.log_softmax(scores, dim=1).gather(1, of.y[rows, None])
        right, logp = right + float((scores.argmax(1) == of.y[rows]).sum()), logp + float(of_truth.sum())
    return right / len(of.validation), logp / len(of.validation)


def _scores(classifier: Classifier, x: Tensor, rows: Tensor) -> Iterator[Tensor]:
    yield from (classifier.scores(x[some]) for some in rows.split(BLOCK))
