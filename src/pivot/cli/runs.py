"""Verbs on whole runs: run, demo, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pivot.cli.app import KEPT, Again, Changes, Json, Only, Plan, app, live, results, show
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.plan import Machine

Gpus = Annotated[int | None, typer.Option(help="With --plan: how many GPUs. [default: 1]", show_default=False)]
Gpu = Annotated[str | None, typer.Option(metavar="NAME", help="With --plan: which, such as a100 or h200. [default: h100]")]
Utilisation = Annotated[float | None, typer.Option(metavar="SHARE", help="With --plan: share of the peak reached. [default: 0.4]")]


@app.command()
def demo(
    changes: Changes = None,
    plan: Plan = False,
    gpus: Gpus = None,
    gpu: Gpu = None,
    utilisation: Utilisation = None,
    only: Only = None,
    again: Again = False,
    json: Json = False,
) -> None:
    """Run the embedded study: a small encoder through SFT and DPO, out again, measured and reported."""
    _run("demo", changes or [], _machine(plan, gpus, gpu, utilisation), only, again, json)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")],
    changes: Changes = None,
    plan: Plan = False,
    gpus: Gpus = None,
    gpu: Gpu = None,
    utilisation: Utilisation = None,
    only: Only = None,
    again: Again = False,
    json: Json = False,
) -> None:
    """Run all stages of a recipe. Finished ones are skipped, a killed one resumes."""
    _run(recipe, changes or [], _machine(plan, gpus, gpu, utilisation), only, again, json)


def _machine(plan: bool, gpus: int | None, gpu: str | None, utilisation: float | None) -> Machine | None:
    """What a plan is made for, if one is asked for."""
    given = {name: value for name, value in (("gpus", gpus), ("gpu", gpu), ("utilisation", utilisation)) if value is not None}
    if given and not plan:
        raise BadInput(f"--{next(iter(given))} says what a plan is made for; add --plan, or leave it away (accelerate launch sets GPUs)")
    if not plan:
        return None
    from pivot.plan import Machine

    return Machine(**given)  # type: ignore[arg-type]


def _run(source: str, changes: Sequence[str], machine: Machine | None, only: str | None, again: bool, json: bool) -> None:
    from pivot import chain
    from pivot import recipe as recipes
    from pivot.runfolder import RunFolder

    if again and not only:
        raise BadInput("--again runs finished stages from their beginning; say which by --only, or give a new folder by out=")
    out = [change.removeprefix("out=") for change in changes if change.startswith("out=")]
    if out and not out[-1].strip():
        raise BadInput("out= names no folder; give one, as in out=runs/mine, or leave it away")
    recipe = recipes.load(source, [change for change in changes if not change.startswith("out=")])
    folder = RunFolder(Path(out[-1] if out else f"runs/{recipe.name}"))
    if machine:
        from pivot import plan
        from pivot.cli import planned

        made = plan.plan(recipe, folder, machine)
        show({"folder": str(folder.path), **plan.facts(made)}, json, planned.text(made))
        return
    main = chain.Crew().main
    with live(json and main, quiet=not main) as screen:
        try:
            chain.run(recipe, folder, screen.tell, only, again)
        except KeyboardInterrupt:
            raise BadInput(f"stopped by Ctrl-C in {screen.stage or recipe.name}; {KEPT}") from None
    if main:
        arms = list(recipe.arms)
        found = sorted((one for one in folder.measurements() if one.arm in arms), key=lambda one: arms.index(one.arm))
        results(found, folder.report / "index.html", json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path | None, typer.Option(help="Folder for index.html and results.json; by default report/ in the first run.")] = None,
    json: Json = False,
) -> None:
    """Write the page of one run, or of several side by side."""
    if out and out.suffix.lower() in (".html", ".htm"):
        raise BadInput(f"--out {out} names a page; give a folder, such as --out {out.with_suffix('')}: the page is its index.html")
    from pivot.report import page
    from pivot.runfolder import RunFolder

    folders = [RunFolder.existing(run) for run in runs]
    written = page.write(folders, out)
    show({"page": str(written)}, json, text=f"page: {written}")
