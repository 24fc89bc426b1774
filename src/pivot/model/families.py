"""Two tables: how each MLLM architecture is put together, and which LLMs obey a branch mask.

Letters: R rows, T tokens, D width, I images, C channels, P tokens of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pivot.records import BadInput


def _llava_features(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """(I, C, height, width) -> (I * P, D). The method's `pooler_output` is, despite its name, a list of projected (P, D)."""
    return torch.cat(list(model.model.get_image_features(pixels).pooler_output))


def _scatter(embeds: Tensor, at_image: Tensor, features: Tensor) -> Tensor:
    """Image features into their places: embeds (R, T, D), at_image (R, T) bool with as many marks as features (I * P, D)."""
    return embeds.masked_scatter(at_image[..., None], features.to(embeds.dtype))


@dataclass(frozen=True)
class Family:
    """One MLLM architecture of transformers: where its parts are, how images become embeddings and where those go."""

    model_type: str
    tower: str
    projector: str
    llm: str
    head: str
    features: Callable[[PreTrainedModel, Tensor], Tensor]
    place: Callable[[Tensor, Tensor, Tensor], Tensor]


FAMILIES = (
    Family(
        "llava",
        tower="model.vision_tower",
        projector="model.multi_modal_projector",
        llm="model.language_model",
        head="lm_head",
        features=_llava_features,
        place=_scatter,
    ),
)


def family(config: PreTrainedConfig) -> Family:
    """The row of an MLLM's config. Unknown ones get the nearest name."""
    for row in FAMILIES:
        if row.model_type == config.model_type:
            return row
    known = [row.model_type for row in FAMILIES]
    near = get_close_matches(str(config.model_type), known, n=1) or known
    raise BadInput(f"no MLLM family '{config.model_type}'; nearest: {', '.join(near)}; a new one is one row in {__name__}")


def context(config: PreTrainedConfig) -> int | None:
    """Tokens that an MLLM's LLM was made for, if it says."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


@dataclass(frozen=True)
class Language:
    """One LLM family whose attention goes by the 4-D mask and the positions it is given, and by nothing else."""

    model_type: str
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a small random one needs beyond the common sizes


# Each row is held to parity with `repeat` in tests/test_score.py.
LANGUAGES = (
    Language("llama"),
    Language("mistral", tiny={"sliding_window": None}),
    Language("qwen2"),
    Language("qwen3", tiny={"head_dim": 16}),
)


def language(model_type: str) -> Language:
    """The row of an LLM's model type. Unknown ones get the nearest name."""
    for row in LANGUAGES:
        if row.model_type == model_type:
            return row
    known = [row.model_type for row in LANGUAGES]
    near = get_close_matches(model_type, known, n=1) or known
    raise BadInput(f"LLM family '{model_type}' is not in the table; nearest: {', '.join(near)}; a new one is one row in {__name__}")


def refuse_branches(llm: PreTrainedConfig) -> None:
    """Raise unless this LLM can hold several branches in one row: a `BadInput` that says why and names the way out.

    Windows are refused because a branch sits further from its trunk in the row than its positions say.
    """
    attention = llm._attn_implementation
    layers = set(getattr(llm, "layer_types", None) or ["full_attention"])
    if getattr(llm, "sliding_window", None) or layers != {"full_attention"}:
        reason = "it attends through windows"
    elif attention not in ("sdpa", "eager"):
        reason = f"its attention '{attention}' takes no 4-D mask (sdpa and eager do)"
    elif llm.model_type not in {row.model_type for row in LANGUAGES}:
        reason = f"its family is not among the tested ({', '.join(row.model_type for row in LANGUAGES)})"
    else:
        return
    raise BadInput(f"backend shared cannot score several responses with LLM '{llm.model_type}': {reason}; use backend: repeat")
