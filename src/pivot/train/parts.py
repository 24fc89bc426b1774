"""Who trains and how fast, and the proof afterwards that it was so.

Trainers have shipped towers that a flag was said to train and that never moved, and towers that moved although they were
said to be frozen. So the first updates are watched, and the run stops where a part does not do what its rate says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from pivot.encoder import towers
from pivot.model import MLLM
from pivot.model.lora import Adapters, adapters
from pivot.records import BadInput, CheckFailed
from pivot.train.settings import Settings

WITNESSED = 3  # updates after which every part must have shown what its rate says
SAMPLED = 1024  # values kept of each tensor; an optimiser moves a tensor as a whole, so a sample shows it


@dataclass(frozen=True)
class Rates:
    """Learning rate of each part; 0 = frozen."""

    tower: float
    projector: float
    llm: float

    def __post_init__(self) -> None:
        for name, rate in asdict(self).items():
            if not (math.isfinite(rate) and rate >= 0):
                raise BadInput(f"rates.{name} must be 0 or a positive number, not {rate}")
        if not any(asdict(self).values()):
            raise BadInput("rates are all 0, so that nothing trains; give a part a learning rate")

    def trained(self) -> list[str]:
        """Names of the parts that are not frozen."""
        return [name for name, rate in asdict(self).items() if rate]


def freeze(mllm: MLLM, rates: Rates) -> None:
    """Let gradients go where a rate says, and nowhere else: not into what the tap's features do not pass through, either."""
    parts = mllm.parts()
    for name, part in parts.items():
        part.requires_grad_(getattr(rates, name) > 0)
    for parameter in towers.idle_parameters(parts["tower"], mllm.tap).values():  # type: ignore[arg-type]
        parameter.requires_grad_(False)


def asked(mllm: MLLM, rates: Rates, settings: Settings) -> Adapters | None:
    """The adapters that settings ask for, if any. What does not fit is a `BadInput`."""
    if settings.lora is None:
        return None
    if not rates.llm:
        raise BadInput("lora trains the LLM at its rate, and rates.llm is 0: give it a rate, or leave lora out")
    return adapters(mllm.model, **settings.lora.model_dump())


def adapt(mllm: MLLM, rates: Rates, settings: Settings) -> Adapters | None:
    """Put the adapters that settings ask for into an MLLM, after `freeze`; the same ones in all processes."""
    found = asked(mllm, rates, settings)
    if found:
        found.put(mllm.model, settings.seed)
    return found


def groups(mllm: MLLM, rates: Rates, weight_decay: float) -> tuple[list[dict[str, Any]], list[float]]:
    """Optimiser groups and, beside them, the full learning rate of each. Only matrices and larger are decayed."""
    found, full = [], []
    for name, part in mllm.parts().items():
        training = [parameter for parameter in part.parameters() if parameter.requires_grad]
        for decays in (True, False):
            chosen = [parameter for parameter in training if (parameter.ndim > 1) == decays]
            if chosen:
                found.append({"params": chosen, "lr": getattr(rates, name), "weight_decay": weight_decay if decays else 0.0})
                full.append(getattr(rates, name))
    return found, full


class Proof:
    """Watches what each part does. To be made of an MLLM as training finds it, after `accelerator.prepare`.

    `critic`: parameters of one beside it, which must train as well.
    """

    def __init__(self, mllm: MLLM, rates: Rates, accelerator: Accelerator, critic: Mapping[str, nn.Parameter] | None = None) -> None:
        self.accelerator = accelerator
        self.trained = [*rates.trained(), *(["critic"] if critic else [])]
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        self.parts = {name: dict(part.named_parameters()) for name, part in mllm.parts().items()}
        if critic:
            self.parts["critic"] = dict(critic)
        self.before = {name: {key: _sample(value) for key, value in part.items()} for name, part in self.parts.items()}
        self.squares = torch.zeros(len(list(self._trained())), device=accelerator.device)  # largest squared gradient norm of each tensor
        self.looks = 0

    def _trained(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(part, name, parameter) of all that should train, always in the same order."""
        for part, parameters in self.parts.items():
            yield from ((part, name, parameter) for name, parameter in parameters.items() if parameter.requires_grad)

    def _all(self, values: Tensor) -> Tensor:
        """Values that each process has of its own shard, summed over the shards."""
        return self.accelerator.reduce(values, "sum") if self.sharded else values

    def see(self) -> None:
        """Look at the gradients, after the backward pass and before they are clipped."""
        nothing = torch.zeros((), device=self.accelerator.device)
        norms = [nothing if p.grad is None else _local(p.grad).float().square().sum() for _, _, p in self._trained()]
        self.squares = torch.maximum(self.squares, self._all(torch.stack(norms)))
        self.looks += 1

    def check(self) -> None:
        """Stop unless every trained part has gradients everywhere and has moved, and nothing frozen has."""
        seen: dict[tuple[str, str], float] = {}
        for (part, name, _), square in zip(self._trained(), self.squares.tolist(), strict=True):
            # A module's bias may have no gradient by theory (attention keys'), and an adapter's A has none while B is zero.
            owner = (part, name.rpartition(".")[0].partition(".lora_")[0])
            seen[owner] = max(seen.get(owner, 0.0), square)
        for part in self.trained:
            silent = [owner for (of, owner), square in seen.items() if of == part and square == 0]
            if silent and part == "critic" and self.looks < 2:
                continue  # its head begins at zero, and hands nothing on before its first step
            if silent:
                more = f" and {len(silent) - 1} more modules" if len(silent) > 1 else ""
                raise CheckFailed(
                    f"the {part} has a learning rate but no gradient in {silent[0] or part}{more}: "
                    "it is cut off from the loss, or no row has an image; set its rate to 0 if that is meant"
                )
            if self.moved(part) == 0:
                raise CheckFailed(f"the {part} has gradients but its weights did not move: raise its rate, which rounds away")
        self.check_frozen()

    def check_frozen(self) -> None:
        """Stop if anything moved that should not have."""
        for part in self.parts:
            frozen = [name for name, parameter in self.parts[part].items() if not parameter.requires_grad]
            changed = torch.tensor(
                [0.0] + [float((_sample(self.parts[part][name]) != self.before[part][name]).any()) for name in frozen],
                device=self.accelerator.device,
            )
            moved = [name for name, flag in zip(frozen, self._all(changed)[1:].tolist(), strict=True) if flag]
            if moved:
                raise CheckFailed(f"the {part} moved in {moved[0]} although that is frozen: something else changes weights")

    def moved(self, part: str) -> float:
        """How far the trained weights of a part are from where they began, relative to their size. Over samples."""
        names = [name for name, parameter in self.parts[part].items() if parameter.requires_grad]
        pairs = [(_sample(self.parts[part][name]), self.before[part][name]) for name in names]
        far = torch.tensor([sum(float((a - b).square().sum()) for a, b in pairs), sum(float(b.square().sum()) for _, b in pairs)])
        distance, size = self._all(far.to(self.accelerator.device)).tolist()
        return math.sqrt(distance / size) if size else math.sqrt(distance)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Per part: whether it was trained, its largest gradient norm in the first updates, and how far it moved."""
        norms = dict.fromkeys(self.parts, 0.0)
        for (part, _, _), square in zip(self._trained(), self.squares.tolist(), strict=True):
            norms[part] += square
        return {
            part: {
                "trained": part in self.trained,
                "gradient": math.sqrt(norms[part]),
                "moved": self.moved(part) if part in self.trained else 0.0,
            }
            for part in self.parts
        }


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _sample(parameter: Tensor) -> Tensor:
    """Values at even distances, in fp64 on the host."""
    values = _local(parameter.detach()).flatten()
    return values[:: max(1, len(values) // SAMPLED)].double().cpu()
