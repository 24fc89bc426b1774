"""Micro-batches that were scored, and what is done with them besides learning: a look ahead, a closer look at one row, validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor

from pivot.model.score import Scores
from pivot.objective._contract import Counts, Logps
from pivot.objective._online import Online
from pivot.train import order
from pivot.train.feed import Data, Micro, count
from pivot.train.rollouts import tried
from pivot.train.setup import summed
from pivot.train.state import Setup, State

Scored = tuple[Micro, Scores]  # what was learned from
Read = tuple[Logps, dict[str, Any]]  # log-probabilities, and the batch that they are of, as an objective reads both


def detached(nested: Any) -> Any:
    """Tensors of a nest, cut off from what made them."""
    return nested.detach() if isinstance(nested, Tensor) else nested and [detached(inner) for inner in nested]


def nothing(scores: Scores) -> Tensor:
    """Zero, by way of all that was scored: a filler takes part in every gradient exchange."""
    found = [response for nested in (scores.logps, scores.values) for row in nested or () for response in row]
    return torch.cat(found).sum() * 0


@torch.no_grad()
def looked_at(setup: Setup, micros: Sequence[Micro], counts: Counts | None = None) -> Iterator[Read]:
    """Score micro-batches without learning from them."""
    for micro in micros:
        batch = send_to_device(micro.batch(counts), setup.accelerator.device)
        scores = setup.scorer(batch, **setup.scoring)
        if not micro.filler:
            told = {name: value for name, value in batch.items() if name not in ("tokens", "images", "layout")}
            yield scores.logps, {**told, "values": scores.values}


@torch.no_grad()
def advance(setup: Setup, state: State, scored: Iterable[Read]) -> None:
    """Bring the objective's state to this batch: every process gets the same, from the rows of all."""
    own = [setup.objective.sums(logps, batch).cpu() for logps, batch in scored]
    everywhere = [sums for process in gather_object([own]) for sums in process]
    state.objective = setup.objective.advance(state.objective, torch.stack(everywhere).sum(dim=0))


def own_losses(setup: Setup, state: State, seen: Sequence[Scored]) -> list[tuple[str, float]]:
    """Each row of an update, with its loss as if it were alone: which row is to blame."""
    found = []
    for micro, scores in seen:
        for n, row in enumerate(micro.rows):
            alone = send_to_device(micro.alone(n).batch(count([row], setup.objective.k)), setup.accelerator.device)
            alone["values"] = scores.values and [scores.values[n]]
            found.append((row.id, float(setup.objective.loss([scores.logps[n]], alone, state.objective)[0])))
    return gather_object(found)


@torch.no_grad()
def validate(setup: Setup, state: State, heldout: Data) -> dict[str, float]:
    """Loss and metrics over held-out rows, as one batch. The objective's state stays as it is."""
    plan = order.batches(len(heldout.examples), setup.settings.batch)
    if isinstance(setup.objective, Online):
        return tried(setup, heldout, plan)
    counts, found = Counts(0, (0,) * setup.objective.k), list[Read]()
    for portion in setup.portions(heldout, plan):
        counts = counts + count(portion.rows, setup.objective.k)
        found += looked_at(setup, portion.micros)
    whole = reduce(add, gather_object([counts]))
    if not found:
        return summed({})
    shares = dict[str, float]()
    for logps, batch in found:
        loss, metrics = setup.objective.loss(logps, {**batch, "counts": whole}, state.objective)
        for name, value in {"loss": loss, **metrics}.items():
            shares[name] = shares.get(name, 0.0) + float(value)
    return summed(shares)
