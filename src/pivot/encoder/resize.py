"""An encoder at another image size: position embeddings resampled, and its image processor set to that size.

Families that take any size keep their weights; so does every encoder at the size that it has.
Letters: P positions of patches on a grid h x w, S positions in front of them, D width.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel

from pivot.encoder import towers
from pivot.encoder.geometry import SQUARE_ONLY, output_size
from pivot.encoder.tower import PivotTower, join
from pivot.records import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

POSITIONS = ("position_embedding.weight", "position_embeddings", "position_embeddings.weight")


def sides(pixels: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width. Anything but one or two positive whole numbers is a `BadInput`."""
    found = (pixels, pixels) if isinstance(pixels, int) else tuple(pixels)
    if len(found) != 2 or not all(isinstance(side, int) and side > 0 for side in found):
        raise BadInput(f"pixels {pixels}: give one number, or height and width")
    return found[0], found[1]


def resized(model: PreTrainedModel, processor: BaseImageProcessor, size: tuple[int, int]) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Model and image processor at another size. Of a `pivot_tower` all members that were made for the first one's size follow.

    A grid that is not the first member's own was asked for, and stays.
    """
    if isinstance(model, PivotTower):
        members = [
            replace(part, model=model_at(part.model, size), pixels=size) if part.pixels == output_size(processor) else part
            for part in model.parts()
        ]
        own = model.config.members[0]["grid"]
        grid = None if model.config.grid == own else (model.config.grid[0], model.config.grid[1])
        return join(members, grid), processor_at(processor, size)
    return model_at(model, size), processor_at(processor, size)


def model_at(model: PreTrainedModel, size: tuple[int, int]) -> PreTrainedModel:
    """The model at another size: itself where nothing in it depends on that, else a new one with resampled positions."""
    config = model.config
    row = towers.family(config)
    if row.any_size:
        return model
    before = towers.grid(config)
    settings = {**copy.deepcopy(config.to_dict()), "image_size": size[0] if size[0] == size[1] else list(size)}
    try:
        new = type(config)(**settings)
        if new.to_dict()["image_size"] == config.to_dict()["image_size"]:
            return model
        after = towers.grid(new)
        with torch.random.fork_rng(devices=[]), torch.device(model.device):  # which may be one without storage
            larger = AutoModel.from_config(new)
        state = {
            name: resampled(tensor, before, after) if name.endswith(POSITIONS) else tensor for name, tensor in model.state_dict().items()
        }
        larger.load_state_dict(state)
    except BadInput:
        raise
    except (TypeError, ValueError, RuntimeError) as failed:  # some families are built for squares alone
        reason = " ".join(str(failed).split())[:160]
        raise BadInput(f"a {row.name} cannot be built for images of {size[0]} x {size[1]} pixels ({reason}); choose a square") from None
    return larger.to(model.device, model.dtype).train(model.training)


def resampled(table: torch.Tensor, before: tuple[int, int], after: tuple[int, int]) -> torch.Tensor:
    """Position embeddings (..., S + P, D) on another grid: bicubic, with antialiasing where it gets smaller. The first S are kept."""
    if before == after:
        return table
    rows, patches = table.flatten(0, -2), before[0] * before[1]
    first, rest = rows[: len(rows) - patches], rows[len(rows) - patches :]
    field = rest.double().T.unflatten(1, before)[None]  # (1, D, h, w)
    moved = F.interpolate(field, size=after, mode="bicubic", antialias=True, align_corners=False)[0]
    found = torch.cat([first, moved.flatten(1).T.to(table.dtype)])
    return found.reshape(*table.shape[:-2], *found.shape)


def processor_at(processor: BaseImageProcessor, size: tuple[int, int]) -> BaseImageProcessor:
    """The image processor at another size, with its own way there: straight, or the shortest edge and then a crop."""
    old = output_size(processor)
    if old == size:
        return processor
    facts = processor.to_dict()
    height, width = size
    changes: dict[str, Any] = {"size": {"height": height, "width": width}}
    if facts.get("do_center_crop"):
        changes["crop_size"] = {"height": height, "width": width}
        if edge := facts["size"].get("shortest_edge"):
            changes["size"] = {"shortest_edge": round(edge * max(size) / max(old))}
        else:
            scale = height / old[0], width / old[1]
            changes["size"] = {side: round(facts["size"][side] * by) for side, by in zip(("height", "width"), scale, strict=True)}
    elif facts.get(SQUARE_ONLY) is not None:
        if height != width:
            raise BadInput(f"{type(processor).__name__} makes squares only; choose one number of pixels instead of {size}")
        changes["size"] = {"shortest_edge": height}
    return type(processor).from_dict({**facts, **changes})
