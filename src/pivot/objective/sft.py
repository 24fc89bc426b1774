"""Supervised fine-tuning: the chosen responses become likelier, every token of the batch weighing the same.

    mean_tokens[-log p(chosen token)] + unlikelihood mean_tokens[-log(1 - p(rejected token))]

The second term (Welleck et al. 2020) shows SFT the negatives that preference training sees: a control for what DPO gains from
data alone. It pushes each rejected token down by itself, those that the chosen response has as well among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, length, log_not, total
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`unlikelihood` weighs the rejected side; with 0 rows need none."""

    unlikelihood: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def k(self) -> int:
        return 2 if self.unlikelihood else 1

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen response of each example, and the first rejected one if it is learned from."""
        return Picked(examples, ("chosen", "rejected") if self.unlikelihood else ("chosen",))

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch

        counts, chosen = batch["counts"], total(logps, 0)  # (B,)
        loss = -chosen.sum() / counts.tokens[0]
        metrics = {
            "logps/chosen": chosen.detach().sum() / counts.examples,
            "lengths/chosen": length(logps, 0).sum() / counts.examples,
        }
        if self.unlikelihood:
            unlike = -torch.stack([log_not(row[1]).sum() for row in logps]).sum() / counts.tokens[1]
            metrics |= {
                "logps/rejected": total(logps, 1).detach().sum() / counts.examples,
                "lengths/rejected": length(logps, 1).sum() / counts.examples,
                "loss/unlikelihood": unlike.detach(),
            }
            loss = loss + self.unlikelihood * unlike
        return loss, metrics
