"""What objectives on pairs make of their rows beside the two responses: weights of tokens, a damaged picture, a response gone astray."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from pivot.data.lazy import View
from pivot.objective._contract import Logps
from pivot.pictures import named, picture
from pivot.records import BadInput, Example
from pivot.world.dice import Dice

if TYPE_CHECKING:
    from torch import Tensor

    from pivot.records import Picture

KEPT = (0.01, 0.2)  # least and largest share of a picture's area that a crop keeps: mDPO's


# ---- weights


def differing(one: Sequence[int], other: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of either are not in the other: all but a longest common subsequence.

    A row of the table of lengths is one integer, with a 0 where the length grows by one (Hyyrö), so that 1,000 tokens against 1,000
    take milliseconds. difflib took 170.
    """
    places = dict[int, int]()
    for at, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << at
    full = (1 << len(one)) - 1
    table = [full]
    for token in other:
        row, shared = table[-1], table[-1] & places.get(token, 0)
        table.append((row + shared | row - shared) & full)
    apart, i, j = ([True] * len(one), [True] * len(other)), len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            apart[0][i] = apart[1][j] = False
        elif table[j] >> (i - 1) & 1:
            i -= 1
        else:
            j -= 1
    return apart


def weights(said: Sequence[Sequence[Sequence[int]]], heavy: float, like: Tensor) -> Logps:
    """Per example, per response: (s,) `heavy` for tokens in which chosen and rejected differ, else 1. A third response says what the
    chosen one does.
    """
    found = []
    for chosen, rejected, *more in said:
        first, second = ([heavy if apart else 1.0 for apart in side] for side in differing(chosen, rejected))
        found.append([like.new_tensor(side) for side in (first, second, *[first] * len(more))])
    return found


# ---- damaged pictures


@dataclass(frozen=True)
class Cropped:
    """A small piece of a picture, enlarged to the whole one's size, so that it costs as many tokens. The key decides which piece."""

    source: Picture
    key: str

    def __str__(self) -> str:
        return f"a crop of {named(self.source)}"

    def read(self) -> bytes:
        """The bytes of a file: BMP, as PNG takes longer to write than all the rest."""
        whole, dice = picture(self.source), Dice("crop", self.key)
        least, most = (round(1e6 * share) for share in KEPT)
        side = (dice.between(least, most) / 1e6) ** 0.5
        width, height = (max(1, round(side * length)) for length in whole.size)
        left, top = dice.between(0, whole.width - width), dice.between(0, whole.height - height)
        piece = whole.resize(whole.size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        file = io.BytesIO()
        piece.save(file, "BMP")
        return file.getvalue()


@dataclass(frozen=True)
class Damaged(View):
    """A view of pairs with one more response: the chosen one's words, to crops of the pictures that it is about."""

    def one(self, index: int) -> Example:
        example = self.examples[index]
        chosen = example.responses[0]
        shown = example.images if chosen.images is None else chosen.images
        if not shown:
            raise BadInput(f"row {example.id} has no picture to crop, which 'image' above 0 needs; drop the row or set image to 0")
        crops = tuple(Cropped(source, f"{example.id} {number}") for number, source in enumerate(shown))
        blind = replace(chosen, role="rejected", error="picture cropped", images=crops)
        return replace(example, responses=(*example.responses, blind))


# ---- responses gone astray


@dataclass(frozen=True)
class Astray(View):
    """A view of rows with one more response, to something else: of the next row, its responses in turn."""

    def one(self, index: int) -> Example:
        example = self.examples[index]
        if len(self) < 2:
            raise BadInput(f"row {example.id} is the only one, and its prompt needs a response of another; give more rows")
        others = self.examples[(index + 1) % len(self)].responses
        stray = others[index % len(others)]
        return replace(example, responses=(*example.responses, replace(stray, role="rejected", error="another row's", images=None)))
