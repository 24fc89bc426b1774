"""Rows with the pictures of other rows, the control of whether a gain comes from seeing: `of` names them as a part of `mix` is named.

No row keeps its own picture, ids stay, so that an answer can be held against the one to the row's own picture. Rows without a
picture stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pivot.data.lazy import Lazy, fingerprint
from pivot.data.mix import part, shuffled
from pivot.files import hash_json
from pivot.records import BadInput, Example

TRIED = 256  # rows that are looked at for as many pictures as a row has


@dataclass(frozen=True)
class Strangers(Lazy[Example]):
    """Each row is shown what the next one is shown, in an order that the seed decides."""

    rows: Sequence[Example]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _round(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows in a circle, and the place of each there."""
        circle = shuffled(len(self.rows), "strangers", self.seed)
        return circle, np.argsort(circle, kind="stable")

    def one(self, index: int) -> Example:
        example, (circle, places) = self.rows[index], self._round
        if not example.images:
            return example
        for step in range(1, min(TRIED, len(circle) - 1) + 1):
            other = self.rows[int(circle[(places[index] + step) % len(circle)])]
            if len(other.images) == len(example.images):
                return replace(example, images=other.images, truth=None)  # what is true of its own picture is not of this one
        raise BadInput(f"row {example.id}: no other row near it has {len(example.images)} pictures; give strangers more rows of that kind")

    def fingerprint(self) -> str:
        """Of the rows, and of what decides whose picture each is shown."""
        return hash_json(["strangers", fingerprint(self.rows), self.seed])


def read(path: str | None = None, *, of: Any, seed: int = 0) -> Strangers:
    """Open the control of a data set. `path` is not used: `of` names the rows."""
    rows = part("strangers", of).rows
    if len(rows) < 2:
        raise BadInput("strangers: one row alone has no other to take its picture from; give more rows")
    return Strangers(rows, seed)
