"""Mixed preference optimisation (InternVL): which answer is better, how good each is by itself, and how to write it.

With rewards r(y) = beta (log p(y) - log p_reference(y)), summed over the response's tokens, and delta, the mean of all rewards that
training has seen so far, those of the present batch among them:

    preference mean_pairs[-log sigmoid(r(chosen) - r(rejected))]
    + quality mean_pairs[-log sigmoid(r(chosen) - delta) - log sigmoid(delta - r(rejected))]
    + generation mean_tokens[-log p(chosen token)]

delta counts every reward once, over all processes and micro-batches, and carries no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, gain, pair_metrics, total
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`beta` scales rewards; the others weigh the three terms. Defaults are InternVL's."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    preference: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.8
    quality: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    generation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    k: ClassVar[int] = 2
    needs_reference: ClassVar[bool] = True
    needs_sums: ClassVar[bool] = True

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example."""
        return Picked(examples, ("chosen", "rejected"))

    def init(self) -> dict[str, float]:
        """delta, and how many rewards it is the mean of."""
        return {"delta": 0.0, "seen": 0.0}

    def _rewards(self, logps: Logps, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(B,) of the chosen and of the rejected responses."""
        return self.beta * gain(logps, batch["reference"], 0), self.beta * gain(logps, batch["reference"], 1)

    def margins(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(B,) reward of the chosen response minus reward of the rejected one."""
        chosen, rejected = self._rewards(logps, batch)
        return chosen - rejected

    def sums(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """Of rewards, and how many they are."""
        chosen, rejected = self._rewards(logps, batch)
        both = (chosen + rejected).detach().double().sum()
        return both.new_tensor([float(both), 2.0 * len(chosen)])

    def advance(self, state: dict[str, float], sums: Tensor) -> dict[str, float]:
        """The mean with one more batch in it."""
        both, number = sums.tolist()
        seen = state["seen"] + number
        return {"delta": state["delta"] + (both - number * state["delta"]) / seen, "seen": seen}

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: dict[str, float]) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch
        from torch.nn.functional import logsigmoid

        counts, (chosen, rejected), delta = batch["counts"], self._rewards(logps, batch), state["delta"]
        terms = {
            "preference": -logsigmoid(chosen - rejected).sum() / counts.examples,
            "quality": -(logsigmoid(chosen - delta) + logsigmoid(delta - rejected)).sum() / counts.examples,
            "generation": -total(logps, 0).sum() / counts.tokens[0],
        }
        loss = sum((getattr(self, name) * term for name, term in terms.items() if getattr(self, name)), torch.zeros(()).to(chosen))
        told = {f"loss/{name}": term.detach() for name, term in terms.items()}
        share = len(logps) / counts.examples
        return loss, {**pair_metrics(logps, chosen, rejected, counts), **told, "delta": torch.tensor(delta * share)}
