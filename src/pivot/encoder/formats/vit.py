"""A vision transformer apart from any library: its tensors under one set of names, and what else decides its arithmetic.

Libraries name the same tensors differently and fuse some of them. Each format reads its own layout into a `ViT` and writes one
out; this file does so for transformers, whose families are the rows of `towers.FAMILIES`. Arithmetic that a `ViT` does not
describe is `Unfit`, never approximated.

Names: `patch`, `class`, `registers`, `position`, `pre`, `norm`, and for block i `i.norm1 i.q i.k i.v i.out i.scale1 i.norm2
i.fc1 i.gate i.fc2 i.scale2`, each with `.weight` and `.bias` where it has them. D width, R registers, P patches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, AutoModel

from pivot.encoder import towers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BLOCK = re.compile(r"(\d+)\.(.+)")


class Unfit(Exception):
    """Why a model is not a `ViT`, or why a library has no place for one. The message completes 'it ...'."""


@dataclass(frozen=True)
class ViT:
    """Everything that a plain vision transformer's features depend on."""

    tensors: Mapping[str, torch.Tensor]
    image: tuple[int, int]  # pixels that the position embeddings are made for
    patch: int
    heads: int
    act: str  # as transformers calls it
    eps: float  # of every layer norm
    theta: float | None = None  # base of the rotary positions of a DINOv3, which has no position embeddings
    pooled_norm: bool = False  # the final norm comes after pooling where this was made, so its tokens are not normalised there

    def has(self, name: str) -> bool:
        """Whether it has a tensor."""
        return name in self.tensors

    @property
    def width(self) -> int:
        """D."""
        return self.tensors["patch.weight"].shape[0]

    @property
    def layers(self) -> int:
        """How many blocks."""
        return 1 + max(int(found[1]) for name in self.tensors if (found := BLOCK.match(name)))

    @property
    def hidden(self) -> int:
        """Width inside the MLPs."""
        return self.tensors["0.fc1.weight"].shape[0]

    @property
    def registers(self) -> int:
        """R."""
        return self.tensors["registers"].shape[0] if self.has("registers") else 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image[0] // self.patch, self.image[1] // self.patch


# Patterns and not paths, since transformers renames inner modules between releases; both old and new names are here.
NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(?:.*\.)?patch_embeddings?(?:\.projection)?\.(weight|bias)", r"patch.\1"),
        (r"(?:.*\.)?(?:class_embedding|cls_token)", "class"),
        (r"(?:.*\.)?register_tokens", "registers"),
        (r"(?:.*\.)?position_embeddings?(?:\.weight)?", "position"),
        (r"(?:.*\.)?pre_(?:layrnorm|layernorm)\.(weight|bias)", r"pre.\1"),
        (r".*\.?layers?\.(\d+)\.(?:norm1|layer_norm1|layernorm_before)\.(weight|bias)", r"\1.norm1.\2"),
        (r".*\.?layers?\.(\d+)\.(?:norm2|layer_norm2|layernorm_after)\.(weight|bias)", r"\1.norm2.\2"),
        (r".*\.?layers?\.(\d+)\..*attention\.query\.(weight|bias)", r"\1.q.\2"),
        (r".*\.?layers?\.(\d+)\..*attention\.key\.(weight|bias)", r"\1.k.\2"),
        (r".*\.?layers?\.(\d+)\..*attention\.value\.(weight|bias)", r"\1.v.\2"),
        (r".*\.?layers?\.(\d+)\..*(?:attn|attention)\.([qkv])_proj\.(weight|bias)", r"\1.\2.\3"),
        (r".*\.?layers?\.(\d+)\..*(?:attn|attention)\.(?:out_proj|o_proj|output\.dense)\.(weight|bias)", r"\1.out.\2"),
        (r".*\.?layers?\.(\d+)\.layer_scale([12])\.lambda1", r"\1.scale\2"),
        (r".*\.?layers?\.(\d+)\.(?:mlp\.fc1|mlp\.up_proj|intermediate\.dense)\.(weight|bias)", r"\1.fc1.\2"),
        (r".*\.?layers?\.(\d+)\.mlp\.gate_proj\.(weight|bias)", r"\1.gate.\2"),
        (r".*\.?layers?\.(\d+)\.mlp\.weights_in\.(weight|bias)", r"\1.gate+fc1.\2"),
        (r".*\.?layers?\.(\d+)\.(?:mlp\.fc2|mlp\.down_proj|mlp\.weights_out|output\.dense)\.(weight|bias)", r"\1.fc2.\2"),
        (r"(?:layernorm|post_layernorm|norm)\.(weight|bias)", r"norm.\1"),
    )
]


def named(key: str) -> str | None:
    """Our name of one of transformers' tensors; None for what lies beside the path to the tokens."""
    for pattern, name in NAMES:
        if found := pattern.fullmatch(key):
            return found.expand(name)
    return None


def of(model: PreTrainedModel, pixels: tuple[int, int] | None = None) -> ViT:
    """A stock vision model as a `ViT` for images of some size, by default its own."""
    config = model.config
    row = towers.family(config)
    if row.name not in FAMILIES:
        raise Unfit(f"is a {row.name}, which is no plain vision transformer")
    tensors = {name: tensor.detach() for key, tensor in model.state_dict().items() if (name := named(key))}
    own = pair(config.image_size)
    size = pixels or own
    if size != own and "position" in tensors:
        # The family resamples its positions at each call; the other libraries would do it by another rule, so it is done once here.
        embeddings = model.get_submodule("embeddings")
        patches = torch.zeros(1, (size[0] // config.patch_size) * (size[1] // config.patch_size) + 1, config.hidden_size)
        tensors["position"] = embeddings.interpolate_pos_encoding(patches.to(model.device), *size).detach()  # type: ignore[operator]
    return ViT(
        tensors={name: flat(name, tensor) for name, tensor in split(tensors).items()},
        image=size,
        patch=pair(config.patch_size)[0],
        heads=config.num_attention_heads,
        act="silu" if getattr(config, "use_swiglu_ffn", False) else config.hidden_act,
        eps=config.layer_norm_eps,
        theta=getattr(config, "rope_theta", None),
        pooled_norm=bool(getattr(config, "pivot_source", {}).get("pooled_norm")),
    )


def beside(model: PreTrainedModel) -> list[str]:
    """Tensors of a stock vision model that a `ViT` has no place for: mask tokens, poolers."""
    return [key for key in model.state_dict() if named(key) is None]


def stock(vit: ViT, config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    """A `ViT` as transformers' model of a config. What lies beside it is random, the same every time; mask tokens are zero."""
    with torch.random.fork_rng(devices=[]), next(iter(vit.tensors.values())).device:  # without storage where the tensors have none
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
    names = {key: name for key in model.state_dict() if (name := named(key))}
    joined = join(vit.tensors, [name for name in names.values() if "+" in name])
    if "patch.bias" in names.values() and not vit.has("patch.bias"):
        joined["patch.bias"] = torch.zeros(vit.width)
    if unplaced := sorted(set(joined) - set(names.values())) + sorted(set(names.values()) - set(joined)):
        raise Unfit(f"has {len(unplaced)} tensors more or less than a {config.model_type}, the first is {unplaced[0]}")
    own = model.state_dict()
    state = {key: joined[names[key]].reshape(own[key].shape) if key in names else own[key] for key in own}
    model.load_state_dict(state)
    return model.to(getattr(torch, dtype)).eval()


def configure(vit: ViT, hint: str = "") -> PreTrainedConfig:
    """The config of the family that computes what a `ViT` does. A `hint` decides between families of the same arithmetic."""
    row = towers.family(_family(vit, hint))
    height, width = vit.image
    facts = {
        "image_size": height if height == width else [height, width],
        "patch_size": vit.patch,
        "hidden_size": vit.width,
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "hidden_act": vit.act,
        "layer_norm_eps": vit.eps,
        **row.headless,
        **_own_facts(vit, row.name),
    }
    return CONFIG_MAPPING[row.model_type](**facts)


# What a family's blocks are made of: class token, registers allowed, pre-norm, layer scale, positions.
FAMILIES = {
    "siglip": (False, False, False, False, True),
    "ijepa": (False, False, False, False, True),
    "clip": (True, False, True, False, True),
    "vit": (True, False, False, False, True),
    "dinov2": (True, False, False, True, True),
    "dinov2_with_registers": (True, True, False, True, True),
    "dinov3_vit": (True, True, False, True, False),
}


def _family(vit: ViT, hint: str) -> str:
    made = (vit.has("class"), vit.registers > 0, vit.has("pre.weight"), vit.has("0.scale1"), vit.has("position"))
    fits = [name for name, row in FAMILIES.items() if row == made or (name == "dinov3_vit" and (made[0], False, *made[2:]) == row)]
    if "siglip" in fits:
        fits = ["siglip" if "siglip" in hint.lower() and vit.has("0.q.bias") and vit.image[0] == vit.image[1] else "ijepa"]
    if not fits:
        words = ("class token", "registers", "a norm before its blocks", "layer scale", "position embeddings")
        parts = ", ".join(f"{'' if has else 'no '}{word}" for word, has in zip(words, made, strict=True))
        raise Unfit(f"has {parts}; no family of transformers is made so")
    if vit.image[0] != vit.image[1] and fits[0] not in ("vit", "ijepa"):
        raise Unfit(f"takes images of {vit.image[0]} by {vit.image[1]} pixels; {fits[0]} in transformers takes squares")
    return fits[0]


def _own_facts(vit: ViT, family: str) -> dict[str, Any]:
    biased, gated = vit.has("0.q.bias"), vit.has("0.gate.weight")
    if family in ("siglip", "clip"):
        if not biased:
            raise Unfit(f"has no biases in its attention; {family} in transformers always has")
        return {"intermediate_size": vit.hidden}
    if family in ("vit", "ijepa"):
        return {"intermediate_size": vit.hidden, "qkv_bias": biased}
    if family == "dinov3_vit":
        return {
            "intermediate_size": vit.hidden,
            "use_gated_mlp": gated,
            "num_register_tokens": vit.registers,
            "rope_theta": vit.theta,
            "query_bias": biased,
            "key_bias": vit.has("0.k.bias"),
            "value_bias": vit.has("0.v.bias"),
            "proj_bias": vit.has("0.out.bias"),
            "mlp_bias": vit.has("0.fc1.bias"),
        }
    ratios = [r for r in range(1, 17) if vit.hidden == (swiglu_width(vit.width * r) if gated else vit.width * r)]
    if not ratios:
        raise Unfit(f"has MLPs of width {vit.hidden} in blocks of width {vit.width}; {family} in transformers takes whole ratios")
    registers = {"num_register_tokens": vit.registers} if family == "dinov2_with_registers" else {}
    return {"mlp_ratio": ratios[0], "use_swiglu_ffn": gated, "qkv_bias": biased, **registers}


def swiglu_width(hidden: int) -> int:
    """Width of a DINOv2 gated MLP that replaces a plain one."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def split(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take fused tensors apart: `0.q+k+v.weight` becomes three of the same height."""
    found = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        block, _, parts = stem.rpartition(".")
        if "+" not in parts:
            found[name] = tensor
            continue
        several = parts.split("+")
        for part, piece in zip(several, tensor.chunk(len(several)), strict=True):
            found[f"{block}.{part}.{kind}"] = piece
    return found


def join(tensors: Mapping[str, torch.Tensor], fused: Iterable[str]) -> dict[str, torch.Tensor]:
    """Fuse tensors as a layout has them; the inverse of `split`."""
    found = dict(tensors)
    for name in fused:
        stem, _, kind = name.rpartition(".")
        block, _, parts = stem.rpartition(".")
        found[name] = torch.cat([found.pop(f"{block}.{part}.{kind}") for part in parts.split("+")])
    return found


def flat(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Class tokens are (D,), registers (R, D), positions (1 + P, D), whatever leading ones a library gives them."""
    if name == "class":
        return tensor.flatten()
    return tensor.reshape(-1, tensor.shape[-1]) if name in ("registers", "position") else tensor


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
