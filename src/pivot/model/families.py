"""The table of MLLM architectures: one row each, how it is put together. Nothing else in the package asks for an architecture's name.

Letters: R rows, T tokens, D width, I images, P tokens of all images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pivot.data.collate import Layout, Stem
from pivot.encoder import towers
from pivot.model.branches import along
from pivot.records import BadInput, Tap

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One MLLM architecture of transformers: where its parts are, what it makes of pictures, and where its LLM counts them."""

    model_type: str
    tower: str
    projector: str  # may lie inside the tower, and is then no part of it
    llm: str
    head: str
    features: Callable[[PreTrainedModel, Inputs], Tensor]  # (P, D), image after image
    tap: Callable[[PreTrainedConfig], Tap]
    view: Literal["picture", "tiles", "patches"] = "picture"  # what its tower sees: whole pictures of one size, tiles of them, any shape
    beside: tuple[str, ...] = ()  # parameters of the projector outside its module
    positions: Callable[[PreTrainedConfig, Layout, Stem], np.ndarray] | None = None  # (axes, T) of a trunk; none: tokens are counted

    @property
    def merges(self) -> bool:
        """Whether its projector lies inside the tower's module."""
        return self.projector.startswith(f"{self.tower}.")


def _llava(model: PreTrainedModel, images: Inputs) -> Tensor:
    """The method's `pooler_output` is, despite its name, a list of projected (tokens, D)."""
    return torch.cat(list(model.model.get_image_features(images["pixel_values"]).pooler_output))


def _onevision(model: PreTrainedModel, images: Inputs) -> Tensor:
    """Base view and tiles of each image, laid out with a newline behind every row of patches. Several images in a row have no tiles."""
    return torch.cat(list(model.model.get_image_features(**_once_a_row(images)).pooler_output))


def _once_a_row(images: Inputs) -> Inputs:
    """How many images a row has is noted at each of them, and asked for once."""
    company, rows = images["batch_num_images"].tolist(), list[int]()
    while sum(rows) < len(company):
        rows.append(company[sum(rows)])
    return {**images, "batch_num_images": torch.tensor(rows)}


def _qwen(model: PreTrainedModel, images: Inputs) -> Tensor:
    return torch.cat(list(model.model.get_image_features(images["pixel_values"], images["image_grid_thw"]).pooler_output))


def _llava_tap(config: PreTrainedConfig) -> Tap:
    if not isinstance(config.vision_feature_layer, int):
        raise BadInput(f"this MLLM reads layers {config.vision_feature_layer} of its tower; only one can be the tap")
    row = towers.family(config.vision_config)
    if config.vision_feature_select_strategy != row.strategy:
        raise BadInput(
            f"feature strategy '{config.vision_feature_select_strategy}' does not fit a {row.name} tower, which needs '{row.strategy}'; "
            "correct vision_feature_select_strategy in config.json"
        )
    return towers.default_tap(config.vision_config, config.vision_feature_layer)


def _qwen_tap(config: PreTrainedConfig) -> Tap:
    """What the merger reads. The norm in it is the projector's."""
    return towers.default_tap(config.vision_config, -1)


def _qwen_positions(config: PreTrainedConfig, layout: Layout, stem: Stem) -> np.ndarray:
    """(3, T), time, row and column. Text counts on along all three; a picture spans its grid, and text goes on behind its longer side."""
    found, at, onward = [], 0, 0
    for number, place in zip(stem.images, stem.places, strict=True):
        picture = layout.images[number]
        text = place - at
        found.append(np.tile(np.arange(onward, onward + text), (3, 1)))
        time, rows, columns = picture.told["image_grid_thw"]
        merged = (time, rows // config.vision_config.spatial_merge_size, columns // config.vision_config.spatial_merge_size)
        found.append(np.indices(merged).reshape(3, -1) + onward + text)
        at, onward = place + picture.tokens, onward + text + max(merged[1:])
    rest = len(stem.trunk) - at
    return np.concatenate([*found, np.tile(np.arange(onward, onward + rest), (3, 1))], axis=1)


_LLAVA: dict[str, Any] = {
    "tower": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "llm": "model.language_model",
    "head": "lm_head",
    "tap": _llava_tap,
}
_QWEN: dict[str, Any] = {
    "tower": "model.visual",
    "projector": "model.visual.merger",
    "llm": "model.language_model",
    "head": "lm_head",
    "features": _qwen,
    "tap": _qwen_tap,
    "view": "patches",
    "positions": _qwen_positions,
}
FAMILIES = (
    Family("llava", features=_llava, **_LLAVA),
    Family("llava_onevision", features=_onevision, view="tiles", beside=("model.image_newline",), **_LLAVA),
    Family("qwen2_vl", **_QWEN),
    Family("qwen2_5_vl", **_QWEN),
)
# Known by name, refused with the reason.
REFUSED = {
    "llava_next": "its tiles are cut and unpadded otherwise than LLaVA-OneVision's and are not tested here",
    "llava_next_video": "videos cannot be used; only pictures can",
    "video_llava": "videos cannot be used; only pictures can",
}


def family(config: PreTrainedConfig) -> Family:
    """The row of an MLLM's config. Unknown ones get the nearest name."""
    for row in FAMILIES:
        if row.model_type == config.model_type:
            return row
    known = [row.model_type for row in FAMILIES]
    if config.model_type in REFUSED:
        raise BadInput(f"MLLM family '{config.model_type}' cannot be used: {REFUSED[config.model_type]}; known: {', '.join(known)}")
    near = get_close_matches(str(config.model_type), known, n=1) or known
    raise BadInput(f"no MLLM family '{config.model_type}'; nearest: {', '.join(near)}; a new one is one row in {__name__}")


class _Pieces(nn.Module):
    """A part of an MLLM that is not one module of it."""

    def __init__(self, pieces: Mapping[str, nn.Module | nn.Parameter], config: PreTrainedConfig | None = None) -> None:
        super().__init__()
        self.config = config
        for name, piece in pieces.items():
            setattr(self, name.rpartition(".")[2], piece)


def parts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Tower, projector and LLM: every parameter is in exactly one of them. The LLM includes its head, tied or not."""
    row = family(model.config)
    tower, projector, llm, head = (model.get_submodule(getattr(row, name)) for name in ("tower", "projector", "llm", "head"))
    if row.merges:
        pieces = {name: piece for name, piece in tower.named_children() if piece is not projector}
        tower = _Pieces(pieces, cast("PreTrainedModel", tower).config)
    if row.beside:
        projector = _Pieces({row.projector: projector, **{name: model.get_parameter(name) for name in row.beside}})
    return {"tower": tower, "projector": projector, "llm": nn.ModuleDict({"model": llm, "head": head})}


def counted(config: PreTrainedConfig, layout: Layout) -> Callable[[Stem], np.ndarray]:
    """How this MLLM's LLM counts along the trunks of a batch."""
    positions = family(config).positions
    return along if positions is None else lambda stem: positions(config, layout, stem)


def context(config: PreTrainedConfig) -> int | None:
    """Tokens that an MLLM's LLM was made for, if it says.

    Of LongRoPE (Phi-3 with 128k) only those up to which it keeps its short angles: beyond, all rows of a batch get the long ones, so
    that a row's log-probabilities would depend on its company.
    """
    llm = config.get_text_config()
    rope = getattr(llm, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return rope["original_max_position_embeddings"]
    return getattr(llm, "max_position_embeddings", None)
