"""A linear head on the LLM's states: how much reward is still to come before each token (PPO's critic), or what a whole response is
worth (a reward model).

    only      the head is all that is asked for: no log-probabilities
    shared    on the policy's own states: its gradient trains LLM, projector and tower as well
    detached  on the same states, cut off: its gradient trains the head alone
    separate  on the states of another MLLM beside the policy, which it trains whole
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pivot.files import whole_file
from pivot.model.mllm import MLLM
from pivot.model.score import Scorer
from pivot.records import BadInput

Head: TypeAlias = Literal["only", "shared", "detached", "separate"]
HEAD = ("weight", "bias")
FILE = "head.safetensors"  # beside the files of an MLLM: with it, that is a reward model


class Critic(nn.Module):
    """A scorer with a head; takes a scorer's place, and adds `values` to what it finds. `beside`: the MLLM of `separate`."""

    def __init__(self, scorer: Scorer, kind: Head, beside: MLLM | None = None) -> None:
        super().__init__()
        self.scorer, self.kind = scorer, kind
        self.beside = Scorer(beside, scorer.backend) if beside else None
        self.head = nn.Linear(scorer.config.get_text_config().hidden_size, 1)
        for weight in self.head.parameters():
            nn.init.zeros_(weight)
        self._no_split_modules = scorer._no_split_modules

    @property
    def config(self) -> Any:
        """As the scorer's."""
        return self.scorer.config

    def tie_weights(self) -> None:
        """As the scorer's."""
        self.scorer.tie_weights()
        if self.beside:
            self.beside.tie_weights()

    def own(self) -> dict[str, nn.Parameter]:
        """What it trains beside the policy, by name."""
        apart = {
            f"beside.{name}": weight for name, weight in (self.beside.named_parameters() if self.beside else ()) if weight.requires_grad
        }
        return {**apart, **{f"head.{name}": weight for name, weight in self.head.named_parameters()}}

    def forward(self, batch: Mapping[str, Any], values: bool = True, **options: Any) -> Any:
        """As the scorer's, with `values` unless these are not asked for; samples as the scorer does."""
        if "sampling" in options or not values:
            return self.scorer(batch, **options)
        if self.kind == "only":
            found = self.scorer(batch, hidden=True, logps=False)
        else:
            found = self.scorer(batch, hidden=self.beside is None, **options)
        states = (self.beside(batch, hidden=True, logps=False) if self.beside else found).hidden
        return found._replace(hidden=None, values=[[self._value(response) for response in row] for row in states])

    def _value(self, states: Tensor) -> Tensor:
        """States (s + 1, D) -> (s + 1,), in fp32 under autocast too: values are differences of small numbers."""
        states = states.detach() if self.kind == "detached" else states
        return nn.functional.linear(states.to(self.head.weight.dtype), self.head.weight, self.head.bias)[:, 0].float()


def critic(mllm: MLLM, scorer: Scorer, kind: Head, start: str | None = None) -> Critic:
    """A critic of that kind on an MLLM's scorer. `start`: the folder of a reward model that a separate one begins with."""
    if kind != "separate":
        if start:
            raise BadInput(f"critic_from is where a separate critic begins; a {kind} one has the policy's own states: leave it out")
        return Critic(scorer, kind)
    if start is None:
        return Critic(scorer, kind, MLLM(copy.deepcopy(mllm.model), mllm.processor, mllm.tap))
    beside, weights = load(start)
    if len(beside.processor.tokenizer) != len(mllm.processor.tokenizer):  # type: ignore[attr-defined]
        raise BadInput(f"critic_from {start}: its tokenizer is another one than the policy's; train a reward model from the same MLLM")
    made = Critic(scorer, kind, beside.to(dtype=mllm.model.dtype))
    if made.head.weight.shape != weights["weight"].shape:
        raise BadInput(f"critic_from {start}: its states are {weights['weight'].shape[1]} wide, the policy's {made.head.in_features}")
    made.head.load_state_dict(weights)
    return made


def load(folder: str | Path) -> tuple[MLLM, dict[str, Tensor]]:
    """A reward model: its MLLM, and the weights of its head."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise BadInput(f"{folder} is no reward model: it has no {FILE}; train one with objective reward_model, its folder is .../model")
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as broken:
        raise BadInput(f"{file} cannot be read ({broken}); train the reward model again") from None
    return MLLM.load(folder), weights


def save_head(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the head beside its MLLM."""
    with whole_file(folder / FILE) as unfinished:
        save_file({name: weights[name].cpu().contiguous().float() for name in HEAD}, unfinished)
