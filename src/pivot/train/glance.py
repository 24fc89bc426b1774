"""What a loss depends on in a picture: a gradient at its patch tokens, beside what they are, on its grid.

Letters: P patch tokens of a picture, D width, N entries of all pictures of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pivot.encoder.geometry import Geometry
from pivot.encoder.reading import in_raster_order
from pivot.model.branches import place
from pivot.model.families import counted

if TYPE_CHECKING:
    from torch import Tensor

    from pivot.data.collate import Layout
    from pivot.model import MLLM, Scorer

At = Literal["encoder", "projector"]


@dataclass(frozen=True)
class Glance:
    """What an example's loss depends on in its first picture. `losses`: with the given weights, and with those that were looked at."""

    gradient: np.ndarray  # (P, D), in raster order
    activation: np.ndarray  # (P, D)
    geometry: Geometry
    losses: tuple[float, float]

    def l1(self) -> np.ndarray:
        """Per token the L1 norm of the gradient, on the grid: what the paper's authors show."""
        return self._grid(np.abs(self.gradient.astype(np.float64)).sum(1))

    def l2(self) -> np.ndarray:
        """Per token the L2 norm of the gradient, on the grid. In fp64: of an example that is learned, squares vanish in fp32."""
        return self._grid(np.sqrt(np.square(self.gradient.astype(np.float64)).sum(1)))

    def cam(self) -> np.ndarray:
        """Grad-CAM (Selvaraju et al. 2017) of the score -loss, on the grid: each channel weighs what its gradient is in the mean, and
        what speaks against the score is cut off.
        """
        weights = -self.gradient.astype(np.float64).mean(0)  # (D,)
        return self._grid(np.maximum(self.activation.astype(np.float64) @ weights, 0))

    def _grid(self, tokens: np.ndarray) -> np.ndarray:
        return tokens.reshape(self.geometry.grid)


@dataclass(frozen=True)
class Finder:
    """Finds the first picture of a row again in what passes an MLLM's projector, before it or behind it."""

    mllm: MLLM
    scorer: Scorer
    at: At

    @cached_property
    def _fixed(self) -> Geometry | None:
        """That of a tower that sees pictures, or tiles of them, at one size; None where each has a grid of its own."""
        return None if self.mllm.family.view == "patches" else self.mllm.detach().geometry

    def glance(self, layout: Layout, row: int, gradient: Tensor, passing: Tensor, losses: tuple[float, float]) -> Glance:
        """What of a batch's gradient and tokens is of that row's first picture."""
        places, geometry = self._find(layout, row)
        # A backend that shows the picture with each response has its gradient in as many pieces.
        whole = np.sum([self._raster(gradient, place, geometry) for place in places], axis=0)
        return Glance(whole, self._raster(passing, places[0], geometry), geometry, losses)

    def _find(self, layout: Layout, row: int) -> tuple[list[slice], Geometry]:
        """Where the entries of that row's first picture lie, as often as the model is shown it; and its geometry.

        Of several tiles the first, which shows the whole picture.
        """
        number = next(image for stem in layout.stems if stem.example == row for image in stem.images)
        image = layout.images[number]
        if self._fixed is not None:
            geometry, entries = self._fixed, 1
        else:
            (_, height, width), shrunk = image.told["image_grid_thw"], self._cell if self.at == "projector" else 1
            geometry = Geometry((height // shrunk, width // shrunk), None, None)  # warped to that shape, never cropped
            entries = geometry.grid[0] * geometry.grid[1]
        shown = place(layout, self.scorer.backend, counted(self.scorer.config, layout)).images
        sizes = [self._passing(layout.images[one].entries) for one in shown]
        starts = [sum(sizes[:at]) for at, one in enumerate(shown) if one == number]
        return [slice(start, start + entries) for start in starts], geometry

    def _raster(self, passing: Tensor, where: slice, geometry: Geometry) -> np.ndarray:
        """(P, D) of what lies there of the tokens that pass: (N, P, D), or (N, D) of pictures that have grids of their own."""
        own = passing[where].to(torch.promote_types(passing.dtype, torch.float32)).cpu()
        if self._fixed is not None:
            return own[0].numpy()
        (height, width), config = geometry.grid, self.scorer.config.vision_config
        if self.at == "encoder":
            return in_raster_order(config, own, 1, geometry.grid)[0].numpy()
        # Cells lie in the order of windows behind the projector, too: each stands for its patches, of which one is then taken.
        cell = self._cell
        patches = in_raster_order(config, own.repeat_interleave(cell * cell, 0), 1, (height * cell, width * cell))[0]
        return patches.unflatten(0, (height, cell, width, cell))[:, 0, :, 0].flatten(0, 1).numpy()

    @property
    def _cell(self) -> int:
        """Patches along each side of what the projector makes one token of."""
        return self.scorer.config.vision_config.spatial_merge_size

    def _passing(self, entries: int) -> int:
        merged = self._fixed is None and self.at == "projector"
        return entries // self._cell**2 if merged else entries
