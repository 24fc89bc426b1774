"""What training holds in a GPU's memory, told from settings alone: the real model runs on tensors that have a shape and no storage.

Kept for the way back is whatever autograd is asked to keep, so that no family needs a formula. Attention is taken to be fused, as
on a GPU. What lies beside tensors is not in it: the device's context, libraries' workspaces, the allocator's gaps.

Letters: R rows, T tokens of the longest row, S supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pivot.data.collate import Row, collate
from pivot.encoder import towers
from pivot.model.branches import Backend, branch_mask, place
from pivot.model.families import counted, family
from pivot.model.languages import against_packing, backend
from pivot.model.lora import Adapters
from pivot.model.packed import pack

ALIKE = 4  # layers of the LLM that are run, for all of them
WIDTH = 4  # bytes of a weight, a gradient, a moment: training keeps all of them in fp32


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the busiest moment of an update. Weights are whole on each: nothing is sharded."""

    weights: int
    gradients: int  # and with several GPUs the buckets in which they are exchanged
    optimizer: int  # AdamW's two moments
    activations: int | None  # kept of one micro-batch for the way back; None where shapes alone do not tell
    moment: int | None  # beside them for a moment: logits and weights that are cast, or the layer that is computed

    @property
    def total(self) -> int | None:
        """AdamW needs one more copy of what it changes, when activations are gone already."""
        if self.activations is None or self.moment is None:
            return None
        return self.weights + self.gradients + self.optimizer + max(self.activations + self.moment, self.optimizer // 2)


@dataclass
class Layer:
    """One layer that checkpointing would compute again: bytes that autograd keeps in it, and of what enters it."""

    times: float  # it stands for so many
    inside: int = 0
    entering: int = 0


@dataclass
class Kept:
    """Bytes that autograd keeps of one forward pass."""

    unmasked: tuple[int, int] | None  # size of a mask that is made for shapes alone: where there are values, attention is causal by itself
    storages: dict[int, Any] = field(default_factory=dict)  # held, or the next one could get its number
    outside: int = 0
    layers: list[Layer] = field(default_factory=list)
    now: Layer | None = None
    widest: int = 0  # of the tensors in layers

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves, once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages and not (tensor.ndim == 4 and tensor.shape[-2:] == self.unmasked):
            self.storages[storage._cdata] = storage
            if self.now:
                self.now.inside += storage.nbytes()
                self.widest = max(self.widest, storage.nbytes())
            else:
                self.outside += storage.nbytes()
        return tensor

    def watch(self, layer: nn.Module, times: float) -> None:
        """Tell what is kept in this layer from the rest."""

        def enter(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.now = Layer(times)
            self.layers.append(self.now)
            states = next((value for value in [*positional, named.get("hidden_states")] if isinstance(value, Tensor)), None)
            if states is not None and (states.requires_grad or any(weight.requires_grad for weight in layer.parameters())):
                self.now.entering = states.numel() * states.element_size()

        def leave(*_: Any) -> None:
            self.now = None

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(leave)


@dataclass(frozen=True)
class Batch:
    """One micro-batch as shapes: what the scorer would run of some rows."""

    pixels: dict[str, Tensor]
    rows: int
    tokens: int
    supervised: int
    segment: Tensor | None  # (R, T) where branches share a row


def largest(rows: Sequence[Row], micro: int, config: Any, asked: Backend, packing: bool = False) -> Batch:
    """The most that a micro-batch may hold, as far as these rows show: the longest ones together, padded or packed."""
    used, _ = backend(config.get_text_config(), asked)
    chosen = sorted(rows, key=lambda row: row.length, reverse=True)[:micro]
    chosen += [chosen[0]] * (micro - len(chosen))  # fewer are known than go together
    made = collate(chosen)
    placed = place(made["layout"], used, counted(config, made["layout"]))
    if packing and not placed.branched and against_packing(config.get_text_config()) is None:
        placed = pack(placed)
    pixels = {name: value[:0] if not placed.images else value for name, value in made["images"].items()}
    count, tokens = placed.take.shape
    return Batch(pixels, count, tokens, len(placed.read), placed.segment if placed.branched else None)


def memory(shell: PreTrainedModel, batch: Batch, precision: str, gpus: int = 1, adapters: Adapters | None = None) -> tuple[Memory, Memory]:
    """Of training what in this model asks for gradients, without checkpointing and with it. Of weights, only shapes are looked at.

    `adapters`: those that were put into it.
    """
    half = precision == "bf16"
    training = sum(weight.numel() for weight in shell.parameters() if weight.requires_grad)
    facts = {
        "weights": WIDTH * sum(weight.numel() for weight in shell.parameters()),
        "gradients": WIDTH * training * (2 if gpus > 1 else 1),
        "optimizer": 2 * WIDTH * training,
    }
    try:
        kept = _forward(shell, batch, half, adapters)
    except (DataDependentOutputException, DynamicOutputShapeException):  # of towers that pack patches, and LLMs with a state
        unknown = Memory(**facts, activations=None, moment=None)
        return unknown, unknown
    # Logits, their fp32 copy and log-probabilities on the way there; log-probabilities and two gradients on the way back.
    vocabulary = shell.get_submodule(family(shell.config).head).get_parameter("weight").shape[0]
    logits = batch.supervised * vocabulary * (10 if half else 8)
    worked = 2 * kept.widest  # gradients of a layer's widest tensors
    everything = kept.outside + sum(round(layer.times * layer.inside) for layer in kept.layers)
    entering = kept.outside + sum(round(layer.times * layer.entering) for layer in kept.layers)
    # Autocast keeps cast weights that train to the end of the forward pass. Then layers are computed again, one by one.
    casts = training * 2 if half else 0
    again = worked + max((layer.inside for layer in kept.layers), default=0)
    return (
        Memory(**facts, activations=everything, moment=max(logits, worked)),
        Memory(**facts, activations=entering, moment=max(logits + casts, again)),
    )


def _forward(shell: PreTrainedModel, batch: Batch, half: bool, adapters: Adapters | None) -> Kept:
    """What the scorer's forward pass keeps, up to the logits."""
    row, kept = family(shell.config), Kept((batch.tokens, batch.tokens) if batch.segment is None else None)
    with torch.device("meta"):
        model = cast("PreTrainedModel", AutoModelForImageTextToText.from_config(shell.config)).eval()
    if adapters:
        adapters.put(model)
    alike = towers.blocks(model.get_submodule(row.llm))
    times = max(1.0, len(alike) / ALIKE)
    del alike[ALIKE:]
    trains = {name for name, weight in shell.named_parameters() if weight.requires_grad}
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes, torch.enable_grad():
        model.to_empty(device="cpu")  # which gives its weights a device, on which attention is fused, and no storage
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trains)
            kept.storages[weight.untyped_storage()._cdata] = weight.untyped_storage()
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                kept.watch(layer, times if layer in alike else 1)
        pixels = {name: shapes.from_tensor(value) if value.is_floating_point() else value for name, value in batch.pixels.items()}
        with precision, saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            llm = cast("PreTrainedModel", model.get_submodule(row.llm))
            ids = torch.zeros(batch.rows, batch.tokens, dtype=torch.long)  # (R, T)
            embeds = llm.get_input_embeddings()(ids)
            if pixels and len(pixels["pixel_values"]):
                features = row.features(model, pixels)
                embeds = embeds.masked_scatter(torch.zeros(*ids.shape, 1, dtype=torch.bool), features.to(embeds.dtype))
            mask = None if batch.segment is None else branch_mask(shapes.from_tensor(batch.segment))
            states = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
            read = states.flatten(0, 1)[torch.zeros(batch.supervised, dtype=torch.long)]
            F.linear(read, model.get_submodule(row.head).get_parameter("weight"))  # (S, V)
    return kept
