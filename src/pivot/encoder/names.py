"""How encoders are named: `NAME`, `NAME@LAYER`, and ensembles `A@-2 + B@-1 -> 24x24`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pivot.records import BadInput

JOINED = " + "


@dataclass(frozen=True)
class Part:
    """One encoder of a name, and the layer at which it is to be read, if the name says."""

    name: str
    layer: int | None = None


@dataclass(frozen=True)
class Name:
    """What a name is made of. `grid`: rows and columns on which the parts meet, if the name says."""

    parts: tuple[Part, ...]
    grid: tuple[int, int] | None = None


def parse(name: str) -> Name:
    """Read a name. A folder of just this name is that folder, whatever characters are in it."""
    if Path(name).is_dir():
        return Name((Part(name),))
    names, arrow, grid = name.partition(" -> ")
    size = re.fullmatch(r"\s*([1-9]\d*)\s*x\s*([1-9]\d*)\s*", grid)
    if arrow and not size:
        raise BadInput(f"encoder '{name}': '{grid}' is no grid; write ROWSxCOLUMNS after the arrow, as in 'A + B -> 24x24'")
    parts = tuple(_part(part.strip(), name) for part in names.split(JOINED))
    return Name(parts, (int(size[1]), int(size[2])) if size else None)


def _part(part: str, whole: str) -> Part:
    if not part:
        raise BadInput(f"encoder '{whole}': an encoder is missing beside a '+'; write A + B")
    found = re.fullmatch(r"(.+)@(-?\d+)", part)
    if found and not Path(part).is_dir():
        return Part(found[1], int(found[2]))
    return Part(part)
