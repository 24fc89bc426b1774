"""transformers' own layout: config.json, model.safetensors, preprocessor_config.json."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, ViTConfig

from pivot.encoder import reading, towers
from pivot.encoder.formats.preprocess import processor_class
from pivot.encoder.hub import MORE_THAN_TENSORS, PIXELS, published, quiet, reach, reason
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

    Parts = tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]

LIBRARY = "transformers"
WEIGHTS_FILE = "model.safetensors"
SAFE = (WEIGHTS_FILE, "model.safetensors.index.json")
# One of each line must be there. Torch files are opened by transformers with weights_only=True.
NEEDED = (
    ("config.json",),
    (*SAFE, "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
WITHOUT_PILLOW = ("DINOv3ViTImageProcessor",)


def opened(where: str | Path, dtype: str) -> Parts:
    """A folder that transformers saved, or a model of the Hub by its name."""
    if isinstance(where, str):
        local = reach(where, NEEDED)
        if local:
            safe = any(isinstance(try_to_load_from_cache(where, file), str) for file in SAFE)
        else:  # what the Hub has decides: asked for safetensors, transformers takes nothing else
            safe = not set(SAFE).isdisjoint(published(where, SAFE[:1], f"hf:{where}"))
        config, model, processor = _open(where, dtype, safe, local_files_only=local)
        config.pivot_source = {"library": "hf", "name": where}
        return config, model, processor
    missing = [names[0] for names in NEEDED if not any((where / name).is_file() for name in names)]
    if missing:
        raise BadInput(f"encoder folder {where}: {', '.join(missing)} not found; give a folder that transformers saved")
    return _open(str(where), dtype, any((where / file).is_file() for file in SAFE), local_files_only=True)


def described(where: str | Path) -> Parts:
    """The same with a model without storage, from its settings alone. Packed patches hang on values, so that those come whole."""
    settings = (NEEDED[0], NEEDED[2])
    if isinstance(where, Path) and not all(any((where / name).is_file() for name in names) for names in settings):
        return opened(where, "float32")  # which says what is missing
    options = {"local_files_only": reach(where, settings) if isinstance(where, str) else True}
    try:
        with quiet():
            config = vision_config(AutoConfig.from_pretrained(where, **options))
            processor = _processor(str(where), config, **options)
            with torch.device("meta"):
                model = towers.model_class(config)._from_config(config)
    except BadInput:
        raise
    except Exception as error:  # whatever a foreign config raises is one line
        raise BadInput(f"encoder {where} cannot be opened: {reason(error)}; is its config.json whole?") from None
    return opened(where, "float32") if towers.family(config).layout == "packed" else (config, model.eval(), processor)


def _open(name: str, dtype: str, safe: bool, **options: Any) -> Parts:
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a head that the file lacks gets the same random weights every time
            config = vision_config(AutoConfig.from_pretrained(name, **options))
            model, report = towers.model_class(config).from_pretrained(
                name, config=config, dtype=dtype, use_safetensors=safe, output_loading_info=True, **options
            )
            processor = _processor(name, config, **options)
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(f"encoder {name} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    except pickle.UnpicklingError:  # whose own advice is to run what is in the file
        raise BadInput(f"encoder {name} {MORE_THAN_TENSORS}") from None
    except Exception as error:  # whatever a foreign file raises is one line
        raise BadInput(f"encoder {name} cannot be opened: {reason(error)}; get the full checkpoint") from None
    head = towers.family(config).head
    missing = sorted(key for key in report["missing_keys"] if head is None or f"{head}." not in f".{key}")
    if missing:
        raise BadInput(f"encoder {name}: {len(missing)} tensors are not in its weights, the first is {missing[0]}; get the full checkpoint")
    if any(key.startswith("classifier.") for key in report["unexpected_keys"]):
        config.pivot_left_out = [*getattr(config, "pivot_left_out", []), "classification head"]
    return config, model.eval(), processor


def _processor(name: str, config: PreTrainedConfig, **options: Any) -> BaseImageProcessor:
    """Always one that goes through Pillow: transformers has DINOv3's over torchvision alone, whose pixels differ by a grey level."""
    facts, _ = BaseImageProcessor.get_image_processor_dict(name, **options)
    if str(facts.get("image_processor_type")).removesuffix("Fast") in WITHOUT_PILLOW:
        return processor_class(config).from_pretrained(name, **options)
    return AutoImageProcessor.from_pretrained(name, backend=PIXELS, **options)


def vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the encoder alone. A masked autoencoder's is a plain ViT.

    As `ViTMAEModel` it would shuffle its patches at every call, even with nothing masked, and its positions never train.
    """
    if config.model_type != "vit_mae":
        return towers.vision_config(config)
    shared = ViTConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    plain = ViTConfig(**{key: value for key, value in config.to_dict().items() if key in shared})
    plain.pivot_left_out = [*getattr(config, "pivot_left_out", []), "decoder"]
    return plain


def refusal(family: str) -> str | None:
    """Why no encoder of a family can be written; every one can."""
    return None


def write(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> list[str]:
    """Write an encoder; returns what the layout cannot say about it, which is nothing."""
    with quiet():
        model.save_pretrained(folder, max_shard_size="1TB")
        processor.save_pretrained(folder)
    return []


def pixels(folder: Path, images: Sequence[Image.Image]) -> torch.Tensor:
    """Images as the folder's own processor gives them to the model: (B, 3, H, W)."""
    with quiet():
        return AutoImageProcessor.from_pretrained(folder, backend=PIXELS)(images=images, return_tensors="pt")["pixel_values"]


def read(folder: Path, pixel_values: torch.Tensor, tap: Tap) -> tuple[torch.Tensor, str]:
    """Tokens at a tap (B, P, D) through transformers alone, and how they are read."""
    with quiet():
        config = AutoConfig.from_pretrained(folder)
        model = towers.model_class(config).from_pretrained(folder).to(pixel_values.device, pixel_values.dtype).eval()
    row = towers.family(config)
    with torch.no_grad():
        if row.layout == "packed":  # takes patches and grids instead, and keeps an order of its own
            return reading.hidden(model, pixel_values, tap, stop=False), f"hidden_states[{tap.layer}], its patches in raster order"
        at = tap.layer - 1 if row.traced and tap.layer > 0 else tap.layer  # these show what their stages give, and no layer 0
        found, said = model(pixel_values, output_hidden_states=True).hidden_states[at], f"hidden_states[{at}]"
        if row.layout == "map":
            found, said = found.flatten(2).transpose(1, 2), f"{said}.flatten(2).transpose(1, 2)"
        if tap.norm:
            norm = next(name for name, module in model.named_modules() if module is towers.final_norm(model))
            found, said = towers.final_norm(model)(found), f"model.{norm}({said})"
    return (found, said) if row.layout == "map" else (found[:, tap.prefix :], f"{said}[:, {tap.prefix}:]")


def version() -> str:
    """What opened the folder."""
    return f"transformers {transformers.__version__}"
