"""Where a picture's pixels land on the patch grid, so that a mask drawn on the picture can be read on the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pivot.records import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor

# ConvNeXt's image processor names its output by one edge: from 384 pixels on the picture is warped to that square, below it the
# shortest edge is brought to edge / crop_pct, and the square is cut out of its middle.
SQUARE_ONLY = "crop_pct"
WARPED = 384


@dataclass(frozen=True)
class Geometry:
    """What an image processor does to a picture's shape, and the patch grid on what comes out. Lengths are (height, width)."""

    grid: tuple[int, int]
    resized: tuple[int, int] | int | None  # to a size, to a shortest edge, or not at all
    cropped: tuple[int, int] | None  # around the centre; larger than the picture means padded
    share: tuple[float, float] = (1.0, 1.0)  # of what comes out that the grid lies on; a remainder at its end fills no patch

    @classmethod
    def of(cls, processor: BaseImageProcessor, grid: tuple[int, int], patch: int | None = None) -> Self:
        """Read it off an image processor. `patch`: the side of a square patch, if the grid is of such."""
        height, width = output_size(processor)
        share = (grid[0] * patch / height, grid[1] * patch / width) if patch else (1.0, 1.0)
        facts = processor.to_dict()
        if facts.get(SQUARE_ONLY) is not None:
            edge = facts["size"]["shortest_edge"]
            warped = edge >= WARPED
            return cls(grid, (edge, edge) if warped else int(edge / facts[SQUARE_ONLY]), None if warped else (edge, edge), share)
        resized = None
        if facts.get("do_resize"):
            resized = facts["size"].get("shortest_edge") or _sides(facts["size"])
        return cls(grid, resized, _sides(facts["crop_size"]) if facts.get("do_center_crop") else None, share)

    def window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a picture that the encoder sees, in the picture's own pixels: top, left, bottom, right."""
        new_height, new_width = float(height), float(width)
        if isinstance(self.resized, int):
            scale = self.resized / min(height, width)
            new_height, new_width = height * scale, width * scale
        elif self.resized is not None:
            new_height, new_width = self.resized
        crop = self.cropped or (new_height, new_width)
        top, left = (new_height - crop[0]) / 2, (new_width - crop[1]) / 2
        y, x = height / new_height, width / new_width
        return top * y, left * x, (top + crop[0]) * y, (left + crop[1]) * x

    def under(self, image: Image) -> Image:
        """The part of a picture that the grid lies on, to whole pixels. What is beyond the picture is black, as padding may be."""
        top, left, bottom, right = self.window(image.height, image.width)
        height, width = (bottom - top) * self.share[0], (right - left) * self.share[1]
        return image.crop((round(left), round(top), round(left + width), round(top + height)))

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """The share of each patch that a mask (H, W) of the picture covers: (h, w) in 0..1. Exact areas, no resampling."""
        top, left, bottom, right = self.window(*mask.shape)
        rows = _overlap(mask.shape[0], self.grid[0], top, top + (bottom - top) * self.share[0])
        columns = _overlap(mask.shape[1], self.grid[1], left, left + (right - left) * self.share[1])
        return rows @ mask.astype(np.float64) @ columns.T


def output_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width of what an image processor gives. One that follows each picture's own shape is a `BadInput`."""
    facts = processor.to_dict()
    if facts.get(SQUARE_ONLY) is not None and facts["size"].get("shortest_edge"):
        return (facts["size"]["shortest_edge"],) * 2
    size = facts.get("crop_size") if facts.get("do_center_crop") else facts.get("size")
    if not size or not size.get("height") or not size.get("width"):
        what = f"image processor {type(processor).__name__} has no fixed output size"
        raise BadInput(f"{what}; set its size to a height and a width, or a centre crop")
    return _sides(size)


def _sides(size: Any) -> tuple[int, int]:
    return int(size["height"]), int(size["width"])


def _overlap(pixels: int, cells: int, start: float, stop: float) -> np.ndarray:
    """(cells, pixels): which share of each cell each pixel fills, along one axis."""
    edges = np.linspace(start, stop, cells + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(pixels)[None]
    return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) / (high - low)
