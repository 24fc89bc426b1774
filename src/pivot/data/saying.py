"""From examples to rows: what formats that can be written share. Each says what it has no place for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pivot.data.reading import OWN
from pivot.data.talk import turns_of
from pivot.files import to_json
from pivot.records import BadInput, Example, Response, Turn


def spread(example: Example, own: Mapping[str, Any], taken: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """A row of `own` fields and, beside them, what else an example says; and names of what there is no place for.

    `taken`: fields of the format that are not in `own`, because this example has none; its `meta` may not fill them.
    """
    lost = list[str]()
    row = dict(own)
    for key in OWN:
        value = getattr(example, key)
        if value is not None and key in row:
            lost.append(key)
        elif value is not None:
            row[key] = value
    for key, value in example.meta.items():
        if key in row or key in taken or (key in OWN and isinstance(value, str)):  # which would be read as something else
            lost.append(f"meta.{key}")
        else:
            row[key] = value
    if example.truth is not None:
        lost.append("truth")
    return row, lost


def missing(example: Example, kept: Sequence[Response]) -> list[str]:
    """What a row with the texts of these responses lacks of an example's responses."""
    lost = [f"{response.role} responses" for response in example.responses if not any(response is one for one in kept)]
    lost += ["roles of responses" for response in kept if response.role == "sampled"]  # which will be read as the chosen one
    lost += ["ratings" for response in kept if response.rating is not None]
    lost += ["errors of responses" for response in kept if response.error is not None]
    lost += ["pictures of responses" for response in kept if response.images is not None]
    return lost


def of_role(example: Example, role: str) -> Response | None:
    """The first response of a role."""
    return next((response for response in example.responses if response.role == role), None)


def pair(example: Example, format: str) -> tuple[Response, Response]:
    """Its chosen and its rejected response, for formats that hold nothing else."""
    chosen, rejected = of_role(example, "chosen"), of_role(example, "rejected")
    if chosen is None or rejected is None:
        lack = "chosen" if chosen is None else "rejected"
        raise BadInput(f"row {example.id} has no {lack} response, which a row of {format} must have; drop it, or write another format")
    return chosen, rejected


def question(example: Example, lost: list[str]) -> str:
    """The last turn of its prompt, for formats that hold one; earlier ones are added to `lost`."""
    turns = turns_of(example.prompt, "user")
    lost += ["turns before the question"] if len(turns) > 1 else []
    return turns[-1]["content"] if turns else ""


def reply(said: str | Sequence[Turn], lost: list[str]) -> str:
    """The first answer of a response, for formats that hold one; later turns are added to `lost`."""
    turns = turns_of(said, "assistant")
    lost += ["turns after the first answer"] if len(turns) > 1 else []
    return turns[0]["content"] if turns else ""


def sayable(value: Any) -> bool:
    """Whether JSON can say it, be it with null for NaN and infinity."""
    try:
        to_json(value)
    except TypeError:
        return False
    return True


def exact(value: Any) -> bool:
    """Whether JSON has a word for it, which it has for no NaN and no infinity."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and exact(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(exact, value))
    return value is None or isinstance(value, str | int) or (math.isfinite(value) if isinstance(value, float) else sayable(value))
