"""The reference is data: log-probabilities under the weights that training starts from, computed once and kept on disk.

An entry is a run of consecutive rows, in a file whose name is the hash of everything that its values depend on: so a stale
one is never found. It holds a checksum of its values: a half-written or damaged one counts as absent. Entries appear by one
rename, so a kill costs at most the one being computed. No second model is ever made.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from pivot.data.collate import Row, collate
from pivot.files import cache_folder, hash_bytes, hash_json, whole_file
from pivot.model import MLLM
from pivot.model.flops import row_flops
from pivot.model.languages import attention
from pivot.pictures import fingerprint, once
from pivot.records import BadInput, CheckFailed, Example, Response
from pivot.train.feed import RowLogps, read
from pivot.train.settings import Settings
from pivot.train.state import Setup

ENTRY = 64  # rows
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # of a margin before the first update


def identity(mllm: MLLM, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Everything besides the row that its log-probabilities depend on."""
    config, processor = mllm.model.config, mllm.processor
    return {
        "weights": mllm.hashes(),
        "code": mllm.code,
        "config": {key: str(value) for key, value in _lasting(config.to_dict()).items()},
        "tokenizer": _tokenizer(processor.tokenizer),
        "images": {key: str(value) for key, value in processor.image_processor.to_dict().items()},
        "placeholders": {key: str(value) for key, value in processor.to_dict().items() if isinstance(value, str | int | float)},
        "template": processor.chat_template if settings.template == "chat" else settings.template,
        "tap": asdict(mllm.tap),
        "label_mask": settings.label_mask,
        "limit": settings.limit if settings.too_long == "refuse" else [settings.limit, settings.too_long],
        "precision": settings.precision,
        "backend": settings.backend,
        "attention": [attention(config.get_text_config(), settings.packing), config.vision_config._attn_implementation],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {name: version(name) for name in ("pivot-vision", "torch", "transformers", "tokenizers", "numpy", "pillow")},
    }


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, parts and all, without what says where it came from or by which version, and what saving notes: its dtype."""
    passing = {"transformers_version", "dtype", "_name_or_path", "architectures", "pivot_left_out", "pivot_source"}
    return {key: _lasting(value) if isinstance(value, dict) else value for key, value in config.items() if key not in passing}


def _tokenizer(tokenizer: Any) -> Any:
    """What decides a tokenizer's output. How some call before padded or cut its own rows is left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab()]
    return {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")}


def row_key(example: Example) -> str:
    """Hash of a row's prompt, responses and pictures. Its name does not count."""

    def said(response: Response) -> list[Any]:
        return [response.text, None if response.images is None else fingerprint(response.images)]

    return hash_json([example.prompt, [said(response) for response in example.responses], fingerprint(example.images)])


@dataclass
class Reference:
    """Log-probabilities per row, read from entries as they are needed. `seconds`, `flops`: what computing them took, whenever."""

    files: list[Path]
    cached: bool  # whether nothing had to be computed
    seconds: float = 0.0
    flops: float = 0.0
    _open: Callable[[Path], Entry] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._open = lru_cache(maxsize=256)(_must_read)

    def row(self, index: int) -> RowLogps:
        """Per response of that row: (s,) log-probabilities of its supervised tokens."""
        return self._open(self.files[index // ENTRY]).rows[index % ENTRY]

    def facts(self) -> dict[str, Any]:
        """For the ledger."""
        return {"seconds": self.seconds, "flops": self.flops, "cached": self.cached}


@dataclass(frozen=True)
class Entry:
    """One file: log-probabilities of some rows, and what computing them took."""

    rows: Sequence[RowLogps]
    seconds: float
    flops: float

    def write(self, file: Path) -> None:
        """Write it whole."""
        flat = [logps for row in self.rows for logps in row]
        values = np.concatenate([np.zeros(0, np.float32), *flat])
        lengths = np.array([len(logps) for logps in flat], dtype=np.int64)
        responses = np.array([len(row) for row in self.rows], dtype=np.int64)
        tensors = {"values": values, "lengths": lengths, "responses": responses}
        facts = {"sum": _sum(tensors), "seconds": repr(self.seconds), "flops": repr(self.flops)}
        try:
            with whole_file(file) as unfinished:
                save_file(tensors, unfinished, metadata=facts)
        except PermissionError as denied:
            raise BadInput(
                f"cannot write the reference cache {file.parent} ({denied.strerror}); set PIVOT_CACHE to a folder of yours"
            ) from None

    @classmethod
    def read(cls, file: Path) -> Entry | None:
        """What a file holds; None if it is absent, half-written or damaged."""
        try:
            with safe_open(file, "np") as opened:
                facts, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if facts["sum"] != _sum(tensors):
                return None
            logps = iter(np.split(tensors["values"], list(accumulate(tensors["lengths"].tolist()))[:-1]))
            rows = [[next(logps) for _ in range(k)] for k in tensors["responses"].tolist()]
            return cls(rows, float(facts["seconds"]), float(facts["flops"]))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None


def _sum(tensors: dict[str, np.ndarray]) -> str:
    return hash_bytes(b"".join(tensors[name].tobytes() for name in ("values", "lengths", "responses")))


def _must_read(file: Path) -> Entry:
    entry = Entry.read(file)
    if entry is None:
        raise BadInput(
            f"reference cache: {file} vanished or was damaged (or is not seen by all nodes); set PIVOT_CACHE to a folder that stays"
        )
    return entry


@dataclass(frozen=True)
class Waiting:
    """An entry on its way: its file, what that holds already, else the rows that must be scored."""

    file: Path
    found: Entry | None
    rows: Sequence[Row]


def compute(setup: Setup, examples: Sequence[Example], told: Mapping[str, Any]) -> Iterator[int | Reference]:
    """Find or compute every entry, dealt to the processes in turn; yields how many rows are done, and at last the reference.

    `told` is `identity`, taken before any update could change weights. Scoring goes through the prepared scorer of training.
    """
    same, crew = hash_json(told), setup.accelerator
    folder = cache_folder() / "reference" / same[:16]

    def prepare(start: int) -> Waiting:
        given = (read(examples, n) for n in range(start, min(start + ENTRY, len(examples))))  # none past the end
        chunk = [replace(example, images=once(example.images)) for example in given]  # hashed, and perhaps scored
        file = folder / f"{hash_json([same, [row_key(example) for example in chunk]])}.safetensors"
        found = Entry.read(file)
        return Waiting(file, found, [] if found else [setup.encode(example) for example in chunk])

    files: list[Path] = []
    seconds, flops, cached = 0.0, 0.0, True
    filler = setup.encode(examples[0])
    rounds = range(crew.process_index * ENTRY, _rounded(len(examples), crew.num_processes), crew.num_processes * ENTRY)
    for waiting in setup.ahead.map(prepare, rounds, ahead=2):
        entry = _score(setup, waiting.rows, filler)
        if waiting.rows:
            entry.write(waiting.file)
        entry = waiting.found or entry
        for file, took, cost, was_there in gather_object([(str(waiting.file), entry.seconds, entry.flops, not waiting.rows)]):
            files.append(Path(file))
            seconds, flops, cached = seconds + took, flops + cost, cached and was_there
        yield min(len(files) * ENTRY, len(examples))
    yield Reference(files, cached, seconds, flops)


@torch.no_grad()
def _score(setup: Setup, rows: Sequence[Row], filler: Row) -> Entry:
    """Score rows, a micro-batch at a time. All processes run equally many: wrappers wait for each other."""
    began, found = time.perf_counter(), list[RowLogps]()
    crew, size = setup.accelerator, setup.settings.micro
    for number in range(max(gather_object([math.ceil(len(rows) / size)]))):
        piece = rows[number * size : (number + 1) * size]
        scores = setup.scorer(send_to_device(collate(piece or [filler]), crew.device))
        if piece:
            found += [[logps.float().cpu().numpy() for logps in row] for row in scores.logps]
    cost = sum(row_flops(setup.mllm.model.config, row, setup.settings.backend, backward=False, adapters=setup.adapters) for row in rows)
    return Entry(found, time.perf_counter() - began, cost)


def _rounded(examples: int, processes: int) -> int:
    """Rows up to the end of the last round in which every process has an entry, perhaps an empty one."""
    return math.ceil(examples / (ENTRY * processes)) * ENTRY * processes


def check_start(margins: Tensor, ids: Sequence[str], precision: str) -> None:
    """Before the first update policy and reference are one, so every margin is zero but for rounding. Else stop."""
    far, allowed = margins.detach().abs(), TOLERANCE[precision]
    if not bool((far <= allowed).all()):
        worst = int(torch.nan_to_num(far, nan=torch.inf).argmax())
        raise CheckFailed(
            f"before the first update the margin of row {ids[worst]} is {margins[worst].item():.3g}, not 0 (tolerance {allowed:g}): "
            f"the cached reference does not belong to this model; delete {cache_folder() / 'reference'} and report this"
        )
