"""Open a vision model by string: `hf:ID` or a folder. What cannot be opened is one line that says why and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import constants, model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils import logging

from pivot.encoder import towers
from pivot.records import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    Parts = tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]

# One of each line must be there.
NEEDED = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
PREFIXES = ("hf",)
# transformers has each image processor twice and takes the one over torchvision where that is installed. Their pixels differ by
# up to a grey level, so that features would depend on what else is installed: it is always this one.
PIXELS = "pil"
HUB_SECONDS = 10


def load(name: str, dtype: str) -> Parts:
    """Config, vision model in eval mode, and image processor of a source."""
    prefix, colon, rest = name.partition(":")
    if Path(name).is_dir():
        return _folder(Path(name), dtype)
    if colon and prefix == "hf":
        return _hub(rest, dtype)
    if colon and "/" not in prefix:
        near = get_close_matches(prefix, PREFIXES, n=1) or PREFIXES
        raise BadInput(f"encoder '{name}': no prefix '{prefix}:'; write {near[0]}:ID or give a folder")
    raise BadInput(f"encoder '{name}': no such folder; check the path, or write hf:{name} for a model of the Hub")


def _folder(folder: Path, dtype: str) -> Parts:
    missing = [names[0] for names in NEEDED if not any((folder / name).is_file() for name in names)]
    if missing:
        raise BadInput(f"encoder folder {folder}: {', '.join(missing)} not found; give a folder that transformers saved")
    return _open(str(folder), dtype, local_files_only=True)


def _hub(name: str, dtype: str) -> Parts:
    return _open(name, dtype, local_files_only=reach(name, NEEDED))


def reach(name: str, needed: Sequence[tuple[str, ...]]) -> bool:
    """Whether all of a Hub model's needed files are cached; one of each tuple is enough.

    What is cached is taken without asking; else the Hub is asked once, so that being offline costs seconds and not minutes.
    """
    missing: list[str] = []
    try:
        missing = [names[0] for names in needed if not any(isinstance(try_to_load_from_cache(name, file), str) for file in names)]
        if missing:
            model_info(name, timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        raise BadInput(f"hf:{name}: the Hub has no such model, or it is gated; check the name, or log in with `hf auth login`") from None
    except HFValidationError:
        raise BadInput(f"hf:{name}: not a name of the Hub; write hf:OWNER/MODEL") from None
    except Exception as error:  # no network: the classes are the HTTP library's own, and the Hub's client has changed libraries before
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        places = f"the cache {constants.HF_HUB_CACHE} and {constants.ENDPOINT}"
        raise BadInput(
            f"hf:{name}: {', '.join(missing)} not found ({reason}); looked in {places}; "
            f"run `hf download {name}` where there is a network, or give a folder"
        ) from None
    return not missing


def _open(name: str, dtype: str, **options: Any) -> Parts:
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a head that the file lacks gets the same random weights every time
            config = towers.vision_config(AutoConfig.from_pretrained(name, **options))
            model, report = AutoModel.from_pretrained(
                name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
            processor = AutoImageProcessor.from_pretrained(name, backend=PIXELS, **options)
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(f"encoder {name} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    head = towers.family(config).head
    missing = sorted(key for key in report["missing_keys"] if head is None or f"{head}." not in f".{key}")
    if missing:
        raise BadInput(f"encoder {name}: {len(missing)} tensors are not in its weights, the first is {missing[0]}; get the full checkpoint")
    return config, model.eval(), processor


def square_processor(config: PreTrainedConfig, pixels: int) -> BaseImageProcessor:
    """A family's image processor set to take images straight to one square size."""
    size = {"height": pixels, "width": pixels}
    with quiet():
        return getattr(transformers, f"{towers.family(config).processor}Pil")(size=size, do_center_crop=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and load reports: what matters of them is checked and said in one line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
