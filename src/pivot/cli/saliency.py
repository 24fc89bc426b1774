"""The verb saliency."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pivot.cli.app import HELDOUT, Json, Source, app, device, live, show
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.objective._contract import Objective


@app.command()
def saliency(
    mllm: Annotated[str, typer.Argument(help="'base', a folder, or hf:ID: the weights with which is looked.")],
    out: Annotated[Path, typer.Argument(help="Folder for the gradients; `pivot probe gradcam` reads it.")],
    objective: Annotated[str, typer.Option(metavar="NAME", help="Whose loss: sft, dpo, ..., or '{name: NAME, KNOB: VALUE}'.")] = "dpo",
    source: Source = HELDOUT,
    at: Annotated[Literal["encoder", "projector"] | None, typer.Option(help="At the projector's input (encoder) or its output.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates on each example by itself before the look: 20, or 0 for none.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of these updates, of all parts.")] = None,
    size: Annotated[int | None, typer.Option(help="Examples, drawn where there are more, those with a region first: 500.")] = None,
    control: Annotated[bool, typer.Option("--control/--no-control", help="The global question as well, where there are captions.")] = True,
    keep: Annotated[Literal["norms", "all"] | None, typer.Option(help="all: whole gradients and activations, too.")] = None,
    precision: Annotated[Literal["fp32", "bf16"] | None, typer.Option(help="Of activations.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples at a time, where steps is 0.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draw.")] = None,
    arm: Annotated[str | None, typer.Option(metavar="NAME", help="What tables call it; by default as the objective.")] = None,
    json: Json = False,
) -> None:
    """Write on which patches of a picture an objective's loss depends. The same command goes on after a kill."""
    from pivot.recipe import instrument, read
    from pivot.sections import NAME

    asked = {"at": at, "steps": steps, "rate": rate, "size": size, "keep": keep, "precision": precision, "batch": batch, "seed": seed}
    knobs = {name: value for name, value in asked.items() if value is not None}
    try:
        probe = instrument("probe", "gradcam", control=control, **knobs)
    except BadInput as wrong:  # every knob that is given here has an option of its name
        raise BadInput(f"--{str(wrong).removesuffix(' (probe gradcam)')}") from None
    made, called = _objective(objective)
    if not re.match(NAME, arm or called):
        raise BadInput(f"--arm {arm}: files are called so; give it letters, digits and _ . + -")
    examples = read(source)
    from pivot.beginning import steady
    from pivot.model import MLLM
    from pivot.train.saliency import How, write

    model = MLLM.load(mllm, device=device())
    steady(model.model)
    total = 0
    with live(json) as screen:
        far = screen.progress("saliency")
        for done, total in write(model, made, examples, out, How(**probe.gradients), arm=arm or called):
            far(done, total)
    show({"out": str(out), "items": total}, json, text=f"{total:,} items: {out}\n  pivot probe gradcam {out}")


def _objective(text: str) -> tuple[Objective, str]:
    """An objective given by name, or by name and knobs as in a recipe."""
    from pivot.plain import parse
    from pivot.recipe import instrument

    plain = parse(text, "--objective")
    given = {"name": plain} if isinstance(plain, str) else plain
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise BadInput(f"--objective {text}: give a name, or '{{name: NAME, KNOB: VALUE}}'")
    return instrument("objective", **given), given["name"]
