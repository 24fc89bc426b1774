"""Files that are complete or absent, JSON and JSON lines, and hashes.

A file that this module writes is written beside its target as `.NAME.RANDOM.PID.tmp`, a folder as `.NAME.PID.tmp`, synced and renamed.
What a killed process leaves behind has that name, is read by nobody and is swept: in a run folder when that is next locked, beside a
file when that is next converted to, in a cache when that is next written to. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pivot.records import BadInput

LEFTOVER = ".*.tmp"
OURS = re.compile(r"\..+\.([1-9]\d{0,6})\.tmp")  # what this module calls a temporary, with the process that writes it
MANIFEST = "manifest.json"  # what makes a folder a run folder
ABANDONED = 3600  # seconds without a write after which a temporary in a cache is a killed writer's
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors and torch raise errors of their own when a disk is full; these are the words in them.
FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed")


# ---- whole files


def cache_folder() -> Path:
    """`$PIVOT_CACHE`, by default `pivot` in the user's cache folder."""
    if chosen := os.environ.get("PIVOT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pivot"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, says that nothing more can be written."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or any(word in str(error) for word in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk(path: Path | str) -> Iterator[None]:
    """Make what keeps the block from writing `path` a `BadInput` that names it, not a temporary name or a library's words.

    That is a full disk, whichever library met it, and what the system refuses about the path, its parents or its temporary name.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if is_disk_full(error):
            advice = "free some space (or choose another out=) and run the same command again"
            raise BadInput(f"disk full while writing {path}; {advice}") from None
        if isinstance(error, OSError) and any(_stands_for(name, Path(path)) for name in (error.filename, error.filename2)):
            raise BadInput(f"cannot write {path}: {error.strerror}; check the path and its permissions, or choose another") from None
        raise


def _stands_for(name: Any, path: Path) -> bool:
    """Whether an error about this file is one about writing `path`."""
    if not isinstance(name, str | os.PathLike):
        return False
    found = Path(os.fspath(name))
    if found in (path, *path.parents):
        return True
    ours = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}}\.)?{os.getpid()}\.tmp")
    return any(part.parent == path.parent and ours.fullmatch(part.name) for part in (found, *found.parents))


def _temporary(path: Path, unlike: str = "") -> Path:
    """What `path` is called while it is written. `unlike`: what sets it apart from those of other threads, and of equal pids elsewhere."""
    if not path.name:
        raise BadInput(f"cannot write {path} in one piece: it has no name of its own; give a path that ends in a name")
    return path.with_name(f".{path.name}.{unlike}{os.getpid()}.tmp")


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


def sweep(folder: Path | str) -> None:
    """Remove what killed writers of this module left under the folder, run folders within it aside. Only for who holds it alone.

    A name of another form stays, and so does that of a process that is alive: neither is a killed writer's.
    """
    for here, folders, names in os.walk(folder):
        if Path(here) != Path(folder) and MANIFEST in names:
            folders.clear()
            continue
        leftovers = [name for name in (*folders, *names) if _abandoned(name)]
        folders[:] = [name for name in folders if name not in leftovers]
        for name in leftovers:
            _remove(Path(here) / name)


def sweep_beside(path: Path | str) -> None:
    """Remove what killed writers of this one file or folder left beside it; what stays cannot be removed, or is another's."""
    path = Path(path)
    ours = re.compile(rf"\.{re.escape(path.name)}\.(old\.|[0-9a-f]{{8}}\.)?[1-9]\d{{0,6}}\.tmp")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if ours.fullmatch(name) and _abandoned(name):
                _remove(path.parent / name)


def sweep_cache(folder: Path | str) -> None:
    """Remove what killed writers left under a folder of a cache. Others write there at this time, perhaps from another container, where
    our numbers of processes are no one's; so age tells.
    """
    for here, _, names in os.walk(folder):
        for leftover in (Path(here) / name for name in names if OURS.fullmatch(name)):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > ABANDONED:
                    leftover.unlink()


def _abandoned(name: str) -> bool:
    """Whether nobody writes a temporary of this name any more. One of our own process is of a namesake that was killed."""
    ours = OURS.fullmatch(name)
    if not ours:
        return False
    if int(ours[1]) == os.getpid():
        return True
    try:
        os.kill(int(ours[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; what the block wrote there becomes `path`, or nothing does.

    Several may write the same file at once, threads or processes with equal numbers in two containers; the last one's stays.
    """
    path = Path(path)
    temporary = _temporary(path, f"{os.urandom(4).hex()}.")
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
    temporary = _temporary(path)
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
