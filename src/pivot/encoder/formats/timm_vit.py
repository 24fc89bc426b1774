"""A vision transformer of timm's as a `ViT`, and a `ViT` under timm's names with the arguments that build it.

timm's `VisionTransformer` covers most families; DINOv3 is its `Eva`, which names and splits its tensors otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pivot.encoder.formats import vit as vits
from pivot.encoder.formats.vit import Unfit, ViT
from pivot.records import BadInput

NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"patch_embed\.proj\.(weight|bias)", r"patch.\1"),
        (r"cls_token", "class"),
        (r"reg_token", "registers"),
        (r"pos_embed", "position"),
        (r"norm_pre\.(weight|bias)", r"pre.\1"),
        (r"blocks\.(\d+)\.(norm[12])\.(weight|bias)", r"\1.\2.\3"),
        (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"\1.q+k+v.\2"),
        (r"blocks\.(\d+)\.attn\.([qv])_bias", r"\1.\2.bias"),
        (r"blocks\.(\d+)\.attn\.([qkv])_proj\.(weight|bias)", r"\1.\2.\3"),
        (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"\1.out.\2"),
        (r"blocks\.(\d+)\.(?:ls|gamma_)([12])(?:\.gamma)?", r"\1.scale\2"),
        (r"blocks\.(\d+)\.mlp\.fc1_g\.(weight|bias)", r"\1.gate.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1(?:_x)?\.(weight|bias)", r"\1.fc1.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"\1.fc2.\2"),
        (r"(?:norm|fc_norm)\.(weight|bias)", r"norm.\1"),
    )
]
LEFT_OUT = {"head": "classification head", "attn_pool": "pooling head"}
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu"}


def plain(model: nn.Module) -> ViT:
    """A timm model as a `ViT`. Whatever would change the arithmetic, or has no name of ours, makes it unfit."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if type(model) not in (VisionTransformer, Eva):
        raise Unfit(f"is a {type(model).__name__}, which is no plain vision transformer")
    rotary = _rotary(model) if isinstance(model, Eva) else None
    _like_ours(model)
    raw, gated = {}, isinstance(model, VisionTransformer) and type(model.blocks[0].mlp).__name__ == "GluMlp"
    for key, tensor in model.state_dict().items():
        if key.partition(".")[0] in LEFT_OUT:
            continue
        name = next((found.expand(name) for pattern, name in NAMES if (found := pattern.fullmatch(key))), None)
        if name is None:
            raise Unfit(f"has a tensor {key}, which has no place in a plain vision transformer")
        raw[name.replace(".fc1.", ".gate+fc1.") if gated else name] = tensor.detach()
    tensors = {name: vits.flat(name, tensor) for name, tensor in vits.split(raw).items()}
    pooled = isinstance(model.norm, nn.Identity)
    if pooled == isinstance(model.fc_norm, nn.Identity):
        raise Unfit("has two final norms, or none")
    size = image_size(model)
    return ViT(
        tensors=_positions(tensors, bool(model.no_embed_class)),
        image=size,
        patch=model.patch_embed.patch_size[0],  # type: ignore
        heads=model.blocks[0].attn.num_heads,  # type: ignore
        act="silu" if "0.gate.weight" in tensors and rotary is None else _activation(model),
        eps=model.blocks[0].norm1.eps,  # type: ignore
        theta=rotary,
        pooled_norm=pooled,
    )


def image_size(model: nn.Module) -> tuple[int, int]:
    """What the position embeddings are for; a model that has none takes its usual size."""
    facts: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    made_for = getattr(getattr(model, "patch_embed", None), "img_size", None) if getattr(model, "pos_embed", None) is not None else None
    size = made_for or facts["input_size"][1:]
    return int(size[0]), int(size[1])


def _rotary(model: nn.Module) -> float:
    rope = getattr(model, "rope", None)
    if type(rope).__name__ != "RotaryEmbeddingDinoV3" or model.pos_embed is not None:
        raise Unfit("is an Eva without the rotary positions of DINOv3")
    if (
        not rope.rotate_half
        or rope.grid_offset
        or rope.grid_indexing != "ij"
        or rope.normalize_coords != "separate"
        or not rope.temperature
    ):
        raise Unfit("rotates otherwise than DINOv3")
    return float(rope.temperature)


def _like_ours(model: Any) -> None:
    """Each module is one whose arithmetic a `ViT` stands for."""
    patch = model.patch_embed
    if type(patch).__name__ != "PatchEmbed" or not isinstance(patch.norm, nn.Identity) or patch.dynamic_img_pad:
        raise Unfit("makes its patches otherwise")
    if patch.proj.in_channels != 3 or patch.patch_size[0] != patch.patch_size[1]:
        raise Unfit("has patches that are not square, or pictures without three channels")
    norms = [m for name, m in model.named_modules() if "norm" in name.rpartition(".")[2] and not name.startswith("attn_pool")]
    real = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    if any(not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine for norm in real) or len({norm.eps for norm in real}) != 1:
        raise Unfit("has norms of several kinds")
    if any(isinstance(m, nn.LayerNorm) for block in model.blocks for name, m in block.named_modules() if name not in ("norm1", "norm2")):
        raise Unfit("has norms inside its attention or its MLPs")
    for block in model.blocks:
        if type(block).__name__ not in ("Block", "EvaBlock") or type(block.attn).__name__ not in ("Attention", "EvaAttention"):
            raise Unfit(f"has blocks of kind {type(block).__name__} with {type(block.attn).__name__}")
        if block.attn.head_dim * block.attn.num_heads != model.embed_dim or getattr(block.attn, "gate", None) is not None:
            raise Unfit("has attention of another width than its tokens")
        kind = type(block.mlp).__name__
        if kind not in ("Mlp", "SwiGLU", "GluMlp") or (kind == "GluMlp" and block.mlp.gate_last):
            raise Unfit(f"has MLPs of kind {kind}")


def _activation(model: Any) -> str:
    found = {named_activation(block.mlp.act) for block in model.blocks}
    if len(found) != 1:
        raise Unfit("has several activations")
    return found.pop()


def named_activation(act: nn.Module) -> str:
    """What transformers calls an activation."""
    kind = type(act).__name__
    if kind == "GELU":
        return "gelu" if getattr(act, "approximate", "none") == "none" else "gelu_pytorch_tanh"
    known = {"GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}
    if kind not in known:
        raise Unfit(f"has the activation {kind}")
    return known[kind]


def _positions(tensors: dict[str, torch.Tensor], patches_alone: bool) -> dict[str, torch.Tensor]:
    """Position embeddings as transformers has them: one for the class token and each patch, none for registers."""
    if "position" not in tensors:
        return tensors
    position, leading = tensors["position"], int("class" in tensors)
    if patches_alone:
        tensors["position"] = torch.cat([torch.zeros_like(position[:leading]), position])
    elif "registers" in tensors:
        last = leading + len(tensors["registers"])
        tensors["registers"] = tensors["registers"] + position[leading:last]
        tensors["position"] = torch.cat([position[:leading], position[last:]])
    return tensors


# ---- out


def architecture_of(vit: ViT, source: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """A registered architecture of timm, the arguments that make it this `ViT`, and what they cannot say."""
    gated = vit.has("0.gate.weight")
    common = {
        "img_size": list(vit.image),
        "patch_size": vit.patch,
        "embed_dim": vit.width,
        "depth": vit.layers,
        "num_heads": vit.heads,
        "qkv_bias": vit.has("0.q.bias"),
        "num_classes": 0,
        "global_pool": "token" if vit.has("class") and not vit.pooled_norm else "avg",
    }
    if vit.theta is not None:
        name, arguments, eps = _eva(vit, gated)
    else:
        name, eps = _base(vit, gated)
        arguments = {
            "mlp_ratio": ratio(vit, 2 if gated else 1),
            "class_token": vit.has("class"),
            "reg_tokens": vit.registers,
            "no_embed_class": False,
            "pre_norm": vit.has("pre.weight"),
            "fc_norm": vit.pooled_norm,
        }
        if vit.has("0.scale1"):
            arguments["init_values"] = 1e-5
        if not gated:
            arguments["act_layer"] = ACTIVATIONS[vit.act]
    if source.get("library") == "timm" and source.get("architecture"):
        name, eps = source["architecture"], vit.eps  # it came from there, with its eps and its kind of MLP
    lost = [] if eps == vit.eps else [f"layer_norm_eps: {vit.eps:g} here, {eps:g} in this layout, which takes no other; see the difference"]
    if vit.act not in ACTIVATIONS:
        raise BadInput(f"activation {vit.act}: timm has no name for it; use --to hf")
    return name, {**common, **arguments}, lost


def _base(vit: ViT, gated: bool) -> tuple[str, float]:
    """timm fixes the eps of the norms, and gated MLPs, by the name of an architecture; all else is an argument."""
    if gated:
        return ("vit_giant_patch14_reg4_dinov2" if vit.registers else "vit_giant_patch14_dinov2"), 1e-6
    if abs(vit.eps - 1e-5) < 1e-9:
        return "vit_base_patch16_clip_224", 1e-5
    if vit.has("0.scale1"):
        return ("vit_base_patch14_reg4_dinov2" if vit.registers else "vit_base_patch14_dinov2"), 1e-6
    return ("vit_base_patch16_224" if vit.has("class") else "vit_base_patch16_siglip_gap_224"), 1e-6


def _eva(vit: ViT, gated: bool) -> tuple[str, dict[str, Any], float]:
    if vit.has("0.q.bias") != vit.has("0.v.bias") or vit.has("0.k.bias"):
        raise BadInput("attention biases: timm's DINOv3 has them on queries and values together, and never on keys; use --to hf")
    if not vit.has("0.out.bias") or not vit.has("0.fc1.bias"):
        raise BadInput("biases: timm's DINOv3 always has them behind attention and in MLPs; use --to hf")
    if vit.act != ("silu" if gated else "gelu"):
        raise BadInput(f"activation {vit.act}: timm's DINOv3 has {'silu in gated' if gated else 'gelu in plain'} MLPs; use --to hf")
    arguments = {
        "mlp_ratio": ratio(vit, 1),
        "num_reg_tokens": vit.registers,
        "rope_temperature": vit.theta,
        "use_fc_norm": vit.pooled_norm,
        "dynamic_img_size": all(side % vit.patch == 0 for side in vit.image),
    }
    if gated:
        return "vit_huge_plus_patch16_dinov3", {**arguments, "swiglu_mlp": True, "swiglu_align_to": 1}, 1e-5
    return "vit_base_patch16_dinov3", arguments, 1e-5


def ratio(vit: ViT, times: int) -> float:
    """timm rounds width times ratio down: half a unit more keeps the product."""
    exact = times * vit.hidden / vit.width
    return exact if int(vit.width * exact) == times * vit.hidden else (times * vit.hidden + 0.5) / vit.width


def keyed(vit: ViT) -> dict[str, torch.Tensor]:
    """A `ViT`'s tensors under timm's names."""
    tensors = dict(vit.tensors)
    if vit.registers and vit.has("position"):
        # timm can give positions to registers as well: zeros there keep the class token and its position apart, bit for bit.
        position = tensors["position"]
        tensors["position"] = torch.cat([position[:1], torch.zeros_like(tensors["registers"]), position[1:]])
    fused = [f"{i}.q+k+v.weight" for i in range(vit.layers)]
    if vit.theta is None:
        fused += [f"{i}.q+k+v.bias" for i in range(vit.layers) if vit.has(f"{i}.q.bias")]
        fused += [f"{i}.gate+fc1.{kind}" for i in range(vit.layers) if vit.has(f"{i}.gate.weight") for kind in ("weight", "bias")]
    return {_key(name, vit): _shaped(name, tensor) for name, tensor in vits.join(tensors, fused).items()}


def _shaped(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(1, -1, tensor.shape[-1]) if name in ("class", "registers", "position") else tensor


def _key(name: str, vit: ViT) -> str:
    whole = {"class": "cls_token", "registers": "reg_token", "position": "pos_embed"}
    if name in whole:
        return whole[name]
    block = vits.BLOCK.match(name)
    if block is None:
        first, _, kind = name.partition(".")
        outside = {"patch": "patch_embed.proj", "pre": "norm_pre", "norm": "fc_norm" if vit.pooled_norm else "norm"}
        return f"{outside[first]}.{kind}"
    part, _, kind = block[2].rpartition(".")
    rotary, gated = vit.theta is not None, vit.has("0.gate.weight")
    if not part:  # scale1, scale2
        return f"blocks.{block[1]}.{f'gamma_{kind[-1]}' if rotary else f'ls{kind[-1]}.gamma'}"
    if rotary and part in ("q", "v"):
        return f"blocks.{block[1]}.attn.{part}_bias"
    inside = {
        "q+k+v": "attn.qkv",
        "out": "attn.proj",
        "gate+fc1": "mlp.fc1",
        "gate": "mlp.fc1_g",
        "fc1": "mlp.fc1_x" if rotary and gated else "mlp.fc1",
        "fc2": "mlp.fc2",
    }
    return f"blocks.{block[1]}.{inside.get(part, part)}.{kind}"
