"""Direct preference optimisation, as LLaVA-NeXT trains it: sigmoid loss on summed log-probabilities, plus a share of SFT.

With g(y) = sum over the response's tokens of log p - log p_reference, and the margin m = beta (g(chosen) - g(rejected)):

    loss = alpha mean_pairs[l(m)] + gamma mean_tokens[-log p(chosen token)]

    sigmoid  l(m) = -(1 - s) log sigmoid(m) - s log sigmoid(-m)               s > 0: labels that are wrong so often, kept conservative
    robust   l(m) = (-(1 - s) log sigmoid(m) + s log sigmoid(-m)) / (1 - 2 s)  the same noise, but its expectation is that without it
    ipo      l(m) = (m / beta - 1 / (2 beta))^2, with g as a mean over tokens   a margin to reach, not to go beyond

Options of the papers on multimodal preferences: `mean` has g as a mean over tokens in the others, too; `differ` weighs the tokens
in which chosen and rejected differ, in a mean also beneath the line (RLHF-V: mean, differ 5, beta 0.5); with y' the chosen answer to
crops of the pictures, mDPO adds

    image mean_pairs[l(beta (g(chosen) - g(y')))] + anchor mean_pairs[-log sigmoid(beta g(chosen))]

LLaVA-NeXT's script sets gamma to 0, its code defaults to 1; the script is followed. Metrics have TRL's names, but for
`logits/*`, means over the whole vocabulary: the scorer hands out log-probabilities alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, gain, pair_metrics, total
from pivot.objective._pairs import Damaged, weights
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`beta` scales rewards, `label_smoothing` is s, `alpha` weighs the preference term and `gamma` the SFT term; `image` and `anchor`
    those of mDPO.
    """

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    kind: Literal["sigmoid", "robust", "ipo"] = "sigmoid"
    mean: bool = False
    differ: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    image: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    anchor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind == "ipo" and self.label_smoothing:
            raise BadInput("ipo has no label_smoothing: it is what keeps margins small already; leave it out, or kind ipo")

    @property
    def k(self) -> int:
        return 3 if self.image else 2

    @property
    def learns(self) -> str:
        return f"{super().learns}{', and the chosen one to a crop of the picture' if self.image else ''}"

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example; and the chosen one to crops, if that is learned from."""
        pairs = Picked(examples, ("chosen", "rejected"))
        return Damaged(pairs) if self.image else pairs

    def _rewards(self, logps: Logps, batch: Mapping[str, Any]) -> list[Tensor]:
        """(B,) of the responses of each number."""
        heavy = None if self.differ == 1 else weights(batch["said"], self.differ, logps[0][0])
        mean = self.mean or self.kind == "ipo"
        return [self.beta * gain(logps, batch["reference"], number, heavy, mean) for number in range(self.k)]

    def margins(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(B,) reward of the chosen response minus reward of the rejected one; of that to crops, where this is further from zero."""
        import torch

        chosen, *others = self._rewards(logps, batch)
        margins = torch.stack([chosen - other for other in others])  # (k - 1, B)
        return margins.gather(0, margins.abs().argmax(dim=0, keepdim=True))[0]

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        from torch.nn.functional import logsigmoid

        counts, (chosen, rejected, *blind) = batch["counts"], self._rewards(logps, batch)  # (B,) each
        nll = -total(logps, 0).sum() / counts.tokens[0]
        told = {**pair_metrics(logps, chosen, rejected, counts), "nll_loss": nll.detach()}
        loss = self.alpha * self._cost(chosen - rejected).sum() / counts.examples
        if self.gamma:
            loss = loss + self.gamma * nll
        if self.anchor:
            loss = loss - self.anchor * logsigmoid(chosen).sum() / counts.examples
        for reward in blind:
            margins = chosen - reward
            loss = loss + self.image * self._cost(margins).sum() / counts.examples
            each = {"image_margins": margins, "image_accuracies": (margins > 0).to(margins.dtype)}
            told |= {f"rewards/{name}": values.detach().sum() / counts.examples for name, values in each.items()}
        return loss, told

    def _cost(self, margins: Tensor) -> Tensor:
        """l(m) of each."""
        from torch.nn.functional import logsigmoid

        if self.kind == "ipo":
            return ((margins - 0.5) / self.beta).square()
        s, right, wrong = self.label_smoothing, -logsigmoid(margins), -logsigmoid(-margins)
        if self.kind == "robust":
            return ((1 - s) * right - s * wrong) / (1 - 2 * s)
        return (1 - s) * right + s * wrong
