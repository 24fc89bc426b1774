"""RLAIF-V and RLHF-V: pairs in parquet with their pictures inside.

    RLAIF-V  ds_name, image, question, chosen, rejected, origin_dataset, origin_split, idx, image_path
    RLHF-V   the same, with question, chosen and rejected as JSON in the column `text`

`idx` and `image_path` tell where a row comes from; a row is called by its number, which no other row has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pivot.data.reading import Read, Row, first, root
from pivot.data.saying import missing, pair, question, reply, spread
from pivot.data.tables.table import table
from pivot.records import Example, Response
from pivot.seen import Seen

SAID = ("question", "chosen", "rejected")


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read:
    """Open one file, or a folder of parts. `images`, `links`: as for `llava`, if rows name files."""
    return Read(first(table(path), size), example, root(path, images, links))


def knows(seen: Seen) -> bool:
    """Question, chosen and rejected in parquet, or beside the name of the data set that they come from."""
    if any(map(seen.has, ("conversations", "responses", "gt"))):
        return False
    if seen.kind == "parquet":
        return seen.has(*SAID) or seen.has("ds_name", "text", "image")
    return seen.kind == "rows" and seen.has("ds_name") and (seen.has(*SAID) or seen.has("text"))


def example(row: Row) -> Example:
    """One row of either layout."""
    if "question" not in row.plain and "text" in row.plain:
        row = _unfolded(row)
    return Example(
        id=row.id,
        images=row.pictures("image"),
        prompt=row.text("question"),
        responses=(Response(row.text("chosen")), Response(row.text("rejected"), role="rejected")),
        **row.beside("image", *SAID),
    )


def _unfolded(row: Row) -> Row:
    """RLHF-V's row as RLAIF-V has it."""
    try:
        said = json.loads(row.text("text"))
    except ValueError as broken:
        raise row.wrong(f"'text' is no JSON ({broken})") from None
    if not isinstance(said, Mapping):
        raise row.wrong("'text' is no JSON object of question, chosen and rejected")
    return replace(row, plain={**{key: value for key, value in row.plain.items() if key != "text"}, **said})


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as RLAIF-V's row, which has a place for one picture."""
    chosen, rejected = pair(example, "rlaif")
    lost = ["pictures but the first"] if len(pictures) > 1 else []
    said = {"question": question(example, lost), "chosen": reply(chosen.text, lost), "rejected": reply(rejected.text, lost)}
    own = {"id": example.id, "ds_name": None, "image": pictures[0] if pictures else None, **said}
    plain, left = spread(replace(example, meta={key: value for key, value in example.meta.items() if key != "ds_name"}), own)
    return {**plain, "ds_name": example.meta.get("ds_name")}, lost + left + missing(example, [chosen, rejected])
