"""Heads on patch tokens, and their training. The encoder's features come from disk, batch by batch: of a big set they fit no memory.

Shapes: N images (B at a time), P patches, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from pivot.probe._patches import Areas, Labels, majority, union
from pivot.probe._scenes import AT_ONCE

if TYPE_CHECKING:
    from pivot.probe.segment import Probe

Kind = Literal["mlp", "linear", "transformer"]
BLOCKS, ATTENTION_HEADS = 2, 4
RAREST = 1e-6
SAMPLED = 512  # images that say how large each channel is


@dataclass(frozen=True)
class Lesson:
    """What a head is trained on: some rows of features, and the classes in their patches."""

    features: np.ndarray  # (N, P, D), on disk
    areas: Areas
    rows: np.ndarray
    often: np.ndarray  # (C,) in which share of their patches each class is to be found

    @property
    def classes(self) -> int:
        return len(self.often)


class Standard(nn.Module):
    """Each channel brought to mean 0 and deviation 1, as training images have it."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.deviation

    @classmethod
    def of(cls, lesson: Lesson) -> Standard:
        """From up to SAMPLED of the images, evenly spread. A channel that never moves is left at 0."""
        rows = lesson.rows[np.linspace(0, len(lesson.rows) - 1, min(SAMPLED, len(lesson.rows))).astype(int)]
        total, square, count = np.zeros(lesson.features.shape[2]), np.zeros(lesson.features.shape[2]), 0
        for row in rows:
            tokens = lesson.features[row].astype(np.float64)
            total, square, count = total + tokens.sum(0), square + (tokens**2).sum(0), count + len(tokens)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0))
        still = deviation <= 1e-6 * np.abs(mean)
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(np.where(still, 1.0, deviation)).float())


class Transformer(nn.Module):
    """Pre-norm blocks over the patches of an image; their tokens know their places, which the encoder told them."""

    def __init__(self, wide: int, width: int) -> None:
        super().__init__()
        inner = ATTENTION_HEADS * max(1, width // 4 // ATTENTION_HEADS)
        self.enter = nn.Linear(wide, inner)
        block = nn.TransformerEncoderLayer(inner, ATTENTION_HEADS, width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(inner), enable_nested_tensor=False)
        self.wide = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.enter(x))


def head(kind: Kind, wide: int, width: int, prior: torch.Tensor) -> nn.Module:
    """(B, P, D) tokens to (B, P, C) logits, untrained: it says of every patch what `prior` (C,) says.

    Begun at random it would say half of all classes, and a head of few steps would have a high recall for that.
    """
    match kind:
        case "linear":
            before, inner = [], wide
        case "mlp":
            before, inner = [nn.Linear(wide, width), nn.GELU()], width
        case "transformer":
            blocks = Transformer(wide, width)
            before, inner = [blocks], blocks.wide
    last = nn.Linear(inner, len(prior))
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(prior)
    return nn.Sequential(*before, last)


def prior(lesson: Lesson, labels: Labels) -> torch.Tensor:
    """(C,) the logits of how often each class is in a training patch; one that never is counts as one in a million."""
    often = np.clip(lesson.often, RAREST, 1 - RAREST)
    return torch.from_numpy(np.log(often) - (np.log1p(-often) if labels == "union" else 0)).float()


def train(lesson: Lesson, how: Probe, seed: int, device: torch.device, tell: Callable[[int, int], None]) -> Iterator[nn.Module]:
    """The head after each epoch, the same object each time.

    Only seed and lesson decide it, on a GPU up to the order in which it adds; nobody else's random numbers are touched.
    """
    dice = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(Standard.of(lesson), head(how.head, lesson.features.shape[2], how.width, prior(lesson, how.labels))).to(device)
    optimiser = torch.optim.AdamW(made.parameters(), how.rate, weight_decay=how.decay)
    an_epoch = math.ceil(len(lesson.rows) / how.head_batch)
    steps = how.epochs * an_epoch
    for epoch in range(how.epochs):
        made.train()
        order = dice.permutation(lesson.rows)
        for number in range(an_epoch):
            step = epoch * an_epoch + number
            for group in optimiser.param_groups:
                group["lr"] = pace(how, step, steps)
            rows = np.sort(order[number * how.head_batch : (number + 1) * how.head_batch])  # sorted, as they lie on disk
            shares = lesson.areas.dense(rows, lesson.classes)
            logits = made(torch.from_numpy(lesson.features[rows]).to(device))
            optimiser.zero_grad()
            loss(logits, shares, how.labels).backward()
            optimiser.step()
            tell(step + 1, steps)
        yield made


def pace(how: Probe, step: int, steps: int) -> float:
    """The learning rate of a step: it rises, and then falls on a cosine."""
    rising = min(how.warmup, math.floor(how.warmup_share * steps))
    if step < rising:
        return how.rate * (step + 1) / (rising + 1)
    return how.floor + (how.rate - how.floor) * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def loss(logits: torch.Tensor, shares: np.ndarray, labels: Labels) -> torch.Tensor:
    """Mean over patches (and, of several labels a patch, over classes). Patches outside of the picture are not asked for."""
    numbers = torch.from_numpy(majority(shares)).to(logits.device)
    if labels == "majority":
        return nn.functional.cross_entropy(logits.flatten(0, 1), numbers.flatten(), ignore_index=-1)
    inside = numbers >= 0
    targets = torch.from_numpy(union(shares)).to(logits.device)
    return nn.functional.binary_cross_entropy_with_logits(logits[inside], targets[inside].to(logits.dtype))


def logits(made: nn.Module, features: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """(B, P, C) for some rows, in order, a batch at a time."""
    device = next(made.parameters()).device
    made.eval()
    for start in range(0, len(rows), AT_ONCE):
        with torch.no_grad():
            yield made(torch.from_numpy(features[rows[start : start + AT_ONCE]]).to(device)).cpu().numpy()
