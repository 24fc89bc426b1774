"""An LLM by string: its weights, its tokenizer with the image token, and whether stock LLaVA can hold it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pivot.encoder import towers
from pivot.encoder.source import quiet, reach
from pivot.model.template import IMAGE
from pivot.records import BadInput

# One of each line must be there.
NEEDED = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"),
)
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What a causal LM of transformers may do to its logits after the linear map, by the config's name for it: LLaVA has no place for it.
AFTER_THE_HEAD = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}


class Place(NamedTuple):
    """Where an LLM lies: a folder, a Hub name or a GGUF file, and whether all of it is on this machine."""

    where: str
    gguf: bool = False
    here: bool = True


def load(source: str, dtype: str, *, to_read: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer of a folder, a Hub model (`hf:OWNER/NAME`), or a GGUF file in either, which is dequantised.

    What it came from is noted in the LLM's config as `pivot_source`, and so travels into an MLLM's config.json. `to_read`: its hidden
    states alone are wanted, and its head may be of any kind.
    """
    place = _place(source, NEEDED)
    with _files(place) as (where, options):
        llm, tokenizer = _open(source, where, dtype, to_read, **options)
    llm.config._name_or_path = source
    llm.config.pivot_source = {"name": source, **(_quantised(place.where) if place.gguf else {})}
    return llm, tokenizer


def described(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with a model without storage, from config and tokenizer alone: weights need not be there."""
    with _files(_place(source, (NEEDED[0], NEEDED[2]))) as (where, options), _failing(source), quiet():
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
        _refuse(config, source)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(config)
        return llm, AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)


@contextmanager
def _files(place: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where transformers is to look, and what it must be told."""
    if not place.gguf:
        yield place.where, {"local_files_only": place.here}
        return
    with TemporaryDirectory() as alone:  # transformers mixes a GGUF's tokenizer with files that lie beside it
        (Path(alone) / "model.gguf").symlink_to(Path(place.where).resolve())
        yield alone, {"local_files_only": True, "gguf_file": "model.gguf"}


@contextmanager
def _failing(source: str) -> Iterator[None]:
    """What goes wrong in the block, in one line."""
    try:
        yield
    except BadInput:
        raise
    except Exception as failed:  # broken files raise whatever their readers run into: struct.error, UnpicklingError, KeyError, ...
        if "trust_remote_code" in str(failed):
            raise BadInput(f"LLM {source}: it needs code of its own, which is never run; choose one that transformers knows") from failed
        raise BadInput(f"cannot open LLM {source}: {first_line(failed)}") from failed


def _open(source: str, where: str, dtype: str, to_read: bool, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dense = getattr(transformers, "GgufConfig", None) if "gguf_file" in options else None  # newer ones can keep weights packed
    weights: dict[str, Any] = {"dtype": getattr(torch, dtype), "weights_only": True, "trust_remote_code": False}
    # What is missing or of another shape is said below, in a line of our own.
    weights |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if dense is not None:
        weights["quantization_config"] = dense(dequantize=True)
    with _failing(source), quiet():
        _refuse(AutoConfig.from_pretrained(where, trust_remote_code=False, **options), source, to_read)
        found: Any = AutoModelForCausalLM.from_pretrained(where, **weights, **options)
        llm, report = found
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    if lacking := sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"]):
        raise BadInput(f"LLM {source}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; get the full checkpoint")
    return llm, tokenizer


# ---- where it lies


def _place(source: str, needed: Sequence[tuple[str, ...]]) -> Place:
    path = Path(source)
    if source.endswith(".gguf"):
        if find_spec("gguf") is None:
            raise BadInput(f"LLM {source}: a GGUF file needs the package gguf; run `pip install 'pivot-vision[gguf]'`")
        if PART.search(source):
            raise BadInput(f"LLM {source}: this is one of several parts; make them one with `llama-gguf-split --merge`")
        if path.is_file():
            return Place(source, gguf=True)
        if source.startswith("hf:") and source.count("/") >= 2:
            owner, name, file = source.removeprefix("hf:").split("/", 2)
            here = reach(f"{owner}/{name}", ((file,),))
            return Place(hf_hub_download(f"{owner}/{name}", file, local_files_only=here), gguf=True)
    elif path.is_dir():
        missing = [names[0] for names in needed if not any((path / name).is_file() for name in names)]
        inside = sorted(file.name for file in path.glob("*.gguf"))
        if missing and inside:
            raise BadInput(f"LLM folder {source}: name one of its GGUF files, such as {path / inside[0]}")
        if missing:
            raise BadInput(f"LLM folder {source}: {', '.join(missing)} not found; give a folder that transformers saved, or a .gguf file")
        return Place(source)
    elif source.startswith("hf:") or (HUB_NAME.fullmatch(source) and not path.parent.is_dir()):
        name = source.removeprefix("hf:")
        return Place(name, here=reach(name, needed))
    raise BadInput(f"cannot open LLM {source}: no such {'file' if source.endswith('.gguf') else 'folder'}; {_advice(path)}")


def _advice(path: Path) -> str:
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf"] if path.parent.is_dir() else []
    if near := get_close_matches(path.name, beside, n=1):
        return f"did you mean {path.parent / near[0]}?"
    return "check the path, or write hf:OWNER/NAME or hf:OWNER/NAME/FILE.gguf for a model of the Hub"


def _quantised(file: str) -> dict[str, str]:
    """The type in which a GGUF file keeps most of its weights, unless that is a plain number."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    kind = max(sizes, key=lambda name: sizes[name])
    return {} if kind in ("F32", "F16", "BF16") else {"dequantised": kind}


# ---- whether it fits


def _refuse(config: PreTrainedConfig, source: str, to_read: bool = False) -> None:
    """Raise for what is no LLM, or for one that stock LLaVA would change, as far as the config tells; `to_read`: never mind LLaVA."""
    kind = str(config.model_type)
    if hasattr(config, "vision_config"):
        raise BadInput(f"LLM {source}: it holds an MLLM ({kind}), not an LLM; open it as an MLLM, or name the LLM it was built on")
    if kind in [name for row in towers.FAMILIES for name in (row.model_type, *row.combined)]:
        raise BadInput(f"LLM {source}: it holds an encoder ({kind}), not an LLM")
    if config.is_encoder_decoder:
        raise BadInput(f"LLM {source}: it is an encoder-decoder ({kind}), where LLaVA takes a decoder alone; choose a causal LLM")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadInput(f"LLM {source}: transformers has no causal LLM of type '{kind}'; choose another")
    if told := getattr(config, "quantization_config", None):
        method = (told if isinstance(told, dict) else told.to_dict()).get("quant_method", "in a way of its own")
        raise BadInput(f"LLM {source}: its weights are quantised ({method}) and cannot be trained; give the full checkpoint or a GGUF")
    if not to_read:
        refuse_head(config)


def refuse_head(config: PreTrainedConfig) -> None:
    """Raise if this LLM does more to its logits than a linear map."""
    for name, harmless in AFTER_THE_HEAD.items():
        if getattr(config, name, None) not in (None, harmless):
            raise BadInput(
                f"LLM '{config.model_type}' cannot be built into an MLLM: it changes its logits after the head ({name} = "
                f"{getattr(config, name)}), and stock LLaVA has no place for that; choose another LLM"
            )


def prepare(llm: PreTrainedModel) -> PreTrainedModel:
    """Make an LLM fit into stock LLaVA, whose head has no bias and can only be tied to a table named `embed_tokens`.

    Other names come apart: the head gets a copy of the table. A bias that is not zero is refused.
    """
    refuse_head(llm.config)
    head = llm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise BadInput(f"LLM '{llm.config.model_type}' cannot be built into an MLLM: its head is no linear map; choose a causal LLM")
    if head.bias is not None:
        if head.bias.device.type != "meta" and bool(head.bias.any()):  # without weights it cannot be told yet
            raise BadInput(
                f"LLM '{llm.config.model_type}' cannot be built into an MLLM: its head has a bias, and stock LLaVA's has none; "
                "choose another LLM (of Phi: Phi-3 and later)"
            )
        head.register_parameter("bias", None)
    if llm.config.tie_word_embeddings and not hasattr(llm.base_model, "embed_tokens"):
        head.weight = nn.Parameter(head.weight.detach().clone())
        llm.config.tie_word_embeddings = False
    return llm


def with_image_token(tokenizer: PreTrainedTokenizerBase, llm: PreTrainedModel, template: bool = False) -> PreTrainedTokenizerBase:
    """Give tokenizer and embeddings the image token, and ChatML's tokens if there is no template, neither its own nor a given one."""
    wanted = [IMAGE] if template or tokenizer.chat_template else [IMAGE, "<|im_start|>", "<|im_end|>"]
    known = tokenizer.get_vocab()
    added = [token for token in wanted if token not in known]
    tokenizer.add_tokens(added, special_tokens=True)
    ids = tokenizer.get_vocab()
    for token in added:  # tokenizers counts its tokens to find the next id, so that where ids have gaps it takes one that is in use
        if ids[token] in known.values():
            raise BadInput(f"LLM '{llm.config.model_type}': its tokenizer leaves ids out, so {token} cannot be added; add it by hand")
    if max(ids.values()) >= llm.config.vocab_size:
        llm.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    return tokenizer


@torch.no_grad()
def prove(llm: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raise unless the MLLM says of text what its LLM says alone, and no token depends on what follows it."""
    ids = torch.arange(1, 7).repeat(2, 1)
    ids[1, -1] = 7  # the rows differ in their last token
    ids = (ids % llm.config.vocab_size).to(llm.device)
    refused = f"LLM '{llm.config.model_type}' cannot be built into an MLLM"
    alone = llm(input_ids=ids, use_cache=False).logits  # (2, 6, V)
    try:
        inside = model(input_ids=ids, use_cache=False).logits
    except (AttributeError, TypeError, ValueError, RuntimeError) as failed:
        # Pure state-space models: LLaVA asks for the cache that attention keeps.
        raise BadInput(f"{refused}: stock LLaVA cannot run it ({first_line(failed)}); choose another LLM") from failed
    close = 16 * torch.finfo(alone.dtype).eps * alone.abs().max()
    if (alone - inside).abs().max() > close:
        raise BadInput(f"{refused}: inside stock LLaVA it gives other logits than alone; choose another LLM")
    if (alone[0, :-1] - alone[1, :-1]).abs().max() > close:
        raise BadInput(f"{refused}: it is not causal, its tokens see what follows them; choose another LLM")


def first_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).strip().partition("\n")[0][:300]
