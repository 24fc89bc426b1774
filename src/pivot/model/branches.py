"""Where the tokens of a batch go in the LLM's rows: `[trunk | branch 1 | ... | branch k]`, or one full row per response.

Index arithmetic on the host, from a batch's layout alone. Letters: R rows, T tokens of the longest row, S supervised tokens,
N tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pivot.data.collate import Layout, Piece, Stem

Backend = Literal["shared", "repeat"]
PADDING = -1  # as segment; 0 is the trunk, 1 .. k are the branches


@dataclass(frozen=True)
class Placement:
    """What the scorer reads off to build the LLM's rows and to find its predictions in them again."""

    take: Tensor  # (R, T) number of the token in the batch, 0 at padding
    segment: Tensor  # (R, T)
    positions: Tensor  # (R, T), or (axes, R, T) where an LLM counts along several; restart at the end of the trunk for every branch
    images: list[int]  # numbers of the images, in the order in which rows need them; `repeat` needs them once per row
    read: Tensor  # (S,) place in the flattened (R * T) rows whose state predicts a supervised token
    target: Tensor  # (S,) number of that token in the batch
    last: Tensor  # (responses,) place of each response's last token in the flattened rows
    counts: list[list[int]]  # per example, per response: supervised tokens. They lie in `read` in this order
    lengths: tuple[int, ...] = ()  # of rows that lie end to end in a single one; empty: each has its own

    @property
    def branched(self) -> bool:
        """Whether a row holds several branches, so that a plain causal mask would mix them."""
        return bool((self.segment > 1).any())


def along(stem: Stem) -> np.ndarray:
    """Positions (1, T) of a trunk in an LLM that counts its tokens, pictures or not."""
    return np.arange(len(stem.trunk))[None]


def place(layout: Layout, backend: Backend, counted: Callable[[Stem], np.ndarray] = along) -> Placement:
    """Lay a batch out. `shared` makes one row a trunk, `repeat` one row a response. `counted`: positions (axes, T) of a trunk.

    A branch goes on, along all axes alike, from one behind the furthest position of its trunk.
    """
    rows = [
        (stem, branches)
        for stem in layout.stems
        for branches in ([stem.branches] if backend == "shared" else [(branch,) for branch in stem.branches])
        if branches
    ]
    width = max((len(stem.trunk) + sum(len(piece) for _, piece in branches) for stem, branches in rows), default=0)
    trunks = [counted(stem) for stem, _ in rows]
    take, segment = np.zeros((len(rows), width), int), np.full((len(rows), width), PADDING)
    positions = np.zeros((len(trunks[0]) if trunks else 1, len(rows), width), int)
    found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, int]] = {}  # (example, response) -> read, target, last

    def put(row: int, at: int, piece: Piece, number: int, where: np.ndarray) -> None:
        span = slice(at, at + len(piece))
        take[row, span] = np.arange(piece.start, piece.stop)
        positions[:, row, span] = where
        segment[row, span] = number

    for row, (stem, branches) in enumerate(rows):
        trunk, at = stem.trunk, len(stem.trunk)
        put(row, 0, trunk, 0, trunks[row])
        onward = trunks[row].max() + 1
        for number, (response, piece) in enumerate(branches, start=1):
            put(row, at, piece, number, np.arange(onward, onward + len(piece)))
            # The first token of any branch is predicted from the last of the trunk, not from its neighbour in the row.
            before = np.where(piece.supervised == 0, len(trunk) - 1, at + piece.supervised - 1)
            read = np.concatenate([trunk.supervised - 1, before]) + row * width
            target = np.concatenate([trunk.start + trunk.supervised, piece.start + piece.supervised])
            at += len(piece)
            found[stem.example, response] = (read, target, row * width + at - 1)
    order = sorted(found)
    return Placement(
        take=torch.from_numpy(take),
        segment=torch.from_numpy(segment),
        positions=torch.from_numpy(positions[0] if len(positions) == 1 else positions),
        images=[image for stem, _ in rows for image in stem.images],
        read=torch.from_numpy(np.concatenate([np.zeros(0, int), *(found[key][0] for key in order)])),
        target=torch.from_numpy(np.concatenate([np.zeros(0, int), *(found[key][1] for key in order)])),
        last=torch.tensor([found[key][2] for key in order], dtype=torch.long),
        counts=[[len(found[example, r][0]) for r in range(k)] for example, k in enumerate(layout.responses)],
    )


def branch_mask(segment: Tensor) -> Tensor:
    """(R, T) segments -> (R, 1, T, T) bool: each token sees its past in the trunk and in its own branch, and nothing else.

    Padding sees its own kind and the trunk, so that no row of the mask is empty (an empty one is NaN in some kernels).
    """
    query, key = segment[:, :, None], segment[:, None, :]
    past = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool, device=segment.device).tril()
    return (past & ((key == 0) | (key == query)))[:, None]
