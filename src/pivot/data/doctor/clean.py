"""A clean copy of data that the doctor looked at: what is sound, what could be mended, and a list of what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pivot.data.doctor.checks import BIT, FAULTS, IMAGE, NOTES, shape
from pivot.data.doctor.diagnosis import Report
from pivot.data.doctor.mend import renamed, retagged
from pivot.data.doctor.scan import hashed, shown
from pivot.data.lazy import Lazy
from pivot.data.tables.places import places
from pivot.files import to_json, whole_file
from pivot.pictures import named, size
from pivot.records import BadInput, CheckFailed, Example

MENDED = {"tag-missing", "tag-extra", "duplicate-id", "image-missing"}  # the last only where the picture lies there under another name
LOOKED = (*FAULTS, "duplicate-id")  # this is no fault, but in a copy each row has an id of its own
ANY = np.uint64(sum(BIT[code] for code in LOOKED))


@dataclass(frozen=True)
class Clean(Lazy[Example]):
    """The rows of some data that are sound or can be mended, mended. `root`: the folder that names of pictures begin in."""

    report: Report
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def one(self, index: int) -> Example:
        number = int(self.numbers[index])
        return mended(self.report, number) if self.report.codes(number, LOOKED) else self.report.data.examples[number]

    def where(self, index: int) -> str:
        """The place of a row in the data that it comes from."""
        return next(places(self.report.data.examples, [int(self.numbers[index])]))

    @property
    def mended(self) -> int:
        """How many of them are not as they were."""
        return int(np.count_nonzero(self.report.flags[self.numbers] & ANY))

    @property
    def root(self) -> Any:
        return getattr(self.report.data.examples, "root", None)


def mended(report: Report, number: int) -> Example:
    """A row without its faults; a `BadInput` says which stays."""
    codes, example = report.codes(number, LOOKED), report.data.examples[number]
    if "tag-extra" in codes and not any(shown(example)):  # it asks about a picture that it never had
        raise BadInput(f"row {example.id} says {IMAGE} and has no picture; drop the row")
    if {"tag-missing", "tag-extra"} & set(codes):
        example = retagged(example)
    if "duplicate-id" in codes:
        example = replace(example, id=_own(report, f"{example.id}-{number}"))
    if "image-missing" in codes:
        example = replace(example, images=tuple(renamed(one) if isinstance(one, Path) else one for one in example.images))
        for _, source in shown(example):
            if shape(size(source)):
                raise BadInput(f"image has an absurd shape: {named(source)}; drop the row")
    return example


def _own(report: Report, name: str) -> str:
    """An id that no row has. It ends in the row's number, so no two of these are the same."""
    while _taken(hashed(name), report.ids):
        name = f"-{name}"
    return name


def _taken(value: int, ids: np.ndarray) -> bool:
    at = int(np.searchsorted(ids, np.uint64(value)))
    return at < len(ids) and int(ids[at]) == value


def clean(report: Report, left_out: Path) -> Clean:
    """The clean rows; writes which rows were left out or mended, and why."""
    faulty = np.flatnonzero(report.flags & ANY)
    kept = np.ones(report.rows, bool)
    with whole_file(left_out) as unfinished, unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for number, where in zip(faulty.tolist(), places(report.data.examples, faulty.tolist()), strict=True):
            codes = report.codes(number, LOOKED)
            kept[number] = set(codes) <= MENDED and _can_be(report, number)
            why = [report.words.by.get(code, {}).get(number, {**FAULTS, **NOTES}[code]) for code in codes]
            row = {"row": number, "where": where, "id": _id(report, number), "done": "mended" if kept[number] else "left out"}
            file.write(to_json({**row, "codes": codes, "why": why}) + "\n")
    if not kept.any():
        raise CheckFailed(f"no row is left: {left_out} says what is wrong with each")
    return Clean(report, np.flatnonzero(kept))


def _can_be(report: Report, number: int) -> bool:
    try:
        mended(report, number)
    except BadInput:
        return False
    return True


def _id(report: Report, number: int) -> str | None:
    try:
        return report.data.examples[number].id
    except BadInput:
        return None
