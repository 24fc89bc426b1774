"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024): each response by itself, against what responses gain in general.

With g(y) = log p(y) - log p_reference(y), summed over the response's tokens, chosen responses desirable and rejected ones not:

    mean_responses[desirable (1 - sigmoid(beta (g(chosen) - z))), undesirable (1 - sigmoid(beta (z - g(rejected))))]

z = max(0, mean g(stray)) estimates how far the policy is from the reference as a whole. It is taken from responses under prompts that
they were not given to, those of the next row, over the whole batch, and carries no gradient; `against: zero` does without (APO-zero
has it so). With `unpaired`, a row is one response that was liked or not, as thumbs up and down give them; without, it has both sides,
and these weigh the same without more ado.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics, Picked, Single, gain, pair_metrics
from pivot.objective._pairs import Astray
from pivot.records import Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(_contract.Objective):
    """`beta` scales rewards, `desirable` and `undesirable` weigh the sides; `against` says what a response is held against.

    `unpaired`: each row counts by its one response, whichever side it is of. Where one side is rarer, weigh it more: the paper
    holds desirable x liked to be 1 to 4/3 times undesirable x disliked.
    """

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    desirable: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    undesirable: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    against: Literal["kl", "zero"] = "kl"
    unpaired: bool = False
    needs_reference: ClassVar[bool] = True

    @property
    def needs_sums(self) -> bool:
        return self.against == "kl"

    @property
    def learns(self) -> str:
        own = "one response a row, chosen or rejected" if self.unpaired else "the chosen and the rejected response"
        return f"{own}, and another row's" if self.against == "kl" else own

    @property
    def sides(self) -> int:
        """Responses of a row's own."""
        return 1 if self.unpaired else 2

    @property
    def k(self) -> int:
        return self.sides + (self.against == "kl")

    @property
    def alone(self) -> bool:
        return self.against == "zero"

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The first chosen and the first rejected response of each example, or their only one; and another's, if z is estimated."""
        own = Single(examples) if self.unpaired else Picked(examples, ("chosen", "rejected"))
        return Astray(own) if self.against == "kl" else own

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
        gained = gain(logps, batch["reference"], self.sides).detach().double().sum()
        return gained.new_tensor([float(gained), len(logps)])

    def advance(self, state: dict[str, float], sums: Tensor) -> dict[str, float]:
        """z of one batch: nothing is left of the one before."""
        gained, number = sums.tolist()
        return {"kl": max(0.0, gained / number)}

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: dict[str, float]) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch

        counts, z = batch["counts"], self.beta * state["kl"]
        rewards = [self.beta * gain(logps, batch["reference"], number) for number in range(self.sides)]  # (B,) each
        if self.unpaired:
            (reward,) = rewards
            liked = torch.tensor([roles[0] == "chosen" for roles in batch["roles"]], device=reward.device)
            weight = torch.where(liked, reward.new_tensor(self.desirable), reward.new_tensor(self.undesirable))
            each = weight * torch.sigmoid(torch.where(liked, z - reward, reward - z))
            told = _signed(reward, liked, counts.examples)
        else:
            chosen, rejected = rewards
            each = (self.desirable * torch.sigmoid(z - chosen) + self.undesirable * torch.sigmoid(rejected - z)) / 2
            told = pair_metrics(logps, chosen, rejected, counts)
        told["kl"] = torch.tensor(state["kl"] * len(logps) / counts.examples)
        return each.sum() / counts.examples, told  # 1 - sigmoid(x) = sigmoid(-x)


def _signed(reward: Tensor, liked: Tensor, examples: int) -> Metrics:
    """Shares of how far rewards (B,) went the way that they should: up for what was liked, down for the rest; and how many were liked."""
    import torch

    gone = torch.where(liked, reward, -reward).detach()
    each = {"rewards/margins": gone, "rewards/accuracies": (gone > 0).to(gone.dtype), "rewards/liked": liked.to(gone.dtype)}
    return {name: values.sum() / examples for name, values in each.items()}
