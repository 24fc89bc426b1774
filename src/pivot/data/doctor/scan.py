"""Reading all rows, looking at all pictures and measuring all lengths of some data: piece by piece, in as many processes as asked for.

What a piece yields is small whatever its rows hold: bits and hashes of 64 bits. Of ten million different things two share one by chance
in one of 370,000 sets. Pieces are the same for any number of processes and come back in order.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from pivot import pictures, recipe
from pivot.data.doctor import checks
from pivot.data.doctor.checks import BIT, Fault
from pivot.data.doctor.mend import retagged
from pivot.data.reading import Unsafe, turns_of
from pivot.files import hash_json
from pivot.records import BadInput, CheckFailed, Example

if TYPE_CHECKING:
    from pivot.data.doctor.fits import Limit
    from pivot.records import Picture

ROWS, PICTURES, LENGTHS = 1000, 100, 200  # in one piece
WORTH = 5000  # rows for each process: it takes 1 s to start, 8 s with a model's processor, and a row 0.3 ms and its picture as many more
CAP = 1000  # findings of a kind that are kept in words
# What keeps a row from being tokenised, whatever its length.
UNREADABLE = ("broken-text", "turns", "tag-misplaced", "empty-chosen", "empty-rejected", "image-missing", "image-corrupt", "image-huge")
TAGS = ("tag-missing", "tag-extra")
SKIPPED = sum(BIT[code] for code in UNREADABLE)

T = TypeVar("T")
R = TypeVar("R")
Found = list[tuple[int, Fault]]  # each with the number of its row


@dataclass(frozen=True)
class Words:
    """What was found in words, by code: number of the row and what exactly. No more than CAP of a code are kept."""

    by: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, found: Iterable[tuple[int, Fault]]) -> None:
        """Keep these, the first one of a row."""
        for number, fault in found:
            kept = self.by.setdefault(fault.code, {})
            if len(kept) < CAP:
                kept.setdefault(number, fault.says)


@dataclass(frozen=True)
class Data:
    """Data by the line that names it, and what its rows must fit into. Each process opens it and makes that limit anew."""

    line: str
    load: Callable[[], Limit] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Data, (self.line, self.load)

    @cached_property
    def examples(self) -> Sequence[Example]:
        return recipe.read(self.line)

    @cached_property
    def limit(self) -> Limit | None:
        return self.load() if self.load else None

    @property
    def tagged(self) -> bool:
        return bool(getattr(self.examples, "tagged", False))


# ---- processes


class Crew(Protocol):
    """Maps a function of data and piece over pieces, in order."""

    def __call__(self, act: Callable[[Data, T], R], pieces: Sequence[T]) -> Iterator[R]: ...


@contextmanager
def crew(data: Data, workers: int) -> Iterator[Crew]:
    """So many processes that look at data; with one or none, this one."""
    if workers <= 1:
        yield lambda act, pieces: (act(data, piece) for piece in pieces)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _open, (data,)) as pool:
        try:
            yield lambda act, pieces: pool.map(partial(_do, act), pieces)
        except BrokenProcessPool:
            raise CheckFailed("a process that looked at the data died, perhaps for lack of memory; run again with --workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


_opened: list[Data] = []  # in a process of a crew: what it looks at


def _open(data: Data) -> None:
    _opened[:] = [data]


def _do(act: Callable[[Data, Any], Any], piece: Any) -> Any:
    return act(_opened[0], piece)


def pieces(size: int, each: int) -> list[range]:
    """The numbers below `size`, `each` at a time."""
    return [range(start, min(start + each, size)) for start in range(0, size, each)]


# ---- rows


@dataclass(frozen=True)
class Texts:
    """Rows as their text has them. Of their pictures: row, place among the row's, whose they are (a response's number, or -1), and key."""

    flags: np.ndarray  # (rows,) uint64, bits of codes
    hashes: np.ndarray  # (rows, 3) uint64: of id, of all that is said, of what is asked
    read: np.ndarray  # (rows,) bool: could be read
    blank: np.ndarray  # (rows,) bool: nothing is asked
    mute: np.ndarray  # (rows,) bool: nothing is said to it
    places: np.ndarray  # (pictures, 3) int64
    keys: np.ndarray  # (pictures,) uint64: equal for what is surely the same picture
    found: Found


def texts(data: Data, numbers: range) -> Texts:
    """Read some rows."""
    size = len(numbers)
    flags, hashes = np.zeros(size, np.uint64), np.zeros((size, 3), np.uint64)
    read, blank, mute = (np.zeros(size, bool) for _ in range(3))
    places, keys, found = list[tuple[int, int, int]](), list[int](), Found()
    for at, number in enumerate(numbers):
        try:
            example = data.examples[number]
        except Unsafe as unsafe:
            found.append((number, Fault("unsafe-path", str(unsafe))))
            continue
        except BadInput as broken:
            found.append((number, Fault("broken-row", str(broken))))
            continue
        read[at], blank[at], mute[at] = True, checks.blank(example), not example.responses
        wrong = list(checks.faults(example, data.tagged))
        found += [(number, fault) for fault in wrong]
        if any(fault.code in TAGS for fault in wrong):  # rows that differ in this alone are the same once it is mended
            example = retagged(example)
        hashes[at] = hashed(example.id), hashed(hash_json(_said(example))), hashed(checks.asks(example))
        for which, (owner, source) in enumerate(shown(example)):
            places.append((number, which, owner))
            keys.append(_key(source, number, which))
    for number, fault in found:
        flags[number - numbers.start] |= np.uint64(BIT[fault.code])
    where = np.array(places, np.int64).reshape(-1, 3)
    return Texts(flags, hashes, read, blank, mute, where, np.array(keys, np.uint64), found)


def shown(example: Example) -> Iterator[tuple[int, Picture]]:
    """All pictures of a row, each with the number of the response whose own it is, else -1."""
    yield from ((-1, source) for source in example.images)
    yield from ((number, source) for number, response in enumerate(example.responses) for source in response.images or ())


def _said(example: Example) -> list[Any]:
    responses = [[response.role, turns_of(response.text, "assistant")] for response in example.responses]
    return [turns_of(example.prompt, "user"), responses, example.answer]


def _key(source: Picture, number: int, which: int) -> int:
    if isinstance(source, bytes):
        return hashed(source)
    return hashed(f"{number} {which}" if isinstance(source, Image.Image) else str(source))


def hashed(content: str | bytes) -> int:
    """64 bits of it."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# ---- pictures


@dataclass(frozen=True)
class Looks:
    """What some pictures are: hash of their content, bit of what is wrong, and width and height or 0 where that is not known."""

    seen: np.ndarray  # (pictures, 4) uint64
    found: Found


def looks(data: Data, places: np.ndarray, decode: bool = True) -> Looks:
    """Look at pictures, given by row and place in it; in order of rows, so that each row is read once."""
    seen, found = list[tuple[int, ...]](), Found()
    for number, those in groupby(places[:, :2].tolist(), lambda place: place[0]):
        sources = [source for _, source in shown(data.examples[number])]
        for _, which in those:
            content, size, fault = _look(sources[which], decode)
            seen.append((content, BIT[fault.code] if fault else 0, *size))
            found += [(number, fault)] if fault else []
    return Looks(np.array(seen, np.uint64), found)


def looks_only(data: Data, places: np.ndarray) -> Looks:
    """What pictures hold, without decoding them."""
    return looks(data, places, decode=False)


def _look(source: Picture, decode: bool) -> tuple[int, tuple[int, int], Fault | None]:
    """Content, size, and what is wrong with it. What cannot be read has the content of its name."""
    name, size = pictures.named(source), (0, 0)
    content = hashed(source.tobytes() + repr(source.size).encode() if isinstance(source, Image.Image) else name)
    try:
        if not isinstance(source, Image.Image):
            content = hashed(pictures.read(source))
        if decode:
            size = pictures.size(source)
    except pictures.Missing as missing:
        return content, size, Fault("image-missing", str(missing))
    except pictures.TooLarge as large:
        return content, size, Fault("image-huge", str(large))
    except BadInput as corrupt:
        return content, size, Fault("image-corrupt", str(corrupt))
    absurd = checks.shape(size) if decode else None
    return content, size, Fault("image-shape", f"{name}: {absurd}") if absurd else None


# ---- lengths


@dataclass(frozen=True)
class Measure:
    """Rows to be measured, with their faults so far, and of their pictures row, owner, width and height."""

    numbers: np.ndarray  # (rows,) int64
    flags: np.ndarray  # (rows,) uint64
    seen: np.ndarray  # (pictures, 4) int64, in order of rows


def lengths(data: Data, piece: Measure) -> Found:
    """What the model's processor says of some rows."""
    found, starts = Found(), np.searchsorted(piece.seen[:, 0], piece.numbers)
    ends = np.searchsorted(piece.seen[:, 0], piece.numbers, side="right")
    for number, flags, start, end in zip(piece.numbers.tolist(), piece.flags.tolist(), starts, ends, strict=True):
        example = data.examples[number]
        if any(flags & BIT[code] for code in TAGS):
            example = retagged(example)
        sizes = dict[int | None, list[tuple[int, int]]]({None: []})
        sizes |= {which: [] for which, response in enumerate(example.responses) if response.images is not None}
        for _, owner, width, height in piece.seen[start:end].tolist():
            sizes[None if owner < 0 else owner].append((width, height))
        found += [(number, fault) for fault in _long(example, data.limit, sizes)] if data.limit else []
    return found


def _long(example: Example, limit: Limit, sizes: Mapping[int | None, list[tuple[int, int]]]) -> Iterator[Fault]:
    forged = next((f"{token} in {where}" for where, text in checks.texts(example) for token in limit.control.findall(text)[:1]), None)
    if forged:
        yield Fault("control-token", forged)
        return
    try:
        over = limit.over(example, sizes)
    except BadInput as refused:
        yield Fault("turns", str(refused))
        return
    except ValueError as refused:
        yield Fault("image-shape", str(refused))
        return
    for which, tokens in over.items():
        role = "prompt" if which is None else example.responses[which].role
        code = {"prompt": "long-prompt", "rejected": "long-rejected"}.get(role, "long-chosen")
        yield Fault(code, f"{tokens:,} tokens, {limit.tokens:,} fit")
