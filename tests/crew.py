"""A process that forks crews of two: they train together over gloo, as DDP and as FSDP2, and write what came out.

Forks, because importing everything anew for every process takes longer than all of the training. Reads a task as JSON from
its arguments: the folder, and a list of runs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from conftest import picture_of

from pivot import lookup
from pivot.files import hash_tensors
from pivot.model import MLLM
from pivot.records import Example, Response
from pivot.train import Rates, Settings, reference, train


def rows() -> list[Example]:
    """Eight of uneven lengths, one without an image: where that sits, a process sees no image at all."""
    words = ("a circle", "a big red square", "a star", "one ring", "a cross, I believe", "two", "a bar", "none at all")
    return [
        Example(f"row-{n}", () if n == 2 else (picture_of(n),), "What is it?", (Response(word), Response("Nothing.", role="rejected")))
        for n, word in enumerate(words)
    ]


def work(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """One run of this process, alone or in a crew; what it ends with."""
    torch.set_num_threads(1)
    reference.ENTRY = 2
    os.environ["PIVOT_CACHE"] = str(folder / "cache")
    examples = rows()
    settings = Settings(**{"batch": 7, "micro": 2, "epochs": 2, "warmup": 0.3, "save_every": 2, **run.get("settings", {})})
    objective = lookup.find("objective", run["objective"])(**run.get("knobs", {}))
    for leave in [run["leave"], None] if "leave" in run else [None]:
        mllm = MLLM.tiny()
        running = train(mllm, objective, examples, settings, folder, rates=Rates(3e-3, 3e-3, 3e-3), validation=examples[:3])
        for number, _event in enumerate(running, start=1):
            if number == leave:
                running.close()  # type: ignore[attr-defined]
                break
    weights = {name: tensor.to_local() if hasattr(tensor, "to_local") else tensor for name, tensor in mllm.model.state_dict().items()}
    return {"weights": hash_tensors(weights), "sharded": any(hasattr(tensor, "to_local") for tensor in mllm.model.state_dict().values())}


def unsynchronised() -> None:
    """Planted: the inner module is trained directly, so that no wrapper sees its gradients."""
    from accelerate import Accelerator

    Accelerator.prepare = lambda self, *things: things  # type: ignore[method-assign, assignment]


def member(folder: Path, run: dict[str, Any], rank: int, size: int, port: int) -> None:
    """What one process of a crew does."""
    if size > 1:
        found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        os.environ.update({name: str(value) for name, value in found.items()}, MASTER_ADDR="127.0.0.1")
    if "sharded" in run:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", **run["sharded"])
    if run.get("planted"):
        unsynchronised()
    (folder.parent / f"{folder.name}-{rank}.json").write_text(json.dumps(work(folder, run)))


def crew(folder: Path, run: dict[str, Any], size: int) -> None:
    """Fork the processes of a crew and wait for them; one that fails is an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(size):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                member(folder, dict(run), rank, size, port)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    failed = [os.waitpid(pid, 0)[1] for pid in pids]
    assert not any(failed), f"{folder.name}: {failed}"


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    for one in task["runs"]:
        crew(Path(task["root"]) / one["name"], one, one.get("size", 2))
