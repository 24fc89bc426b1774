"""VLAA-Thinking: a JSON list of {id, image, question, gt, ds_answer, caption, meta}.

`gt` is the answer (empty for none), `ds_answer` a trace of thought that ends in one. How an answer is to be judged is not said in a row
but known from the data set that its picture comes from, which is the picture's first folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pivot.data.reading import Read, Row, first, root
from pivot.data.saying import missing, of_role, question, reply, spread
from pivot.data.tables.table import Table, table
from pivot.records import AnswerKind, Example, Response
from pivot.seen import Seen

IMAGES = "images"
KINDS: dict[str, AnswerKind] = {
    "clevr_math": "number",
    "geoqa170k": "choice",
    "synthesis": "maths",  # Math PUMA
    "arxivqa": "choice",
    "docvqa": "open",
    "vizwiz": "open",
    "allava_laion": "open",
    "coco": "box",
    "vg": "box",
}


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read:
    """Open one of its .json files. `images`: the folder of pictures, by default `images` beside the file; `links` may lead out of it."""
    rows = table(path)
    return Read(first(rows, size), example, root(path, images or _images(path, rows), links))


def _images(path: str, rows: Table) -> str | None:
    """The published folder of pictures beside the file, unless names begin with it."""
    beside = (Path(path) if Path(path).is_dir() else Path(path).parent) / IMAGES
    named = rows[0].get("image") if len(rows) else None
    return str(beside) if beside.is_dir() and isinstance(named, str) and not named.startswith(f"{IMAGES}/") else None


def knows(seen: Seen) -> bool:
    """A question with a gold answer and a distilled one."""
    other = any(map(seen.has, ("conversations", "responses", "chosen", "ds_name")))
    return seen.kind in ("rows", "parquet") and seen.has("question", "gt") and (seen.has("ds_answer") or seen.has("caption")) and not other


def example(row: Row) -> Example:
    """One row."""
    gold, trace = row.get("gt"), row.plain.get("ds_answer")
    source = _source(row.plain.get("image"))
    beside = row.beside("image", "question", "gt", "ds_answer")
    if "answer" in beside:  # not the one that counts here
        beside["meta"] = {**beside["meta"], "answer": beside.pop("answer")}
    return Example(
        id=row.id,
        images=row.pictures("image"),
        prompt=row.text("question"),
        responses=() if trace is None else (Response(row.said(trace, "'ds_answer'")),),
        answer=None if gold == "" else gold if isinstance(gold, str) else json.dumps(gold),
        **{"answer_kind": KINDS.get(source or ""), "task": source, **beside},
    )


def _source(image: Any) -> str | None:
    """The data set of a picture, by its first folder that is one."""
    folders = image.lower().split("/")[:-1] if isinstance(image, str) else []
    return next((name for name in folders if name in KINDS), None)


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as a row: its chosen response as the distilled answer."""
    which, lost = of_role(example, "chosen"), list[str]()
    image = {} if not pictures else {"image": pictures[0] if len(pictures) == 1 else list(pictures)}
    own = {"id": example.id, **image, "question": question(example, lost), "gt": example.answer or ""}
    if which is not None:
        own["ds_answer"] = reply(which.text, lost)
    lost += ["answer"] if example.answer == "" else []  # which stands for none
    plain, left = spread(replace(example, answer=None), own, taken=["image", "ds_answer"])
    return plain, lost + left + missing(example, [which] if which else [])
