"""How well a predicted box covers the true one: intersection over union, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Any, Literal, get_args

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
        size = _size(example.meta.get("size"))
        units = _unit(ours, seen or size), _unit(theirs, size)
    if not all(units) or theirs not in (None, *get_args(Coordinates)) or (inclusive and theirs != "pixels"):
        why = "meta['size'], two numbers above 0, or what their coordinates are is missing or none"
        return unjudged(f"the boxes of {example.id} cannot be compared: {why}")
    found = answers.boxes(reply)
    if not found or (several == "none" and len(found) > 1):
        return 0.0
    said = found[-1] if several == "last" else found[0]
    x, y = (to / of for of, to in zip(*units, strict=True))
    return overlap(Box(said.left * x, said.top * y, said.right * x, said.bottom * y), truths[0], edge=1.0 if inclusive else 0.0)


def _unit(coordinates: Any, size: Sequence[float]) -> Sequence[float]:
    """What a whole picture measures in these coordinates; empty if that is not known."""
    return {"normalised": (1.0, 1.0), "thousandths": (1000.0, 1000.0), "pixels": size}.get(str(coordinates), ())


def _size(given: Any) -> Sequence[float]:
    """A picture's width and height as a row of data gives them; empty where it gives anything else, which must not end training."""
    if not isinstance(given, Sequence) or len(given) != 2 or not all(isinstance(side, Real) for side in given):
        return ()
    return tuple(map(float, given)) if all(math.isfinite(side) and side > 0 for side in given) else ()
