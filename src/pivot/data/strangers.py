"""Rows with the pictures of other rows, the control of whether a gain comes from seeing: `of` names them as a part of `mix` is named.

No row is shown a picture of its own, also where many rows ask about one: that is so of rows that name one file, and of pictures whose
bytes (or, in memory, pixels) are equal. Ids stay, so that an answer can be held against the one to the row's own picture. Rows without a
picture stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pivot.data.lazy import Lazy, fingerprint
from pivot.data.mix import part, shuffled
from pivot.files import hash_json
from pivot.pictures import read as content
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from pivot.records import Picture

TRIED = 256  # rows that are looked at for as many pictures as a row has, and others


@dataclass(frozen=True)
class Strangers(Lazy[Example]):
    """Each row is shown what the next one with other pictures is shown, in an order that the seed decides."""

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
        tried = min(TRIED, len(circle) - 1)
        for step in range(1, tried + 1):
            other = self.rows[int(circle[(places[index] + step) % len(circle)])]
            if len(other.images) == len(example.images) and not any(same(a, b) for a in other.images for b in example.images):
                return replace(example, images=other.images, truth=None)  # what is true of its own picture is not of this one
        wanted = f"{len(example.images)} pictures of its own" if len(example.images) > 1 else "another picture"
        raise BadInput(f"strangers: row {example.id}: none of {tried} other rows has {wanted}; give more rows with other pictures")

    def fingerprint(self) -> str:
        """Of the rows, and of what decides whose picture each is shown."""
        return hash_json(["strangers", "others", fingerprint(self.rows), self.seed])


def read(path: str | None = None, *, of: Any, seed: int = 0) -> Strangers:
    """Open the control of a data set. `path` is not used: `of` names the rows."""
    rows = part("of", of, "strangers: of").rows
    if len(rows) < 2:
        raise BadInput("strangers: one row alone has no other to take its picture from; give more rows")
    return Strangers(rows, seed)


def same(a: Picture, b: Picture) -> bool:
    """Whether two pictures are one. What cannot be read is like nothing: it is said where it is opened."""
    if isinstance(a, Image.Image) or isinstance(b, Image.Image):
        return isinstance(a, Image.Image) and isinstance(b, Image.Image) and (a.size, a.mode, a.tobytes()) == (b.size, b.mode, b.tobytes())
    if a == b:
        return True
    try:
        sizes = {Path(one).stat().st_size for one in (a, b) if isinstance(one, Path | str)}
        return len(sizes) < 2 and content(a) == content(b)  # files of two sizes are not opened
    except (BadInput, OSError, ValueError):
        return False
