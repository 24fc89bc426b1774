"""Objectives whose responses the model writes itself, and the arithmetic of rollouts that they share.

A rollout is some batches of prompts with k replies each, sampled at once. All its numbers are known before its first update, so
what is made of them (advantages, returns) is worked out once, over all prompts of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pivot.data.lazy import View
from pivot.objective import _contract
from pivot.objective._contract import Logps, Metrics
from pivot.records import BadInput, Example
from pivot.reward._contract import Spec, check, needs

if TYPE_CHECKING:
    from torch import Tensor

    from pivot.model.rollout import Sampling

TAUGHT = "advantages/nonzero"  # the share of tokens that were better or worse than expected


@dataclass(frozen=True)
class Rollouts:
    """P prompts with k replies each. What an objective does not ask for is None."""

    rewards: Tensor  # (P, k), not a number where a reply could not be judged: it counts as a reply that costs nothing
    finished: Tensor  # (P, k) whether the model ended the reply by itself
    logps: Logps | None = None  # of each reply's tokens, under the weights that wrote it
    reference: Logps | None = None
    values: Logps | None = None  # (s + 1,) of a reply: before each of its tokens, and behind the last


@dataclass(frozen=True)
class Prompts(View):
    """A view of examples without their responses."""

    def one(self, index: int) -> Example:
        return replace(self.examples[index], responses=())


@dataclass(frozen=True, kw_only=True)
class Online(_contract.Objective):
    """What all of them take. `rollout`: batches that are sampled at once; `passes`: how often they are gone through.

    `reward`: a file of reward/ by name, with its options. Those that judge with a model are given `reward_model`, the folder of one
    that objective reward_model trained, or `chat`, an LLM behind an address. `kl` weighs the distance from the weights that training
    started from; with 0 these are not kept. Log-probabilities, the reference's too, are at the sampling temperature.
    """

    reward: Spec
    reward_model: str | None = None
    chat: dict[str, Any] | None = None
    k: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new: Annotated[int, Field(ge=1)] = 128
    rollout: Annotated[int, Field(ge=1)] = 1
    passes: Annotated[int, Field(ge=1)] = 1
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    online: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", check(self.reward))  # from Python a name alone will do, too
        given = {"score": ("reward_model", self.reward_model), "ask": ("chat", self.chat)}
        for what in sorted(needs(self.reward)):
            name, value = given[what]
            if value is None:
                raise BadInput(f"reward '{self.reward['name']}' judges with a model; give the objective {name}")

    @property
    def sampling(self) -> Sampling:
        from pivot.model.rollout import Sampling

        return Sampling(k=self.k, temperature=self.temperature, top_p=self.top_p, max_new=self.max_new)

    @property
    def needs_reference(self) -> bool:
        return self.kl > 0

    @property
    def needs_old(self) -> bool:
        """Whether replies are scored before the first update: else the first update's own log-probabilities are the old ones."""
        return self.rollout * self.passes > 1

    @property
    def learns(self) -> str:
        replies = f"{self.k} replies" if self.k > 1 else "a reply"
        return f"its prompt and {replies} that the model writes itself, judged by reward {self.reward['name']}"

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples without responses."""
        return Prompts(examples)

    def margins(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(B,) log-probability of the first reply, less that under the reference."""
        return _contract.gain(logps, batch["reference"], 0)

    def appraise(self, rollouts: Rollouts, state: Any) -> tuple[dict[str, Logps], Metrics, Any]:
        """What the losses of a rollout need, each nested as `logps`; metrics of it; and the state for its updates.

        It is handed to `loss` by name in `batch`, beside `sampler`, the sampler's own log-probabilities, and `old`, the policy's
        before the first update, if `needs_old`.
        """
        raise NotImplementedError


def compared(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(P, k) -> by how much each reply beats the mean of its group, 0 where all earned the same or one was not judged; and (P, 1) the
    standard deviation of the group. Where all earned the same that need not be zero by itself: means are rounded.
    """
    judged = ~rewards.isnan()
    number = judged.sum(dim=1, keepdim=True)
    mean = rewards.nansum(dim=1, keepdim=True) / number.clamp(min=1)
    filled = rewards.where(judged, mean)
    ahead = (filled - mean).masked_fill(_level(rewards)[:, None], 0)
    return ahead.masked_fill(~judged, 0), (ahead.square().sum(dim=1, keepdim=True) / (number - 1).clamp(min=1)).sqrt()


def _level(rewards: Tensor) -> Tensor:
    """(P, k) -> (P,) whether all replies to a prompt that were judged earned the same."""
    most = rewards.nan_to_num(nan=-float("inf"), posinf=float("inf"), neginf=-float("inf")).amax(dim=1)
    least = rewards.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).amin(dim=1)
    return most <= least


def graded(rollouts: Rollouts) -> Metrics:
    """What is told of rewards, whatever is made of them. Names are TRL's."""
    rewards = rollouts.rewards  # (P, k)
    judged = (~rewards.isnan()).sum().clamp(min=1)
    metrics = {"reward": rewards.nansum() / judged, "completions/clipped_ratio": (~rollouts.finished).double().mean()}
    if rewards.shape[1] > 1:
        metrics["reward_std"] = compared(rewards)[1].mean()
        metrics["frac_reward_zero_std"] = _level(rewards).double().mean()
    else:  # one reply alone has no spread to lack; all of them together have
        metrics["reward_std"] = compared(rewards.T)[1].mean()
    return metrics


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """The policy's loss of each token (T,): no gain from going further than the clip."""
    import torch

    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def flat(nested: Logps) -> Tensor:
    """(T,) the tokens of all replies, in order."""
    import torch

    return torch.cat([reply for row in nested for reply in row])


def watched(logps: Logps, batch: Mapping[str, Any], low: float, high: float, advantages: Tensor) -> tuple[Tensor, Metrics]:
    """Ratio of new to old probability of each token (T,), and shares of what is watched about it and about advantages (T,)."""
    import torch

    now, counts = flat(logps), batch["counts"]
    old = flat(batch["old"]) if "old" in batch else now.detach()
    ratio, tokens = torch.exp(now - old), sum(counts.tokens)
    seen = {
        "ratio": ratio,
        "clip_ratio/low": (ratio < 1 - low).to(ratio.dtype),
        "clip_ratio/high": (ratio > 1 + high).to(ratio.dtype),
        "sampler/difference": (old - flat(batch["sampler"])).abs(),
        TAUGHT: (advantages != 0).to(ratio.dtype),
    }
    metrics = {name: value.detach().sum() / tokens for name, value in seen.items()}
    replies = sum(len(row) for row in logps)
    return ratio, {**metrics, "completions/mean_length": torch.tensor(len(now) / replies * len(logps) / counts.examples)}
