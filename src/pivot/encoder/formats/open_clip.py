"""open_clip's layout: open_clip_config.json with model_cfg and preprocess_cfg, and open_clip_model.safetensors.

A model there is an image tower and a text tower. An encoder goes out as the image tower with a stub for the text, made so that
it cannot be used by mistake: it knows two tokens, and all its weights are zero.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pivot.encoder import towers
from pivot.encoder.formats import timm as timms
from pivot.encoder.formats import vit as vits
from pivot.encoder.formats.open_clip_vit import IN_BLOCK, NAMES, THROUGH_TIMM, built_in, keyed, through_timm
from pivot.encoder.formats.preprocess import Preprocess
from pivot.encoder.formats.timm_vit import named_activation, plain
from pivot.encoder.formats.vit import Unfit, ViT
from pivot.encoder.geometry import output_size
from pivot.encoder.hub import fetch, library, read_tensors, reason
from pivot.files import read_json, write_json
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    Parts = tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]

LIBRARY = "open_clip"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.bin")


# ---- in


def opened(where: str | Path, dtype: str) -> Parts:
    """A folder in open_clip's layout, or MODEL/TAG as its tables have it."""
    if isinstance(where, str):
        facts = _published(where)
        return _adopt_named(where, _by_name(where, facts), facts, dtype)
    files = [where / file for file in (*FILES, "model.safetensors") if (where / file).is_file()]
    if not files:
        raise BadInput(f"encoder folder {where}: {WEIGHTS_FILE} not found; give a folder that open_clip saved")
    config = read_json(where / CONFIG_FILE)
    if ours := config.get("pivot"):
        # A detached encoder has nothing but its image tower, so that is built alone.
        return timms.restored(_plain(_visual(where, read_tensors(files[0]))), ours, dtype)
    model = _build(f"local-dir:{where}", files[0], str(where))
    return _adopt(model, model.visual.preprocess_cfg, dtype, {"library": "open_clip"}, str(where))


def _visual(folder: Path, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    model = _create(f"local-dir:{folder}", load_weights=False)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise BadInput(f"encoder folder {folder}: {reason(error)}; detach the encoder again") from None
    return model.visual


def described(name: str) -> Parts:
    """What `opened` gives for MODEL/TAG, without storage: nothing is read or fetched."""
    facts = _published(name)
    with torch.device("meta"):
        model = _create(name.rpartition("/")[0], pretrained=None, device="meta", force_quick_gelu=bool(facts.get("quick_gelu")))
    return _adopt_named(name, model, facts, "float32")


def _published(where: str) -> Mapping[str, Any]:
    """open_clip's facts of MODEL/TAG; a wrong name gets the nearest."""
    open_clip, said = library("open_clip"), f"open_clip:{where}"
    name, _, tag = where.rpartition("/")
    if name not in open_clip.list_models():
        asked = name or tag
        near = get_close_matches(asked, open_clip.list_models(), n=3) or ["see open_clip.list_models()"]
        raise BadInput(f"{said}: open_clip has no model '{asked}'; nearest: {', '.join(near)}; write open_clip:MODEL/TAG")
    facts = open_clip.get_pretrained_cfg(name, tag)
    if not facts:
        tags = open_clip.list_pretrained_tags_by_model(name)
        near = get_close_matches(tag, tags, n=3, cutoff=0.3) or tags
        raise BadInput(
            f"{said}: open_clip has no weights '{tag}' of {name}; nearest: {', '.join(near) or 'none, it has no weights at all'}"
        )
    return facts


def _by_name(where: str, facts: Mapping[str, Any]) -> Any:
    said = f"open_clip:{where}"
    if facts.get("hf_hub"):
        repository, _, file = facts["hf_hub"].rpartition("/")
        safe = (f"{Path(file).stem}.safetensors", file) if file else FILES
        file = fetch(repository, safe, said)
    else:
        file = timms.from_url(facts["url"], said)
    return _build(where.rpartition("/")[0], file, said, quick_gelu=bool(facts.get("quick_gelu")))


def _adopt_named(where: str, model: Any, facts: Mapping[str, Any], dtype: str) -> Parts:
    """A model of open_clip's tables, whose pictures are prepared as its tag says."""
    name, _, tag = where.rpartition("/")
    own = model.visual.preprocess_cfg
    preprocess = {**own, **{key: value for key, value in facts.items() if key in own}}
    source = {"library": "open_clip", "name": where, "architecture": name, "tag": tag}
    return _adopt(model, preprocess, dtype, source, f"open_clip:{where}")


def _build(name: str, file: Path, said: str, quick_gelu: bool = False) -> Any:
    """A whole model. Tags say whether they were trained with QuickGELU: open_clip itself only warns where the name differs."""
    options: dict[str, Any] = {} if name.startswith("local-dir:") else {"pretrained": str(file), "force_quick_gelu": quick_gelu}
    if file.suffix != ".safetensors":
        read_tensors(file)  # refuses what is more than tensors before the library opens it
    try:
        return _create(name, **options)
    except BadInput:
        raise
    except Exception as error:  # whatever a foreign config or file raises is one line
        raise BadInput(f"{said} cannot be opened: {reason(error)}; get the full checkpoint") from None


@contextmanager
def _silent() -> Iterator[None]:
    """open_clip says on the root logger that a model has random weights, which is what is asked for when only its shape matters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _create(name: str, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]), _silent():
        return library("open_clip").create_model(name, weights_only=True, pretrained_text=False, **options).eval()


def _adopt(model: Any, preprocess: Mapping[str, Any], dtype: str, source: Mapping[str, Any], said: str) -> Parts:
    """The image tower of a model as the family of transformers that computes the same."""
    visual = model.visual
    seen = Preprocess.of_open_clip(preprocess)
    if type(visual).__name__ == "TimmModel":
        known = {**source, "trunk": visual.trunk.pretrained_cfg["architecture"]}
        config, tower, processor = timms.adopt(visual.trunk, dtype, {**known, "architecture": known["trunk"]}, preprocess=seen)
        config.pivot_left_out = sorted({"text tower", *getattr(config, "pivot_left_out", ())} - {"classification head"})
        return config, tower, processor
    try:
        found = _plain(visual)
        config = vits.configure(found)
        tower = vits.stock(found, config, dtype)
    except Unfit as unfit:
        raise BadInput(f"{said}: its image tower {unfit}; choose one that is a vision transformer") from None
    config.pivot_left_out = ["text tower", "projection"]
    config.pivot_source = {**source, "pooled_norm": True} if found.pooled_norm else dict(source)
    return config, tower, seen.processor(config)


def _plain(visual: Any) -> ViT:
    """open_clip's own vision transformer as a `ViT`."""
    if type(visual).__name__ == "TimmModel":
        return plain(visual.trunk)
    if type(visual).__name__ != "VisionTransformer":
        raise Unfit(f"is a {type(visual).__name__}, which is no plain vision transformer")
    if visual.attn_pool is not None:
        raise Unfit("pools by attention in front of its final norm")
    blocks = visual.transformer.resblocks
    if type(blocks[0]).__name__ != "ResidualAttentionBlock" or visual.patch_size[0] != visual.patch_size[1]:
        raise Unfit("has blocks of its own kind, or patches that are not square")
    back = {value: key for key, value in NAMES.items()}
    inside = [(re.compile(rf"transformer\.resblocks\.(\d+)\.{re.escape(theirs)}"), ours) for ours, theirs in IN_BLOCK.items()]
    raw = {}
    for key, tensor in visual.state_dict().items():
        if key == "proj":
            continue
        name = back.get(key)
        for pattern, ours in inside:
            if found := pattern.match(key):
                name = f"{found[1]}.{ours}{key[found.end() :]}"
        if name is None:
            raise Unfit(f"has a tensor {key}, which has no place in a plain vision transformer")
        raw[name] = tensor.detach()
    return ViT(
        tensors=vits.split(raw),
        image=(visual.image_size[0], visual.image_size[1]),
        patch=visual.patch_size[0],
        heads=blocks[0].attn.num_heads,
        act=named_activation(blocks[0].mlp.gelu),
        eps=blocks[0].ln_1.eps,
        pooled_norm=visual.final_ln_after_pool,
    )


# ---- out


def refusal(family: str) -> str | None:
    """Why no encoder of a family can be written; None if some can."""
    if family not in vits.FAMILIES:
        return "it is no plain vision transformer"
    return None


def write(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> list[str]:
    """Write an encoder; returns what this layout cannot say about it."""
    library("open_clip")
    found = vits.of(model, output_size(processor))
    family = towers.family(model.config).name
    tower = through_timm(found, family) if family in THROUGH_TIMM else built_in(found)
    preprocess = Preprocess.of(processor)
    seen, lost = preprocess.to_open_clip()
    facts = {
        "model_cfg": {
            "embed_dim": found.width,
            "quick_gelu": found.act == "quick_gelu",
            "vision_cfg": tower,
            "text_cfg": {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1},
            "custom_text": family in THROUGH_TIMM,
        },
        "preprocess_cfg": seen,
        "pivot": timms.ours(model.config, preprocess, found.image),
    }
    write_json(folder / CONFIG_FILE, facts)
    stub = _create(f"local-dir:{folder}", load_weights=False)
    state = {key: torch.zeros_like(tensor) for key, tensor in stub.state_dict().items()}
    state.update({f"visual.{key}": tensor for key, tensor in keyed(found, family).items()})
    dtype = next(iter(found.tensors.values())).dtype
    state = {key: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous().clone() for key, value in state.items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    said = "text tower: a stub of zeros that knows two tokens, since open_clip wants one; there is no zero-shot use of this folder"
    return [said, *lost, *timms.resampled(model, found), *timms.dropped(model)]


# ---- through open_clip alone


def pixels(folder: Path, images: Sequence[Image.Image]) -> torch.Tensor:
    """Images as open_clip's own evaluation transform for the folder gives them: (B, 3, H, W)."""
    with _silent():
        _, _, transform = library("open_clip").create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    return torch.stack([transform(image) for image in images])


def read(folder: Path, pixel_values: torch.Tensor, tap: Tap) -> tuple[torch.Tensor, str]:
    """Tokens at a tap (B, P, D) through open_clip alone, and how they are read."""
    visual = _create(f"local-dir:{folder}").visual.to(pixel_values.device, pixel_values.dtype)
    if type(visual).__name__ == "TimmModel":
        return timms.tokens(visual.trunk, pixel_values, tap, "model.visual.trunk")
    below = tap.layer % (len(visual.transformer.resblocks) + 1)
    with torch.no_grad():
        if below == 0:
            found, how = visual._embeds(pixel_values)[:, tap.prefix :], f"model.visual._embeds(pixels)[:, {tap.prefix}:]"
        else:
            options = {"indices": [below - 1], "output_fmt": "NLC", "intermediates_only": True}
            found = visual.forward_intermediates(pixel_values, **options)["image_intermediates"][0]
            said = ", ".join(f"{key}={value!r}" for key, value in options.items())
            how = f"model.visual.forward_intermediates(pixels, {said})['image_intermediates'][0]"
        return (visual.ln_post(found), f"model.visual.ln_post({how})") if tap.norm else (found, how)


def version() -> str:
    """What opened the folder."""
    return f"open_clip {library('open_clip').__version__}"
