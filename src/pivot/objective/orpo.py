"""Odds-ratio preference optimisation (Hong et al. 2024): SFT, with a share for how much better the odds of the chosen response are.

With a(y), the mean over the response's tokens of log p, and o(y) = a - log(1 - exp a), the log-odds of its geometric mean:

    mean_tokens[-log p(chosen token)] + beta mean_pairs[-log sigmoid(o(chosen) - o(rejected))]

No reference takes part. TRL's SFT term has the prompt's tokens as well; here it has the response's alone, as all objectives do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, log_not, pair_metrics, total
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`beta` weighs the odds."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    k: ClassVar[int] = 2

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example."""
        return Picked(examples, ("chosen", "rejected"))

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch
        from torch.nn.functional import logsigmoid

        counts = batch["counts"]
        chosen, rejected = (torch.stack([row[number].mean() for row in logps]) for number in (0, 1))  # (B,)
        odds = (chosen - log_not(chosen)) - (rejected - log_not(rejected))
        better = logsigmoid(odds).sum() / counts.examples
        nll = -total(logps, 0).sum() / counts.tokens[0]
        told = {"nll_loss": nll, "log_odds_ratio": better, "log_odds_chosen": odds.sum() / counts.examples}
        metrics = pair_metrics(logps, self.beta * chosen, self.beta * rejected, counts)
        return nll - self.beta * better, {**metrics, **{name: value.detach() for name, value in told.items()}}
