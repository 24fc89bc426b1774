"""Direct preference optimisation, as LLaVA-NeXT trains it: sigmoid loss on summed log-probabilities, plus a share of SFT.

With g(y) = log p(y) - log p_reference(y), summed over the response's tokens, and the margin m = beta (g(chosen) - g(rejected)):

    loss = alpha mean_pairs[-(1 - s) log sigmoid(m) - s log sigmoid(-m)] + gamma mean_tokens[-log p(chosen token)]

LLaVA-NeXT's script sets gamma to 0, its code defaults to 1; the script is followed. Metrics have TRL's names, but for
`logits/*`, means over the whole vocabulary: the scorer hands out log-probabilities alone.
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
    """`beta` scales rewards, `label_smoothing` is s, `alpha` weighs the preference term and `gamma` the SFT term."""

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    k: ClassVar[int] = 2
    needs_reference: ClassVar[bool] = True

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example."""
        return Picked(examples, ("chosen", "rejected"))

    def margins(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(B,) reward of the chosen response minus reward of the rejected one."""
        return self.beta * (gain(logps, batch["reference"], 0) - gain(logps, batch["reference"], 1))

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        from torch.nn.functional import logsigmoid

        counts, reference = batch["counts"], batch["reference"]
        chosen, rejected = (self.beta * gain(logps, reference, number) for number in (0, 1))  # (B,)
        margins = chosen - rejected
        preference = -(1 - self.label_smoothing) * logsigmoid(margins) - self.label_smoothing * logsigmoid(-margins)
        nll = -total(logps, 0).sum() / counts.tokens[0]
        loss = self.alpha * preference.sum() / counts.examples
        if self.gamma:
            loss = loss + self.gamma * nll
        return loss, {**pair_metrics(logps, chosen, rejected, counts), "nll_loss": nll.detach()}
