"""The verbs. The only module that prints; a verb imports its stage when it runs, so that `--help` is quick.

Exit codes: 0 done, 1 a check failed, 2 wrong use, bad input or Ctrl-C: one line on stderr that says what, where and what to do.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pivot.files import is_disk_full, to_json
from pivot.records import BadInput, CheckFailed
from pivot.screen import Screen, scores, table

if TYPE_CHECKING:
    import torch

    from pivot.records import Measurement

UsageError: Any = typer.BadParameter.__base__  # click's, whichever click this typer carries
KEPT = "what is finished is kept, the same command goes on from there"
INTERRUPTED = 130  # what typer makes of Ctrl-C
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
TRACEBACK = "PIVOT_TRACEBACK"  # environment variable: show where an expected error came from

app = typer.Typer(
    help="Let a language model teach a vision encoder, take it out again, and show what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Make and look at data.", no_args_is_help=True)
probe = typer.Typer(help="Measure encoders.", no_args_is_help=True)
bench = typer.Typer(help="Measure MLLMs.", no_args_is_help=True)
for name, verbs in {"data": data, "probe": probe, "bench": bench}.items():
    app.add_typer(verbs, name=name)

Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="A change of the recipe, such as post.batch=16, or out=DIR.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would be run and what it takes; run nothing.")]
Only = Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage again, alone; 'bench-*' takes several.")]
Source = Annotated[str, typer.Option("--data", metavar="READER,KEY=VALUE,...", help="What to read.")]
HELDOUT = "world,split=test,size=600"


# ---- runs


@app.command()
def demo(changes: Changes = None, plan: Plan = False, only: Only = None, json: Json = False) -> None:
    """Run the embedded study: a small encoder through SFT and DPO, out again, measured and reported."""
    _run("demo", changes or [], plan, only, json)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")],
    changes: Changes = None,
    plan: Plan = False,
    only: Only = None,
    json: Json = False,
) -> None:
    """Run all stages of a recipe. Finished ones are skipped, a killed one resumes."""
    _run(recipe, changes or [], plan, only, json)


def _run(source: str, changes: Sequence[str], plan: bool, only: str | None, json: bool) -> None:
    from pivot import chain
    from pivot import recipe as recipes
    from pivot.runfolder import RunFolder

    out = [change.removeprefix("out=") for change in changes if change.startswith("out=")]
    recipe = recipes.load(source, [change for change in changes if not change.startswith("out=")])
    folder = RunFolder(Path(out[-1] if out else f"runs/{recipe.name}"))
    if plan:
        from pivot.plan import plan as planned

        rows = planned(recipe, folder)
        text = table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "nothing to run: no stage and no arm"
        _show({"folder": str(folder.path), "stages": rows}, json, text)
        return
    main = chain.Crew().main
    with _screen(json and main, quiet=not main) as screen:
        try:
            chain.run(recipe, folder, screen.tell, only)
        except KeyboardInterrupt:
            raise BadInput(f"stopped by Ctrl-C in {screen.stage or recipe.name}; {KEPT}") from None
    if main:
        arms = list(recipe.arms)
        found = sorted((one for one in folder.measurements() if one.arm in arms), key=lambda one: arms.index(one.arm))
        _results(found, folder.report / "index.html", json)


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
    _show({"page": str(written)}, json, text=f"page: {written}")


# ---- one thing at a time


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
    from pivot.records import Example, picture

    seen = picture(image)
    from pivot.chain import steady
    from pivot.model import MLLM
    from pivot.model.sample import reply

    model = MLLM.load(mllm, device=_device())
    steady(model.model)
    said = reply(model, [Example("asked", (seen,), question)], max_new=longest)[0]
    _show({"reply": said}, json, text=said)


@app.command()
def detach(
    mllm: Annotated[str, typer.Argument(help="'base', a folder, or hf:ID.")],
    out: Annotated[Path, typer.Argument(help="Folder for the encoder.")],
    truncate: Annotated[bool, typer.Option("--truncate", help="Leave out the blocks above the tap.")] = False,
    json: Json = False,
) -> None:
    """Take the encoder out of an MLLM, and prove that its features are those inside."""
    _free(out)
    from pivot.encoder.export import export
    from pivot.model import MLLM

    parity = export(MLLM.load(mllm).detach(), out, truncate=truncate)
    lines = [
        f"encoder: {out}",
        f"features: {parity.read}, largest difference {parity.difference:g}",
        *(f"stale: {what}" for what in parity.stale),
    ]
    _show({"encoder": str(out), "difference": parity.difference, "stale": parity.stale}, json, text="\n".join(lines))
    if not parity.exact and parity.dtype == "float32":
        raise CheckFailed(f"{out}: features differ from those in the MLLM by {parity.difference:g}; see parity.json there")


@probe.command("linear")
def probe_linear(
    encoders: Annotated[list[str], typer.Argument(help="Detached encoders, transformers folders, or hf:ID.")],
    source: Source = HELDOUT,
    at: Annotated[str, typer.Option(help="Where to read: 'encoder', at its tap, or 'projector', behind that.")] = "encoder",
    targets: Annotated[str | None, typer.Option(metavar="NAME,...", help="Which labels; by default all that the data have.")] = None,
    validation: Annotated[float | None, typer.Option(min=0, max=1, help="Share of images that choose C.")] = None,
    test: Annotated[float | None, typer.Option(min=0, max=1, help="Share of images that are measured on; the rest trains.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 64,
    json: Json = False,
) -> None:
    """What a linear classifier reads out of encoders' features."""
    from pivot.recipe import instrument, read

    given = {"targets": targets.replace(" ", "").split(",") if targets else None, "validation": validation, "test": test}
    chosen = {key: value for key, value in given.items() if value is not None}  # the probe declares its own defaults
    linear, examples = instrument("probe", "linear", at=at, seed=seed, batch=batch, **chosen), read(source)
    from pivot.chain import steady
    from pivot.encoder import Encoder

    opened = {name: Encoder.load(name).to(_device()) for name in encoders}
    steady(max((encoder.model for encoder in opened.values()), key=lambda model: model.num_parameters()))
    _results(list(linear.run(opened, examples)), None, json)


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
    from pivot.recipe import NAME, instrument, read
    from pivot.runfolder import RunFolder

    arm = arm or re.sub(r"[^\w.+]+", "_", mllm).strip("_.") or "mllm"
    if not re.match(NAME, arm):
        raise BadInput(f"--arm {arm}: files are called so; give it letters, digits and _ . + -")
    benchmark = instrument("bench", suite)
    examples = read(source) if source else benchmark.examples()
    from pivot.bench import run as asking
    from pivot.chain import steady
    from pivot.model import MLLM

    model = MLLM.load(mllm, device=_device())
    steady(model.model)
    folder = RunFolder(out)
    with folder.alone(), _screen(json) as screen:
        found = asking.keep(benchmark, model, folder, arm, examples, screen.progress(f"bench-{suite}"))
        if not folder.manifest():
            folder.note(name=out.name)
    _results([found], None, json)


@data.command("make")
def data_make(
    out: Annotated[Path, typer.Argument(help="Folder for data.jsonl and images/.")],
    source: Source = "world,size=100",
    json: Json = False,
) -> None:
    """Write examples as files: one JSON line each, pictures as PNG."""
    _free(out)
    from pivot.data.write import ROWS, write
    from pivot.files import whole_folder
    from pivot.recipe import read

    examples = read(source)
    with whole_folder(out) as unfinished, _screen(json) as screen:
        tick = screen.progress("data make")
        for number in write(examples, unfinished):
            tick(number, len(examples))
    _show({"folder": str(out), "examples": len(examples)}, json, text=f"{len(examples)} examples: {out / ROWS}")


@data.command("show")
def data_show(
    source: Source = "world,size=100",
    index: Annotated[int, typer.Option(help="Which example.", min=0)] = 0,
    image: Annotated[Path | None, typer.Option(help="Write its picture here.")] = None,
    json: Json = False,
) -> None:
    """Show one example."""
    from pivot.data.write import row
    from pivot.recipe import read

    examples = read(source)
    if index >= len(examples):
        raise BadInput(f"no example {index}: {source} has {len(examples)}; give --index below that")
    example = examples[index]
    found = row(example)
    if image:
        from pivot.files import whole_file
        from pivot.records import picture

        with whole_file(image) as unfinished:
            picture(example.images[0]).save(unfinished, "PNG")
    responses = [f"{r['role']:>8}: {r['text']}" + (f"  ({r['error']})" if r["error"] else "") for r in found["responses"]]
    _show(found, json, text="\n".join([f"{example.id}  {example.domain}, {example.task}", f"  prompt: {example.prompt}", *responses]))


@app.command()
def env(json: Json = False) -> None:
    """Versions and devices, for bug reports."""
    import platform
    from importlib.metadata import version

    import torch

    import pivot
    from pivot.encoder.features import cache_folder

    packages = ("torch", "transformers", "accelerate", "numpy", "scikit-learn", "safetensors", "pydantic")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    facts = {
        "pivot": pivot.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cache": str(cache_folder()),
    }
    _show(facts, json, text="\n".join(f"{name:<14} {value}" for name, value in facts.items()))


# ---- what verbs share


def _screen(json: bool, quiet: bool = False) -> Screen:
    say = (lambda _line: None) if quiet else typer.echo
    return Screen(say, sys.stderr if sys.stderr.isatty() and not (json or quiet) else None, json)


def _show(facts: Mapping[str, Any], json: bool, text: str) -> None:
    typer.echo(to_json(facts) if json else text)


def _results(found: Sequence[Measurement], page: Path | None, json: bool) -> None:
    """The table that a run ends with, and where its page is."""
    if json:
        kept = [{"arm": m.arm, "seed": m.seed, "kind": m.kind, "name": m.name, "n": m.n, "metrics": m.metrics} for m in found]
        typer.echo(to_json({"event": "results", "measurements": kept, "page": str(page) if page else None}))
        return
    for head, rows in scores(found):
        typer.echo("\n" + table(head, rows))
    if page and page.exists():
        typer.echo(f"\npage: {page}")


def _free(out: Path) -> None:
    """Never write over what someone else put there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists already; give another path, or remove it first")


def _device() -> torch.device:
    from pivot.train.launch import processes

    return processes().device


# ---- errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its code."""
    raise SystemExit(call(arguments))


def call(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. What is expected to go wrong takes one line on stderr."""
    # Libraries that print on their own would drown the one line; who sets these variables is left alone.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    try:
        code = app(args=arguments, prog_name="pivot", standalone_mode=False)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click's: a verb was left out, its message is the help
            typer.echo(str(error))
            return 0
        expected = _expected(error)
        if expected is None or os.environ.get(TRACEBACK):
            raise
        line, code = expected
        typer.echo(f"pivot: {' '.join(line.split())}", err=True)
        return code
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        typer.echo(f"pivot: stopped by Ctrl-C; {KEPT}", err=True)
        return 2
    return code if isinstance(code, int) else 0


def _expected(error: Exception) -> tuple[str, int] | None:
    """The line and exit code of an error that is no bug of ours, else None."""
    if isinstance(error, CheckFailed):
        return str(error), 1
    if isinstance(error, BadInput):
        return str(error), 2
    if isinstance(error, UsageError):
        context = error.ctx
        return f"{error.format_message()}" + (f" See `{context.command_path} --help`." if context else ""), 2
    if is_disk_full(error):
        return f"disk full ({error}); free some space and run the same command again", 2
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):  # that one would be ours
        return f"{error.strerror}: {error.filename}; check the path and its permissions", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({str(error).partition('. ')[0]}); lower post.micro, or shut what else holds memory", 2
    return None
