"""What the linear probe's classifiers are set: which C are tried, which items few shots are fitted on, how far a neighbour's vote goes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pivot.probe import _fits
from pivot.probe._fits import Labelled, Search
from pivot.probe._items import Split
from pivot.probe._logistic import Classifier
from pivot.probe._near import neighbours
from pivot.probe.linear import Probe

NAMES = [str(i % 3) for i in range(60)]
SPLIT = Split(list(range(30)), list(range(30, 45)), list(range(45, 60)))


def labelled() -> Labelled:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return Labelled.of(x, NAMES, x, (SPLIT.train, SPLIT.validation, SPLIT.test), ["0", "1", "2"])


def test_seven_c_two_decades_apart_and_then_ever_nearer_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    class Fake:
        """A problem whose classifiers are the surer of the truth, the nearer log10 of C is to 2.6."""

        def __init__(self, *_: object) -> None: ...

        def fit(self, c: float, start: object, **_: object) -> Classifier:
            tried.append(math.log10(c))
            return Classifier(torch.zeros(4, 3), torch.zeros(3), 0.0, 0)

    monkeypatch.setattr(_fits, "Logistic", Fake)
    monkeypatch.setattr(_fits, "_mark", lambda *_: (0.5, -abs(tried[-1] - 2.6)))
    c, _ = Search(-6, 6, 4).best(labelled(), torch.arange(30))
    assert tried == pytest.approx([-6, -4, -2, 0, 2, 4, 6, 1, 3, 2.5, 3.5, 2.25, 2.75, 2.375, 2.625])
    assert math.log10(c) == pytest.approx(2.625), "an eighth of a decade from its neighbours"


def test_each_draw_of_few_shots_is_another_and_each_seed_too() -> None:
    of = labelled()
    drawn = {(draw, seed): tuple(sorted(of.shots(2, draw, seed).tolist())) for draw in range(3) for seed in range(2)}
    assert len(set(drawn.values())) == 6 and tuple(sorted(of.shots(2, 1, 0).tolist())) == drawn[1, 0]


def test_few_shots_have_a_c_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []

    def logistic(self: Labelled, c: float, fitted: torch.Tensor, start: object = None) -> torch.Tensor:
        asked.append((c, len(fitted)))
        return torch.zeros(len(self.rows), dtype=torch.long)

    monkeypatch.setattr(Search, "best", lambda self, of, train: (float(len(train)), None))
    monkeypatch.setattr(Labelled, "logistic", logistic)
    x = torch.randn(60, 4)
    Probe(shots=(1, 4), draws=2).classify(x, NAMES, x, NAMES, SPLIT)
    assert asked == [(30, 45), (3, 3), (3, 3), (12, 12), (12, 12)]


@pytest.mark.parametrize(("cosine", "guess"), [(0.9, 0), (0.97, 1)])
def test_two_neighbours_outvote_a_nearer_one_only_if_they_are_hardly_farther(cosine: float, guess: int) -> None:
    """With votes of exp(cosine / 0.07), up to 0.07 * log 2 = 0.0485 farther."""
    away = [cosine, np.sqrt(1 - cosine**2)]
    x, y = torch.tensor([[1.0, 0.0], away, away], dtype=torch.float32), torch.tensor([0, 1, 1])
    assert neighbours(x, y, torch.arange(3), 2, torch.tensor([[3.0, 0.0]]), torch.tensor([0]), 3).tolist() == [guess]
