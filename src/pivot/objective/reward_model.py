"""A reward model: a number for a reply, higher for the chosen of two (Bradley and Terry).

With s(y), a linear head on the LLM's last state of the response:

    mean_pairs[-log sigmoid(s(chosen) - s(rejected))] + centre mean_pairs[(s(chosen) + s(rejected))^2]

The second term fixes the scale's zero, which pairs leave open; 0.01 is TRL's advice, LLaVA-RLHF has 0.001 on the absolute mean.
What is trained is written with its head, and is then a reward of others: `reward: {name: learned, model: FOLDER}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Head, Logps, Metrics, Picked
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`centre` weighs the second term, `head_rate` is the head's learning rate."""

    centre: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    head_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    k: ClassVar[int] = 2

    @property
    def head(self) -> Head:
        return "only"

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example."""
        return Picked(examples, ("chosen", "rejected"))

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`. Log-probabilities take no part."""
        import torch
        from torch.nn.functional import logsigmoid

        chosen, rejected = (torch.stack([row[number][-1] for row in batch["values"]]) for number in (0, 1))  # (B,)
        share = -logsigmoid(chosen - rejected) + self.centre * (chosen + rejected).square()
        each = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
            "rewards/margins": chosen - rejected,
        }
        examples = batch["counts"].examples
        return share.sum() / examples, {name: values.detach().sum() / examples for name, values in each.items()}
