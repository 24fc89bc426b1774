"""What the tests of training share: short runs in a folder, and a look at what they leave."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pivot import files
from pivot.files import read_jsonl
from pivot.model import MLLM
from pivot.objective._contract import Objective
from pivot.objective.dpo import Objective as DPO
from pivot.objective.sft import Objective as SFT
from pivot.records import Example
from pivot.train import Rates, Settings, loop, train
from pivot.train.loop import Event

__all__ = ["ALL", "DPO", "SFT", "SHORT", "Event", "curve", "distance", "fresh", "run", "same", "weights"]
ALL = Rates(tower=1e-3, projector=1e-3, llm=1e-3)
SHORT: dict[str, Any] = {"batch": 4, "micro": 2, "warmup": 0.0, "schedule": "constant"}


def fresh(mllm: MLLM) -> MLLM:
    """A copy that a run may change."""
    return MLLM(copy.deepcopy(mllm.model), mllm.processor, mllm.tap)


def run(
    mllm: MLLM,
    objective: Objective,
    examples: Sequence[Example],
    folder: Path,
    rates: Rates = ALL,
    validation: Sequence[Example] | None = None,
    model: bool = False,
    **settings: Any,
) -> list[Event]:
    """All events of a short run. `model`: also write the trained model, which takes as long as all the rest."""
    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(files, "_sync"))
        if not model:
            patched.enter_context(mock.patch.object(loop, "save_model"))
        return list(train(mllm, objective, examples, Settings(**{**SHORT, **settings}), folder, rates=rates, validation=validation))


def weights(mllm: MLLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str = "") -> float:
    """Largest absolute difference between weights whose names begin so."""
    names = [name for name in a if name.startswith(prefix)]
    assert names and a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in names)


def curve(folder: Path, kind: str = "train", metric: str = "loss") -> list[float]:
    """One metric of a run, step by step."""
    return [line[metric] for line in read_jsonl(folder / "metrics.jsonl") if line["kind"] == kind]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights agree to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
