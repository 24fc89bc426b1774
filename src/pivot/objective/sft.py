"""Supervised fine-tuning: the chosen responses become likelier, every token of the batch weighing the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, length, total
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """Mean over the batch's tokens of -log p(token)."""

    k: ClassVar[int] = 1

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen response of each example."""
        return Picked(examples, ("chosen",))

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        counts, chosen = batch["counts"], total(logps, 0)  # (B,)
        metrics = {
            "logps/chosen": chosen.detach().sum() / counts.examples,
            "lengths/chosen": length(logps, 0).sum() / counts.examples,
        }
        return -chosen.sum() / counts.tokens[0], metrics
