"""LoRA: the LLM learns through maps of low rank beside its linear ones, W x + alpha / rank * B A x, while its own weights stay.

peft lays A (rank, in) and B (out, rank) in and computes with them. B begins at zero, so that the model is first what it was; there
is no dropout, with which policy and reference would differ. After training the products are added to the weights: what is saved is
a plain MLLM, and no later stage sees anything of peft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pivot.encoder import towers
from pivot.knobs import nearest
from pivot.model.families import family, parts
from pivot.records import BadInput

NAME = "default"  # peft's, of the only adapters that there are
EVERY = "all-linear"  # in place of targets' names


@dataclass(frozen=True)
class Adapters:
    """Which linear maps of an LLM's layers have one beside them, by the last part of their names, and what that amounts to."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    weights: int  # of A and B together, in all layers
    last: int  # of these, B of each layer's last linear map; 0 where that has none beside it

    def put(self, model: PreTrainedModel, seed: int = 0) -> None:
        """Lay them into an MLLM in place. They alone of its LLM ask for gradients then; `seed` decides A."""
        peft = _peft()
        llm = parts(model)["llm"]
        path = towers.blocks_name(cast("PreTrainedModel", model.get_submodule(family(model.config).llm)))
        targets = [f"model.{path}.{name}" for name in _linear(model) if name.rpartition(".")[2] in self.targets]
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=targets)
        meta = next(llm.parameters()).device.type == "meta"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, llm, adapter_name=NAME, low_cpu_mem_usage=meta)

    def facts(self) -> dict[str, Any]:
        """For the ledger: as a recipe would have them, and how many numbers they are."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "parameters": self.weights}

    def merge(self, model: PreTrainedModel) -> None:
        """Add them to the weights, and leave nothing else behind."""
        for layer in _adapted(model).values():
            layer.merge()
        self.remove(model)

    def remove(self, model: PreTrainedModel) -> None:
        """Take them out as if they had never been there."""
        for name, layer in _adapted(model).items():
            model.set_submodule(name, layer.get_base_layer())

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`merge` on weights by name, where they were gathered from processes that have a part of each."""
        found = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
        for name in [name for name in weights if name.endswith(f".lora_A.{NAME}.weight")]:
            layer = name.removesuffix(f".lora_A.{NAME}.weight")
            product = weights[f"{layer}.lora_B.{NAME}.weight"] @ weights[name]
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + self.alpha / self.rank * product
        return found


def adapters(model: PreTrainedModel, rank: int, alpha: float, targets: Sequence[str]) -> Adapters:
    """Those of an MLLM with these knobs. Names that its LLM does not have are a `BadInput`, and so is a machine without peft."""
    _peft()
    shapes = _linear(model)
    known = {name.rpartition(".")[2] for name in shapes}
    if not known:
        kind = model.config.get_text_config().model_type
        raise BadInput(f"lora: the layers of this LLM ({kind}) have no linear maps of torch's kind; leave lora out and train it whole")
    chosen = known if EVERY in targets else set(targets)
    unknown = next((name for name in sorted(chosen) if name not in known), None)
    if unknown is not None:
        raise BadInput(f"lora.targets: the LLM's layers have no linear map '{unknown}'; {nearest(unknown, known)}")
    sizes = {name: rank * sum(shape) for name, shape in shapes.items() if name.rpartition(".")[2] in chosen}
    lasts = {name.partition(".")[0]: name for name in shapes}  # of each layer, the one that comes last
    last = sum(rank * shapes[name][0] for name in lasts.values() if name in sizes)
    return Adapters(rank, alpha, tuple(sorted(chosen)), sum(sizes.values()), last)


def _linear(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear maps in the layers of an MLLM's LLM, by the layer's number and their names in it."""
    layers = towers.blocks(cast("PreTrainedModel", model.get_submodule(family(model.config).llm)))
    return {name: (one.out_features, one.in_features) for name, one in layers.named_modules() if isinstance(one, nn.Linear)}


def _adapted(model: PreTrainedModel) -> dict[str, Any]:
    """peft's layers, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise BadInput("lora needs the package peft, which is not installed; pip install 'pivot-vision[lora]'") from None
    return peft
