"""Stage 0: teach a tiny tower, and what the objective puts beside it, in one pass over the data in their order."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pivot.files import append_jsonl, hash_json, hash_tensors, read_jsonl, whole_file, write_json, write_jsonl
from pivot.model.flops import tower_flops
from pivot.records import BadInput, CheckFailed, Example

if TYPE_CHECKING:
    from pivot.model import MLLM
    from pivot.pretrain.supervised import Pretraining


def pretrain(mllm: MLLM, objective: Pretraining, examples: Sequence[Example], folder: Path, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Train the tower, and what of the MLLM the objective puts beside it, in place; yield a line of metrics per step.

    A killed one goes on from its last checkpoint. Writes metrics.jsonl, ledger.json and model/ into `folder`.
    """
    steps = len(examples) // objective.batch
    if not steps:
        raise BadInput(f"pretrain: {len(examples)} examples do not fill one batch of {objective.batch}; give more, or a smaller batch")
    tower = mllm.parts()["tower"].train()
    device = next(tower.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        beside = objective.init(mllm).to(device)
    learner = nn.ModuleDict({"tower": tower, "beside": beside})
    optimiser = torch.optim.AdamW(learner.parameters(), lr=objective.rate, weight_decay=objective.weight_decay)
    checkpoint, log = folder / "checkpoint.pt", folder / "metrics.jsonl"
    begun = hash_json([type(objective).__module__, asdict(objective), len(examples), seed])  # a checkpoint of another training is refused
    done, spent = _resume(checkpoint, learner, optimiser, begun)
    untouched = hash_tensors(tower.state_dict()) if not done else None
    write_jsonl(log, [line for line in read_jsonl(log) if line["step"] <= done])

    encoder = mllm.detach()
    for step in range(done + 1, steps + 1):
        began = time.perf_counter()
        rows = examples[(step - 1) * objective.batch : step * objective.batch]
        targets = {head: wanted.to(device) for head, wanted in objective.targets(rows, encoder.grid[0]).items()}
        batch = {"pixels": encoder.pixels([e.images[0] for e in rows]).to(device), "targets": targets}
        for group in optimiser.param_groups:
            group["lr"] = objective.rate * _cosine(step, steps, objective.warmup)
        loss, metrics = objective.loss(encoder, batch, beside)
        if not math.isfinite(metrics["loss"]):
            raise BadInput(f"pretrain: the loss of step {step} is {metrics['loss']}, from row {rows[0].id} on; lower the rate or mend it")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        spent += time.perf_counter() - began
        line = {"step": step, "kind": "train", **metrics, "lr/tower": optimiser.param_groups[0]["lr"]}
        append_jsonl(log, line)
        if step % objective.save_every == 0 or step == steps:
            _save(checkpoint, learner, optimiser, step, spent, begun)
        yield {**line, "steps": steps}

    if untouched == hash_tensors(tower.state_dict()):
        raise CheckFailed(f"pretrain: after {steps} steps the tower is what it was; its rate is {objective.rate}")
    mllm.save(folder / "model")
    write_json(folder / "ledger.json", _entries(mllm, beside, objective, steps, spent))
    checkpoint.unlink(missing_ok=True)


def _entries(mllm: MLLM, beside: nn.Module, objective: Pretraining, steps: int, seconds: float) -> dict[str, Any]:
    """The contents of ledger.json. What learns beside the tower costs as its linear maps do: forward, and two products on the way back."""
    examples, weight = steps * objective.batch, next(beside.parameters())
    rows, columns = mllm.detach().grid
    tokens = examples * rows * columns
    of_beside = 6 * tokens * sum(p.numel() for p in beside.parameters() if p.ndim > 1)
    return {
        "stage": "pretrain",
        "examples": examples,
        "epochs": 1,
        "batch": objective.batch,
        "steps": steps,
        "image_tokens": tokens,
        "text_tokens": 0,
        "flops": tower_flops(mllm.model.config, examples) + of_beside,
        "seconds": seconds,
        "device": torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else weight.device.type,
    }


def _cosine(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine down to 2 %."""
    ramp = max(1, round(steps * warmup))
    if step <= ramp:
        return step / ramp
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def _save(file: Path, learner: nn.Module, optimiser: torch.optim.Optimizer, step: int, spent: float, begun: str) -> None:
    state = {"learner": learner.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": spent, "begun": begun}
    with whole_file(file) as unfinished:
        torch.save(state, unfinished)


def _resume(file: Path, learner: nn.Module, optimiser: torch.optim.Optimizer, begun: str) -> tuple[int, float]:
    """Steps done and seconds spent before a kill."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True, map_location="cpu")  # loading into modules and optimiser moves it
    if state["begun"] != begun:
        raise BadInput(f"{file} is of another training (objective, number of examples or seed differ); choose another folder, or remove it")
    learner.load_state_dict(state["learner"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["seconds"]
