"""The table of vision families: one row each, and what can be read off a tower through its row.

A row says how a stock transformers vision model lays out its tokens, how stock LLaVA selects its features, and which of its
parts lie beside the path to the tap. Everything else about a tower is read from its config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from pivot.records import BadInput, Tap


@dataclass(frozen=True)
class Family:
    """One vision family of transformers.

    `strategy` is LLaVA's word for its features: "full" keeps all tokens, "default" deletes the first. It must follow `prefix`:
    where token 0 is a patch, "default" would silently delete that patch.
    """

    name: str
    model_type: str  # of the vision model's own config
    prefix: int  # leading tokens that are not patches, registers not counted
    strategy: Literal["full", "default"]
    norm: str  # the final norm's attribute name
    processor: str  # its image processor's class
    head: str | None = None  # what reads the final norm's output and no MLLM uses
    headless: Mapping[str, Any] = field(default_factory=dict)  # config values that build it without that head
    combined: tuple[str, ...] = ()  # image-text models whose vision part is of this family
    idle: tuple[str, ...] = ()  # parameters beside the path to any tap
    any_size: bool = False  # resamples its position embeddings to whatever image comes
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a small random one needs beyond the common sizes


FAMILIES = (
    Family(
        "siglip",
        "siglip_vision_model",
        prefix=0,
        strategy="full",
        norm="post_layernorm",
        processor="SiglipImageProcessor",
        head="head",
        headless={"vision_use_head": False},
        combined=("siglip",),
        tiny={"intermediate_size": 64},
    ),
    Family(
        "clip",
        "clip_vision_model",
        prefix=1,
        strategy="default",
        norm="post_layernorm",
        processor="CLIPImageProcessor",
        combined=("clip",),
        tiny={"intermediate_size": 64},
    ),
    # Stock LLaVA and AutoModel both build ViT with its pooler, so it stays in the folder although nothing here reads it.
    Family(
        "vit",
        "vit",
        prefix=1,
        strategy="default",
        norm="layernorm",
        processor="ViTImageProcessor",
        head="pooler",
        tiny={"intermediate_size": 64},
    ),
    Family(
        "dinov2",
        "dinov2",
        prefix=1,
        strategy="default",
        norm="layernorm",
        processor="BitImageProcessor",
        idle=("embeddings.mask_token",),
        any_size=True,
        tiny={"mlp_ratio": 2},
    ),
)

# Known by name, refused with the reason.
REFUSED = {
    "llava": "it is a whole MLLM: take its encoder out with `pivot detach` and give that folder",
    "siglip2": "its checkpoints take patches of any aspect ratio, not square images: use a fixed-resolution SigLIP2 such as patch16-384",
    "siglip2_vision_model": "it takes patches of any aspect ratio, not square images: use a fixed-resolution SigLIP2 such as patch16-384",
    "vit_mae": "it shuffles its patches at every call: convert its weights to a plain ViT",
    "resnet": "it is a convolutional network and has no patch tokens: use a vision transformer",
    "convnext": "it is a convolutional network and has no patch tokens: use a vision transformer",
    "convnextv2": "it is a convolutional network and has no patch tokens: use a vision transformer",
}


def family(of: PreTrainedConfig | str) -> Family:
    """The row of a vision config, or of a family's name or model type. Unknown ones get the nearest names."""
    asked = of if isinstance(of, str) else str(of.model_type)
    for row in FAMILIES:
        if asked in (row.name, row.model_type):
            return row
    if asked in REFUSED:
        raise BadInput(f"vision family '{asked}' cannot be used: {REFUSED[asked]}")
    known = [name for row in FAMILIES for name in dict.fromkeys((row.name, row.model_type))]
    near = get_close_matches(asked, known, n=3)
    hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(row.name for row in FAMILIES)}"
    raise BadInput(f"no vision family '{asked}'; {hint}; a new one is one row in {__name__}")


def vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the vision part alone, set so that it builds without a pooling head where the family has such a switch.

    What the source holds and this encoder leaves behind is noted in it as `pivot_left_out`, and so travels into every
    config.json that is written later, an MLLM's included.
    """
    left_out = []
    if any(config.model_type in row.combined for row in FAMILIES):
        left_out, config = ["text tower"], config.vision_config
    row = family(config)
    for name, value in row.headless.items():
        if getattr(config, name, value) != value:
            left_out.append("pooling head")
            setattr(config, name, value)
    if left_out:
        config.pivot_left_out = left_out
    return config


def default_tap(config: PreTrainedConfig, layer: int = -2) -> Tap:
    """The tap of a family at a layer: no final norm, its prefix dropped, mean over patches. A layer it lacks is a `BadInput`."""
    tap = Tap(layer=layer, prefix=prefix(config))
    depth(config, tap)
    return tap


def prefix(config: PreTrainedConfig) -> int:
    """How many leading tokens are not patches: the family's own, and registers."""
    return family(config).prefix + getattr(config, "num_register_tokens", 0)


def depth(config: PreTrainedConfig, tap: Tap) -> int:
    """How many blocks lie at or below the tap: 0 reads the embeddings, `num_hidden_layers` the last block."""
    blocks = config.num_hidden_layers
    if not -blocks - 1 <= tap.layer <= blocks:
        raise BadInput(
            f"layer {tap.layer} is not in this {config.model_type}: it has {blocks} blocks; choose from {-blocks - 1} to {blocks}"
        )
    return tap.layer % (blocks + 1)


def grid(config: PreTrainedConfig, pixels: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns of patches of an image, by default of the tower's own size. A remainder that fills no patch is not seen."""
    size, patch = pixels or _pair(config.image_size), _pair(config.patch_size)
    if not family(config).any_size and size != _pair(config.image_size):
        raise BadInput(
            f"images of {size} pixels, but this {config.model_type} takes {_pair(config.image_size)}; set its image processor to that"
        )
    return size[0] // patch[0], size[1] // patch[1]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, bottom first: the one list of modules as long as the config says."""
    return model.get_submodule(blocks_name(model))  # type: ignore[return-value]


def blocks_name(model: PreTrainedModel) -> str:
    """Where the blocks are. Found by length, since transformers has moved them more than once."""
    layers = model.config.num_hidden_layers
    found = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    if not found:
        raise BadInput(f"{type(model).__name__} has no list of {layers} blocks; its config does not describe it")
    return found[0]


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm after the last block."""
    name = family(model.config).norm
    return next(module for path, module in model.named_modules() if path.rpartition(".")[2] == name)


def above(model: PreTrainedModel, tap: Tap) -> dict[str, nn.Module]:
    """Modules that the tap's features do not pass through, by name: blocks above it, the final norm unless it is read, the head."""
    row, below = family(model.config), depth(model.config, tap)
    path = blocks_name(model)
    found: dict[str, nn.Module] = {f"{path}.{i}": block for i, block in enumerate(blocks(model)) if i >= below}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        inside = name.startswith(f"{path}.") or any(name.startswith(f"{other}.") for other in found)
        if not inside and ((last == row.norm and not tap.norm) or last == row.head):
            found[name] = module
    return found


def idle_parameters(model: PreTrainedModel, tap: Tap) -> dict[str, nn.Parameter]:
    """Parameters that get no gradient from the tap's features, by name: all of `above`, and what the family never uses."""
    row, modules = family(model.config), above(model, tap)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(name.startswith(f"{module}.") for module in modules) or any(name.endswith(suffix) for suffix in row.idle)
    }


def tiny(
    name: str, *, pixels: int = 48, patch: int = 8, width: int = 32, layers: int = 3, heads: int = 2, seed: int = 0
) -> PreTrainedModel:
    """A small tower of a family with random weights that depend on the seed alone: for tests and dry runs."""
    row = family(name)
    common = {"image_size": pixels, "patch_size": patch, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = CONFIG_MAPPING[row.model_type](**{**common, **row.tiny, **row.headless})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config).eval()
