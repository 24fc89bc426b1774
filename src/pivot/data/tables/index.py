"""Where the rows of a JSON file lie, found once and kept: a file of any size then opens at once and is never held in memory.

A file is rows if it is one array of objects (`[{...}, ...]`, however it is laid out) or one object a line; its first character says which.
The index lies in the cache, keyed by the file's path, size and time of change, beside a hash of all that was read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from pivot import progress
from pivot.files import cache_folder, hash_json, sweep_cache, whole_file
from pivot.records import BadInput

CHUNK = 8 << 20  # bytes read at once
LONGEST = 256 << 20  # bytes of one row: a file that goes on without ending one is damaged
KEPT = 4 << 20  # bytes of a file whose index is worth a file of its own
SPACE = " \t\r\n"  # between what JSON says
BETWEEN = re.compile(f"[{SPACE},]*")
MARK = b"\xef\xbb\xbf"  # of the order of bytes, which some editors put in front
VERSION = 2  # of what an index holds


@dataclass(frozen=True)
class Index:
    """`spans`: (rows, 2) int64, first byte and end of each. `hash`: of the file's content."""

    spans: np.ndarray
    hash: str
    layout: Literal["array", "lines"]


def index(file: Path) -> Index:
    """The index of a file, from the cache if it is there. What is no rows is a `BadInput`."""
    try:
        size, changed = file.stat().st_size, file.stat().st_mtime_ns
        if size <= KEPT:
            return _built(file, size)
        kept = cache_folder() / "index" / f"{hash_json([VERSION, str(file.resolve()), size, changed])}.index"
        try:
            return _opened(kept)
        except (OSError, ValueError, KeyError, EOFError):
            pass
        found = _built(file, size)
    except FileNotFoundError:
        raise BadInput(f"data not found: {file}; check the path") from None
    except IsADirectoryError:
        raise BadInput(f"{file} is a folder, not a file of rows; name one of its files") from None
    except PermissionError as denied:
        raise BadInput(f"{file} cannot be read ({denied.strerror}); check its permissions") from None
    sweep_cache(kept.parent)
    try:
        with whole_file(kept) as unfinished, unfinished.open("wb") as out:
            np.save(out, found.spans)
            out.write(json.dumps({"hash": found.hash, "layout": found.layout}).encode())
    except BadInput:
        pass  # a cache that cannot be written costs time, not the run
    return found


def _opened(kept: Path) -> Index:
    """An index from the cache, its spans mapped and not read."""
    spans = np.load(kept, mmap_mode="r")
    with kept.open("rb") as file:
        file.seek(spans.offset + spans.nbytes)
        told = json.loads(file.read())
    return Index(spans, told["hash"], told["layout"])


def _built(file: Path, size: int) -> Index:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        start = opened.read(4096)
        first = start.removeprefix(MARK).lstrip()[:1]
        opened.seek(0)
        chunks = _chunks(opened, digest, file.name, size)
        if first == b"[":
            return Index(_spans(_of_array(chunks, file)), digest.hexdigest(), "array")
        if first in (b"{", b""):
            return Index(_of_lines(chunks, len(MARK) if start.startswith(MARK) else 0), digest.hexdigest(), "lines")
    raise BadInput(f"{file} holds no rows: it begins with {first!r}, where a list [...] or an object on each line should; check the file")


def _chunks(opened: IO[bytes], digest: Any, name: str, size: int) -> Iterator[bytes]:
    done = 0
    while chunk := opened.read(CHUNK):
        digest.update(chunk)
        done += len(chunk)
        yield chunk
        progress.tell(f"index of {name}, MB", done >> 20, max(size >> 20, 1))


def _spans(found: Iterator[tuple[int, int]]) -> np.ndarray:
    """Pairs as an array, without a list of all of them."""
    return np.fromiter((end for span in found for end in span), np.int64).reshape(-1, 2)


def _of_array(chunks: Iterator[bytes], file: Path) -> Iterator[tuple[int, int]]:
    """Spans of an array's items. As latin-1 a character is a byte, and JSON's own characters are what they were."""
    decode, base, rows, commas = json.JSONDecoder().raw_decode, 0, 0, 0
    text = next(chunks).decode("latin-1")
    at = text.index("[") + 1
    while True:
        between = BETWEEN.match(text, at)[0]  # type: ignore[index]  # matches nothing, too
        at, commas = at + len(between), commas + between.count(",")
        try:
            if text[at : at + 1] == "]":
                if commas:
                    raise BadInput(f"the array of {file} ends with a comma (byte {base + at}); correct the file, or fetch it again")
                return _nothing_more(text[at + 1 :], base + at + 1, chunks, file)
            if at < len(text) and commas != bool(rows):
                many = f"{commas} commas" if commas > 1 else "a comma" if commas else "no comma"
                raise BadInput(f"row {rows} of {file} (byte {base + at}) has {many} in front of it; correct the file")
            if at < len(text) and text[at] != "{":
                raise BadInput(f"row {rows} of {file} (byte {base + at}) is no object in {{}}; correct the file")
            _, end = decode(text, at)
            yield base + at, base + end
            rows, at, commas = rows + 1, end, 0
        except RecursionError:
            raise BadInput(f"row {rows} of {file} (byte {base + at}) is nested too deeply to be a row; take it out") from None
        except ValueError as broken:
            if isinstance(broken, BadInput):
                raise
            more = next(chunks, b"") if len(text) - at <= LONGEST else b""
            if not more:
                raise _unfinished(file, rows, base + at, broken) from None
            text, base, at = text[at:] + more.decode("latin-1"), base + at, 0


def _nothing_more(text: str, byte: int, chunks: Iterator[bytes], file: Path) -> None:
    """What follows an array must be white space."""
    for more in chain([text], (chunk.decode("latin-1") for chunk in chunks)):
        if rest := more.lstrip(SPACE):
            where = f"byte {byte + len(more) - len(rest)}"
            raise BadInput(f"{file} goes on behind the end of its array ({where}); put all rows into one array, or an object on each line")
        byte += len(more)


def _unfinished(file: Path, row: int, byte: int, broken: ValueError) -> BadInput:
    return BadInput(
        f"row {row} of {file} (byte {byte}) is not complete JSON ({broken}); correct the file, or fetch it again if it was cut off"
    )


def _of_lines(chunks: Iterator[bytes], start: int) -> np.ndarray:
    """Spans of the lines that are not blank, from a byte on. What they say is read when a row is asked for."""
    found, base, blank = [np.zeros((0, 2), np.int64)], 0, True
    for chunk in chunks:
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + base
        spans = np.stack([np.concatenate([[start], ends[:-1] + 1]), ends], axis=1) if len(ends) else found[0]
        if len(spans):
            blank_first = blank and not chunk[max(start - base, 0) : int(spans[0, 1]) - base].strip()
            text = [not blank_first, *(_says(chunk, a - base, b - base) for a, b in spans[1:].tolist())]
            found.append(spans[text])
            start, blank = int(ends[-1]) + 1, True
        blank = blank and not chunk[max(start - base, 0) :].strip()
        base += len(chunk)
    if not blank:
        found.append(np.array([[start, base]], np.int64))
    return np.concatenate(found)


def _says(chunk: bytes, start: int, end: int) -> bool:
    """Whether a line holds more than white space. Hardly one is longer than a character and holds nothing."""
    return end > start and (chunk[start] > 32 or bool(chunk[start:end].strip()))
