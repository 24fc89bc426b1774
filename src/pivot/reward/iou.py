"""How well a predicted box covers the true one: intersection over union, in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pivot import answers
from pivot.answers import Box, overlap
from pivot.records import Example
from pivot.reward._contract import unjudged

Coordinates = Literal["normalised", "pixels", "thousandths"]
Side = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def reward(
    reply: str,
    example: Example,
    *,
    reply_in: Coordinates | None = None,
    answer_in: Coordinates | None = None,
    seen: tuple[Side, Side] | None = None,
    several: Literal["first", "last", "none"] = "first",
    inclusive: bool = False,
) -> float:
    """The overlap of the reply's box with the example's answer; both are left, top, right, bottom.

    `reply_in`, `answer_in`: their coordinates. `meta["coordinates"]` of the example goes before `answer_in`, and what is not said is as
    on the other side. Between pixels and others, `meta["size"]` must be the picture's (width, height); `seen` is the (width, height) that
    the model saw, if its pixels are those. `several`: which box counts where there are more; VLM-R1 takes the first, and with `none`
    such a reply earns nothing. `inclusive`: from pixel 2 to pixel 4 it is 3 wide (VLM-R1), which an answer in pixels can have.
    """
    truths = answers.boxes(example.answer or "")
    if len(truths) != 1:
        return unjudged(f"the answer of {example.id} is not one box")
    theirs = example.meta.get("coordinates") or answer_in or reply_in
    ours = reply_in or theirs
    units: tuple[Sequence[float], Sequence[float]] = (1.0, 1.0), (1.0, 1.0)
    if ours != theirs or seen:
        size = example.meta.get("size")
        units = _unit(ours, seen or size), _unit(theirs, size)
    if not all(units) or (inclusive and theirs != "pixels"):
        return unjudged(f"the boxes of {example.id} cannot be compared: meta['size'] or what their coordinates are is missing")
    found = answers.boxes(reply)
    if not found or (several == "none" and len(found) > 1):
        return 0.0
    said = found[-1] if several == "last" else found[0]
    x, y = (to / of for of, to in zip(*units, strict=True))
    return overlap(Box(said.left * x, said.top * y, said.right * x, said.bottom * y), truths[0], edge=1.0 if inclusive else 0.0)


def _unit(coordinates: Any, size: Sequence[float] | None) -> Sequence[float]:
    """What a whole picture measures in these coordinates; empty if that is not known."""
    known = {"normalised": (1.0, 1.0), "thousandths": (1000.0, 1000.0), "pixels": size or ()}
    return known.get(coordinates, ())
