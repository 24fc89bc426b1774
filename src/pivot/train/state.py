"""What a training consists of: what stays the same, what changes with each update, and what it has spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pivot.data.collate import Row
from pivot.data.lengths import Lengths
from pivot.files import hash_bytes, hash_json
from pivot.model import MLLM, Scorer
from pivot.model.critic import Critic
from pivot.model.lora import Adapters
from pivot.objective._contract import Objective
from pivot.pictures import fingerprint as looks
from pivot.pictures import once
from pivot.records import Example
from pivot.train.anchor import Anchor
from pivot.train.checkpoint import Checkpoints
from pivot.train.feed import Ahead, Data, Portion
from pivot.train.judge import Judge
from pivot.train.order import batches
from pivot.train.parts import Proof, Rates
from pivot.train.settings import Settings
from pivot.train.watch import Watch


@dataclass
class Spent:
    """Running sums over the updates that made the weights. They travel in checkpoints, so a kill counts nothing twice."""

    image_tokens: int = 0
    text_tokens: int = 0
    written_tokens: int = 0  # of replies that the model wrote itself, each counted once
    cut_rows: int = 0  # that lost the end of a response to the limit, each as often as it was read
    flops: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0  # of the seconds, those in which updates waited for rows; putting these together to batches is not in them
    ids_sha256: str = ""  # of the rows, by name and what they ask, in the order in which updates read them

    def read(self, ids: Sequence[str]) -> None:
        """Take in the rows of an update, in the order of its batch."""
        for name in ids:
            self.ids_sha256 = hash_bytes(f"{self.ids_sha256}\n{name}".encode())


@dataclass(frozen=True)
class Rollout:
    """Replies that were sampled at once, of all processes: per batch, per row, per reply. Plain tensors, as checkpoints hold them."""

    ids: list[list[list[Tensor]]]
    told: dict[str, list[list[list[Tensor]]]]


@dataclass(frozen=True)
class Setup:
    """What stays the same from the first update to the last."""

    mllm: MLLM
    objective: Objective
    settings: Settings
    rates: Rates
    steps: int
    accelerator: Accelerator
    scorer: Scorer | Critic  # as accelerator.prepare returns it, and so is the optimiser
    optimizer: torch.optim.Optimizer
    full: Sequence[float]  # learning rate of each optimiser group, before the schedule
    adapters: Adapters | None  # in the LLM, where it trains through them
    proof: Proof
    watch: Watch
    data: Data
    lengths: Lengths | None  # of its rows, where they are grouped by it
    heldout: Data | None
    checkpoints: Checkpoints
    ahead: Ahead
    anchor: Anchor | None  # the first weights, where an objective that writes its own responses holds on to them
    judge: Judge | None  # what such responses earn
    begun: Mapping[str, Any]  # what training this is: a checkpoint of another one is refused

    def encode(self, example: Example) -> Row:
        """One example as the scorer reads it, with a hash of what it asks: the same for every arm, whichever responses it takes."""
        settings, shown = self.settings, once(example.images)
        row = self.mllm.encode(replace(example, images=shown), settings.label_mask, settings.limit, settings.template, settings.too_long)
        return replace(row, asks=hash_json([example.prompt, looks(shown)]))

    @property
    def scoring(self) -> dict[str, Any]:
        """Options of the scorer: replies are scored at the temperature at which they were sampled."""
        temperature = getattr(self.objective, "temperature", 1.0)
        return {} if temperature == 1 else {"temperature": temperature}

    def batches(self, done: int) -> Iterator[list[int]]:
        """Row numbers of each update that is left after so many."""
        settings, examples = self.settings, len(self.data.examples)
        apart = settings.group_by == "modality"
        return batches(examples, settings.batch, settings.seed, settings.epochs, done, settings.drop_last, self.lengths, apart)

    def portions(self, data: Data, plan: Iterable[Sequence[int]]) -> Iterator[Portion]:
        """What this process takes of each batch, made ahead."""
        crew = self.accelerator
        return data.portions(plan, self.encode, self.ahead, self.settings, crew.process_index, crew.num_processes)


@dataclass
class State:
    """What changes from update to update, beside weights and optimiser."""

    step: int = 0  # updates done
    objective: Any = None
    spent: Spent = field(default_factory=Spent)
    witnessed: int = 0  # updates that could show which parts train
    rollout: Rollout | None = None  # the one that is being learned from
    best: tuple[int, float] | None = None  # step and loss of the best validation after an update
    alarms: list[str] = field(default_factory=list)
