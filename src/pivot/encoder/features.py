"""Features kept on disk: computed once per encoder, tap and data, read back as memory-mapped arrays.

An entry's name is the hash of everything that its values depend on, so a stale one is never found; entries are folders that
appear by one rename, so two processes may compute the same one and a killed one leaves nothing that is read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import torch
import transformers

from pivot.encoder.encoder import At, Encoder, Features
from pivot.files import cache_folder, disk, hash_json
from pivot.pictures import fingerprint
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.records import Picture

Keep = Literal["pooled", "tokens", "regions"]
VALUES_FILE = "values.npy"
ABANDONED_SECONDS = 24 * 3600


def cached(
    encoder: Encoder,
    images: Sequence[Picture],
    keep: Keep = "pooled",
    *,
    at: At = "encoder",
    regions: Sequence[np.ndarray] | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Features of images as a memory-mapped float32 array, from the cache where they are in it.

    `pooled` gives (B, D), `tokens` (B, P, D). `regions` holds for each image an array (n, P) of patch weights, n >= 0, and gives
    one row per region, images in order: the weighted sum of its tokens. Tokens of a big encoder are big: 3.4 MB an image.
    """
    if (keep == "regions") != (regions is not None):
        raise ValueError("keep='regions' and regions= go together")
    facts = [encoder.fingerprint(), fingerprint(images), keep, at, _hash(regions), encoder.model.device.type]
    return kept(facts, _count(images, regions), lambda: _rows(encoder.stream(images, at, batch), keep, regions))


def kept(facts: Sequence[Any], count: int, rows: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """A memory-mapped float32 array of `count` rows that follow from these facts: from the cache, or made part by part and kept there."""
    libraries = [torch.__version__, transformers.__version__]
    entry = cache_folder() / "features" / hash_json([*facts, libraries])
    if not entry.is_dir():
        _compute(entry, count, rows)
    return np.load(entry / VALUES_FILE, mmap_mode="r")


def _hash(regions: Sequence[np.ndarray] | None) -> str | None:
    if regions is None:
        return None
    digest = hashlib.sha256()
    for region in regions:
        digest.update(f"{region.shape}".encode())
        digest.update(np.ascontiguousarray(region, dtype=np.float32).tobytes())
    return digest.hexdigest()


def _compute(entry: Path, count: int, rows: Callable[[], Iterator[np.ndarray]]) -> None:
    with disk(entry):
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            _sweep(entry.parent)
            unfinished = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=entry.parent))
        except (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise BadInput(
                f"cannot write the feature cache {entry.parent} ({error.strerror}); set PIVOT_CACHE to a folder of yours"
            ) from None
        try:
            with (unfinished / VALUES_FILE).open("wb") as file:
                _write_array(file, rows(), count)
                file.flush()
                os.fsync(file.fileno())
            try:
                unfinished.rename(entry)
            except OSError:
                if not entry.is_dir():  # else another process was first, with the same values
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _count(images: Sequence[Picture], regions: Sequence[np.ndarray] | None) -> int:
    return len(images) if regions is None else sum(len(region) for region in regions)


def _rows(stream: Iterator[Features], keep: Keep, regions: Sequence[np.ndarray] | None) -> Iterator[np.ndarray]:
    start = 0
    for features in stream:
        if keep == "regions" and regions is not None:
            weights = regions[start : start + len(features.tokens)]
            start += len(weights)
            yield np.concatenate([w.astype(np.float32) @ t for w, t in zip(weights, features.tokens.numpy(), strict=True)])
        else:
            yield (features.tokens if keep == "tokens" else features.pooled).numpy()


def _write_array(file: BinaryIO, parts: Iterator[np.ndarray], count: int) -> None:
    """Write an .npy file part by part. Written, not mapped: a full disk is then an error and not a dead process."""
    header = None
    for part in parts:
        if header is None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, *part.shape[1:])}
            _check_room(count * part[:1].size * 4)
            np.lib.format.write_array_header_1_0(file, header)
        if not np.isfinite(part).all():  # looked at once, when they are made: tokens of a big set take minutes to read
            raise BadInput("features are not finite; the encoder's weights below the tap are broken, or do not bear this precision")
        file.write(np.ascontiguousarray(part, dtype="<f4").tobytes())
    if header is None:
        raise BadInput("features of no images; give at least one")


def _check_room(size: int) -> None:
    """Tokens of a big set take tens of gigabytes: better known now than hours later."""
    free = shutil.disk_usage(cache_folder()).free
    if size > free:
        advice = "take fewer images (size=), or set PIVOT_CACHE to a folder on a larger disk"
        raise BadInput(f"these features take {size / 1e9:,.3g} GB, and {cache_folder()} has {free / 1e9:,.3g} GB left; {advice}")


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed long ago left behind."""
    for leftover in folder.glob(".*.tmp"):
        try:
            abandoned = time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS
        except FileNotFoundError:
            continue
        if abandoned:
            shutil.rmtree(leftover, ignore_errors=True)
