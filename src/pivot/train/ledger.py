"""What a stage cost and what it was given: one file, so that arms can be held against each other."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedConfig

from pivot.data.collate import Row
from pivot.model.flops import row_flops
from pivot.model.lora import Adapters
from pivot.train.parts import Rates
from pivot.train.settings import Settings
from pivot.train.state import Setup, State

PACKAGES = ("pivot-vision", "torch", "transformers", "accelerate", "numpy")


def cost(
    rows: Sequence[Row], config: PreTrainedConfig, settings: Settings, rates: Rates, adapters: Adapters | None = None
) -> tuple[int, int, float]:
    """Image tokens, text tokens and floating-point operations of training on some rows once."""
    options = {"trained": rates.trained(), "checkpointing": settings.checkpointing, "adapters": adapters}
    work = sum(row_flops(config, row, settings.backend, **options) for row in rows)
    return sum(row.image_tokens for row in rows), sum(row.text_tokens for row in rows), work


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
