"""What rows have in common with each other and with other data, by hashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pivot.data.doctor.checks import BIT, Fault
from pivot.data.doctor.crew import CAP, Data, Found
from pivot.data.doctor.scan import Texts
from pivot.data.tables.places import origin

MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that to multiply with it loses nothing
HALF = np.uint64(32)
ID, SAID, ASKED = range(3)  # columns of `hashes`


@dataclass(frozen=True)
class Read(Texts):
    """Rows with what is in their pictures."""

    content: np.ndarray  # (P,) uint64
    sizes: np.ndarray  # (P, 2) int64, 0 where unknown

    def whole(self, column: int, own: bool) -> np.ndarray:
        """Hashes of rows with what their pictures hold, in order. `own`: also those that a response has of its own."""
        found = self.hashes[:, column].copy()
        for which in range(int(self.places[:, 1].max(initial=-1)) + 1):
            at = np.flatnonzero((self.places[:, 1] == which) & (own | (self.places[:, 2] < 0)))
            rows = self.places[at, 0]
            for value in (found[rows], self.content[at]):
                found[rows] = (found[rows] ^ (found[rows] >> HALF)) * MIX + value
        return found


def alike(data: Data, read: Read) -> tuple[np.ndarray, Found]:
    """Rows that are there twice, share an id, or lack what the others have."""
    flags, found = np.zeros(len(read.flags), np.uint64), Found()

    def note(which: np.ndarray, code: str, say: Callable[[int], str]) -> None:
        flags[which] |= np.uint64(BIT[code])
        found.extend((number, Fault(code, say(number))) for number in np.flatnonzero(which)[:CAP].tolist())

    twins, again = _repeats(data, read.whole(SAID, own=True), read.read)
    note(twins >= 0, "duplicate-row", lambda number: f"says what row {twins[number]} says")
    namesakes, _ = _repeats(data, read.hashes[:, ID], read.read & ~again & (twins < 0))
    note(namesakes >= 0, "duplicate-id", lambda number: f"'{data.examples[number].id}', as row {namesakes[number]}")
    alone = read.read & read.blank & read.mute & ~again & (twins < 0)
    alone[np.setdiff1d(np.arange(len(alone)), read.places[:, 0])] = False
    others, _ = _repeats(data, read.whole(ASKED, own=False), alone)  # nothing is asked or said: what differs is the answer
    note(others >= 0, "other-class", lambda number: f"'{data.examples[number].answer}', in row {others[number]} another")
    blank, mute, bare = read.read & read.blank, read.read & read.mute, read.read.copy()
    bare[read.places[:, 0]] = False
    if 100 * bare.sum() < read.read.sum():
        note(bare, "no-picture", lambda number: f"row '{data.examples[number].id}'")
    if 2 * blank.sum() < read.read.sum():
        note(blank, "empty-prompt", lambda number: f"row '{data.examples[number].id}'")
    if mute.sum() < read.read.sum():
        note(mute, "no-response", lambda number: f"row '{data.examples[number].id}'")
    return flags, found


def _repeats(data: Data, values: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the first of the same value, -1 if it is that itself; and which rows are given again on purpose, and so in neither."""
    first, rows = np.arange(len(values)), np.flatnonzero(among)
    _, earliest, which = np.unique(values[rows], return_index=True, return_inverse=True)
    first[rows] = rows[earliest][which]
    later, again = first != np.arange(len(values)), np.zeros(len(values), bool)
    for number in np.flatnonzero(later).tolist():
        again[number] = origin(data.examples, number) == origin(data.examples, int(first[number]))
    return np.where(later & ~again, first, -1), again


def leaks(read: Read, line: str, other: Read) -> tuple[np.ndarray, Found]:
    """Rows that other data has, too: the same prompt to the same pictures, or one of the pictures."""
    asks = np.flatnonzero(other.read & ~other.blank)
    at = _places(other.whole(ASKED, own=False)[asks], read.whole(ASKED, own=False))
    rows = np.flatnonzero((at >= 0) & read.read & ~read.blank)
    told = dict(zip(rows.tolist(), asks[at[rows]].tolist(), strict=True))
    same = _places(other.content, read.content)
    pictures, shared = np.flatnonzero(same >= 0), dict[int, int]()
    for row, where in zip(read.places[pictures, 0].tolist(), other.places[same[pictures], 0].tolist(), strict=True):
        if row not in told:
            shared.setdefault(row, where)
    flags, found = np.zeros(len(read.flags), np.uint64), Found()
    for code, those in (("leak-row", told), ("leak-image", shared)):
        flags[list(those)] |= np.uint64(BIT[code])
        found += [(row, Fault(code, f"as row {where} of {line}")) for row, where in list(those.items())[:CAP]]
    return flags, found


def _places(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted value first stands among values; -1 if nowhere."""
    known, first = np.unique(values, return_index=True)
    if not len(known):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, first[at], -1)
