"""A tower taken out of an MLLM as an encoder, and put back.

Shapes: B images, P patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from pivot.data.collate import join
from pivot.data.vision import Sight, inputs_of
from pivot.encoder import Encoder, source
from pivot.encoder.reading import in_raster_order
from pivot.files import hash_tensors
from pivot.model.families import Family, family
from pivot.pictures import picture
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from pivot.records import Picture

PATCHES = 32  # a side, for towers that take any size: 448 pixels in Qwen-VL's
LIKE = ("do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")


def take_out(model: PreTrainedModel, processor: ProcessorMixin, tap: Tap) -> Encoder:
    """The tower with its tap, an image processor that gives it one square picture, and its projector if that is a module of its own."""
    row = family(model.config)
    tower = cast("PreTrainedModel", model.get_submodule(row.tower))
    own: Any = processor.image_processor  # type: ignore[attr-defined]
    shown = own if row.view == "picture" else _square(row, model.config.vision_config, own)
    projector = None if row.merges else model.get_submodule(row.projector)
    return Encoder(tower, shown, tap, projector, lambda images: _inside(model, processor, shown, images))


def _square(row: Family, vision: PreTrainedConfig, own: Any) -> BaseImageProcessor:
    """For a tower that its MLLM shows tiles, or pictures of any shape: the whole picture at one size, with the MLLM's normalisation."""
    if row.view == "tiles":
        side = vision.image_size
    else:
        cell = vision.patch_size * vision.spatial_merge_size
        least, most = (math.sqrt(own.size[name]) / cell for name in ("shortest_edge", "longest_edge"))
        side = cell * min(max(PATCHES // vision.spatial_merge_size, math.ceil(least)), math.floor(most))
    square = source.square_processor(vision, side)
    for name in LIKE:
        setattr(square, name, getattr(own, name))
    return square


@torch.no_grad()
def _inside(model: PreTrainedModel, processor: ProcessorMixin, square: Any, images: Sequence[Picture]) -> tuple[Tensor, Tensor]:
    """What goes into the projector, (B, P, D) of the tower, and what comes out, (B, P, D) of the LLM: by the MLLM's own processor.

    Of several tiles the first, which shows the whole picture. A tower for pictures of any shape is shown them already square.
    """
    row, seen = family(model.config), list[Tensor]()
    pictures = [picture(image) for image in images]
    if row.view == "patches":
        side = square.size["height"], square.size["width"]
        pictures = [one.resize(side[::-1], Image.Resampling(square.resample)) for one in pictures]
    shown = [Sight(inputs_of(processor, [one])[0], 0) for one in pictures]
    moved = {name: value.to(model.device) for name, value in join(shown).items()}
    handle = model.get_submodule(row.projector).register_forward_hook(lambda _module, inputs, output: seen.extend((inputs[0], output)))
    try:
        row.features(model, moved)
    finally:
        handle.remove()
    if row.view == "patches":
        grid = shown[0].inputs["image_grid_thw"][0, 1:].tolist()
        return in_raster_order(model.config.vision_config, seen[0], len(pictures), (grid[0], grid[1])), seen[1]
    first = list(accumulate((len(one.inputs["pixel_values"]) for one in shown), initial=0))[:-1]
    return seen[0][first], seen[1][first]


def put_back(encoder: Encoder, detached: Encoder, tower: nn.Module) -> None:
    """Copy an encoder's weights into an MLLM's tower, which is also in `detached`. What does not fit is a `BadInput`."""
    given, own = encoder.members(), detached.members()
    if len(given) != len(own):
        raise BadInput(f"attach: an ensemble of {len(given)} does not fit a tower of {len(own)}; give one detached from such an MLLM")
    weights, room = dict[str, Tensor](), dict[str, Tensor]()
    for number, (one, other) in enumerate(zip(given, own, strict=True)):
        for what, theirs, ours in (
            ("vision family", one.model.config.model_type, other.model.config.model_type),
            ("tap", one.tap, other.tap),
            ("normalisation", (one.mean, one.std), (other.mean, other.std)),
        ):
            if theirs != ours:
                raise BadInput(f"attach: the encoder's {what} is {theirs}, the MLLM's {ours}; give an encoder detached from such an MLLM")
        at = f"members.{number}." if detached.family.layout == "joined" else ""
        weights |= {f"{at}{name}": value for name, value in one.model.state_dict().items()}
        room |= {f"{at}{name}": value for name, value in other.model.state_dict().items()}
    unlike = [name for name in sorted(weights.keys() | room.keys()) if _shape(weights, name) != _shape(room, name)]
    if unlike:
        first = f"{unlike[0]} is {_shape(weights, unlike[0])}, not {_shape(room, unlike[0])}"
        raise BadInput(f"attach: {len(unlike)} weights do not fit the MLLM's tower, first {first}; give an encoder of the same size")
    wanted = {name: weights[name].to(value.device, value.dtype) for name, value in tower.state_dict().items()}
    tower.load_state_dict(wanted)
    if hash_tensors(tower.state_dict()) != hash_tensors(wanted):
        raise BadInput("attach: the tower does not hold the encoder's weights after the copy; load the MLLM again")


def _shape(weights: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None
