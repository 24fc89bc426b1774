"""Group relative policy optimisation: of k replies to a prompt, those that beat the group's mean become likelier.

With the rewards r of a group, A = (r - mean) / (std + 1e-4), the same for all tokens of a reply (Dr. GRPO leaves the division
out); with the ratio rho = p(token) / p_old(token) and d = log p_reference(token) - log p(token), a token costs

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + kl (exp(d) - d - 1)

`reduce` says how tokens are added up: each reply's mean, then the mean over replies (VLM-R1); the mean over all tokens of the
batch (DAPO); or the sum over replies of `max_new` tokens each, whatever their length (Dr. GRPO).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pivot.objective._contract import Counts, Logps, Metrics
from pivot.objective._online import Online, Rollouts, clipped, compared, flat, graded, watched
from pivot.records import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EPSILON = 1e-4  # beside a group's standard deviation
FURTHEST = 0.2  # how far a step of the controller trusts the error that it sees


@dataclass(frozen=True, kw_only=True)
class Objective(Online):
    """`scale`: whether advantages are divided by the group's standard deviation.

    `kl_target`: steer the weight of the KL term to this mean distance a token, by at most a fifth within `kl_horizon` prompts. A rollout of
    more prompts counts as that many: by more than a fifth at once, the weight could change its sign.
    """

    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.04
    reduce: Literal["sequence", "token", "length"] = "sequence"
    scale: bool = True
    kl_target: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kl_horizon: Annotated[int, Field(ge=1)] = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 2:
            raise BadInput(f"grpo compares replies to one prompt, so k must be at least 2, not {self.k}")
        if self.kl_target is not None and not self.kl:
            raise BadInput("kl_target steers the weight of the KL term, and kl 0 leaves that out; give kl a value to begin with")

    @property
    def needs_old(self) -> bool:
        return super().needs_old or self.kl_target is not None

    def init(self) -> dict[str, float]:
        """The weight of the KL term."""
        return {"kl": self.kl}

    def appraise(self, rollouts: Rollouts, state: dict[str, float]) -> tuple[dict[str, Logps], Metrics, dict[str, float]]:
        """Advantages; and the weight of the KL term, steered by how far these replies are from the reference."""
        metrics = graded(rollouts)
        advantages, spread = compared(rollouts.rewards)  # (P, k), (P, 1)
        if self.scale:
            advantages = advantages / (spread + EPSILON)
        advantages = advantages.masked_fill(rollouts.rewards.isnan(), float("nan"))  # says to the loss: not judged
        if self.kl_target is not None and rollouts.logps is not None and rollouts.reference is not None:
            distance = float(_k3(flat(rollouts.logps), flat(rollouts.reference)).mean())
            error = min(max(distance / self.kl_target - 1, -FURTHEST), FURTHEST)
            state = {"kl": state["kl"] * (1 + error * min(len(advantages) / self.kl_horizon, 1))}
            metrics["kl_weight"] = rollouts.rewards.new_tensor(state["kl"])
        return {"advantages": [[reply[None] for reply in row] for row in advantages]}, metrics, state

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: dict[str, float]) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch

        replies = [reply for row in logps for reply in row]
        lengths = [len(reply) for reply in replies]
        advantages = flat(batch["advantages"]).to(replies[0].dtype)  # (replies,)
        each = advantages.repeat_interleave(torch.tensor(lengths, device=advantages.device))  # (T,)
        judged, each = ~each.isnan(), each.nan_to_num(0)
        ratio, metrics = watched(logps, batch, self.clip_low, self.clip_high, each)
        cost = clipped(ratio, each, self.clip_low, self.clip_high)  # (T,)
        if self.needs_reference:
            distance = _k3(flat(logps), flat(batch["reference"]))
            cost = cost + state["kl"] * distance * judged
            metrics["kl"] = distance.detach().sum() / sum(batch["counts"].tokens)
        return (cost * self._weight(lengths, batch["counts"], cost)).sum(), metrics

    def _weight(self, lengths: list[int], counts: Counts, like: torch.Tensor) -> Tensor:
        """(T,) what each token weighs in the whole batch's loss."""
        import torch

        if self.reduce == "token":
            return torch.full_like(like, 1 / sum(counts.tokens))
        own = [1 / (length if self.reduce == "sequence" else self.max_new) for length in lengths for _ in range(length)]
        return like.new_tensor(own) / (counts.examples * self.k)


def _k3(now: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimate of the KL divergence, never negative: (T,)."""
    import torch

    far = reference - now
    return torch.exp(far) - far - 1
