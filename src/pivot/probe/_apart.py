"""Whether what is measured was trained on, told by what pictures hold: names of files may coincide, and one picture may have two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pivot.pictures import fingerprint
from pivot.progress import tell
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.records import Picture


FEW = 0.01  # of the images to measure on: splits of published sets share a few, which are in everyone's figures


def hold_apart(probe: str, trained: Sequence[Picture], measured: Sequence[tuple[str, Picture]]) -> None:
    """Pictures to measure on, with their names, that are among those to train on are a `BadInput` where they are more than FEW.

    All of both are read once.
    """
    known: set[str] = set()
    total = len(trained) + len(measured)
    for done, image in enumerate(trained, 1):
        tell("comparing pictures", done, total)
        known.add(fingerprint([image]))
    both: list[str] = []
    for done, (name, image) in enumerate(measured, len(trained) + 1):
        tell("comparing pictures", done, total)
        if fingerprint([image]) in known:
            both.append(name)
    if len(both) > FEW * len(measured):
        raise BadInput(
            f"probe {probe}: of the {len(measured)} images to measure on, {len(both)} are trained on too, as {both[0]} is; "
            "leave them out of either data, give others, or leave `on` out"
        )
