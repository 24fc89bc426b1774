"""One example by itself: trained on from the given weights for some updates, and then what its loss depends on in its picture.

The loss is training's own: the same rows, scorer and objective, with the example as the whole batch. What it depends on is told by its
gradient at the tower's patch tokens, as they enter the projector or as they leave it. All responses hang on one trunk, so it is the
gradient of the whole loss; trainers that show the model a copy of the picture with each response see one copy's share of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from pivot.data.collate import Row, collate
from pivot.model import MLLM, Scorer
from pivot.model.rollout import evaluating
from pivot.objective._contract import Logps, Objective
from pivot.records import CheckFailed
from pivot.train.feed import count, facts
from pivot.train.glance import At, Finder, Glance
from pivot.train.parts import Rates, freeze, groups
from pivot.train.scoring import detached
from pivot.train.settings import Settings


@dataclass
class Lesson:
    """What an objective reads of one row as if it were all there is, and its state, which lives on from update to update."""

    told: dict[str, Any]
    state: Any

    @classmethod
    def of(cls, row: Row, objective: Objective) -> Self:
        """Before anything is learned of it."""
        told = {"id": [row.id], "counts": count([row], objective.k), **facts([row]), "values": None}
        return cls(told, objective.init())

    def loss(self, objective: Objective, logps: Logps) -> Tensor:
        """The first time it is asked for, weights are the given ones: then log-probabilities are their own reference."""
        if objective.needs_reference:
            self.told.setdefault("reference", detached(logps))
        if objective.needs_sums:
            with torch.no_grad():
                self.state = objective.advance(self.state, objective.sums(logps, self.told).cpu())
        return objective.loss(logps, self.told, self.state)[0]


class Single:
    """Looks at rows through an MLLM, each as if nothing had been learned of any other.

    The given weights are kept beside those in training, on the same device. All parts train at one rate, whole: adapters that settings
    may ask for are not made.
    """

    def __init__(self, mllm: MLLM, objective: Objective, at: At, steps: int, rate: float, settings: Settings) -> None:
        self.mllm, self.objective, self.steps, self.settings = mllm, objective, steps, settings
        self.rate, self.rates = rate, Rates(rate, rate, rate)
        self.scorer = Scorer(mllm, settings.backend)
        self.finder = Finder(mllm, self.scorer, at)
        self.device = mllm.model.device
        self.trained: list[nn.Parameter] = []
        self.given: list[Tensor] = []

    @contextmanager
    def begun(self) -> Iterator[Self]:
        """The block in which rows are looked at. Behind it the MLLM is as it was, to the bit."""
        asked = {parameter: parameter.requires_grad for parameter in self.mllm.model.parameters()}
        if self.steps:
            freeze(self.mllm, self.rates)
        else:
            self.mllm.model.requires_grad_(False)
        self.trained = [parameter for parameter in asked if parameter.requires_grad]
        self.given = [parameter.detach().clone() for parameter in self.trained]
        try:
            with evaluating(self.mllm.model):  # with dropout, a row would not be its own reference
                yield self
        finally:
            self._restore()
            for parameter, before in asked.items():
                parameter.requires_grad_(before)

    def look(self, rows: Sequence[Row]) -> list[Glance]:
        """Each row by itself. Where nothing is learned they go through the model together."""
        if self.steps and len(rows) > 1:
            return [glance for row in rows for glance in self.look([row])]
        batch = send_to_device(collate(rows), self.device)
        lessons = [Lesson.of(row, self.objective) for row in rows]
        first = self._learn(batch, lessons[0]) if self.steps else None
        with self._caught() as passing:
            losses = self._losses(batch, lessons)
        # Rows do not see each other: the gradient of the sum of their losses is each one's own.
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), passing)
        found = []
        for number, (row, loss) in enumerate(zip(rows, losses, strict=True)):
            now = loss.item()
            glance = self.finder.glance(batch["layout"], number, gradient, passing[0].detach(), (now if first is None else first, now))
            if not (math.isfinite(now) and np.isfinite(glance.gradient).all()):
                raise CheckFailed(
                    f"row {row.id}: loss {now}, or its gradient, is not finite after {self.steps} updates at rate {self.rate:g}"
                )
            found.append(glance)
        self._restore()
        return found

    def _learn(self, batch: Mapping[str, Any], lesson: Lesson) -> float:
        """Train on one row alone, at a constant rate; returns the loss before the first update."""
        # fused: the same update, which takes 4 ms of the base's 1.7 M weights on a CPU where the one of train/loop takes 20.
        optimizer = torch.optim.AdamW(groups(self.mllm, self.rates, self.settings.weight_decay)[0], fused=True)
        losses = list[Tensor]()
        for _ in range(self.steps):
            (loss,) = self._losses(batch, [lesson])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.trained, self.settings.clip or torch.inf)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses[0].item()

    def _losses(self, batch: Mapping[str, Any], lessons: Sequence[Lesson]) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            logps = self.scorer(batch).logps
        return [lesson.loss(self.objective, [of_row]) for lesson, of_row in zip(lessons, logps, strict=True)]

    @contextmanager
    def _caught(self) -> Iterator[list[Tensor]]:
        """Inside the block, tokens that pass the projector are cut off from what made them, so that gradients end there; and are kept."""
        passing: list[Tensor] = []

        def cut(tokens: Tensor) -> Tensor:
            passing.append(tokens.detach().requires_grad_())
            return passing[-1]

        projector = self.mllm.model.get_submodule(self.mllm.family.projector)
        if self.finder.at == "encoder":
            handle = projector.register_forward_pre_hook(lambda _module, given: (cut(given[0]), *given[1:]))
        else:
            handle = projector.register_forward_hook(lambda _module, _given, output: cut(output))
        try:
            yield passing
        finally:
            handle.remove()

    def _restore(self) -> None:
        with torch.no_grad():
            for parameter, given in zip(self.trained, self.given, strict=True):
                parameter.copy_(given)
        for parameter in self.trained:
            parameter.grad = None
