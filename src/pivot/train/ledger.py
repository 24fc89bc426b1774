"""What a stage cost and what it was given: one file, so that arms can be held against each other."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from pivot.data.collate import Row
from pivot.files import hash_bytes
from pivot.model.flops import row_flops
from pivot.train.parts import Rates
from pivot.train.settings import Settings

if TYPE_CHECKING:
    from pivot.train.setup import Setup, State

PACKAGES = ("pivot-vision", "torch", "transformers", "accelerate", "numpy")


@dataclass
class Spent:
    """Running sums over the updates that made the weights. They travel in checkpoints, so a kill counts nothing twice."""

    image_tokens: int = 0
    text_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    ids_sha256: str = ""  # of the row names in the order in which updates read them

    def read(self, ids: Sequence[str]) -> None:
        """Take in the rows of an update, in the order of its batch."""
        for name in ids:
            self.ids_sha256 = hash_bytes(f"{self.ids_sha256}\n{name}".encode())


def cost(rows: Sequence[Row], config: PreTrainedConfig, settings: Settings, rates: Rates) -> tuple[int, int, float]:
    """Image tokens, text tokens and floating-point operations of training on some rows once."""
    options = {"trained": rates.trained(), "checkpointing": settings.checkpointing}
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
        "examples": len(setup.data.examples),
        "epochs": settings.epochs,
        "batch": settings.batch,
        "steps": state.step,
        **asdict(state.spent),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": setup.accelerator.num_processes,
        "precision": settings.precision,
        "settings": settings.model_dump(mode="json"),
        "rates": asdict(setup.rates),
        "parts": setup.proof.facts(),
        "reference": None if reference is None else {key: value for key, value in reference.items() if key != "of"},
        "best": state.best,
        "alarms": state.alarms,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
