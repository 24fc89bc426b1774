"""Stage 0 by dense supervision: what every patch of a tiny MLLM becomes in the LLM is near the words for what lies there.

A tiny MLLM that learns by question answering alone stays blind. So its tower, projector and word embeddings learn together,
before the LLM's layers do: a patch's token is held against the LLM's own word embeddings, and must be nearest to the kind
of object, its colour, for writing the character, and to the words for where on the picture the patch is. The LLM then finds
its own words in the picture. Texture and orientation are left out on purpose: the linear probe asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pivot.records import BadInput, Example
from pivot.world.glyphs import DIGITS, LETTERS
from pivot.world.scene import CLASSES, COLOURS

if TYPE_CHECKING:
    from pivot.encoder import Encoder
    from pivot.model import MLLM

# What a patch can be asked, and the answers. -100 in a target means that the patch is not asked.
HEADS: dict[str, tuple[str, ...]] = {
    "kind": CLASSES,
    "colour": tuple(COLOURS),
    "letter": (*LETTERS, *DIGITS),
    "row": ("top", "centre", "bottom"),
    "column": ("left", "centre", "right"),
}
_SAID = {"background": "none", "panel": "field", "glyph": "letter"}  # words that the world says, where it never says the class
_INDEX = {head: {name: i for i, name in enumerate(names)} for head, names in HEADS.items()}
IGNORE = -100


class Words(nn.Module):
    """What learns beside the tower: the MLLM's own projector and word embeddings."""

    def __init__(self, mllm: MLLM) -> None:
        super().__init__()
        self.projector = mllm.parts()["projector"]
        self.embeddings = cast("nn.Embedding", mllm.model.get_input_embeddings())
        # Each word as it begins a sentence and as it follows another, where that is one token: two embeddings of one meaning.
        vocabulary = mllm.processor.tokenizer.get_vocab()
        self.forms: dict[str, list[list[int]]] = {}
        for head, names in HEADS.items():
            forms = [[start + _SAID.get(name, name) for name in names] for start in ("", "\u0120")]
            self.forms[head] = [[vocabulary[word] for word in form] for form in forms if all(word in vocabulary for word in form)]
            if not self.forms[head]:
                raise BadInput(f"pretrain supervised: {', '.join(names)} are not all single tokens of this LLM; it is made for the base's")

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, P, D) at the tap -> (B, P, V): how near each patch's token is to each word, both as the LLM's norm leaves them."""
        seen = self.projector(tokens)
        return functional.rms_norm(seen, seen.shape[-1:]) @ self.embeddings.weight.T


@dataclass(frozen=True)
class Pretraining:
    """Cross-entropy per patch. `share` is how much of a patch an object must cover to be its content."""

    share: float = 0.15
    batch: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    save_every: int = 200

    def init(self, mllm: MLLM) -> Words:
        """What learns beside the tower."""
        return Words(mllm)

    def targets(self, examples: Sequence[Example], grid: int) -> dict[str, Tensor]:
        """Head -> (B, grid * grid) class indices."""
        rows = [_patches(example, grid, self.share) for example in examples]
        return {head: torch.from_numpy(np.stack([row[head] for row in rows])) for head in HEADS}

    def loss(self, encoder: Encoder, batch: Mapping[str, Any], state: Words) -> tuple[Tensor, dict[str, float]]:
        """Mean over heads of the cross-entropy over the patches that the head asks. `batch`: pixels (B,3,H,W), targets."""
        tokens, _ = encoder.read(batch["pixels"])  # (B, P, D)
        near = state(tokens)
        losses, metrics = [], {}
        for head, target in batch["targets"].items():
            wanted = target.flatten()
            asked = wanted != IGNORE
            if not asked.any():
                continue
            for form in state.forms[head]:
                logits = near[:, :, form].flatten(0, 1)[asked]
                losses.append(functional.cross_entropy(logits, wanted[asked]))
                metrics[f"accuracy/{head}"] = (logits.argmax(-1) == wanted[asked]).float().mean().item()
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
    thirds = np.arange(grid) * 3 // grid
    found["row"][:], found["column"][:] = np.repeat(thirds, grid), np.tile(thirds, grid)
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
