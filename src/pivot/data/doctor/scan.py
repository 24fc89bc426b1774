"""Reading all rows, looking at all pictures and measuring all lengths of some data: piece by piece (`crew.py`).

What a piece yields is small whatever its rows hold: bits and hashes of 64 bits. Of ten million different things two share one by chance
in one of 370,000 sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from pivot import pictures
from pivot.data.doctor import checks
from pivot.data.doctor.checks import BIT, Fault
from pivot.data.doctor.crew import Data, Found
from pivot.data.doctor.mend import retagged
from pivot.data.reading import Unsafe
from pivot.data.talk import turns_of
from pivot.files import hash_json
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from pivot.data.doctor.fits import Limit
    from pivot.records import Picture

ROWS, PICTURES, LENGTHS = 1000, 100, 200  # in one piece
# What keeps a row from being tokenised, whatever its length.
UNREADABLE = ("broken-text", "turns", "tag-misplaced", "empty-chosen", "empty-rejected", "image-missing", "image-corrupt", "image-huge")
TAGS = ("tag-missing", "tag-extra")
SKIPPED = sum(BIT[code] for code in UNREADABLE)


# ---- rows


@dataclass(frozen=True)
class Texts:
    """Rows as their text has them, all hashed. (R rows, P pictures of rows)"""

    flags: np.ndarray  # (R,) uint64, bits of codes
    hashes: np.ndarray  # (R, 3) uint64: of id, of all that is said, of what is asked
    read: np.ndarray  # (R,) bool: could be read
    blank: np.ndarray  # (R,) bool: nothing is asked
    mute: np.ndarray  # (R,) bool: nothing is answered
    places: np.ndarray  # (P, 3) int64: row, place among its pictures, and the response whose own it is or -1; in order of rows
    keys: np.ndarray  # (P,) uint64: equal for what is surely the same picture

    @classmethod
    def behind(cls, parts: Sequence[Self]) -> Self:
        """Parts of some data's rows as one."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


def texts(data: Data, numbers: range) -> tuple[Texts, Found]:
    """Read some rows, and say what is wrong with them."""
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
    return Texts(flags, hashes, read, blank, mute, where, np.array(keys, np.uint64)), found


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
        yield from limit.faults(example, sizes)
    except BadInput as refused:
        yield Fault("turns", str(refused))
    except ValueError as refused:
        yield Fault("image-shape", str(refused))
