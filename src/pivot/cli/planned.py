"""A plan as text: a table of stages, and below it what its figures hang on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pivot.screen import duration, table

if TYPE_CHECKING:
    from pivot.plan import Plan

HEAD = ["stage", "state", "examples", "steps", "image tokens", "text tokens", "trains", "FLOPs", "GPU-hours", "memory"]
HELD = ["memory of each GPU", "at once", "tokens", "weights", "gradients", "AdamW", "activations", "moment", "checkpointing", "other way"]


def text(made: Plan) -> str:
    """The plan of a run for people."""
    if not made.stages:
        return "nothing to run: no stage and no arm"
    parts = ", ".join(f"{name} {_short(size)}" for name, size in made.parts.items())
    rows = repeated([row["stage"], row["state"], *_cells(row)] for row in made.stages)
    held = repeated([row["stage"], *_held(row["memory"])] for row in _training(made))
    lines = [f"parameters: {parts}", "", table(HEAD, rows)]
    return "\n".join([*lines, *(["", table(HELD, held), "", *_below(made)] if held else [])])


def repeated(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """Rows that differ in the seed alone as one, named as a shell would: post-dpo/seed-{0,1,2}. Figures stay those of one seed."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for stage, *cells in rows:
        place, _, seed = stage.partition("/seed-")
        alike.setdefault((place, *cells), []).append(seed)
    return [[place + _of(seeds), *cells] for (place, *cells), seeds in alike.items()]


def _of(seeds: list[str]) -> str:
    """What stands behind the stage's name; nothing where it has no seeds."""
    one = seeds[0] and f"/seed-{seeds[0]}"
    return one if len(seeds) == 1 else f"/seed-{{{','.join(seeds)}}}"


def _training(made: Plan) -> list[dict[str, Any]]:
    return [row for row in made.stages if row["flops"] is not None]


def _cells(row: dict[str, Any]) -> list[Any]:
    held = row["memory"] and row["memory"]["total"]
    return [
        row["examples"],
        row["steps"],
        _short(row["image_tokens"]),
        _short(row["text_tokens"]),
        _short(row["parameters"]),
        None if row["flops"] is None else f"{row['flops']:.2e}",
        None if row["gpu_hours"] is None else f"{row['gpu_hours']:.2g}" if row["gpu_hours"] < 10 else f"{row['gpu_hours']:,.0f}",
        _bytes(held) if held else "?" if row["memory"] else None,
    ]


def _held(memory: dict[str, Any]) -> list[Any]:
    """How the memory of one stage comes about; what shapes do not tell is left open."""
    sizes = [memory[name] for name in ("weights", "gradients", "optimizer", "activations", "moment")]
    known = [None if size is None else _bytes(size) for size in sizes]
    other = None if memory["otherwise"] is None else _bytes(memory["otherwise"])
    return [memory["micro"], memory["longest"], *known, "on" if memory["checkpointing"] else "off", other]


def _short(number: int | None) -> str | None:
    """A count with three digits."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number is not None and number >= size:
            return f"{number / size:.3g} {unit}"
    return None if number is None else str(number)


def _below(made: Plan) -> Iterator[str]:
    """What is said once for all stages, and what of one of them is worth a line."""
    machine, rows = made.machine, _training(made)
    hours = sum(row["gpu_hours"] for row in rows if row["state"] != "finished")
    wall = f", {duration(3600 * hours / machine.gpus)} on {machine.gpus}" if machine.gpus > 1 else ""
    if len({row["stage"].partition("/seed-")[0] for row in rows}) < len(rows):
        yield "figures in a row of several seeds are those of one"
    yield f"GPU-hours: {machine.gpu} at {machine.utilisation:.0%} of its peak; {hours:.3g} still to do{wall} (--gpu, --gpus, --utilisation)"
    if any(row["written_tokens"] for row in rows):
        yield "replies that a model writes itself are taken to be as long as they may be (max_new): shorter ones cost less"
    worst = max(row["error"] for row in rows)
    if worst:
        yield f"tokens and FLOPs from rows spread over the data; standard error at most {worst:.1%}"
    for row in rows:
        if row["too_long"]:
            yield f"{row['stage']}: {row['too_long']:.1%} of the rows are over the limit and will stop it; `pivot data doctor` finds them"
        if row["cut"]:
            yield f"{row['stage']}: {row['cut']:.1%} of the rows are over the limit and will be cut; `pivot data doctor` finds them"


def _bytes(size: int) -> str:
    """A size with three digits."""
    unit, scale = ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20)
    return f"{size / scale:.3g} {unit}"
