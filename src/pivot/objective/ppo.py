"""Proximal policy optimisation with a critic: every token is held against what was expected before it.

A reply's last token earns its reward, and each token pays for the distance from the reference, c = log p - log p_reference (or
max(c, 0), `kl_floor`, as LLaVA-RLHF has it):

    r_t = -kl c_t + [t is the last] reward
    delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 behind the last       A_t = delta_t + gamma lam A_{t+1}       R_t = A_t + V_t

Advantages are then whitened over all tokens of the rollout. With rho = p(token) / p_old(token), a token costs

    -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value max((v - R)^2, (clip(v, V - value_clip, V + value_clip) - R)^2) / 2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pivot.objective._contract import Head, Logps, Metrics
from pivot.objective._online import Online, Rollouts, clipped, flat, graded, watched
from pivot.records import BadInput

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Objective(Online):
    """`critic`: an MLLM of its own beside the policy; or a head on the policy's states, through which it trains the policy as well
    (`shared`: the tower, too) or does not (`detached`). `critic_rate` is its learning rate, `critic_from` a reward model to begin
    with in place of the policy's own weights.
    """

    k: Annotated[int, Field(ge=1)] = 1
    passes: Annotated[int, Field(ge=1)] = 2
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    kl_floor: bool = False
    clip: Annotated[float, Field(gt=0, le=1)] = 0.2
    value_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 1.0
    whiten: bool = True
    critic: Literal["separate", "shared", "detached"] = "separate"
    critic_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5
    critic_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_from is not None and self.critic != "separate":
            told = f"a {self.critic} one has the policy's own states; leave it out, or take critic: separate"
            raise BadInput(f"critic_from is where a separate critic begins; {told}")

    @property
    def head(self) -> Head:
        return self.critic

    @property
    def head_rate(self) -> float:
        return self.critic_rate

    @property
    def needs_old(self) -> bool:
        return True

    def appraise(self, rollouts: Rollouts, state: None) -> tuple[dict[str, Logps], Metrics, None]:
        """Advantages and returns of every token."""
        import torch

        assert rollouts.logps is not None and rollouts.values is not None
        rewards, metrics = rollouts.rewards, graded(rollouts)  # (P, k)
        advantages, returns, paid = list[list["Tensor"]](), list[list["Tensor"]](), list["Tensor"]()
        for p, row in enumerate(rollouts.logps):
            found = []
            for n, logps in enumerate(row):
                earned = torch.zeros(len(logps), dtype=torch.float64)
                if rollouts.reference is not None:
                    far = logps.double() - rollouts.reference[p][n].double()  # (s,)
                    earned -= self.kl * (far.clamp(min=0) if self.kl_floor else far)
                    paid.append(far)
                expected = rollouts.values[p][n].double()[:-1]  # (s,)
                if rewards[p, n].isnan():  # not judged: nothing is learned from it, by neither policy nor critic
                    found.append((torch.full_like(expected, torch.nan), expected))
                    continue
                earned[-1] += rewards[p, n]
                found.append(estimate(earned, expected, self.gamma, self.lam))
            advantages.append([advantage for advantage, _ in found])
            returns.append([back for _, back in found])
        if self.whiten:
            every = flat(advantages)
            every = every[~every.isnan()] if not every.isnan().all() else torch.zeros(1)
            mean, spread = every.mean(), every.std(correction=0) + 1e-8
            advantages = [[(reply - mean) / spread for reply in row] for row in advantages]
        advantages = [[reply.nan_to_num(0.0) for reply in row] for row in advantages]
        values = [[reply[:-1] for reply in row] for row in rollouts.values]
        error = flat(returns) - flat(values).double()
        metrics["values/explained"] = 1 - error.var(correction=0) / flat(returns).var(correction=0).clamp(min=1e-12)
        if paid:
            metrics["kl"] = torch.cat(paid).mean()
        return {"advantages": advantages, "returns": returns, "values_old": values}, metrics, state

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: None) -> tuple[Tensor, Metrics]:
        """Shares of loss and metrics; see `Objective` in `_contract.py`."""
        import torch

        tokens = sum(batch["counts"].tokens)
        advantages, returns, old = (flat(batch[name]).to(logps[0][0].dtype) for name in ("advantages", "returns", "values_old"))  # (T,)
        ratio, metrics = watched(logps, batch, self.clip, self.clip, advantages)
        policy = clipped(ratio, advantages, self.clip, self.clip).sum() / tokens
        values = torch.cat([reply[:-1] for row in batch["values"] for reply in row])  # (T,)
        near = old + (values - old).clamp(-self.value_clip, self.value_clip)
        plain, held = (values - returns).square(), (near - returns).square()
        critic = torch.maximum(plain, held).sum() / tokens / 2
        told = {"loss/policy": policy, "loss/value": critic, "clip_ratio/value": (held > plain).to(ratio.dtype).sum() / tokens}
        return policy + self.value * critic, {**metrics, **{name: value.detach() for name, value in told.items()}}


def estimate(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns (s,) of one reply, from its tokens' rewards and the values before them."""
    import torch

    after = torch.cat([values[1:], values.new_zeros(1)])
    deltas, advantages, ahead = rewards + gamma * after - values, torch.empty_like(values), values.new_zeros(())
    for t in reversed(range(len(values))):
        ahead = deltas[t] + gamma * lam * ahead
        advantages[t] = ahead
    return advantages, advantages + values
