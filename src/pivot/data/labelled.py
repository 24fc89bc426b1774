"""Pictures with labels: rows {image, label}, as the Hub has ImageNet and its like in parquet, one folder of parts for all splits.

The answer is the class's name, `meta["class"]` the label as the row has it. Names of numbered labels stand in the Hub's parquet itself, or
come from a file (`names`); a label that has none is called by its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pivot.data.called import Names, listed, names_in
from pivot.data.reading import Read, Row, first, root
from pivot.data.tables.table import JSON, PARQUET, inside, joined, table
from pivot.files import hash_json
from pivot.records import BadInput, Example
from pivot.seen import Seen

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})
OTHERS = ("caption", "text", "captions", "question", "conversations", "messages", "prompt", "chosen", "rejected", "completion", "responses")
ALSO = ("ds_name", "gt", "ds_answer", "images", "video", "image_rejected")  # fields of other formats, like OTHERS


@dataclass(frozen=True)
class Labels:
    """What a row means, given its classes' names."""

    names: Names

    def example(self, row: Row) -> Example:
        """One row."""
        label = row.get("label")
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise row.wrong(f"'label' is no number and no text but {label!r}")
        if isinstance(label, int) and label < 0:  # as splits have it whose labels are kept secret
            raise row.wrong(f"'label' is {label}, which says that it is not known")
        name = self.names.get(str(label), str(label))
        beside = row.beside("image", "label")
        own = {"answer": name, "answer_kind": "text", "meta": {**beside["meta"], "class": label}}
        return Example(id=row.id, images=row.pictures("image"), prompt="", **{**beside, **own})


def read(
    path: str,
    *,
    split: str | None = None,
    names: str | None = None,
    images: str | None = None,
    links: bool = False,
    size: int | None = None,
) -> Read:
    """Open a .parquet, .jsonl or .json file, or the parts of a split. `names`: a file of classes' names, see `called.names_in`."""
    files = _parts(Path(path), split)
    known = names_in(names) if names else _noted(files[0])
    rows = first(joined([table(file) for file in files]), size)
    return Read(rows, Labels(known).example, root(path, images, links), {"names": hash_json(known)})


def knows(seen: Seen) -> bool:
    """A picture and its label, and nothing that another format has."""
    return seen.kind in ("rows", "parquet") and seen.has("image", "label") and not any(map(seen.has, (*OTHERS, *ALSO)))


def _parts(path: Path, split: str | None) -> list[Path]:
    """The files of rows of a split. Its name stands at the head of theirs (`train-00000-of-00002.parquet`), or of their folder's."""
    if not path.is_dir():
        if split:
            raise BadInput(f"split={split}: {path} is one file; name the folder that holds the splits, or leave split= out")
        return [path]
    there = [name for name in inside(path) if not Path(name).name.startswith(".")]
    files = next((found for kind in (PARQUET, JSON) if (found := [name for name in there if name.lower().endswith(kind)])), [])
    if not files:
        raise BadInput(f"{path} holds no rows: there is no .parquet, .jsonl or .json file in it; check the path")
    splits = {name: _split(name) for name in files}
    known = sorted({one for one in splits.values() if one})
    if split and split not in known:
        raise BadInput(f"{path} has no split '{split}'; it holds {', '.join(known) or 'files that name none: leave split= out'}")
    if not split and len(known) > 1:
        raise BadInput(f"{path} holds {', '.join(known)}; say which, as in split={known[0]}")
    return [path / name for name in files if not split or splits[name] == split]


def _split(name: str) -> str | None:
    heads = [re.split(r"[-_.]", part.lower())[0] for part in Path(name).parts]
    return next((head for head in reversed(heads) if head in SPLITS), None)


def _noted(file: Path) -> Names:
    """The names that the Hub's library wrote into a parquet file, if it did."""
    if file.suffix.lower() not in PARQUET:
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        note = json.loads((pq.read_schema(file).metadata or {}).get(b"huggingface", b"{}"))
    except FileNotFoundError:
        raise BadInput(f"data not found: {file}; check the path") from None
    except (pa.ArrowException, OSError, ValueError):  # what is wrong with the file is said when its rows are opened
        return {}
    for key in ("info", "features", "label", "names"):
        note = note.get(key) if isinstance(note, Mapping) else None
    return listed(note) if isinstance(note, list) and all(isinstance(name, str) for name in note) else {}
