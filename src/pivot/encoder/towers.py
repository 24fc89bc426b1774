"""The table of vision families: one row each, and what can be read off a tower through its row.

A row says how a stock transformers vision model lays out its tokens, how stock LLaVA selects its features, and which of its
parts lie beside the path to the tap. Everything else about a tower is read from its config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from pivot.records import BadInput, Tap

Layout = Literal["tokens", "map", "packed", "joined"]


@dataclass(frozen=True)
class Family:
    """One vision family of transformers.

    `layout` is the shape of its hidden states. "tokens": (B, T, D), which stock LLaVA holds. "map": (B, D, h, w) after each stage of a
    convolutional network. "packed": the patches of all images in one row (N, D), in an order of its own. "joined": a `pivot_tower`,
    which makes tokens of the others and then fits stock LLaVA too.

    `strategy` is LLaVA's word for its features: "full" keeps all tokens, "default" deletes the first. It must follow `prefix`:
    where token 0 is a patch, "default" would silently delete that patch.
    """

    name: str
    model_type: str  # of the vision model's own config
    prefix: int  # leading tokens that are not patches, registers not counted
    strategy: Literal["full", "default"]
    norm: str | None  # the final norm's attribute name
    processor: str  # an image processor of transformers that takes pictures straight to a size, as this family's checkpoints need it
    layout: Layout = "tokens"
    layer: int = -2  # where it is read unless something else is asked for
    head: str | None = None  # what reads the final norm's output and no MLLM uses
    headless: Mapping[str, Any] = field(default_factory=dict)  # config values that build it without that head
    combined: tuple[str, ...] = ()  # image-text models whose vision part is of this family
    idle: tuple[str, ...] = ()  # parameters beside the path to any tap
    any_size: bool = False  # takes images of any size without a change to its weights
    traced: bool = False  # nothing is known of its inside: what a tap leaves idle is found by following gradients
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a small random one needs beyond the common sizes


# A convolutional network's layers are its stages; the last is read, since nothing after it was trained to undo it.
_CNN = Family("", "", 0, "full", None, "BitImageProcessor", layout="map", layer=-1, any_size=True)
_PACKED = Family("", "", 0, "full", None, "CLIPImageProcessor", layout="packed", layer=-1, head="merger", any_size=True)
_SMALL_CNN = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 2]}
_SMALL_TIMM = {"architecture": "test_convnext", "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32], "output_stride": 8}}

# What stock LLaVA holds as it is.
_DINOV2 = Family(
    "dinov2",
    "dinov2",
    prefix=1,
    strategy="default",
    norm="layernorm",
    processor="BitImageProcessor",
    idle=("embeddings.mask_token",),
    any_size=True,
    tiny={"mlp_ratio": 2},
)
FAMILIES = (
    Family(
        "siglip",  # and SigLIP2 of a fixed resolution, which is the same model type
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
    Family("ijepa", "ijepa", prefix=0, strategy="full", norm="layernorm", processor="ViTImageProcessor", tiny={"intermediate_size": 64}),
    _DINOV2,
    # Stock LLaVA deletes the class token alone: registers go on to its LLM, and are in the tap's prefix.
    replace(_DINOV2, name="dinov2_with_registers", model_type="dinov2_with_registers", tiny={"mlp_ratio": 2, "num_register_tokens": 3}),
    Family(
        "dinov3_vit",
        "dinov3_vit",
        prefix=1,
        strategy="default",
        norm="norm",
        processor="ViTImageProcessor",
        idle=("embeddings.mask_token",),
        any_size=True,
        tiny={"intermediate_size": 64, "num_register_tokens": 3},
    ),
)
# What a `pivot_tower` takes as members, and itself.
OTHERS = (
    Family("pivot_tower", "pivot_tower", prefix=0, strategy="full", norm=None, processor="SiglipImageProcessor", layout="joined", layer=-1),
    replace(_CNN, name="convnext", model_type="convnext", norm="layernorm", tiny=_SMALL_CNN),
    replace(_CNN, name="convnextv2", model_type="convnextv2", norm="layernorm", tiny=_SMALL_CNN),
    replace(
        _CNN, name="dinov3_convnext", model_type="dinov3_convnext", norm="layer_norm", tiny={"hidden_sizes": [16, 32], "depths": [1, 2]}
    ),
    replace(_CNN, name="resnet", model_type="resnet", tiny={"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]}),
    replace(_CNN, name="timm_wrapper", model_type="timm_wrapper", traced=True, tiny=_SMALL_TIMM),
    replace(_CNN, name="pivot_outside", model_type="pivot_outside", traced=True),
    replace(
        _PACKED,
        name="qwen2_vl_vision",
        model_type="qwen2_vl_vision",
        tiny={"depth": 3, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
    ),
    replace(
        _PACKED,
        name="qwen2_5_vl_vision",
        model_type="qwen2_5_vl_vision",
        tiny={
            **{"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48, "patch_size": 8},
            **{"window_size": 32, "fullatt_block_indexes": [1]},
        },
    ),
)
ROWS = (*FAMILIES, *OTHERS)
PACKED = {"qwen2_vl_vision": Qwen2VisionTransformerPretrainedModel, "qwen2_5_vl_vision": Qwen2_5_VisionTransformerPretrainedModel}

# Known by name, refused with the reason.
REFUSED = {
    **dict.fromkeys(
        ("llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl"),
        "it is a whole MLLM: take its encoder out with `pivot detach` and give that folder",
    ),
    "siglip2": "its checkpoints take patches of any aspect ratio, not square images: use a fixed-resolution SigLIP2 such as patch16-384",
    "siglip2_vision_model": "it takes patches of any aspect ratio, not square images: use a fixed-resolution SigLIP2 such as patch16-384",
    "vit_mae": "it shuffles its patches at every call: convert its weights to a plain ViT",
}


def family(of: PreTrainedConfig | str) -> Family:
    """The row of a vision config, or of a family's name or model type. Unknown ones get the nearest names."""
    asked = of if isinstance(of, str) else str(of.model_type)
    for row in ROWS:
        if asked in (row.name, row.model_type):
            return row
    if asked in REFUSED:
        raise BadInput(f"vision family '{asked}' cannot be used: {REFUSED[asked]}")
    known = [name for row in ROWS for name in dict.fromkeys((row.name, row.model_type))]
    near = get_close_matches(asked, known, n=3)
    hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(row.name for row in ROWS)}"
    raise BadInput(f"no vision family '{asked}'; {hint}; a new one is one row in {__name__}")


def model_class(config: PreTrainedConfig) -> Any:
    """The class of transformers whose model a config describes. Its Auto classes do not lead to a tower of Qwen-VL in every release."""
    return PACKED.get(config.model_type) or MODEL_MAPPING[type(config)]


def vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the vision part alone, set so that it builds without a pooling head where the family has such a switch.

    What the source holds and this encoder leaves behind is noted in it as `pivot_left_out`, and so travels into every
    config.json that is written later, an MLLM's included.
    """
    left_out = []
    if any(config.model_type in row.combined for row in ROWS):
        left_out, config = ["text tower"], config.vision_config
    row = family(config)
    for name, value in row.headless.items():
        if getattr(config, name, value) != value:
            left_out.append("pooling head")
            setattr(config, name, value)
    if left_out:
        config.pivot_left_out = left_out
    return config


def default_tap(config: PreTrainedConfig, layer: int | None = None) -> Tap:
    """The tap of a family, at its usual layer or another: no final norm, its prefix dropped, mean over patches."""
    tap = Tap(layer=family(config).layer if layer is None else layer, prefix=prefix(config))
    depth(config, tap)
    return tap


def prefix(config: PreTrainedConfig) -> int:
    """How many leading tokens are not patches: the family's own, and registers."""
    return family(config).prefix + getattr(config, "num_register_tokens", 0)


def num_blocks(config: PreTrainedConfig) -> int:
    """Transformer blocks, stages of a convolutional network, or members of a `pivot_tower`."""
    depths = getattr(config, "depths", None)
    return len(depths) if depths is not None else getattr(config, "num_hidden_layers", None) or config.depth


def depth(config: PreTrainedConfig, tap: Tap) -> int:
    """How many blocks lie at or below the tap: 0 reads the embeddings, all of them the last block. Others are a `BadInput`."""
    row, blocks = family(config), num_blocks(config)
    if row.layout == "joined" and tap.layer != -1:
        raise BadInput(f"layer {tap.layer} of a pivot_tower: its layers are chosen member by member, as in 'A@-2 + B@-1'; read it at -1")
    if tap.norm and row.norm is None:
        raise BadInput(f"a tap with norm: a {row.name} has no final norm to apply; use one without")
    lowest = 1 if row.traced else 0  # a tower that nothing is known of shows what its stages give, and nothing before
    if not lowest <= (tap.layer if tap.layer >= 0 else blocks + 1 + tap.layer) <= blocks:
        known = f"choose from {lowest - blocks - 1} to {blocks}" + (", without 0" if lowest else "")
        raise BadInput(f"layer {tap.layer} is not in this {config.model_type}: it has {blocks} blocks; {known}")
    return tap.layer % (blocks + 1)


def grid(config: PreTrainedConfig, pixels: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns of patches of an image, by default of the tower's own size. A remainder that fills no patch is not seen."""
    row = family(config)
    if row.layout == "map":
        raise BadInput(f"a {row.name} has a grid for each of its stages; put it into a pivot_tower, as Encoder.load does")
    own = _pair(config.image_size) if hasattr(config, "image_size") else None
    size = pixels or own
    if size is None:
        raise BadInput(f"a {row.name} takes images of any size, so that its grid is that of its image processor; give the size")
    if not row.any_size and size != own:
        raise BadInput(f"images of {size} pixels, but this {config.model_type} takes {own}; set its image processor to that")
    if row.layout == "joined":
        return _pair(config.grid)
    patch, merged = _pair(config.patch_size), getattr(config, "spatial_merge_size", 1)
    found = size[0] // patch[0] // merged * merged, size[1] // patch[1] // merged * merged
    if 0 in found:
        raise BadInput(f"images of {size} pixels are smaller than a patch of this {config.model_type}; choose a larger size")
    return found


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks or stages, bottom first: the one list of modules as long as the config says."""
    return model.get_submodule(blocks_name(model))  # type: ignore[return-value]


def blocks_name(model: PreTrainedModel) -> str:
    """Where the blocks are. Found by length, since transformers has moved them more than once."""
    layers = num_blocks(model.config)
    found = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    if not found:
        raise BadInput(f"{type(model).__name__} has no list of {layers} blocks; its config does not describe it")
    return found[0]


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm after the last block."""
    row, path = family(model.config), norm_name(model)
    if path is None:
        raise BadInput(f"a {row.name} has no final norm to apply; use a tap without")
    return model.get_submodule(path)


def norm_name(model: PreTrainedModel) -> str | None:
    name, path = family(model.config).norm, blocks_name(model)
    names = [at for at, _ in model.named_modules() if at.rpartition(".")[2] == name and not at.startswith(f"{path}.")]
    return names[-1] if names else None  # the embeddings of some have a norm of the same name, before the blocks


def above(model: PreTrainedModel, tap: Tap) -> dict[str, nn.Module]:
    """Modules that the tap's features do not pass through, by name: blocks above it, the final norm unless it is read, the head.

    Of a `pivot_tower`, those of its members; members that are traced have none by name.
    """
    row, below = family(model.config), depth(model.config, tap)
    if row.layout == "joined":
        return cast("Any", model).above()
    path, norm = blocks_name(model), None if tap.norm else norm_name(model)
    found: dict[str, nn.Module] = {f"{path}.{i}": block for i, block in enumerate(blocks(model)) if i >= below}
    for name, module in model.named_modules():
        inside = name.startswith(f"{path}.") or any(name.startswith(f"{other}.") for other in found)
        if not inside and (name == norm or name.rpartition(".")[2] == row.head):
            found[name] = module
    return found


def idle_parameters(model: PreTrainedModel, tap: Tap) -> dict[str, nn.Parameter]:
    """Parameters that get no gradient from the tap's features, by name: all of `above`, and what the family never uses."""
    row = family(model.config)
    if row.layout == "joined":
        return cast("Any", model).idle_parameters()
    modules = above(model, tap)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(name.startswith(f"{module}.") for module in modules) or any(name.endswith(suffix) for suffix in row.idle)
    }


def tiny(
    name: str, *, pixels: int = 48, patch: int = 8, width: int = 32, layers: int = 3, heads: int = 2, seed: int = 0
) -> PreTrainedModel:
    """A small stock model of a family with random weights that depend on the seed alone: for tests and dry runs.

    The sizes hold for token families; the others have one of their own, which makes a 6 x 6 grid of 48 pixels and is 32 wide.
    """
    row = family(name)
    common = {"image_size": pixels, "patch_size": patch, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = CONFIG_MAPPING[row.model_type](**{**(common if row.layout == "tokens" else {}), **row.tiny, **row.headless})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config)._from_config(config).eval()
