"""The knobs of training, and the pace that follows from them. No torch: recipes are checked against this file."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pivot.knobs import check_keys
from pivot.train.order import per_epoch


class Lora(BaseModel):
    """Maps of low rank that train in place of the LLM's own weights, at the LLM's rate. Without dropout, as all of training."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128.0, gt=0, description="they count alpha / rank times")
    targets: tuple[str, ...] = Field(
        default=("all-linear",), min_length=1, description="linear maps in the LLM's layers, such as q_proj; all-linear = all of them"
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        check_keys(given, cls.model_fields)
        return {**given, "targets": [given["targets"]]} if isinstance(given.get("targets"), str) else given


class Settings(BaseModel):
    """How to train. What is trained, and how fast each part of it, are `Rates`; what for is the objective."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=32, ge=1, description="examples per update, over all processes")
    micro: int = Field(default=8, ge=1, description="examples that one process runs at once; changes memory and speed alone")
    drop_last: bool = Field(default=False, description="leave out what does not fill the last batch of an epoch")
    group_by: Literal["none", "length", "modality"] = Field(
        default="none", description="length = a batch holds rows of like length; modality = and all of them have pictures, or none has"
    )
    workers: int = Field(default=2, ge=0, description="threads that make rows ahead; 0 = each is made when it is asked for")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the updates")
    floor: float = Field(default=0.0, ge=0, lt=1, description="share of the rate that cosine and linear fall to")
    weight_decay: float = Field(default=0.0, ge=0, description="of weight matrices; norms and biases are left alone")
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 = any")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of activations; weights are trained in fp32")
    lora: Lora | None = Field(default=None, description="the LLM's own weights stay, and what is saved has the maps added to them")
    checkpointing: bool = Field(default=False, description="compute activations again on the way back: less memory, more time")
    backend: Literal["shared", "repeat"] = "shared"
    template: Literal["chat", "plain"] = Field(default="chat", description="plain: a picture and its caption, without chat markup")
    packing: bool = Field(default=False, description="rows of one response lie end to end and are not padded, where the LLM allows it")
    label_mask: Literal["clean", "llava_next"] = "clean"
    limit: int | None = Field(default=None, ge=1, description="tokens that a picture, its prompt and one response may have")
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse", description="what becomes of a longer row: an error, or its responses lose their ends, and it is counted"
    )
    eval_every: int = Field(default=0, ge=0, description="updates between validations; 0 = before the first and after the last alone")
    save_every: int = Field(default=100, ge=1, description="updates between checkpoints")
    keep: Literal["last", "best"] = Field(default="last", description="which weights the stage hands on: the last, or the best validated")
    spike: float = Field(default=20.0, ge=0, description="robust deviations of the loss that stop the run; 0 = none do")
    report_to: tuple[str, ...] = Field(default=(), description="trackers of accelerate: tensorboard, trackio, wandb, ...")
    seed: int = Field(default=0, ge=0)

    def steps(self, examples: int) -> int:
        """Updates in all. The last one of an epoch may be smaller, or be dropped."""
        return self.epochs * per_epoch(examples, self.batch, self.drop_last)

    def pace(self, step: int, steps: int) -> float:
        """Factor on every learning rate at update `step`, counted from 0. No update has a factor of 0."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        left = (steps - step) / (steps - warm)  # from 1 down to 1 / (steps - warm)
        fallen = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[self.schedule]
        return self.floor + (1 - self.floor) * fallen
