"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024): each response by itself, against what responses gain in general.

With g(y) = log p(y) - log p_reference(y), summed over the response's tokens, chosen responses desirable and rejected ones not:

    mean_responses[desirable (1 - sigmoid(beta (g(chosen) - z))), undesirable (1 - sigmoid(beta (z - g(rejected))))]

z = max(0, mean g(stray)) estimates how far the policy is from the reference as a whole. It is taken from responses under prompts that
they were not given to, those of the next row, over the whole batch, and carries no gradient; `against: zero` does without (APO-zero
has it so). A batch is rows with both sides, so both weigh the same without more ado; what the paper allows beside, rows of one side
alone, is not built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, gain, pair_metrics
from pivot.objective._pairs import Astray
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`beta` scales rewards, `desirable` and `undesirable` weigh the sides; `against` says what a response is held against."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    desirable: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    undesirable: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    against: Literal["kl", "zero"] = "kl"
    needs_reference: ClassVar[bool] = True

    @property
    def needs_sums(self) -> bool:
        return self.against == "kl"

    @property
    def learns(self) -> str:
        return "the chosen, the rejected and another row's response" if self.against == "kl" else "the chosen and the rejected response"

    @property
    def k(self) -> int:
        return 3 if self.against == "kl" else 2

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example; and one of another, if z is estimated."""
        pairs = Picked(examples, ("chosen", "rejected"))
        return Astray(pairs) if self.against == "kl" else pairs

    def init(self) -> dict[str, float]:
        """z."""
        return {"kl": 0.0}

    def margins(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(B,) the reward that is furthest from zero."""
        import torch

        rewards = torch.stack([self.beta * gain(logps, batch["reference"], number) for number in range(self.k)])  # (k, B)
        return rewards.gather(0, rewards.abs().argmax(dim=0, keepdim=True))[0]

    def sums(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """Of what stray responses have gained, and how many they are."""
        gained = gain(logps, batch["reference"], 2).detach().double().sum()
        return gained.new_tensor([float(gained), len(logps)])

    def advance(self, state: dict[str, float], sums: Tensor) -> dict[str, float]:
        """z of one batch: nothing is left of the one before."""
        gained, number = sums.tolist()
        return {"kl": max(0.0, gained / number)}

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: dict[str, float]) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch

        counts, z = batch["counts"], self.beta * state["kl"]
        chosen, rejected = (self.beta * gain(logps, batch["reference"], number) for number in (0, 1))  # (B,)
        each = self.desirable * torch.sigmoid(z - chosen) + self.undesirable * torch.sigmoid(rejected - z)  # 1 - sigmoid(x) = sigmoid(-x)
        share = len(logps) / counts.examples
        told = {"kl": torch.tensor(state["kl"] * share)}
        return each.sum() / counts.examples / 2, {**pair_metrics(logps, chosen, rejected, counts), **told}
