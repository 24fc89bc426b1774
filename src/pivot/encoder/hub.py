"""Files of published models: which are cached, what the Hub has, and tensors read without running what is in a file."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, model_info, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import logging

from pivot.records import BadInput

# transformers has each image processor twice and takes the one over torchvision where that is installed. Their pixels differ by
# up to a grey level, so that features would depend on what else is installed: it is always this one.
PIXELS = "pil"
HUB_SECONDS = 10
MORE_THAN_TENSORS = "holds more than tensors, and what else is in it is never run; get it as safetensors"


def reach(name: str, needed: Sequence[tuple[str, ...]], said: str | None = None) -> bool:
    """Whether all of a Hub model's needed files are cached; one of each tuple is enough. `said` is how the user named it.

    What is cached is taken without asking; else the Hub is asked once, so that being offline costs seconds and not minutes.
    """
    said = said or f"hf:{name}"
    try:
        missing = [names[0] for names in needed if not any(isinstance(try_to_load_from_cache(name, file), str) for file in names)]
    except HFValidationError:
        raise BadInput(f"{said}: not a name of the Hub; write {said.partition(':')[0]}:OWNER/MODEL") from None
    if missing:
        published(name, missing, said)
    return not missing


def published(name: str, missing: Sequence[str], said: str) -> list[str]:
    """Names of the files that the Hub has of a model; `missing` are those for which it is asked."""
    try:
        return [file.rfilename for file in model_info(name, timeout=HUB_SECONDS).siblings or ()]
    except RepositoryNotFoundError:
        raise BadInput(f"{said}: the Hub has no such model, or it is gated; check the name, or log in with `hf auth login`") from None
    except Exception as error:  # no network: the classes are the HTTP library's own, and the Hub's client has changed libraries before
        raise BadInput(
            f"{said}: {', '.join(missing)} not found ({reason(error, 120)}); looked in the cache {constants.HF_HUB_CACHE} and "
            f"{constants.ENDPOINT}; run `hf download {name}` where there is a network, or give a folder"
        ) from None


def fetch(name: str, files: tuple[str, ...], said: str) -> Path:
    """The first of some files that a Hub model has, from the cache if one of them is there."""
    cached = reach(name, [files], said)
    for file in files:
        try:
            return Path(hf_hub_download(name, file, local_files_only=cached))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            continue
        except OSError as error:
            raise BadInput(f"{said}: {file} cannot be had from {name} ({reason(error, 120)}); try again, or give a folder") from None
    raise BadInput(f"{said}: {name} has none of {', '.join(files)}; get a checkpoint with one of them")


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a torch file that holds nothing else. Code in a file is never run."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"file not found: {file}; check the path") from None
    except pickle.UnpicklingError:
        raise BadInput(f"{file} {MORE_THAN_TENSORS}") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {reason(error)}; get the file again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{file} holds a {type(found).__name__}, not tensors by their names; get a state dict")
    for wrapper in ("state_dict", "model"):  # of training scripts
        if isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    return {str(key).removeprefix("module."): value for key, value in found.items() if isinstance(value, torch.Tensor)}


def library(name: str) -> Any:
    """A library of the extra `encoders`. One that is not there, or cannot be imported, is a `BadInput`."""
    try:
        return import_module(name)
    except ImportError as missing:
        if missing.name != name:
            raise BadInput(
                f"{name} cannot be imported: {reason(missing)}; install it again: pip install 'pivot-vision[encoders]'"
            ) from None
        raise BadInput(f"{name} is not installed; pip install 'pivot-vision[encoders]'") from None


def reason(error: BaseException, length: int = 300) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:length]}"


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
