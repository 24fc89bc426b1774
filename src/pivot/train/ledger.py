"""What a stage cost and what it was given: one file, so that arms can be held against each other."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from pivot.model.flops import row_flops
from pivot.objective._contract import Objective
from pivot.train.feed import Portion
from pivot.train.state import Setup, State

PACKAGES = ("pivot-vision", "torch", "transformers", "accelerate", "numpy")


def cost(setup: Setup, portion: Portion) -> tuple[int, int, float]:
    """Image tokens, text tokens and floating-point operations of learning from this process' rows once.

    A critic of its own costs what the policy does; where the objective looks ahead over several micro-batches, rows are scored
    once more. What came before the update is the portion's own.
    """
    rows, objective, config, settings = portion.rows, setup.objective, setup.mllm.model.config, setup.settings
    scoring: dict[str, Any] = {"backend": settings.backend, "adapters": setup.adapters}
    training = {**scoring, "trained": setup.rates.trained(), "checkpointing": settings.checkpointing}
    work = sum(row_flops(config, row, **training) for row in rows) * models(objective)
    if objective.needs_sums and len(portion.micros) > 1:
        work += sum(row_flops(config, row, **scoring, backward=False) for row in rows)
    return sum(row.image_tokens for row in rows), sum(row.text_tokens for row in rows), work + portion.flops


def models(objective: Objective) -> int:
    """How many MLLMs read a row: the policy, and perhaps a critic beside it."""
    return 2 if objective.head == "separate" else 1


def objective_facts(objective: Any) -> dict[str, Any]:
    """An objective as a recipe would have it: its name and its knobs."""
    return {"name": type(objective).__module__.rpartition(".")[2], **asdict(objective)}


def entries(setup: Setup, state: State, stage: str, arm: str, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """The contents of ledger.json."""
    device, settings = setup.accelerator.device, setup.settings
    return {
        "stage": stage,
        "arm": arm,
        "seed": settings.seed,
        "objective": objective_facts(setup.objective),
        "learns": setup.objective.learns,
        "passes": setup.objective.passes,
        "examples": len(setup.data.examples),
        "epochs": settings.epochs,
        "batch": settings.batch,
        "steps": state.step,
        **asdict(state.spent),
        "waiting_share": state.spent.waiting / state.spent.seconds if state.spent.seconds else 0.0,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": setup.accelerator.num_processes,
        "precision": settings.precision,
        "settings": settings.model_dump(mode="json"),
        "rates": asdict(setup.rates),
        "lora": setup.adapters and setup.adapters.facts(),
        "parts": setup.proof.facts(),
        "reference": None if reference is None else {key: value for key, value in reference.items() if key != "of"},
        "best": state.best,
        "alarms": state.alarms,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
