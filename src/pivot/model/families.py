"""The table of MLLM architectures: one row each, how it is put together.

Letters: R rows, T tokens, D width, I images, C channels, P tokens of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

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
