"""timm's layout: config.json with `architecture`, model_args and pretrained_cfg, and model.safetensors with timm's names."""

from __future__ import annotations

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
from pivot.encoder.formats.timm_vit import LEFT_OUT, architecture_of, image_size, keyed, plain
from pivot.encoder.formats.vit import Unfit, ViT
from pivot.encoder.geometry import output_size
from pivot.encoder.hub import fetch, library, read_tensors, reason
from pivot.files import read_json, write_json
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    Parts = tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]

LIBRARY = "timm"
WEIGHTS_FILE = "model.safetensors"
FILES = (WEIGHTS_FILE, "pytorch_model.bin")
WRAPPED = "timm_wrapper"  # the family of what has no counterpart in transformers


# ---- in


def opened(where: str | Path, dtype: str) -> Parts:
    """A folder in timm's layout, a model of timm by its name, or OWNER/MODEL of the Hub in timm's layout."""
    if isinstance(where, str):
        model, arguments = _by_name(where)
        facts = _facts(model)
        if "=" in where:  # whoever trained that file decides its licence, not whoever published weights under the tag
            facts = {"architecture": facts["architecture"]}
        return adopt(model, dtype, {"library": "timm", "name": where, **facts}, arguments)
    files = [where / file for file in FILES if (where / file).is_file()]
    if not files:
        raise BadInput(f"encoder folder {where}: {WEIGHTS_FILE} not found; give a folder that timm saved")
    model = _build(f"local-dir:{where}", read_tensors(files[0]), str(where))
    config = read_json(where / "config.json")
    if ours := config.get("pivot"):
        return rewrapped(model, ours, dtype) if _is_wrapped(ours) else restored(plain(model), ours, dtype)
    return adopt(model, dtype, {"library": "timm", **_facts(model)}, config.get("model_args"))


def _by_name(name: str) -> tuple[nn.Module, Mapping[str, Any] | None]:
    """A model, and the arguments that its config has for timm."""
    said = f"timm:{name}"
    if "=" in name:
        architecture, _, weights = name.partition("=")
        return _from_file(architecture, weights, said), {"num_classes": 0}
    if "/" in name:  # a model of somebody's own on the Hub, in timm's layout
        config = read_json(fetch(name, ("config.json",), said))
        return _build(f"hf-hub:{name}", read_tensors(fetch(name, FILES, said)), said), config.get("model_args")
    facts = _published(name)
    if facts.hf_hub_id:
        repository = facts.hf_hub_id if not facts.hf_hub_id.endswith("/") else f"{facts.hf_hub_id}{name}"
        file = fetch(repository, (facts.hf_hub_filename,) if facts.hf_hub_filename else FILES, said)
    else:
        file = from_url(facts.url, said)
    return _build(name, read_tensors(file), said), None


def described(name: str) -> Parts:
    """What `opened` gives for a name of timm's own, without storage: nothing is read or fetched."""
    if "/" in name or "=" in name:
        return opened(name, "float32")
    _published(name)
    with torch.device("meta"):
        model = library("timm").create_model(name, pretrained=False).eval()
    return adopt(model, "float32", {"library": "timm", "name": name, **_facts(model)})


def _published(name: str) -> Any:
    """timm's facts of a model with weights; a wrong name gets the nearest."""
    timm, said = library("timm"), f"timm:{name}"
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
    return facts


def _from_file(name: str, file: str, said: str) -> nn.Module:
    """An architecture of timm's with the weights of a training script's file, such as MoCo v3's. The tag says how to prepare pictures."""
    timm = library("timm")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or name not in timm.list_models(f"{architecture}.*", pretrained=True):
        near = get_close_matches(name, timm.list_models(pretrained=True), n=3)
        what = (
            "timm has no such architecture" if tag else "a tag must say whose preprocessing it had (of ViT-B/16, .mae has ImageNet's mean)"
        )
        raise BadInput(f"{said}: {what}; nearest: {', '.join(near) or 'see timm.list_pretrained()'}")
    with torch.device("meta"):
        wanted = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    weights, first = read_tensors(Path(file)), next(iter(wanted))
    inside = sorted(key.removesuffix(first) for key in weights if key == first or key.endswith(f".{first}"))
    if not inside:
        raise BadInput(f"{said}: {file} has no tensor named {first}; is it of {architecture}, with timm's names?")
    chosen = next((prefix for prefix in inside if "base" in prefix or "teacher" in prefix), inside[0])  # MoCo and DINO keep two of them
    return _build(name, {key: weights[chosen + key] for key in wanted if chosen + key in weights}, said, num_classes=0)


def from_url(url: str, said: str) -> Path:
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


def _build(name: str, weights: Mapping[str, torch.Tensor], said: str, **options: Any) -> nn.Module:
    """A timm model with weights that we have read, so that timm opens no file but its config."""
    timm = library("timm")
    overlay = {"source": "", "file": None, "custom_load": False, "state_dict": dict(weights)}
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    except BadInput:
        raise
    except Exception as error:  # whatever a foreign config raises is one line
        raise BadInput(
            f"{said} cannot be opened: {reason(error)}; is it complete, and is this timm {timm.__version__} new enough?"
        ) from None
    own = set(model.state_dict())
    # timm lets some tensors be missing. Where the file has timm's own names it is known which; it renames what others wrote.
    missing = sorted(key for key in own - set(weights) if key.partition(".")[0] not in LEFT_OUT) if own & set(weights) else []
    if missing:
        raise BadInput(f"{said}: {len(missing)} tensors are not in its weights, the first is {missing[0]}; get the full checkpoint")
    return model


def _facts(model: nn.Module) -> dict[str, Any]:
    known: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    facts = {"architecture": known.get("architecture"), "licence": known.get("license"), "origin": known.get("origin_url")}
    return {key: value for key, value in facts.items() if value}


def adopt(
    model: nn.Module,
    dtype: str,
    source: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
) -> Parts:
    """A timm model as the family of transformers that computes the same, else inside transformers' own wrapper for timm."""
    facts: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    preprocess = preprocess or Preprocess.of_timm({**facts, "input_size": (3, *image_size(model))})
    left_out = sorted({LEFT_OUT[key.partition(".")[0]] for key in model.state_dict() if key.partition(".")[0] in LEFT_OUT})
    try:
        found = plain(model)
        config = vits.configure(
            found, f"{source.get('architecture')} {source.get('name')} {'siglip' if 'pooling head' in left_out else ''}"
        )
        stock = vits.stock(found, config, dtype)
    except Unfit as unfit:
        kept = {key: value for key, value in (arguments or {}).items() if key != "num_classes"}  # the wrapper builds without classes
        config = TimmWrapperConfig(architecture=facts["architecture"], model_args=kept or None, do_pooling=False)
        stock = _wrapped(model, config, dtype)
        source = {**source, "wrapped": f"it {unfit}"}
        found = None
    config.pivot_source = {**source, "pooled_norm": True} if found is not None and found.pooled_norm else dict(source)
    if left_out:
        config.pivot_left_out = left_out
    return config, stock, preprocess.processor(config) if found is not None else _square(preprocess)


def _square(preprocess: Preprocess) -> BaseImageProcessor:
    return preprocess.processor(CONFIG_MAPPING["clip_vision_model"]())


def _wrapped(model: nn.Module, config: TimmWrapperConfig, dtype: str) -> PreTrainedModel:
    """A timm model inside transformers' wrapper of a config."""
    with next(model.parameters()).device:
        wrapper = TimmWrapperModel(config)
    wrapper.timm_model.load_state_dict(model.state_dict(), strict=False)
    missing = set(wrapper.timm_model.state_dict()) - set(model.state_dict())
    if missing:
        raise BadInput(
            f"timm model {config.architecture}: without its classifier it has other tensors, such as {sorted(missing)[0]}; use another"
        )
    return wrapper.to(getattr(torch, dtype)).eval()


def restored(found: ViT, ours: Mapping[str, Any], dtype: str) -> Parts:
    """An encoder that this package wrote, with the config that it had."""
    facts = dict(ours["config"])
    config = CONFIG_MAPPING[facts.pop("model_type")](**facts)
    return config, vits.stock(found, config, dtype), _preprocess(ours).processor(config)


def rewrapped(model: nn.Module, ours: Mapping[str, Any], dtype: str) -> Parts:
    """The same of a timm model without a counterpart in transformers."""
    config = TimmWrapperConfig.from_dict(dict(ours["config"]))
    return config, _wrapped(model, config, dtype), _square(_preprocess(ours))


def _preprocess(ours: Mapping[str, Any]) -> Preprocess:
    seen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in ours["preprocess"].items()}
    return Preprocess(**seen)


def _is_wrapped(ours: Mapping[str, Any]) -> bool:
    return bool(ours["config"]["model_type"] == WRAPPED)


# ---- out


def refusal(family: str) -> str | None:
    """Why no encoder of a family can be written; None if some can."""
    if family not in vits.FAMILIES and family != WRAPPED:
        return "it is no plain vision transformer, and timm builds only what it knows by name"
    return None


def write(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> list[str]:
    """Write an encoder; returns what this layout cannot say about it."""
    library("timm")
    config, preprocess, lost = model.config, Preprocess.of(processor), list[str]()
    if config.model_type == WRAPPED:
        facts, state = _of_wrapped(model, preprocess)
        size = preprocess.out
    else:
        found = vits.of(model, output_size(processor))
        architecture, arguments, lost = architecture_of(found, getattr(config, "pivot_source", {}))
        lost = [*lost, *resampled(model, found), *dropped(model)]
        known = {"first_conv": "patch_embed.proj", "classifier": "head", **preprocess.to_timm()}
        facts = {"architecture": architecture, "num_features": found.width, "model_args": arguments, "pretrained_cfg": known}
        state, size = keyed(found), found.image
    licence = getattr(config, "pivot_source", {}).get("licence")
    facts["pretrained_cfg"] = {"tag": "pivot", "num_classes": 0, "license": licence, **facts["pretrained_cfg"]}
    write_json(folder / "config.json", {**facts, "num_classes": 0, "pivot": ours(config, preprocess, size)})
    kept = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(kept, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return lost


def _of_wrapped(model: PreTrainedModel, preprocess: Preprocess) -> tuple[dict[str, Any], Mapping[str, torch.Tensor]]:
    """Config and tensors of a timm model in its wrapper. Whether its size is fixed is its own matter: others know no such argument."""
    inner: Any = model.timm_model
    known = {key: inner.pretrained_cfg.get(key) for key in ("first_conv", "classifier")}
    seen = {**preprocess.to_timm(), "fixed_input_size": bool(inner.pretrained_cfg.get("fixed_input_size"))}
    facts = {"architecture": model.config.architecture, "num_features": inner.num_features, "model_args": model.config.model_args or {}}
    return {**facts, "pretrained_cfg": {**known, **seen}}, inner.state_dict()


def ours(config: PreTrainedConfig, preprocess: Preprocess, size: tuple[int, int]) -> dict[str, Any]:
    """What this package needs to have the encoder back as it was. The library itself does not look at it."""
    passing = ("dtype", "torch_dtype", "transformers_version")
    kept = {key: value for key, value in config.to_dict().items() if key not in passing}
    if "image_size" in kept:
        kept["image_size"] = size[0] if size[0] == size[1] else list(size)
    return {"config": kept, "preprocess": vars(preprocess)}


def resampled(model: PreTrainedModel, found: ViT) -> list[str]:
    """Said where positions were resampled on the way out."""
    own = vits.pair(model.config.image_size)
    if found.image == own or not found.has("position"):
        return []
    return [f"position embeddings: made for {own[0]} by {own[1]} pixels, resampled to {found.image[0]} by {found.image[1]}"]


def dropped(model: PreTrainedModel) -> list[str]:
    """Said where transformers has parts that no other library has a place for."""
    parts = sorted({key.rpartition(".")[2] if "token" in key else key.partition(".")[0] for key in vits.beside(model)})
    return [f"{part}: not in this layout; it lies beside the path to the features" for part in parts]


# ---- through timm alone


def pixels(folder: Path, images: Sequence[Image.Image]) -> torch.Tensor:
    """Images as timm's own evaluation transform for the folder gives them: (B, 3, H, W)."""
    timm = library("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(image) for image in images])


def read(folder: Path, pixel_values: torch.Tensor, tap: Tap) -> tuple[torch.Tensor, str]:
    """Tokens at a tap (B, P, D) through timm alone, and how they are read."""
    model = library("timm").create_model(f"local-dir:{folder}", pretrained=True).to(pixel_values.device, pixel_values.dtype).eval()
    if not _is_wrapped(read_json(folder / "config.json")["pivot"]):
        return tokens(model, pixel_values, tap, "model")
    at = tap.layer - 1 if tap.layer > 0 else tap.layer
    with torch.no_grad():  # all of them make maps, and some no tokens
        found = model.forward_intermediates(pixel_values, indices=[at], output_fmt="NCHW", intermediates_only=True)[0]
    how = f"model.forward_intermediates(pixels, indices=[{at}], output_fmt='NCHW', intermediates_only=True)[0]"
    return found.flatten(2).transpose(1, 2), f"{how}.flatten(2).transpose(1, 2)"


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
    return f"timm {library('timm').__version__}"
