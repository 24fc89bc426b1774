"""Multinomial logistic regression with an L2 penalty, by L-BFGS: the objective of scikit-learn's LogisticRegression.

    C * sum_i log-loss_i + |W|^2 / 2,   the intercept without penalty

It is minimised in other coordinates: features are centred (the intercept takes up the shift) and rotated onto their principal
axes (the penalty does not see a rotation), and each axis is scaled by its expected curvature. That changes the path, not the
minimum, and turns hundreds of iterations on raw features into tens. The rotation serves every C of a sweep, and it is the weights
that are rotated: features are read a block at a time where they lie, and never copied as a whole.

Far from the minimum float32 tells as well as float64 where it lies, at half the time on a CPU and far less on most GPUs; the last
digits are float64's. Steps, and sums over items, are always float64.

Shapes: N items, D features, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

MEMORY = 10  # curvature pairs that L-BFGS keeps
SUFFICIENT = 1e-4  # Armijo's share of the promised decrease
COARSE = 1e-7  # of the loss: smaller decreases are checked in float64
ROUNDED = 1e-6  # about what float32 rounds off an item's loss; over N items it is less by sqrt(N)
SMALL = 0.01  # a mean loss below this counts as this: all items are told apart, and what is left to gain is how surely
SHORTEST = 1e-4  # step that is tried; if it gains nothing either, rounding hides what there is to gain
FLAT = 0.01  # of the curvature at zero: where all items are told apart there is next to none, but soon there is again
LOGITS = 1 << 22  # of one block: 16 MB in float32, so that a block's exponentials stay near the processor; on CUDA sixteen times as many


@dataclass(frozen=True)
class Classifier:
    """A fitted linear classifier: scores = x @ weight + bias."""

    weight: torch.Tensor  # (D, K)
    bias: torch.Tensor  # (K,)
    objective: float  # that of the module's docstring, divided by C * N
    iterations: int

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """(N, K) logits."""
        return x.to(self.weight) @ self.weight + self.bias


class Logistic:
    """One data set, ready to be fitted at any C: `x` (M, D), `y` (M,) with class ids 0 .. K-1, of both the N `rows` alone if given."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, classes: int, rows: torch.Tensor | None = None) -> None:
        self.x, self.y, self.classes = x, y.to(x.device), classes
        self.rows = None if rows is None else rows.to(x.device)
        self.count = len(x) if rows is None else len(rows)
        self.block = max(1, LOGITS * (16 if x.is_cuda else 1) // max(classes, x.shape[1]))
        self.mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        self.mean = sum((block.sum(0) for block, _ in self._blocks(torch.float64)), torch.zeros_like(self.mean)) / self.count
        products = (block.T @ block for block, _ in self._blocks(torch.float32))  # any axes will do, these let it converge soon
        spread, self.axes = torch.linalg.eigh(sum(products, torch.zeros_like(torch.diag(self.mean))) / self.count)  # (D,), (D, D)
        one = torch.ones_like(spread[:1])
        self.spread = torch.cat([spread.clamp(min=0), one])  # (D + 1,), the intercept's column last
        self.penalised = torch.cat([torch.ones_like(spread), 0 * one])

    def fit(self, c: float, start: Classifier | None = None, *, iterations: int = 1000, tolerance: float = 1e-8) -> Classifier:
        """The minimum at C, up to a decrease of `tolerance` of its value (see SMALL).

        `start`: a classifier that may be near, of another C or other items.
        """
        # scikit-learn gives two classes one weight vector. With two opposite ones the same penalty needs twice the strength.
        strength = (2.0 if self.classes == 2 else 1.0) / (c * self.count) * self.penalised[:, None]
        begin = self._begin(start)
        scale = (self._curvature(begin, start is None) * self.spread[:, None] + strength).rsqrt()  # (D + 1, 1)

        def objective(free: torch.Tensor, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
            weight = free * scale
            loss, slope = self._mean_loss(weight, dtype)
            return loss + float((strength * weight * weight).sum()) / 2, (slope + strength * weight) * scale

        descent = Descent(begin / scale)
        descent.go(lambda free: objective(free, torch.float32), iterations, max(tolerance, ROUNDED / self.count**0.5))
        if tolerance < COARSE:
            descent.go(lambda free: objective(free, torch.float64), iterations, tolerance)
        solution = descent.x * scale
        weight = self.axes @ solution[:-1]
        return Classifier(weight, solution[-1] - self.mean @ weight, descent.value, descent.used)

    def _begin(self, start: Classifier | None) -> torch.Tensor:
        """A classifier in rotated coordinates: (D + 1, K)."""
        if start is None:
            return self.mean.new_zeros(len(self.mean) + 1, self.classes)
        return torch.cat([self.axes.T @ start.weight, (start.bias + self.mean @ start.weight)[None]])

    def _curvature(self, weight: torch.Tensor, zero: bool) -> float:
        """The mean of p (1 - p) over items and classes: how far the loss bends, which is far less where items are told apart already."""
        uniform = (1 - 1 / self.classes) / self.classes
        if zero:
            return uniform
        turned, bias, bent = (self.axes @ weight[:-1]).float(), weight[-1].float(), 0.0
        for block, _ in self._blocks(torch.float32):
            p = torch.softmax(torch.addmm(bias, block, turned), dim=1)
            bent += float((p - p * p).sum(dtype=torch.float64))
        return max(bent / self.count / self.classes, FLAT * uniform)

    def _mean_loss(self, weight: torch.Tensor, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        """The mean log-loss of weights (D + 1, K) in rotated coordinates, and its slope there; the work on items is done in `dtype`."""
        turned, bias = (self.axes @ weight[:-1]).to(dtype), weight[-1].to(dtype)
        loss, slope = weight.new_zeros(()), weight.new_zeros(weight.shape[::-1])  # (K, D + 1), in which order products take less
        for block, y in self._blocks(dtype):
            logp = torch.log_softmax(torch.addmm(bias, block, turned), dim=1)
            loss -= logp.gather(1, y[:, None]).sum(dtype=torch.float64)
            wrong = logp.exp_()
            wrong[torch.arange(len(y), device=y.device), y] -= 1
            slope[:, :-1] += wrong.T @ block
            slope[:, -1] += wrong.sum(0)
        slope[:, :-1] = slope[:, :-1] @ self.axes
        return float(loss) / self.count, slope.T / self.count

    def _blocks(self, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Centred features and class ids, some items at a time."""
        mean = self.mean.to(dtype)
        for start in range(0, self.count, self.block):
            some = slice(start, start + self.block)
            if self.rows is None:
                yield self.x[some].to(dtype) - mean, self.y[some]
            else:
                yield self.x.index_select(0, self.rows[some]).to(dtype).sub_(mean), self.y[self.rows[some]]


Objective = Callable[[torch.Tensor], tuple[float, torch.Tensor]]


class Descent:
    """L-BFGS with backtracking on a smooth convex objective that returns (value, gradient).

    Its directions are sums of the last moves, of how the gradient changed along them, and of the gradient. Their products are taken at
    once and the recursion is done on these few numbers: on vectors it is forty small operations, each of which waits for all threads.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.value, self.used = x, float("nan"), 0
        self.basis = x.new_zeros(2 * MEMORY + 1, x.numel())  # moves, changes of the gradient along them, the gradient
        self.order = deque[int](maxlen=MEMORY)  # of the moves, the newest last

    def go(self, objective: Objective, iterations: int, tolerance: float) -> None:
        """Until the decrease that the quadratic model still promises is below `tolerance` of the value, or `iterations` are used in all.

        What was learnt of the curvature serves a next call with the same objective in more digits.
        """
        self.value, gradient = objective(self.x)
        while self.used < iterations:
            self.basis[-1] = gradient.flatten()
            step, slope = self._direction()
            if -slope / 2 <= tolerance * max(self.value, SMALL):
                return
            length = 1.0
            while True:
                trial = self.x + length * step
                value, trial_gradient = objective(trial)
                if value <= self.value + SUFFICIENT * length * slope:
                    break
                # to where a parabola through both values would be lowest
                length *= min(max(-slope * length / 2 / (value - self.value - slope * length), 0.1), 0.5)
                if length < SHORTEST:
                    return
            self.used += 1
            self._learn(length * step, trial_gradient - gradient)
            self.x, self.value, gradient = trial, value, trial_gradient

    def _learn(self, move: torch.Tensor, bend: torch.Tensor) -> None:
        """Keep a move in place of the oldest, unless rounding made the objective bend down along it."""
        if float((move * bend).sum()) <= 0:
            return
        slot = len(self.order) if len(self.order) < MEMORY else self.order[0]
        self.basis[slot], self.basis[MEMORY + slot] = move.flatten(), bend.flatten()
        self.order.append(slot)

    def _direction(self) -> tuple[torch.Tensor, float]:
        """Minus the gradient times the inverse curvature that the moves have seen, by the two-loop recursion, and the slope along it."""
        products = (self.basis @ self.basis.T).cpu().numpy()
        step = np.zeros(len(products))  # in terms of the basis
        step[-1] = -1.0
        weights: dict[int, float] = {}
        for move in reversed(self.order):
            weights[move] = float(products[move] @ step / products[move, MEMORY + move])
            step[MEMORY + move] -= weights[move]
        if self.order:
            newest = self.order[-1]
            step *= products[newest, MEMORY + newest] / products[MEMORY + newest, MEMORY + newest]
        for move in self.order:
            step[move] += weights[move] - float(products[MEMORY + move] @ step / products[move, MEMORY + move])
        along = torch.from_numpy(step).to(self.basis) @ self.basis
        return along.view_as(self.x), float(products[-1] @ step)
