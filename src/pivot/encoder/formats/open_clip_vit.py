"""A `ViT` as an image tower of open_clip's: its own transformer, or an architecture of timm's where that cannot be it."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from pivot.encoder.formats import timm_vit
from pivot.encoder.formats import vit as vits
from pivot.encoder.formats.vit import Unfit, ViT
from pivot.encoder.hub import library
from pivot.records import BadInput

NAMES = {
    "patch.weight": "conv1.weight",
    "class": "class_embedding",
    "position": "positional_embedding",
    "pre.weight": "ln_pre.weight",
    "pre.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
}
IN_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "q+k+v.weight": "attn.in_proj_weight",
    "q+k+v.bias": "attn.in_proj_bias",
    "out": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "scale1": "ls_1.gamma",
    "scale2": "ls_2.gamma",
}
# Families that its own transformer cannot be, and where timm may have an architecture of just their shape.
THROUGH_TIMM = {
    "siglip": "vit_*_siglip_gap_*",
    "ijepa": "vit_*_gap_*",
    "dinov2_with_registers": "vit_*_reg4_dinov2",
    "dinov3_vit": "vit_*_dinov3*",
}


def built_in(found: ViT) -> dict[str, Any]:
    """open_clip's own vision transformer with a `ViT`'s arithmetic."""
    if found.has("0.gate.weight") or not found.has("0.q.bias"):
        raise BadInput("gated MLPs, or attention without biases: open_clip's transformer has neither; use --to timm or --to hf")
    if found.width % found.heads or found.act not in ("gelu", "gelu_pytorch_tanh", "quick_gelu"):
        raise BadInput(f"activation {found.act}: open_clip's transformer has gelu and quick_gelu; use --to timm or --to hf")
    tower: dict[str, Any] = {
        "image_size": found.image[0] if found.image[0] == found.image[1] else list(found.image),
        "patch_size": found.patch,
        "width": found.width,
        "layers": found.layers,
        "head_width": found.width // found.heads,
        "mlp_ratio": timm_vit.ratio(found, 1),
        "norm_kwargs": {"eps": found.eps},
        "no_ln_pre": not found.has("pre.weight"),
        "final_ln_after_pool": found.pooled_norm,
    }
    if found.has("0.scale1"):
        tower["ls_init_value"] = 1e-5
    if found.act == "gelu_pytorch_tanh":
        tower["act_kwargs"] = {"approximate": "tanh"}
    return tower


def through_timm(found: ViT, family: str) -> dict[str, Any]:
    """A tower of timm by its name, for open_clip passes no arguments to it: one of just this shape, or none."""
    timm = library("timm")
    wanted = {key: tensor.shape for key, tensor in _registered(found).items()}
    pool = "token" if found.has("class") else "avg"
    for name in timm.list_models(THROUGH_TIMM[family]):
        if not fnmatch(name, f"*patch{found.patch}_*"):
            continue
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, global_pool=pool)
        if wanted == {key: tensor.shape for key, tensor in model.state_dict().items()} and _same_arithmetic(model, found):
            return {"image_size": list(found.image), "timm_model_name": name, "timm_pool": pool, "timm_proj": "none"}
    shape = (
        f"{found.layers} blocks of width {found.width}, {found.heads} heads, patches of {found.patch}, {found.image[0]} pixels, {found.act}"
    )
    raise BadInput(
        f"{family} with {shape}: open_clip's own transformer cannot be a {family}, and timm has no architecture of just that shape "
        "for it to use; use --to timm or --to hf"
    )


def _registered(found: ViT) -> dict[str, torch.Tensor]:
    """timm's names as its registered architectures with registers have them: the class token's position added to it."""
    state = timm_vit.keyed(found)
    if found.registers and found.has("position"):
        state["cls_token"] = state["cls_token"] + found.tensors["position"][:1]
        state["pos_embed"] = found.tensors["position"][None, 1:]
    return state


def _same_arithmetic(model: nn.Module, found: ViT) -> bool:
    try:
        theirs = timm_vit.plain(model)
    except Unfit:
        return False
    facts = (
        ("image", "patch", "heads", "act", "theta", "pooled_norm")
        if found.has("position")
        else ("patch", "heads", "act", "theta", "pooled_norm")
    )
    return all(getattr(theirs, fact) == getattr(found, fact) for fact in facts) and abs(theirs.eps - found.eps) < 1e-9


def keyed(found: ViT, family: str) -> dict[str, torch.Tensor]:
    """A `ViT`'s tensors under the names of `model.visual`."""
    if family in THROUGH_TIMM:
        return {f"trunk.{key}": tensor for key, tensor in _registered(found).items()}
    tensors = {name: tensor for name, tensor in found.tensors.items() if name != "patch.bias"}
    if found.has("patch.bias"):  # its patches have no bias: it is the same to add it to their positions
        position = tensors["position"].clone()
        position[1:] += found.tensors["patch.bias"]
        tensors["position"] = position
    fused = [f"{i}.q+k+v.{kind}" for i in range(found.layers) for kind in ("weight", "bias")]
    state = {_key(name): tensor for name, tensor in vits.join(tensors, fused).items()}
    return {**state, "proj": torch.eye(found.width, dtype=found.tensors["class"].dtype)}


def _key(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    block = vits.BLOCK.match(name)
    assert block is not None
    if block[2] in IN_BLOCK:
        return f"transformer.resblocks.{block[1]}.{IN_BLOCK[block[2]]}"
    part, _, kind = block[2].rpartition(".")
    return f"transformer.resblocks.{block[1]}.{IN_BLOCK[part]}.{kind}"
