"""Checkpoints that are complete or absent, and from which training goes on to the same bits.

One is written into a hidden folder, marked with the hash of every file, synced, and renamed. Accelerate saves weights,
optimiser and random states, in whatever way they are spread over processes; beside them lie this loop's own state and the
lines of metrics.jsonl up to here, so that the log and the weights can never tell different stories.
"""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pivot.files import discard, disk, hash_file, read_json, read_jsonl, sweep, whole_folder, write_json, write_jsonl
from pivot.records import BadInput

METRICS = "metrics.jsonl"
STATE = "state.pt"
MARK = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")

# It would say at every save that tied weights are stored once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one stage, in its folder."""

    folder: Path
    accelerator: Accelerator

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps of all checkpoints that are there, whether intact or not."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("checkpoint-*"))
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: dict[str, Any], keep: set[int]) -> None:
        """Write the checkpoint of a step; afterwards remove all others but those of the steps in `keep`."""
        crew, main = self.accelerator, self.accelerator.is_main_process
        with ExitStack() as held:
            unfinished = held.enter_context(whole_folder(self._path(step))) if main else Path()
            unfinished = Path(broadcast_object_list([str(unfinished)])[0])
            with disk(self._path(step)):
                crew.save_state(str(unfinished))
            crew.wait_for_everyone()
            if main:
                torch.save(state, unfinished / STATE)
                write_jsonl(unfinished / METRICS, read_jsonl(self.folder / METRICS))
                write_json(unfinished / MARK, {path.name: hash_file(path) for path in sorted(unfinished.iterdir())})
        self.prune({step, *keep})

    def prune(self, keep: set[int]) -> None:
        """Remove all checkpoints but those of some steps."""
        if self.accelerator.is_main_process:
            for other in set(self.steps()) - keep:
                _remove(self._path(other))
        self.accelerator.wait_for_everyone()

    def intact(self, step: int) -> bool:
        """Whether a checkpoint is all there, by its hashes."""
        path = self._path(step)
        try:
            mark = read_json(path / MARK)
            return {inside.name for inside in path.iterdir()} == {*mark, MARK} and all(
                hash_file(path / name) == mark[name] for name in mark
            )
        except (BadInput, OSError, TypeError):
            return False

    def newest(self) -> int | None:
        """Step of the newest intact checkpoint, as the main process sees it. Also removes what killed writers left."""
        found: int | None = None
        if self.accelerator.is_main_process:
            sweep(self.folder)
            found = next((step for step in reversed(self.steps()) if self.intact(step)), None)
        return broadcast_object_list([found])[0]

    def state(self, step: int) -> dict[str, Any]:
        """This loop's own state at that step."""
        return torch.load(self._path(step) / STATE, map_location="cpu", weights_only=True)

    def restore(self, step: int) -> None:
        """Put weights, optimiser and random states back."""
        self.accelerator.load_state(str(self._path(step)))

    def restore_metrics(self, step: int | None) -> list[dict[str, Any]]:
        """Put the log back to where it was at that step (None: before any); returns its lines."""
        lines = [] if step is None else read_jsonl(self._path(step) / METRICS)
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_jsonl(self.folder / METRICS, lines)
        self.accelerator.wait_for_everyone()
        return lines


def _remove(path: Path) -> None:
    """Remove a checkpoint. Its name goes first: half of one must not look like one."""
    discard(path)
