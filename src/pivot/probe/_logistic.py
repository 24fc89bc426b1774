"""Multinomial logistic regression with an L2 penalty, by L-BFGS: the objective of scikit-learn's LogisticRegression.

    C * sum_i log-loss_i + |W|^2 / 2,   the intercept without penalty

It is minimised in other coordinates: features are centred (the intercept takes up the shift) and rotated onto their principal
axes (the penalty does not see a rotation), and each axis is scaled by its expected curvature. That changes the path, not the
minimum, and turns hundreds of iterations on raw features into tens. The rotation serves every C of a sweep.

Shapes: N items, D features, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

MEMORY = 10  # curvature pairs that L-BFGS keeps
SUFFICIENT = 1e-4  # Armijo's share of the promised decrease


@dataclass(frozen=True)
class Classifier:
    """A fitted linear classifier: scores = x @ weight + bias."""

    weight: torch.Tensor  # (D, K)
    bias: torch.Tensor  # (K,)
    objective: float  # that of the module's docstring, divided by C * N
    iterations: int
    solution: torch.Tensor  # (D + 1, K) in rotated coordinates: where the fit at another C may start

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """(N, K) logits."""
        return x.to(self.weight) @ self.weight + self.bias


class Logistic:
    """One data set, ready to be fitted at any C. `x` is (N, D), `y` (N,) holds class ids 0 .. K-1."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, classes: int) -> None:
        x = x.double()
        self.mean = x.mean(0)
        centred = x - self.mean
        spread, self.axes = torch.linalg.eigh(centred.T @ centred / len(x))  # (D,), (D, D)
        one = torch.ones(1, dtype=x.dtype, device=x.device)
        self.spread = torch.cat([spread.clamp(min=0), one])  # (D + 1,), the intercept's column last
        self.penalised = torch.cat([torch.ones_like(spread), 0 * one])
        self.rotated = torch.cat([centred @ self.axes, one.expand(len(x), 1)], dim=1)  # (N, D + 1)
        self.target = one_hot(y, classes).to(x)  # (N, K)

    def fit(self, c: float, start: Classifier | None = None, *, iterations: int = 1000, tolerance: float = 1e-8) -> Classifier:
        """The minimum at C, up to a decrease of `tolerance` in the mean loss."""
        count, classes = self.target.shape
        # scikit-learn gives two classes one weight vector. With two opposite ones the same penalty needs twice the strength.
        strength = (2.0 if classes == 2 else 1.0) / (c * count) * self.penalised[:, None]
        curvature = (1 - 1 / classes) / classes
        scale = (curvature * self.spread[:, None] + strength).rsqrt()  # (D + 1, 1)

        def objective(free: torch.Tensor) -> tuple[float, torch.Tensor]:
            weight = free * scale
            logp = torch.log_softmax(self.rotated @ weight, dim=1)
            loss = (strength * weight * weight).sum() / 2 - (logp * self.target).sum() / count
            slope = (logp.exp() - self.target) / count
            return float(loss), (self.rotated.T @ slope + strength * weight) * scale

        begin = torch.zeros_like(self.rotated[0])[:, None].expand(-1, classes) if start is None else start.solution
        found, loss, used = minimise(objective, begin / scale, iterations, tolerance)
        solution = found * scale
        weight = self.axes @ solution[:-1]
        return Classifier(weight, solution[-1] - self.mean @ weight, loss, used, solution)


Objective = Callable[[torch.Tensor], tuple[float, torch.Tensor]]
Pairs = deque[tuple[torch.Tensor, torch.Tensor, float]]  # moves, changes of the gradient, 1 / their product


def minimise(objective: Objective, x: torch.Tensor, iterations: int, tolerance: float) -> tuple[torch.Tensor, float, int]:
    """L-BFGS with backtracking on a smooth convex objective that returns (value, gradient). Gives (x, value, iterations used).

    It stops where the decrease that the quadratic model still promises is below `tolerance`.
    """
    loss, gradient = objective(x)
    pairs: Pairs = deque(maxlen=MEMORY)
    for used in range(iterations):
        step = _direction(gradient, pairs)
        slope = _dot(gradient, step)
        if -slope / 2 <= tolerance:
            return x, loss, used
        length = 1.0
        while True:
            trial = x + length * step
            trial_loss, trial_gradient = objective(trial)
            if trial_loss <= loss + SUFFICIENT * length * slope:
                break
            length /= 2
            if length < 1e-10:  # no lower value can be told apart from this one any more
                return x, loss, used
        move, bend = trial - x, trial_gradient - gradient
        product = _dot(move, bend)
        if product > 0:
            pairs.append((move, bend, 1 / product))
        x, loss, gradient = trial, trial_loss, trial_gradient
    return x, loss, iterations


def _direction(gradient: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """The two-loop recursion: minus the gradient times the inverse curvature that the pairs have seen."""
    step = -gradient
    weights = []
    for move, bend, inverse in reversed(pairs):
        weights.append(inverse * _dot(move, step))
        step = step - weights[-1] * bend
    if pairs:
        _, bend, inverse = pairs[-1]
        step = step / (inverse * _dot(bend, bend))
    for (move, bend, inverse), weight in zip(pairs, reversed(weights), strict=True):
        step = step + (weight - inverse * _dot(bend, step)) * move
    return step


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum())
