"""One run, one folder: the only place where stages meet, as plain files.

A file that this module writes is complete or absent: it is written beside its target as `.NAME.PID.tmp`, synced and renamed.
What a killed process leaves behind carries that suffix, is read by nobody and is swept when the run folder is next locked.
No torch here: the report and every re-scoring read run folders on machines that have none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pivot.records import BadInput, Measurement

ORIGINAL = "original"  # the arm that no post-training touches
LEFTOVER = ".*.tmp"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors and torch raise errors of their own when a disk is full; these are the words in them.
FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed")


# ---- whole files


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, says that nothing more can be written."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or any(word in str(error) for word in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk(path: Path | str) -> Iterator[None]:
    """Turn "disk full" inside the block, whichever library met it, into a `BadInput` that names the path."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise BadInput(f"disk full while writing {path}; free some space (or choose another out=) and run the same command again") from None


def _sync(path: Path) -> None:
    """fsync one file or folder; a rename is durable only once its folder is synced."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path | str) -> None:
    """Remove a file or folder, if it is there, at once: a kill on the way leaves a leftover, not a half folder."""
    path = Path(path)
    if path.exists():
        leftover = path.with_name(f".{path.name}.old.{os.getpid()}.tmp")
        os.replace(path, leftover)
        _remove(leftover)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; what the block wrote there becomes `path`, or nothing does."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            _remove(temporary)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder; it becomes `path` as a whole, in place of an older one, or nothing changes.

    Killed in the moment of a replacement, `path` is absent: complete or absent, never half.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
        _remove(temporary)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for inside in sorted(temporary.rglob("*")):
                _sync(inside)
            discard(path)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            _remove(temporary)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file whole."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file whole. Half of a surrogate pair, which UTF-8 cannot hold, becomes \\uXXXX: in JSON that is the same text."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def _plain(value: Any) -> Any:
    """What JSON can hold: mappings as dicts, sequences as lists, numpy and torch scalars as numbers, non-finite numbers as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return _plain(value.tolist())
    if isinstance(value, Iterable):
        return [_plain(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of records, arrays and mappings; NaN and infinities become null, since browsers refuse them."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file whole, indented for readers."""
    write_text(path, to_json(value, indent=1) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a missing or broken one is a `BadInput` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"file not found: {path}; check the path") from None
    except (ValueError, IsADirectoryError) as broken:
        raise BadInput(f"not a JSON file: {path} ({broken}); delete it and run its stage again") from None


# ---- JSON lines


def append_jsonl(path: Path | str, *records: Any) -> None:
    """Append records, one a line. A last line torn by a kill is dropped first; if the disk fills up the file stays as it was."""
    path = Path(path)
    data = "".join(to_json(record) + "\n" for record in records).encode(errors="backslashreplace")
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:  # a buffer would be written once more at close, after the cut
            end = _drop_torn_line(file.fileno())
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise


def _drop_torn_line(handle: int) -> int:
    """Cut what follows the last newline; returns the file's size after that."""
    size = end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)
    return end


def read_jsonl(path: Path | str) -> list[Any]:
    """Records of a JSON-lines file, [] if there is none. A torn last line is ignored; a broken line before it is a `BadInput`."""
    path = Path(path)
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise BadInput(f"line {number} of {path} is not JSON; delete the file and run its stage again") from None
    return records


def write_jsonl(path: Path | str, records: Iterable[Any]) -> None:
    """Write a JSON-lines file whole."""
    write_text(path, "".join(to_json(record) + "\n" for record in records))


# ---- hashes


def hash_bytes(data: bytes) -> str:
    """sha256 as hex."""
    return hashlib.sha256(data).hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a value's JSON text with sorted keys: equal mappings hash equal whatever their order."""
    return hash_bytes(json.dumps(_plain(value), sort_keys=True, ensure_ascii=False).encode(errors="backslashreplace"))


def hash_file(path: Path | str) -> str:
    """sha256 of a file's bytes; of a folder: of its files' relative paths and bytes, leftovers of killed writers aside."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
        kept = [p for p in inside if not any(fnmatch(part, LEFTOVER) for part in p.parts)]
        return hash_json([[p.as_posix(), hash_file(path / p)] for p in kept])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """sha256 over names, dtypes, shapes and bytes of torch tensors, numpy arrays or bytes, whatever order they come in.

    A torch tensor and a numpy array with the same dtype, shape and values hash equal. Device does not matter. Tensors that
    are spread over processes must be gathered first.
    """
    digest = hashlib.sha256()
    for name, value in sorted(dict(named).items()):
        kind, shape, data = _raw(value)
        digest.update(to_json([name, kind, shape]).encode() + b"\n")
        digest.update(data)
    return digest.hexdigest()


def _raw(value: Any) -> tuple[str, list[int], memoryview]:
    """(dtype, shape, bytes) of a tensor, an array or bytes."""
    if isinstance(value, bytes):
        return "bytes", [len(value)], memoryview(value)
    kind, shape = str(value.dtype).removeprefix("torch."), list(value.shape)
    if hasattr(value, "untyped_storage"):
        # numpy has no bfloat16, so bytes are viewed on torch's side. A tensor is here, so torch is loaded already.
        torch = sys.modules["torch"]
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return kind, shape, memoryview(value.tobytes())


# ---- the folder


def sweep(folder: Path | str) -> None:
    """Remove what killed writers left anywhere under the folder. Only for who holds the folder alone."""
    for leftover in sorted(Path(folder).rglob(LEFTOVER)):
        _remove(leftover)


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
        return self.path / "manifest.json"

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
        write_json(file, {field.name: getattr(found, field.name) for field in fields(found)})
        return file

    def measurements(self) -> list[Measurement]:
        """Every measurement of this run, by file name. A metric that was not a number reads back as NaN."""
        found = []
        for file in sorted((self.path / "measurements").glob("*.json")):
            stored = read_json(file)
            try:
                stored["metrics"] = {key: math.nan if value is None else value for key, value in stored["metrics"].items()}
                found.append(Measurement(**stored))
            except (TypeError, KeyError, AttributeError):
                raise BadInput(f"not a measurement: {file}; delete it and run its stage again") from None
        return found

    # -- manifest and stage marks

    def manifest(self) -> dict[str, Any]:
        """Facts about the run, {} before the first one."""
        return read_json(self.manifest_file) if self.manifest_file.exists() else {}

    def note(self, **facts: Any) -> None:
        """Put facts into the manifest, in place of older ones of the same name."""
        write_json(self.manifest_file, {**self.manifest(), **facts})

    def pin(self, name: str, value: str, what: str) -> None:
        """Note a fact once; afterwards it may not change. `what` says in the error what no longer matches."""
        pinned = self.manifest().get("pinned", {})
        if pinned.get(name, value) != value:
            raise BadInput(f"{what} no longer match those that {self.path} began with; restore them or start anew with another out=")
        if name not in pinned:
            self.note(pinned={**pinned, name: value})

    def mark(self, stage: str, outputs: Sequence[Path | str] = (), needs: Sequence[str] = (), **facts: Any) -> None:
        """Say that a stage is finished: which files or folders it made (by hash), from which stages, and facts worth keeping."""
        stages = self.manifest().get("stages", {})
        made = {Path(p).relative_to(self.path).as_posix(): hash_file(p) for p in outputs}
        needed = {other: hash_json(stages[other]["outputs"]) for other in needs}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self.note(stages={**stages, stage: {"finished": finished, "outputs": made, "needs": needed, "facts": facts}})

    def done(self, stage: str) -> bool:
        """Whether a stage is finished: marked, its outputs unchanged on disk, and the stages it read from unchanged since."""
        stages = self.manifest().get("stages", {})
        if stage not in stages:
            return False
        mark = stages[stage]
        if any(other not in stages or hash_json(stages[other]["outputs"]) != seen for other, seen in mark["needs"].items()):
            return False
        paths = {self.path / name: seen for name, seen in mark["outputs"].items()}
        return all(path.exists() and hash_file(path) == seen for path, seen in paths.items())

    def facts(self, stage: str) -> dict[str, Any]:
        """What was noted when the stage finished, {} if it has not."""
        return self.manifest().get("stages", {}).get(stage, {}).get("facts", {})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused, leftovers of a killed one are swept. The lock dies with the process."""
        import fcntl  # not on every platform, and only writers need it

        with disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"another run is writing to {self.path}; wait for it, or give this one another out=") from None
            sweep(self.path)
            yield
