"""Examples as files: one JSON line each, pictures as PNG beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pivot.records import Example, picture
from pivot.runfolder import write_jsonl

ROWS = "data.jsonl"


def write(examples: Sequence[Example], folder: Path) -> Iterator[int]:
    """Write `data.jsonl` and `images/` into a folder; yields how many examples are written."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, example in enumerate(examples):
        names = [f"images/{number:06d}-{which}-{re.sub(r'[^A-Za-z0-9._-]', '_', example.id)}.png" for which in range(len(example.images))]
        for name, image in zip(names, example.images, strict=True):
            picture(image).save(folder / name, "PNG")
        rows.append({**row(example), "images": names})
        yield number + 1
    write_jsonl(folder / ROWS, rows)


def row(example: Example) -> dict[str, Any]:
    """An example as plain values, without its pictures and its truth."""
    responses = [{"text": r.text, "role": r.role, "rating": r.rating, "error": r.error} for r in example.responses]
    kept = ("id", "prompt", "answer", "answer_kind", "task", "domain", "meta")
    return {**{name: getattr(example, name) for name in kept}, "responses": responses}
