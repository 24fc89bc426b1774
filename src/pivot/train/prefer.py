"""Preference pairs from what a model itself says: `attempts.py` asks, `pairing.py` chooses, and here it is kept.

In a folder: `samples.jsonl`, every attempt at every row, batch by batch, so that a job that was killed goes on behind the last whole
one; then pictures, `pairs.jsonl` and `summary.json`, and last `meta.json`, with which the folder is a set of MMPR. All but the attempts
is made anew, from these, when only settings change that choose among them (`wanted.PAIRING`).
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pivot import progress
from pivot.data.lazy import fingerprint
from pivot.data.mmpr import META
from pivot.data.writing import pairs as written
from pivot.files import append_jsonl, discard, read_json, sweep, to_json, write_json
from pivot.records import BadInput, Example, Response
from pivot.train.pairing import Attempt, Pair, Record, balanced, candidates, lacking, lengths, reason
from pivot.train.wanted import PAIRING, Method, Settings, question

SAMPLES, SUMMARY = "samples.jsonl", "summary.json"
VERSION = 2  # of samples.jsonl
CAP = 20  # attempts that were not judged of which the summary says why; samples.jsonl has all
HERE = (
    "another threshold, or a route that was tried, makes other pairs of the same attempts in this folder; "
    "more samples, another temperature and another reward need another folder"
)
NOTHING = "mend that, and give another folder"
Ask = Callable[[Sequence[int]], Sequence[Record]]  # rows by number, tried together


def prefer(ask: Ask, examples: Sequence[Example], out: Path, settings: Settings, model: str) -> dict[str, Any]:
    """Make pairs of rows and write them into a folder; returns its summary.

    `model`: a hash of all that decides what it says. A folder that was begun with the same is gone on with, or left as it is if it
    is complete. Where all attempts are there and suffice, other `PAIRING` settings make other pairs of them. Any other folder that is
    not empty is a `BadInput`.
    """
    rows = min(len(examples), settings.limit or len(examples))
    now = {"version": VERSION, "model": model, "data": fingerprint(examples), "settings": asdict(settings)}
    with _held(out, json.loads(to_json(now))) as first:
        file, anew = out / SAMPLES, {name: first[name] for name in PAIRING if first[name] != getattr(settings, name)}
        if not _made(out, settings):
            if anew.keys() - {"pairs"} and _whole(file, rows, settings.batch) < rows:  # attempts go by the others
                raise BadInput(f"{out} is not complete; go on as it was begun ({_options(anew)}), then make other pairs of its attempts")
            _ask(ask, file, rows, settings.batch)
            found = _gathered(file, settings, first["threshold"])
            _write(found, file, examples, {**now, "begun": anew, "rows": rows, **found.facts()}, settings)
        return dict(read_json(out / SUMMARY))


# ---- what was tried


@contextmanager
def _held(out: Path, now: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Hold the file of attempts, which one process at a time may write; yields the settings that it was begun with."""
    file = out / SAMPLES
    if out.exists() and not file.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists already; give another path, or remove it first")
    out.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another process is writing to {out}; wait for it, or give another path") from None
        sweep(out)
        held.seek(0)
        head = held.readline()
        if not head.endswith(b"\n"):
            append_jsonl(file, now)
        begun = json.loads(head) if head.endswith(b"\n") else now
        if differing := [key for key in _differing(begun, now) if key not in PAIRING]:
            raise BadInput(f"{out} was begun otherwise (another {', '.join(differing)}); go on as it was begun, or give another path")
        yield begun["settings"]


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, and of settings which."""
    mine, theirs = ({**one, **one.get("settings", {}), "settings": None} for one in (old, new))
    return [key for key in theirs if mine.get(key) != theirs[key]]


def _made(out: Path, settings: Settings) -> bool:
    """Whether the pairs that are wanted are there."""
    return (out / META).exists() and read_json(out / SUMMARY)["settings"] == json.loads(to_json(asdict(settings)))


def _options(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {'by default' if value is None else value}" for name, value in settings.items())


def _ask(ask: Ask, file: Path, rows: int, batch: int) -> None:
    """Try all rows that were not tried. Batches stay as they were, so that rounding is the same after a kill."""
    done = _whole(file, rows, batch)
    while done < rows:
        progress.tell("data prefer: rows", done, rows)
        numbers = range(done, min(done + batch, rows))
        append_jsonl(file, *map(asdict, ask(numbers)))
        done = numbers.stop
    progress.tell("data prefer: rows", rows, rows)


def _whole(file: Path, rows: int, batch: int) -> int:
    """How many rows are there in whole batches. The file is cut behind the last of them."""
    with file.open("r+b") as lines:
        ends = [len(line) for line in lines if line.endswith(b"\n")]
        found = len(ends) - 1
        kept = found if found == rows else found - found % batch
        lines.truncate(sum(ends[: kept + 1]))
    return kept


def _records(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for line in islice(lines, 1, None):
            plain = json.loads(line)
            attempts = tuple(Attempt(**attempt) for attempt in plain["attempts"])
            yield Record(**{**plain, "methods": tuple(plain["methods"]), "attempts": attempts})


# ---- what is made of it


@dataclass
class Found:
    """What all rows gave: groups of candidates, each of a row, and what is worth saying of the rest."""

    groups: list[list[Pair]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    none: Counter[str] = field(default_factory=Counter)
    failed: list[dict[str, Any]] = field(default_factory=list)
    unjudged: list[dict[str, Any]] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def see(self, record: Record, threshold: float) -> None:
        """Take one row into account."""
        self.answers[record.answer] += 1
        if record.failed:
            self.failed.append({"row": record.row, "says": record.failed})
            return
        for method, group in candidates(record, threshold).items():
            if group:
                self.groups.append(group)
                self.rows.append(record.row)
            else:
                self.none[f"{method}: {reason(record.attempts, method, threshold)}"] += 1
        for attempt in record.attempts:
            judged = {True: "right", False: "wrong", None: "not judged"}[attempt.right(threshold)]
            self.attempts.update([attempt.origin, f"{attempt.origin}, {judged}"])
            self.attempts["cut off"] += not attempt.finished
            if attempt.failed and len(self.unjudged) < CAP:
                self.unjudged.append({"row": record.row, "says": attempt.failed})

    def facts(self) -> dict[str, Any]:
        """For the summary."""
        told = {"failed": self.failed, "unjudged": self.unjudged, "without_pair": self.none}
        return {**told, "attempts": self.attempts, "answers": self.answers}


def _gathered(file: Path, settings: Settings, before: float) -> Found:
    """Look at all rows. `before`: the threshold with which they were tried."""
    found, lack = Found(), Counter[str]()
    for record in _records(file):
        if lacks := lacking(record, settings, before):
            lack[lacks] += 1
        found.see(replace(record, methods=settings.methods(record.answer)), settings.threshold)
    for name, rows in lack.most_common(1):  # before anything that is there goes
        why = "was not tried" if name == "route" else f"wants continuations that were not tried with {before:g}"
        raise BadInput(f"{name} {getattr(settings, name)} {why} at {rows:,} rows of {file.parent}; give another path")
    if not found.groups:
        why = ", ".join(f"{what} ({rows})" for what, rows in [*found.none.most_common(), ("failed", len(found.failed))] if rows)
        first = next((f"; row {one['row']}: {one['says']}" for one in [*found.failed, *found.unjudged]), "")
        raise BadInput(f"no row gave a pair: {why}{first}; {HERE if found.attempts else NOTHING} ({file})")
    return found


def _write(found: Found, file: Path, examples: Sequence[Example], facts: Mapping[str, Any], settings: Settings) -> None:
    """Choose, and write rows, their summary, and what names them. Without this name, which goes first, older ones are no set."""
    for name in (META, SUMMARY, written.PAIRS, written.IMAGES):
        discard(file.parent / name)
    taken: dict[int, list[Pair]] = {}
    for row, pairs in zip(found.rows, balanced(found.groups, settings.pairs), strict=True):
        taken.setdefault(row, []).extend(pairs)
    everything = [pair for pairs in taken.values() for pair in pairs]
    lost, made = Counter[str](), _paired(_records(file), taken, examples, settings, facts["model"])
    for number, lacks in enumerate(written.write(made, file.parent), start=1):
        lost.update(lacks)
        progress.tell("data prefer: pairs", number, len(everything))
    by_method = {method: [pair for pair in everything if pair.method == method] for method in get_args(Method)}
    tokens = {name: {"pairs": len(some), **lengths(some)} for name, some in {**by_method, "all": everything}.items() if some}
    possible = lengths([pair for group in found.groups for pair in group])
    write_json(file.parent / SUMMARY, {**facts, "rows_with_pairs": len(taken), "tokens": tokens, "possible": possible, "lost": lost})
    written.finish(file.parent, file.parent.resolve().name, len(everything))


def _paired(
    records: Iterable[Record], taken: Mapping[int, Sequence[Pair]], examples: Sequence[Example], settings: Settings, model: str
) -> Iterator[Example]:
    """Each pair as an example, which says how it came to be."""
    for record in records:
        for number, pair in enumerate(taken.get(record.row, ())):
            example, (chosen, rejected) = question(examples[record.row]), (record.attempts[pair.chosen], record.attempts[pair.rejected])
            told = {
                "method": pair.method,
                "row": record.row,
                "attempts": [pair.chosen, pair.rejected],
                "rewards": [chosen.reward, rejected.reward],
                "tokens": pair.tokens,
                "chosen": chosen.origin,
                "kept": rejected.kept if pair.method == "dropout" else None,
                "reward": settings.reward["name"],
                **{name: getattr(settings, name) for name in ("threshold", "samples", "temperature", "top_p", "seed")},
                "model": model,
            }
            yield replace(
                example,
                id=f"{example.id}-{number}" if number else example.id,
                responses=(Response(chosen.text), Response(rejected.text, "rejected")),
                meta={**example.meta, "prefer": told},
            )
