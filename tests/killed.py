"""A process that kills its children: trains in forks of itself, which end by SIGKILL at planted moments, and then goes on.

Nothing is imported anew for a kill, and a killed child cleans nothing up. It must be a process of its own: torch refuses to
train in forks of a process that has trained. Reads a task as JSON from its arguments, writes what came out as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import picture_of
from kills import die, forked, writes

from pivot import lookup
from pivot.files import append_jsonl, hash_json, hash_tensors, read_json, read_jsonl
from pivot.model import MLLM
from pivot.records import Example, Response
from pivot.train import Rates, Settings, reference, train

SETTINGS: dict[str, Any] = {"batch": 3, "micro": 2, "epochs": 2, "save_every": 1, "eval_every": 2}


def pairs() -> list[Example]:
    words = ("circle", "square", "star", "ring", "cross")
    return [
        Example(f"row-{n}", (picture_of(n),), "What is it?", (Response(f"A {word}."), Response("Nothing.", role="rejected")))
        for n, word in enumerate(words)
    ]


def work(root: Path, task: dict[str, Any], mllm: MLLM) -> None:
    """Train to the end, or until killed."""
    os.environ["PIVOT_CACHE"] = str(root / "cache")
    examples, rates = pairs(), Rates(1e-3, 1e-3, 1e-3)
    made, settings = lookup.find("objective", task["objective"])(), Settings(**{**SETTINGS, **task["settings"]})
    for _ in train(mllm, made, examples, settings, root / "run", rates=rates, validation=examples[:2]):
        pass


def torn(file: Path, *records: Any) -> None:
    """Half a line reaches the log."""
    append_jsonl(file, *records)
    if records[0]["step"] == 2:
        with file.open("r+b") as log:
            log.truncate(file.stat().st_size - 40)
        die()


def outcome(root: Path) -> dict[str, Any]:
    """What a finished run left: weights to the last bit, and its records without times."""
    from safetensors.torch import load_file

    def timeless(facts: Any) -> Any:
        return (
            {key: timeless(value) for key, value in facts.items() if key not in ("seconds", "waiting", "waiting_share", "cached")}
            if isinstance(facts, dict)
            else facts
        )

    lines = [timeless(line) for line in read_jsonl(root / "run" / "metrics.jsonl")]
    return {
        "weights": hash_tensors(load_file(root / "run" / "model" / "model.safetensors")),
        "steps": [f"{line['kind']} {line['step']}" for line in lines],
        "records": hash_json([lines, timeless(read_json(root / "run" / "ledger.json"))]),
        "files": sorted(path.name for path in (root / "run").iterdir()),
    }


def main(task: dict[str, Any]) -> None:
    """Train once undisturbed, then once for each kill: killed there (perhaps once more elsewhere), and then to the end."""
    torch.set_num_threads(1)
    reference.ENTRY = 2
    root, mllm = Path(task["root"]), MLLM.tiny()

    def trains(folder: Path, plant: Callable[[Path], Any] = lambda _: None) -> Callable[[], None]:
        def body() -> None:
            plant(folder)
            work(folder, task, mllm)

        return body

    def counted() -> None:
        total, began = [0], time.monotonic()
        writes(root / "plain", lambda number: total.__setitem__(0, number))
        work(root / "plain", task, mllm)
        (root / "count.json").write_text(json.dumps([*total, time.monotonic() - began]))

    assert forked(counted) == 0
    number, seconds = json.loads((root / "count.json").read_text())
    dice = random.Random(0)

    def at_write(moment: int) -> Callable[[Path], None]:
        return lambda folder: writes(folder, lambda now: die() if now == moment else None)

    def after(delay: float) -> Callable[[Path], Any]:
        return lambda _: signal.setitimer(signal.ITIMER_REAL, delay)  # SIGALRM kills where nobody handles it

    kills = {f"write {at} of {number}": at_write(at) for at in (round((n + 0.5) * number / task["writes"]) for n in range(task["writes"]))}
    kills |= {f"after {delay:.3f} s": after(delay) for delay in (dice.uniform(0, seconds) for _ in range(task["times"]))}
    kills["a torn line"] = lambda _: setattr(sys.modules["pivot.train.loop"], "append_jsonl", torn)
    found, folder = [], root / "killed"
    for name, plant in kills.items():
        shutil.rmtree(folder, ignore_errors=True)
        first = forked(trains(folder, plant))
        second = forked(trains(folder, at_write(dice.randrange(1, number)))) if task["twice"] else None
        last = forked(trains(folder))
        found.append({"name": name, "killed": [first, second], "status": last, **(outcome(folder) if last == 0 else {})})
    (root / "found.json").write_text(json.dumps({"wanted": outcome(root / "plain"), "found": found}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
