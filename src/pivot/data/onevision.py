"""LLaVA-OneVision-Data: parquet with LLaVA's conversations and each picture inside, one folder of parts for each of its sub-sets.

Rows of text alone have no picture. The published sets hold questions without `<image>` and questions with several for one picture: what
is to be done with these is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pivot.data import llava
from pivot.data.reading import Read, first, root
from pivot.data.tables.table import table
from pivot.records import Example
from pivot.seen import Seen


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read:
    """Open one .parquet file, a sub-set's folder, or a folder of sub-sets. `images`, `links`: as for `llava`, if rows name files."""
    return Read(first(table(path), size), llava.example, root(path, images, links), tagged=True)


def knows(seen: Seen) -> bool:
    """Conversations in parquet."""
    return seen.kind == "parquet" and seen.has("conversations") and not (seen.has("chosen") or seen.has("responses"))


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as LLaVA's row, which has a place for one picture: null where there is none."""
    plain, lost = llava.row(example, pictures)
    kept = {"id": plain.pop("id"), "image": pictures[0] if pictures else None, **{k: v for k, v in plain.items() if k != "image"}}
    return kept, lost + (["pictures but the first"] if len(pictures) > 1 else [])
