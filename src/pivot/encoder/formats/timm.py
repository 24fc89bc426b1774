"""timm's layout: config.json with `architecture`, model_args and pretrained_cfg, and model.safetensors with timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CONFIG_MAPPING, TimmWrapperConfig, TimmWrapperModel

from pivot.encoder.formats import vit as vits
from pivot.encoder.formats.preprocess import Preprocess
from pivot.encoder.formats.vit import Unfit, ViT
from pivot.encoder.geometry import output_size
from pivot.encoder.hub import fetch, read_tensors, reason
from pivot.files import read_json, write_json
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    from pivot.encoder.encoder import Encoder

    Parts = tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]

LIBRARY = "timm"
WEIGHTS_FILE = "model.safetensors"
FILES = (WEIGHTS_FILE, "pytorch_model.bin")

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


def library() -> Any:
    """timm, if it is installed."""
    try:
        import timm
    except ImportError:
        raise BadInput("timm is not installed; pip install 'pivot-vision[encoders]'") from None
    return timm


# ---- in


def opened(where: str | Path, dtype: str) -> Parts:
    """A folder in timm's layout, a model of timm by its name, or OWNER/MODEL of the Hub in timm's layout."""
    if isinstance(where, str):
        model = _by_name(where)
        source = {"library": "timm", "name": where, **_facts(model)}
        return adopt(model, dtype, source, f"timm:{where}")
    files = [where / file for file in FILES if (where / file).is_file()]
    if not files:
        raise BadInput(f"encoder folder {where}: {WEIGHTS_FILE} not found; give a folder that timm saved")
    model = _build(f"local-dir:{where}", read_tensors(files[0]), str(where))
    ours = read_json(where / "config.json").get("pivot")
    if ours:
        return restored(plain(model), ours, dtype)
    return adopt(model, dtype, {"library": "timm", **_facts(model)}, str(where))


def _by_name(name: str) -> nn.Module:
    timm = library()
    said = f"timm:{name}"
    if "/" in name:  # a model of somebody's own on the Hub, in timm's layout
        fetch(name, ("config.json",), said)
        return _build(f"hf-hub:{name}", read_tensors(fetch(name, FILES, said)), said)
    if not timm.is_model(name.partition(".")[0]):
        close = get_close_matches(name, [*timm.list_models(pretrained=True), *timm.list_models()], n=3)
        raise BadInput(f"{said}: timm has no such model; nearest: {', '.join(close) or 'see timm.list_models()'}")
    try:
        facts = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        facts = None
    if facts is None or not facts.has_weights:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        near = ", ".join(get_close_matches(name, tags, n=3, cutoff=0.1))
        raise BadInput(f"{said}: timm has no weights under that name; {f'nearest: {near}' if near else 'give a folder with weights'}")
    if facts.hf_hub_id:
        repository = facts.hf_hub_id if not facts.hf_hub_id.endswith("/") else f"{facts.hf_hub_id}{name}"
        file = fetch(repository, (facts.hf_hub_filename,) if facts.hf_hub_filename else FILES, said)
    else:
        file = _from_url(facts.url, said)
    return _build(name, read_tensors(file), said)


def _from_url(url: str, said: str) -> Path:
    """A file that is not on the Hub, through torch's cache, its name holding a hash that is checked."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / url.rpartition("/")[2]
    try:
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.load_state_dict_from_url(url, str(folder), map_location="cpu", weights_only=True, progress=False)
    except OSError as error:
        raise BadInput(f"{said}: {file.name} not found ({reason(error, 120)}); looked in {folder} and {url}; download it there") from None
    return file


def _build(name: str, weights: Mapping[str, torch.Tensor], said: str) -> nn.Module:
    """A timm model with weights that we have read, so that timm opens no file but its config."""
    timm = library()
    overlay = {"source": "", "file": None, "custom_load": False, "state_dict": dict(weights)}
    try:
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, OSError) as error:
        raise BadInput(
            f"{said} cannot be opened: {reason(error)}; is it complete, and is this timm {timm.__version__} new enough?"
        ) from None


def _facts(model: nn.Module) -> dict[str, Any]:
    known: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    facts = {"architecture": known.get("architecture"), "licence": known.get("license"), "origin": known.get("origin_url")}
    return {key: value for key, value in facts.items() if value}


def adopt(model: nn.Module, dtype: str, source: Mapping[str, Any], said: str, preprocess: Preprocess | None = None) -> Parts:
    """A timm model as the family of transformers that computes the same, else inside transformers' own wrapper for timm."""
    facts: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    preprocess = preprocess or Preprocess.of_timm({**facts, "input_size": (3, *_image_size(model))})
    left_out = sorted({LEFT_OUT[key.partition(".")[0]] for key in model.state_dict() if key.partition(".")[0] in LEFT_OUT})
    try:
        found = plain(model)
        config = vits.configure(
            found, f"{source.get('architecture')} {source.get('name')} {'siglip' if 'pooling head' in left_out else ''}"
        )
        stock = vits.stock(found, config, dtype)
    except Unfit as unfit:
        config, stock = _wrapped(model, dtype)
        source = {**source, "wrapped": f"it {unfit}"}
        found = None
    config.pivot_source = {**source, "pooled_norm": True} if found is not None and found.pooled_norm else dict(source)
    if left_out:
        config.pivot_left_out = left_out
    return config, stock, preprocess.processor(config) if found is not None else _square(preprocess)


def _square(preprocess: Preprocess) -> BaseImageProcessor:
    return preprocess.processor(CONFIG_MAPPING["clip_vision_model"]())


def _wrapped(model: nn.Module, dtype: str) -> tuple[PreTrainedConfig, PreTrainedModel]:
    facts: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    arguments = {key: value for key, value in getattr(model, "_model_args", {}).items() if key != "num_classes"}
    config = TimmWrapperConfig(architecture=facts["architecture"], model_args=arguments or None, do_pooling=False)
    wrapper = TimmWrapperModel(config)
    wrapper.timm_model.load_state_dict(model.state_dict(), strict=False)
    missing = set(wrapper.timm_model.state_dict()) - set(model.state_dict())
    if missing:
        raise BadInput(
            f"timm model {facts['architecture']}: without its classifier it has other tensors, such as {sorted(missing)[0]}; use another"
        )
    return config, wrapper.to(getattr(torch, dtype)).eval()


def restored(found: ViT, ours: Mapping[str, Any], dtype: str) -> Parts:
    """An encoder that this package wrote, with the config that it had."""
    facts = dict(ours["config"])
    config = CONFIG_MAPPING[facts.pop("model_type")](**facts)
    model = vits.stock(found, config, dtype)
    seen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in ours["preprocess"].items()}
    return config, model, Preprocess(**seen).processor(config)


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
    size = _image_size(model)
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


def _image_size(model: nn.Module) -> tuple[int, int]:
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
    found = {_named_activation(block.mlp.act) for block in model.blocks}
    if len(found) != 1:
        raise Unfit("has several activations")
    return found.pop()


def _named_activation(act: nn.Module) -> str:
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


def refusal(family: str) -> str | None:
    """Why no encoder of a family can be written; None if some can."""
    if family not in vits.FAMILIES:
        return "it is no plain vision transformer, and timm builds only what it knows by name"
    return None


def write(encoder: Encoder, folder: Path) -> list[str]:
    """Write an encoder; returns what this layout cannot say about it."""
    library()
    found = vits.of(encoder.model, output_size(encoder.processor))
    config = encoder.model.config
    architecture, arguments, lost = architecture_of(found, getattr(config, "pivot_source", {}))
    preprocess = Preprocess.of(encoder.processor)
    known = {"license": getattr(config, "pivot_source", {}).get("licence"), "first_conv": "patch_embed.proj", "classifier": "head"}
    facts = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": found.width,
        "model_args": arguments,
        "pretrained_cfg": {"tag": "pivot", "num_classes": 0, **known, **preprocess.to_timm()},
        "pivot": ours(encoder, found, preprocess),
    }
    write_json(folder / "config.json", facts)
    state = {name: tensor.cpu().contiguous().clone() for name, tensor in keyed(found).items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return [*lost, *resampled(encoder, found), *dropped(encoder)]


def ours(encoder: Encoder, found: ViT, preprocess: Preprocess) -> dict[str, Any]:
    """What this package needs to have the encoder back as it was. The library itself does not look at it."""
    config = {
        key: value for key, value in encoder.model.config.to_dict().items() if key not in ("dtype", "torch_dtype", "transformers_version")
    }
    height, width = found.image
    return {"config": {**config, "image_size": height if height == width else [height, width]}, "preprocess": vars(preprocess)}


def resampled(encoder: Encoder, found: ViT) -> list[str]:
    """Said where positions were resampled on the way out."""
    own = vits.pair(encoder.model.config.image_size)
    if found.image == own or not found.has("position"):
        return []
    return [f"position embeddings: made for {own[0]} by {own[1]} pixels, resampled to {found.image[0]} by {found.image[1]}"]


def dropped(encoder: Encoder) -> list[str]:
    """Said where transformers has parts that no other library has a place for."""
    parts = sorted({key.rpartition(".")[2] if "token" in key else key.partition(".")[0] for key in vits.beside(encoder.model)})
    return [f"{part}: not in this layout; it lies beside the path to the features" for part in parts]


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
            "mlp_ratio": _ratio(vit, 2 if gated else 1),
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
        "mlp_ratio": _ratio(vit, 1),
        "num_reg_tokens": vit.registers,
        "rope_temperature": vit.theta,
        "use_fc_norm": vit.pooled_norm,
        "dynamic_img_size": all(side % vit.patch == 0 for side in vit.image),
    }
    if gated:
        return "vit_huge_plus_patch16_dinov3", {**arguments, "swiglu_mlp": True, "swiglu_align_to": 1}, 1e-5
    return "vit_base_patch16_dinov3", arguments, 1e-5


def _ratio(vit: ViT, times: int) -> float:
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


# ---- through timm alone


def pixels(folder: Path, images: Sequence[Image.Image]) -> torch.Tensor:
    """Images as timm's own evaluation transform for the folder gives them: (B, 3, H, W)."""
    timm = library()
    model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(image) for image in images])


def read(folder: Path, pixel_values: torch.Tensor, tap: Tap) -> tuple[torch.Tensor, str]:
    """Tokens at a tap (B, P, D) through timm alone, and how they are read."""
    model = library().create_model(f"local-dir:{folder}", pretrained=True).to(pixel_values.device, pixel_values.dtype).eval()
    return tokens(model, pixel_values, tap, "model")


def tokens(model: Any, pixel_values: torch.Tensor, tap: Tap, said: str) -> tuple[torch.Tensor, str]:
    """Tokens of a timm model at a tap. Layer 0 lies in front of its blocks, where timm has no output of its own."""
    below = tap.layer % (len(model.blocks) + 1)
    with torch.no_grad():
        if below == 0:
            caught: list[torch.Tensor] = []
            handle = model.blocks[0].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
            model.forward_features(pixel_values)
            handle.remove()
            found, how = caught[0][:, tap.prefix :], f"input of {said}.blocks[0][:, {tap.prefix}:]"
        else:
            found = model.forward_intermediates(pixel_values, indices=[below - 1], output_fmt="NLC", intermediates_only=True)[0]
            how = f"{said}.forward_intermediates(pixels, indices=[{below - 1}], output_fmt='NLC', intermediates_only=True)[0]"
        if not tap.norm:
            return found, how
        pooled = isinstance(model.norm, nn.Identity)
        return (model.fc_norm if pooled else model.norm)(found), f"{said}.{'fc_norm' if pooled else 'norm'}({how})"


def version() -> str:
    """What opened the folder."""
    return f"timm {library().__version__}"


__all__ = ["LIBRARY", "WEIGHTS_FILE", "adopt", "opened", "pixels", "read", "refusal", "version", "write"]
