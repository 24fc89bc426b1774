"""What is wrong with data, found before it is trained on.

Three passes over it, each by as many processes as asked for (`crew.py`): rows, then pictures, each distinct one once, then lengths, for
which the sizes of pictures must be known. Between the last two, rows are compared with each other and with other data (`compare.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pivot import progress
from pivot.data.doctor.checks import BIT, FAULTS, Fault
from pivot.data.doctor.compare import ID, Read, alike, leaks
from pivot.data.doctor.crew import WORTH, Crew, Data, Words, crew, pieces
from pivot.data.doctor.scan import LENGTHS, PICTURES, ROWS, SKIPPED, Measure, Texts, lengths, looks, looks_only, texts
from pivot.data.tables.places import places
from pivot.data.tables.table import JSON, PARQUET, table
from pivot.oneline import described
from pivot.records import BadInput, Uncached
from pivot.seen import seen

if TYPE_CHECKING:
    from pivot.data.doctor.fits import Limit

R = TypeVar("R")
ORPHAN = "orphan"  # the one code that is of no row


@dataclass(frozen=True)
class Report:
    """What was found. `flags`: of each row the bits of its codes. `pictures`: how many distinct ones there are.

    `orphans`: files that lack what would make a row of them.
    """

    data: Data
    flags: np.ndarray
    pictures: int
    ids: np.ndarray  # (rows,) uint64, hashes of them, sorted
    words: Words
    orphans: Sequence[Path] = ()

    @property
    def rows(self) -> int:
        return len(self.flags)

    @property
    def clean(self) -> bool:
        return not any(self.count(code) for code in FAULTS)

    def count(self, code: str) -> int:
        """Rows that have this, or files that are none."""
        if code == ORPHAN:
            return len(self.orphans)
        return int(np.count_nonzero(self.flags & np.uint64(BIT[code])))

    def codes(self, number: int, among: Iterable[str] = FAULTS) -> list[str]:
        """What is wrong with a row."""
        return [code for code in among if int(self.flags[number]) & BIT[code]]

    def first(self, code: str, size: int) -> Iterator[tuple[int | None, str, str]]:
        """The first rows that have this: number (None of a file that is no row), place and what exactly."""
        if code == ORPHAN:
            yield from ((None, str(file), f"no picture is called {file.stem}") for file in self.orphans[:size])
        kept = sorted(self.words.by.get(code, {}).items())[:size]
        for (number, says), where in zip(kept, places(self.data.examples, [number for number, _ in kept]), strict=True):
            yield number, where, says.removeprefix(f"{where}: ")


def torn(line: str) -> str | None:
    """What is wrong with a file that a line names, or with one in the folder that it names, so that its rows cannot even be found."""
    path = Path(os.path.expanduser(str(described(line).get("path") or "")))
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        try:
            if file.is_file() and file.suffix.lower() in (*JSON, *PARQUET) and not _object(file):
                table(file)
        except Uncached:
            raise
        except BadInput as wrong:
            return str(wrong)
    return None


def _object(file: Path) -> bool:
    """Whether a file is no rows but one object, as MMPR's meta.json."""
    return file.suffix.lower() in JSON and seen(file).kind == "object"


def examine(line: str, *, limit: Callable[[], Limit] | None = None, against: Sequence[str] = (), workers: int = 1) -> Report:
    """Look at the data that one line names, and compare it with other data.

    `limit` makes the limit of tokens, in each process anew; without it lengths and control tokens are not looked at.
    """
    data, words = Data(line, limit), Words()
    others = [(other, _against(other, workers)) for other in against]
    with crew(data, min(workers, len(data.examples) // WORTH)) as over:
        read, said = _read(data, over, words)
        flags = read.flags
        words.add(said)
        for codes, found in (alike(data, read), *(leaks(read, *other) for other in others)):
            flags = flags | codes
            words.add(found)
        if limit:
            for number, fault in _long(read, flags, over):
                flags[number] |= np.uint64(BIT[fault.code])
                words.add([(number, fault)])
    orphans: Sequence[Path] = getattr(data.examples, "orphans", list)()
    return Report(data, flags, len(np.unique(read.keys)), np.sort(read.hashes[:, ID]), words, orphans)


def _against(line: str, workers: int) -> Read:
    data = Data(line)
    with crew(data, min(workers, len(data.examples) // WORTH)) as over:
        return _read(data, over, Words(), decode=False)[0]


def _read(data: Data, over: Crew, words: Words, decode: bool = True) -> tuple[Read, Iterable[tuple[int, Fault]]]:
    """All rows with what is in their pictures, and what is wrong with these."""
    parts = list[Texts]()
    for part, found in _told(over(texts, pieces(len(data.examples), ROWS)), "doctor: rows", len(data.examples), ROWS):
        parts.append(part)
        words.add(found)
    rows = Texts.behind(parts)
    _, first, which = np.unique(rows.keys, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as rows name them
    wanted, back = rows.places[first[order]], np.argsort(order)[which]
    cut = [wanted[piece.start : piece.stop] for piece in pieces(len(wanted), PICTURES)]
    looked, wrong = [np.zeros((0, 4), np.uint64)], Words()
    for look in _told(over(looks if decode else looks_only, cut), "doctor: pictures", len(wanted), PICTURES):
        looked.append(look.seen)
        wrong.add(look.found)
    content, codes, width, height = np.concatenate(looked)[back].T
    np.bitwise_or.at(rows.flags, rows.places[:, 0], codes)
    said = _everywhere(codes, rows.places[:, 0], rows.places[first[which], 0], wrong)
    return Read(**vars(rows), content=content, sizes=np.column_stack([width, height]).astype(np.int64)), said


def _told(results: Iterable[R], what: str, total: int, each: int) -> Iterator[R]:
    for number, result in enumerate(results, 1):
        progress.tell(what, min(number * each, total), total)
        yield result


def _everywhere(codes: np.ndarray, rows: np.ndarray, firsts: np.ndarray, wrong: Words) -> Iterator[tuple[int, Fault]]:
    """What is wrong with a picture, for every row that has it. `firsts`: the row in which the picture was looked at."""
    for code in FAULTS:
        for at in np.flatnonzero(codes == BIT[code]).tolist():
            yield int(rows[at]), Fault(code, wrong.by[code].get(int(firsts[at]), FAULTS[code]))


def _long(read: Read, flags: np.ndarray, over: Crew) -> Iterator[tuple[int, Fault]]:
    """What the model's processor finds in the rows that it can read."""
    wanted = np.flatnonzero(read.read & ((flags & np.uint64(SKIPPED)) == 0))
    shown = np.column_stack([read.places[:, 0], read.places[:, 2], read.sizes])
    cut = []
    for piece in pieces(len(wanted), LENGTHS):
        numbers = wanted[piece.start : piece.stop]
        start, end = np.searchsorted(shown[:, 0], [numbers[0], numbers[-1] + 1])
        cut.append(Measure(numbers, flags[numbers], shown[start:end]))
    for found in _told(over(lengths, cut), "doctor: lengths", len(wanted), LENGTHS):
        yield from found
