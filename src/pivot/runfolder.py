"""One run, one folder: the only place where stages meet, as plain files.

No torch here: the report and every re-scoring read run folders on machines that have none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pivot.files import MANIFEST, OURS, disk, hash_file, hash_json, read_json, sweep, write_json
from pivot.records import BadInput, Measurement, Shown

ORIGINAL = "original"  # the arm that no post-training touches
FACTS = {"name", "versions", "stages", "pinned"}  # of a manifest
CLAIMS = ".claims"  # a folder of empty files, one for each stage that a run was at
DOOR = 60.0  # seconds to wait while another run begins: it looks at weights and rows


@dataclass(frozen=True)
class RunFolder:
    """Names and reads the files of one run. Making one touches no disk; the writing methods create what they need."""

    path: Path

    @classmethod
    def existing(cls, path: Path | str) -> RunFolder:
        """The run folder at `path`, or a `BadInput`."""
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise BadInput(f"no such run folder: {path}; check the path, or make it with `pivot run RECIPE out={path}`")
        if not folder.manifest_file.is_file():
            raise BadInput(f"not a run folder: {path} has no manifest.json; give a folder that `pivot run` wrote")
        return folder

    @property
    def manifest_file(self) -> Path:
        return self.path / MANIFEST

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def post(self, arm: str, seed: int) -> Path:
        """Where stage post keeps an arm: checkpoints, model/, metrics.jsonl, ledger.json."""
        return self.path / f"post-{arm}" / f"seed-{seed}"

    def encoder(self, arm: str, seed: int = 0) -> Path:
        """Where an arm's detached encoder lies. The original one has no seed: nothing was trained."""
        return self.path / "encoder-original" if arm == ORIGINAL else self.path / f"encoder-{arm}" / f"seed-{seed}"

    def answers_file(self, arm: str, seed: int, bench: str) -> Path:
        """Where a bench keeps one line per item."""
        return self.path / "answers" / f"{arm}-seed-{seed}-{bench}.jsonl"

    def measurement_file(self, arm: str, seed: int, kind: str, name: str) -> Path:
        """Where one measurement of one arm and seed lies."""
        return self.path / "measurements" / f"{arm}-seed-{seed}-{kind}-{name}.json"

    def write_measurement(self, found: Measurement) -> Path:
        """Keep one measurement as one file."""
        file = self.measurement_file(found.arm, found.seed, found.kind, found.name)
        stored = {field.name: getattr(found, field.name) for field in fields(found)}
        write_json(file, {**stored, "shown": [vars(one) for one in found.shown]})
        return file

    def measurements(self) -> list[Measurement]:
        """Every measurement of this run, by file name. A metric that was not a number reads back as NaN."""
        found = []
        for file in sorted((self.path / "measurements").glob("*.json")):
            stored = read_json(file)
            try:
                stored["metrics"] = {key: math.nan if value is None else value for key, value in stored["metrics"].items()}
                found.append(Measurement(**{**stored, "shown": tuple(Shown(**one) for one in stored.get("shown", ()))}))
            except (TypeError, KeyError, AttributeError):
                raise BadInput(f"not a measurement: {file}; delete it and run its stage again") from None
        return found

    # -- manifest and stage marks

    def manifest(self) -> dict[str, Any]:
        """Facts about the run, {} before the first one."""
        return read_json(self.manifest_file) if self.manifest_file.exists() else {}

    def note(self, **facts: Any) -> None:
        """Put facts into the manifest, in place of older ones of the same name."""
        with self._changing() as manifest:
            manifest |= facts

    def pin(self, name: str, value: str, what: str) -> None:
        """Note a fact once; afterwards it may not change. `what` says in the error what no longer matches."""
        pinned = self.manifest().get("pinned", {})
        if pinned.get(name, value) != value:
            raise BadInput(f"{what} no longer match those that {self.path} began with; restore them or start anew with another out=")
        if name not in pinned:
            with self._changing() as manifest:
                manifest["pinned"] = {**manifest.get("pinned", {}), name: value}

    def versions(self, stages: Sequence[str]) -> dict[str, str]:
        """A hash of what each of some finished stages made."""
        marks = self.manifest().get("stages", {})
        return {stage: hash_json(marks[stage]["outputs"]) for stage in stages}

    def mark(self, stage: str, outputs: Sequence[Path | str] = (), needs: Mapping[str, str] | None = None, **facts: Any) -> None:
        """Say that a stage is finished: which files or folders it made (by hash), and facts worth keeping. `needs`: the `versions` of
        the stages that it read from, as they were when it began: if one was made anew meanwhile, this one is not finished.
        """
        made = {Path(p).relative_to(self.path).as_posix(): hash_file(p) for p in outputs}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        with self._changing() as manifest:
            manifest.setdefault("stages", {})[stage] = {"finished": finished, "outputs": made, "needs": dict(needs or {}), "facts": facts}

    def started(self) -> bool:
        """Whether there is work to lose: a stage that was finished once, or a checkpoint of one that was not."""
        checkpoints = (found for kind in ("*", "*/seed-*") for found in self.path.glob(f"{kind}/checkpoint*"))
        return bool(self.manifest().get("stages")) or any(checkpoints)

    def done(self, stage: str) -> bool:
        """Whether a stage is finished: marked, its outputs unchanged on disk, and the stages it read from unchanged since."""
        stages = self.manifest().get("stages", {})
        if stage not in stages:
            return False
        mark = stages[stage]
        if any(other not in stages or self.versions([other])[other] != seen for other, seen in mark["needs"].items()):
            return False
        paths = {self.path / name: seen for name, seen in mark["outputs"].items()}
        return all(path.exists() and hash_file(path) == seen for path, seen in paths.items())

    def read_by(self, stage: str) -> set[str]:
        """The stages that a finished one read from."""
        return set(self.manifest().get("stages", {}).get(stage, {}).get("needs", ()))

    def facts(self, stage: str) -> dict[str, Any]:
        """What was noted when the stage finished, {} if it has not."""
        return self.manifest().get("stages", {}).get(stage, {}).get("facts", {})

    # -- who may write. Locks die with their process, and hold over the machines that share a disk as far as its flock does.

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the whole folder: it is refused while a run is in it. Leftovers of a killed one are swept.

        A folder that is not there, or empty, becomes a run folder; one with anything else in it is a `BadInput` and stays as it is.
        """
        with self._opened() as lock:
            if not _held(lock, alone=True):
                raise self._occupied()
            self._settle()
            yield

    @contextmanager
    def joined(self, begin: Callable[[bool], None]) -> Iterator[None]:
        """Work in the folder beside other runs, each at stages that it claims.

        `begin` is told whether others are there already; while it runs for the first of them, nobody else comes in.
        """
        with self._opened() as lock:
            first, until = _held(lock, alone=True), time.monotonic() + DOOR
            while not first and not _held(lock, alone=False):
                if time.monotonic() > until:
                    raise self._occupied()
                time.sleep(0.1)
            if first:
                self._settle()
            begin(not first)
            if first:
                _held(lock, alone=False)
            yield

    @contextmanager
    def claim(self, stage: str) -> Iterator[bool]:
        """Whether this run may work on a stage. Until it is left, no other one may."""
        with self._claim_file(stage).open("a") as lock:
            yield _held(lock, alone=True)

    def claimed(self, stage: str) -> bool:
        """Whether another run is at a stage."""
        with self.claim(stage) as free:
            return not free

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The manifest, written back as it is left. Of several runs, one at a time changes it."""
        with self._claim_file("manifest").open("a") as lock:
            while not _held(lock, alone=True):
                time.sleep(0.01)
            manifest = self.manifest()
            yield manifest
            write_json(self.manifest_file, manifest)

    def _claim_file(self, name: str) -> Path:
        place = self.path / CLAIMS
        with disk(place):
            place.mkdir(parents=True, exist_ok=True)
        return place / name.replace("/", " ")

    @contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        """The file that stands for the whole folder."""
        with disk(self.path):
            self._is_new()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        with lock:
            yield lock

    def _settle(self) -> None:
        """Make it a run folder that nothing half written lies in."""
        sweep(self.path)
        if self._is_new() and not self.manifest_file.exists():
            self.note()

    def _occupied(self) -> BadInput:
        return BadInput(f"another run is writing to {self.path}; wait for it, or give this one another out=")

    def _is_new(self) -> bool:
        """Whether this is yet to become a run folder. One of somebody else's is a `BadInput`: nothing may be swept or written there."""
        inside = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if MANIFEST in inside:
            try:
                manifest = read_json(self.manifest_file)
            except BadInput:
                manifest = None
            if isinstance(manifest, dict) and (manifest.keys() <= FACTS or "stages" in manifest):
                return False
        elif all(name in (".lock", CLAIMS) or (name.startswith(f".{MANIFEST}.") and OURS.fullmatch(name)) for name in inside):
            return True
        raise BadInput(f"{self.path} is not empty and not a run folder; give another out=")


def _held(lock: IO[str], alone: bool) -> bool:
    """Whether an open file could be locked, alone or beside others that do not want to be alone. Closing it lets go."""
    import fcntl  # not on every platform, and only writers need it

    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
