"""Examples from files as `pivot data make` writes them: `data.jsonl`, one example a line, and what its lines name beside it.

A line holds an example's fields by their names in `records`. Its pictures are paths inside the folder; its truth, if it has any,
names an .npz file with the class map (`classes`, uint8) and, packed to bits and of the same height and width, the region that the
question is about (`region`) and a mask per object (`masks`); kinds and attributes of the objects stand in the line.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pivot.data.lazy import MANY, Lazy
from pivot.data.reading import Root, Unsafe, first, frozen, look
from pivot.data.tables.table import Table, table
from pivot.data.writing.write import ROWS
from pivot.files import hash_json
from pivot.records import AnswerKind, BadInput, Example, Response, Role, Thing, Truth
from pivot.seen import Seen

if TYPE_CHECKING:
    from pivot.records import Turn


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Turn(_Part):
    role: Literal["user", "assistant", "system"]
    content: str


class _Response(_Part):
    text: str | list[_Turn]
    role: Role = "chosen"
    rating: float | None = None
    error: str | None = None
    images: list[str] | None = None


class _Object(_Part):
    kind: str
    attributes: dict[str, str] = {}


class _Truth(_Part):
    file: str
    objects: list[_Object] = []
    caption: str = ""


class _Row(_Part):
    id: str
    images: list[str] = []
    prompt: str | list[_Turn]
    responses: list[_Response] = []
    answer: str | None = None
    answer_kind: AnswerKind | None = None
    task: str | None = None
    domain: str | None = None
    truth: _Truth | None = None
    meta: dict[str, Any] = {}


@dataclass(frozen=True)
class Rows(Lazy[Example]):
    """The lines of one file. Where each begins is known from the start; what it says is read when it is asked for.

    `kind`: of the answers whose rows do not say it.
    """

    file: Path
    lines: Table
    kind: AnswerKind | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def one(self, index: int) -> Example:
        plain = self.lines.one(index)
        try:
            row = _Row.model_validate(plain)
            if row.answer is not None and row.answer_kind is None:
                row.answer_kind = self.kind
            return _example(row, self.file.parent, partial(self.where, index))
        except ValidationError as wrong:
            error = wrong.errors(include_input=False)[0]  # what was given instead may be a whole conversation
            keys = ".".join(str(key) for key in error["loc"])
            raise BadInput(f"{self.where(index)}: {keys + ': ' if keys else ''}{error['msg']}; correct the line or drop it") from None

    @property
    def root(self) -> Root:
        """The folder of pictures."""
        return Root(self.file.parent)

    def where(self, index: int) -> str:
        """The place of a row, for messages: the lines before it have to be counted."""
        return self.lines.where(index)

    def fingerprint(self) -> str:
        """Of what its lines say, and, as long as these are not more than MANY, of size and time of the files that they name."""
        beside = [look(self.file.parent / name) for name in sorted(set(self._named()))] if len(self) <= MANY else []
        return hash_json([self.lines.fingerprint(), len(self), beside, *([self.kind] if self.kind else [])])

    def _named(self) -> Iterator[str]:
        """Files that the lines name, as far as they can be read: what is wrong with a line is said when its row is asked for."""
        for index in range(len(self)):
            try:
                row = _Row.model_validate(self.lines.one(index))
            except (ValidationError, BadInput):
                continue
            yield from row.images
            yield from (name for said in row.responses for name in said.images or ())
            if row.truth:
                yield row.truth.file


def read(path: str, *, kind: AnswerKind | None = None, size: int | None = None) -> Rows:
    """Open the rows of a folder (its `data.jsonl`), or of one .jsonl file; the first `size` of them. `kind`: see `Rows`."""
    file = Path(path) / ROWS if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise BadInput(f"rows not found: {file}; give the folder that `pivot data make` wrote, or its {ROWS}")
    return Rows(file, first(table(file), size), kind)


def knows(seen: Seen) -> bool:
    """A folder with our file of rows, or such a file."""
    return (seen.kind == "folder" and ROWS in seen.inside) or (seen.kind == "rows" and seen.has("prompt", "responses"))


def _example(row: _Row, folder: Path, where: Callable[[], str]) -> Example:
    responses = [
        Response(_text(said.text), said.role, said.rating, said.error, None if said.images is None else _inside(said.images, folder, where))
        for said in row.responses
    ]
    return Example(
        id=row.id,
        images=_inside(row.images, folder, where),
        prompt=_text(row.prompt),
        responses=tuple(responses),
        answer=row.answer,
        answer_kind=row.answer_kind,
        task=row.task,
        domain=row.domain,
        truth=_truth(row.truth, folder, where) if row.truth else None,
        meta=frozen(row.meta),
    )


def _text(given: str | list[_Turn]) -> str | tuple[Turn, ...]:
    return given if isinstance(given, str) else tuple(turn.model_dump() for turn in given)


def _inside(names: Sequence[str], folder: Path, where: Callable[[], str]) -> tuple[Path, ...]:
    """Paths of files that a line names. Rows may come from anyone: none may lead out of their folder, nor may a link in it."""
    home = folder.resolve()
    for name in names:
        if "\0" in name or not (home / name).resolve().is_relative_to(home):
            raise Unsafe(f"{where()}: {name!r} leads out of {folder}; put the file into that folder and name it from there")
    return tuple(folder / name for name in names)


def _truth(given: _Truth, folder: Path, where: Callable[[], str]) -> Truth:
    (file,) = _inside([given.file], folder, where)
    try:
        with np.load(file, allow_pickle=False) as stored:
            classes, region, masks = (stored[name] for name in ("classes", "region", "masks"))
        if classes.dtype != np.uint8 or classes.ndim != 2:
            raise ValueError("'classes' is no map of class ids")
        region, masks = _bits(region, classes.shape), _bits(masks, (len(given.objects), *classes.shape))
    except FileNotFoundError:
        raise BadInput(f"{where()}: truth not found: {file}; check the path, or set the row's truth to null") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as broken:
        raise BadInput(f"{where()}: truth cannot be read: {file} ({broken}); write it again, or set the row's truth to null") from None
    things = tuple(Thing(one.kind, one.attributes, mask) for one, mask in zip(given.objects, masks, strict=True))
    return Truth(classes, things, region, given.caption)


def _bits(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A boolean array of this shape from its packed bits."""
    size = int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.shape != ((size + 7) // 8,):
        raise ValueError(f"its bits are not those of {' x '.join(map(str, shape))} pixels")
    return np.unpackbits(packed, count=size).astype(bool).reshape(shape)
