"""Verbs on one MLLM: ask, detach, bench run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from pivot.cli.app import Json, app, bench, device, free, live, results, show
from pivot.records import BadInput, CheckFailed


@app.command()
def ask(
    mllm: Annotated[str, typer.Argument(help="'base', a folder, or hf:ID.")],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    longest: Annotated[int, typer.Option(help="Tokens that the answer may have.", min=1)] = 128,
    json: Json = False,
) -> None:
    """Ask an MLLM about a picture."""
    if not question.strip():
        raise BadInput("the question is empty; write one, such as 'what do you see?'")
    from pivot.pictures import picture
    from pivot.records import Example

    seen = picture(image)
    from pivot.beginning import steady
    from pivot.model import MLLM
    from pivot.model.sample import reply

    model = MLLM.load(mllm, device=device())
    steady(model.model)
    said = reply(model, [Example("asked", (seen,), question)], max_new=longest)[0]
    show({"reply": said}, json, text=said)


@app.command()
def detach(
    mllm: Annotated[str, typer.Argument(help="'base', a folder, or hf:ID.")],
    out: Annotated[Path, typer.Argument(help="Folder for the encoder.")],
    to: Annotated[str | None, typer.Option(metavar="hf|timm|open_clip", help="Whose layout; by default the one it came in.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Leave out the blocks above the tap.")] = False,
    json: Json = False,
) -> None:
    """Take the encoder out of an MLLM, and prove that its features are those inside."""
    free(out)
    from pivot.encoder.export import export
    from pivot.model import MLLM
    from pivot.provenance import of_model

    model = MLLM.load(mllm)
    parity = export(model.detach(), out, truncate=truncate, to=to, provenance=of_model(mllm, model.dequantised))
    lines = [
        f"encoder: {out}, in the layout of {parity.layout}",
        f"features: {parity.read}, largest difference {parity.difference:g} ({parity.through})",
        *(f"stale: {what}" for what in parity.stale),
    ]
    facts = {"encoder": str(out), "layout": parity.layout, "difference": parity.difference, "stale": parity.stale}
    show(facts, json, text="\n".join(lines))
    if not parity.holds and parity.dtype == "float32":
        raise CheckFailed(f"{out}: features differ from those in the MLLM by {parity.difference:g}; see parity.json there")


@bench.command("run")
def bench_run(
    mllm: Annotated[str, typer.Argument(help="'base', a folder, or hf:ID.")],
    suite: Annotated[str, typer.Option(help="Which benchmark.")] = "world",
    source: Annotated[str | None, typer.Option("--data", metavar="READER,KEY=VALUE,...", help="Items to ask instead of its own.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for answers and measurement.")] = Path("runs/bench"),
    arm: Annotated[str | None, typer.Option(metavar="NAME", help="What to call it there; by default after MLLM.")] = None,
    json: Json = False,
) -> None:
    """Ask an MLLM a benchmark's questions, keep the replies, and score them.

    What the same model answered to the same questions before is graded again, not asked; other answers of that name are not
    overwritten.
    """
    from pivot.recipe import instrument, read
    from pivot.runfolder import RunFolder
    from pivot.sections import NAME

    arm = arm or re.sub(r"[^\w.+]+", "_", mllm).strip("_.") or "mllm"
    if not re.match(NAME, arm):
        raise BadInput(f"--arm {arm}: files are called so; give it letters, digits and _ . + -")
    benchmark = instrument("bench", suite)
    examples = read(source) if source else benchmark.examples()
    from pivot.beginning import steady
    from pivot.bench import run as asking
    from pivot.model import MLLM

    model = MLLM.load(mllm, device=device())
    steady(model.model)
    folder = RunFolder(out)
    with folder.alone(), live(json) as screen:
        found = asking.keep(benchmark, model, folder, arm, examples, screen.progress(f"bench-{suite}"))
        if not folder.manifest():
            folder.note(name=out.name)
    results([found], None, json)
