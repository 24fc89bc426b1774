"""Stage 0 by dense supervision: every patch of the tiny tower learns what lies under it.

A tiny MLLM that learns by question answering alone stays blind, so its tower first learns to name, per patch, the kind of
object, its colour, and for writing the character. Texture and orientation are left out on purpose: the linear probe asks
for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pivot.records import BadInput, Example
from pivot.world.glyphs import DIGITS, LETTERS
from pivot.world.scene import CLASSES, COLOURS

# What a patch can be asked, and the answers. -100 in a target means that the patch is not asked.
HEADS: dict[str, tuple[str, ...]] = {"kind": CLASSES, "colour": tuple(COLOURS), "letter": (*LETTERS, *DIGITS)}
_INDEX = {head: {name: i for i, name in enumerate(names)} for head, names in HEADS.items()}
IGNORE = -100


@dataclass(frozen=True)
class Pretraining:
    """Cross-entropy per patch. `share` is how much of a patch an object must cover to be its content."""

    share: float = 0.15
    batch: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    save_every: int = 200

    def init(self, width: int) -> nn.Module:
        """The heads: thrown away after the stage."""
        return nn.ModuleDict({head: nn.Linear(width, len(names)) for head, names in HEADS.items()})

    def targets(self, examples: Sequence[Example], grid: int) -> dict[str, Tensor]:
        """Head -> (B, grid * grid) class indices."""
        rows = [_patches(example, grid, self.share) for example in examples]
        return {head: torch.from_numpy(np.stack([row[head] for row in rows])) for head in HEADS}

    def loss(self, tower: nn.Module, batch: Mapping[str, Any], state: nn.Module) -> tuple[Tensor, dict[str, float]]:
        """Mean over heads of the cross-entropy over the patches that the head asks. `batch`: pixels (B,3,H,W), targets."""
        tokens = tower(pixel_values=batch["pixels"]).last_hidden_state  # (B, P, D)
        losses, metrics = [], {}
        for head, target in batch["targets"].items():
            logits = state[head](tokens).flatten(0, 1)  # type: ignore[index]
            wanted = target.flatten()
            asked = wanted != IGNORE
            if not asked.any():
                continue
            losses.append(functional.cross_entropy(logits[asked], wanted[asked]))
            metrics[f"accuracy/{head}"] = (logits[asked].argmax(-1) == wanted[asked]).float().mean().item()
        total = torch.stack(losses).mean()
        return total, {"loss": total.item(), **metrics}


def _patches(example: Example, grid: int, share: float) -> dict[str, np.ndarray]:
    """What covers most of each patch."""
    if example.truth is None:
        raise BadInput(f"example {example.id} has no truth; supervised pretraining needs class maps and masks (the world has them)")
    side = example.truth.classes.shape[0]
    if side % grid:
        raise BadInput(
            f"example {example.id}: {side} pixels do not divide into {grid} patches; choose pixels as a multiple of the patch size"
        )
    found = {head: np.full(grid * grid, IGNORE, dtype=np.int64) for head in HEADS}
    found["kind"][:] = 0
    cell = side // grid
    most = np.full(grid * grid, share)
    for thing in example.truth.objects:
        cover = thing.mask.reshape(grid, cell, grid, cell).mean(axis=(1, 3)).ravel()
        # Writing is thin: a glyph wins over the panel under it long before it covers more of the patch.
        if thing.kind == "glyph":
            cover = np.minimum(cover * 8, 1.0) * (cover > 0.04)
        if thing.kind not in _INDEX["kind"]:
            continue
        wins = cover >= most
        most = np.where(wins, cover, most)
        found["kind"][wins] = _INDEX["kind"][thing.kind]
        for head, attribute in (("colour", "colour"), ("letter", "letter")):
            name = thing.attributes.get(attribute)
            found[head][wins] = _INDEX[head].get(name, IGNORE) if name else IGNORE
    return found
