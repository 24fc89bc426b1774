"""What training asks of an objective, and what it hands over. torch is loaded where it computes: recipes read knobs without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from pivot.data.lazy import View
from pivot.records import BadInput, Example, Role

if TYPE_CHECKING:
    from torch import Tensor

Logps: TypeAlias = "Sequence[Sequence[Tensor]]"  # per example, per response: (s,) log-probabilities of its supervised tokens
Metrics: TypeAlias = "dict[str, Tensor]"
Head: TypeAlias = Literal["none", "only", "shared", "detached", "separate"]

CERTAIN = 1e-6  # -log p of a token that is as good as certain
HALF = 0.6931471805599453  # -log p where p and 1 - p are the same


@dataclass(frozen=True)
class Counts:
    """How much the whole batch of an update holds, over all of its micro-batches and processes."""

    examples: int
    tokens: tuple[int, ...]  # supervised ones, by response number

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.examples + other.examples, tuple(a + b for a, b in zip(self.tokens, other.tokens, strict=True)))


class Objective(Protocol):
    """How log-probabilities of responses become a loss. A frozen dataclass whose fields are its knobs, and a subclass of this.

    A loss, and each of its metrics, is the *share* that some rows have in the whole batch's: sums over these rows, divided by
    `batch["counts"]`, which counts all rows. Shares add up, so that neither the number of processes nor that of micro-batches
    changes anything. `batch["reference"]` holds log-probabilities under the weights that training started from, nested as
    `logps`, if `needs_reference`; `batch["values"]` what the head says, if there is one; `batch["said"]`
    the supervised tokens themselves, and `batch["roles"]` the responses' roles.
    """

    online: ClassVar[bool] = False  # the model writes the responses itself: `Online` in `_online.py`

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def needs_sums(self) -> bool:
        """Whether the state changes with each batch, before its losses."""
        return False

    @property
    def head(self) -> Head:
        """A number for each state of the LLM, beside its log-probabilities, and how it hangs on the model: `model/critic.py`."""
        return "none"

    @property
    def head_rate(self) -> float:
        """The learning rate of what hangs there."""
        return 0.0

    @property
    def passes(self) -> int:
        """How often the rows of a batch are learned from before the next ones come."""
        return 1

    @property
    def k(self) -> int:
        """Responses per example."""
        ...

    @property
    def learns(self) -> str:
        """What of each example it learns from, for whoever holds arms against each other."""
        return "the chosen response alone" if self.k == 1 else "the chosen and the rejected response"

    @property
    def alone(self) -> bool:
        """Whether a row of data by itself has a loss: its own responses make it, and the model's own weights alone."""
        return not self.online and self.head == "none" and self.k <= 2

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples with the k responses that this objective scores, in its order. A row that lacks one is a `BadInput`."""
        ...

    def init(self) -> Any:
        """The state before the first step: whatever must live on from step to step. It must go through `torch.save`."""
        return None

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: Any) -> tuple[Tensor, Metrics]:
        """Share of the loss, and shares of the metrics (detached)."""
        ...

    def margins(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(B,) what must be zero while policy and reference are the same. Asked only if `needs_reference`."""
        ...

    def sums(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        """(n,) what the state must know of these rows, as sums: they are added up over the whole batch. Asked only if `needs_sums`."""
        ...

    def advance(self, state: Any, sums: Tensor) -> Any:
        """The state for a batch, from the one before and the whole batch's sums."""
        return state


def total(logps: Logps, number: int) -> Tensor:
    """(B,) log-probability of each example's response of that number."""
    import torch

    return torch.stack([example[number].sum() for example in logps])


def gain(logps: Logps, reference: Logps, number: int, weights: Logps | None = None, mean: bool = False) -> Tensor:
    """(B,) by how much each response of that number has become likelier than under the reference: the sum over its tokens or their
    mean, each with its weight.

    Subtracted token by token: sums of several hundred would lose the digits that matter while the two are close.
    """
    import torch

    pairs = [(now[number], before[number]) for now, before in zip(logps, reference, strict=True)]
    if any(now.shape != before.shape for now, before in pairs):
        raise ValueError("reference log-probabilities do not fit the rows: they would be broadcast")
    steps = [now - before for now, before in pairs]
    if weights is None:
        return torch.stack([step.mean() if mean else step.sum() for step in steps])
    sums = [(step * row[number], row[number]) for step, row in zip(steps, weights, strict=True)]
    return torch.stack([step.sum() / weight.sum() if mean else step.sum() for step, weight in sums])


def log_not(logps: Tensor) -> Tensor:
    """log(1 - p) from log p. What is certain counts as nearly so, and has no gradient."""
    import torch

    near = logps.clamp(max=-CERTAIN)
    # Each form where it loses no digits; the other one's argument is kept away from where its gradient is infinite.
    small, large = near.clamp(min=-HALF), near.clamp(max=-HALF)
    return torch.where(near > -HALF, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def length(logps: Logps, number: int) -> Tensor:
    """(B,) supervised tokens of each example's response of that number."""
    import torch

    return torch.tensor([len(example[number]) for example in logps], dtype=torch.float64)


def pair_metrics(logps: Logps, chosen: Tensor, rejected: Tensor, counts: Counts) -> Metrics:
    """Shares of what every trainer of pairs watches, from the rewards (B,) of both sides. Names are TRL's."""
    each = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "rewards/margins": chosen - rejected,
        "logps/chosen": total(logps, 0),
        "logps/rejected": total(logps, 1),
        "lengths/chosen": length(logps, 0),
        "lengths/rejected": length(logps, 1),
    }
    return {name: values.detach().sum() / counts.examples for name, values in each.items()}


@dataclass(frozen=True)
class Single(View):
    """A view of examples that have one response each, chosen or rejected."""

    def one(self, index: int) -> Example:
        example = self.examples[index]
        roles = [response.role for response in example.responses]
        if roles not in (["chosen"], ["rejected"]):
            has = f"{len(roles)} responses ({', '.join(roles)})" if roles else "no response"
            raise BadInput(
                f"row {example.id} has {has}; unpaired rows have one that is chosen or rejected; drop the row or set unpaired to false"
            )
        return example


@dataclass(frozen=True)
class Picked(View):
    """A view of examples with one response of each role, the first one, and no others."""

    roles: tuple[Role, ...]

    def one(self, index: int) -> Example:
        example = self.examples[index]
        first = {response.role: response for response in reversed(example.responses)}
        lacking = next((role for role in self.roles if role not in first), None)
        if lacking:
            raise BadInput(f"row {example.id} has no {lacking} response; drop the row or choose another objective")
        return replace(example, responses=tuple(first[role] for role in self.roles))
