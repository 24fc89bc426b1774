"""How long rows are, roughly, without tokenising them or opening a picture: enough to put rows of like length into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pivot import progress
from pivot.files import cache_folder, hash_json, whole_file
from pivot.records import BadInput, Example, Turn

VERSION = 1  # of how lengths are measured
SAID = 1000  # rows between two words of progress


@dataclass(frozen=True)
class Lengths:
    """Per row: how many pictures, of its prompt and of its responses (rows,), and how many bytes of text (rows,)."""

    pictures: np.ndarray
    text: np.ndarray

    def __len__(self) -> int:
        return len(self.text)


def lengths(examples: Sequence[Example], mark: str) -> Lengths:
    """The lengths of all rows, from the cache if they were measured before. `mark`: the rows' `lazy.fingerprint`."""
    kept = cache_folder() / "lengths" / f"{hash_json([VERSION, mark])}.npz"
    try:
        with np.load(kept) as stored:
            return Lengths(stored["pictures"], stored["text"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass
    found = _measured(examples)
    _keep(kept, found)
    return found


def _measured(examples: Sequence[Example]) -> Lengths:
    measured = np.zeros((2, len(examples)), np.int32)
    for row, example in enumerate(examples):
        measured[:, row] = pictures(example), text(example)
        if row % SAID == SAID - 1 or row == len(examples) - 1:
            progress.tell("lengths of rows", row + 1, len(examples))
    return Lengths(measured[0], measured[1])


def _keep(file: Path, found: Lengths) -> None:
    try:
        with whole_file(file) as unfinished, unfinished.open("wb") as out:
            np.savez(out, pictures=found.pictures, text=found.text)
    except BadInput:
        pass  # a cache that cannot be written costs time, not the run


def pictures(example: Example) -> int:
    """Pictures of a row. Each is worth hundreds of tokens, so it counts before any text."""
    return len(example.images) + sum(len(response.images or ()) for response in example.responses)


def text(example: Example) -> int:
    """Bytes of a row's prompt and responses: tokens are some four bytes in most languages, while words are set apart only in some."""
    return _bytes(example.prompt) + sum(_bytes(response.text) for response in example.responses)


def _bytes(said: str | Sequence[Turn]) -> int:
    texts = [said] if isinstance(said, str) else [turn["content"] for turn in said]
    return sum(len(text.encode(errors="replace")) for text in texts)
