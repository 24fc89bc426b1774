"""The command line itself, and what its verbs share. Only this folder prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pivot import __version__
from pivot.files import to_json
from pivot.progress import heard
from pivot.records import BadInput
from pivot.screen import Pairs, Screen, compared, scores, table, visible

if TYPE_CHECKING:
    import torch

    from pivot.records import Measurement
    from pivot.study.statistics import Estimate

app = typer.Typer(
    help="Let a language model teach a vision encoder, take it out again, and show what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Make, check, convert and look at data.", no_args_is_help=True)
probe = typer.Typer(help="Measure encoders.", no_args_is_help=True)
bench = typer.Typer(help="Measure MLLMs.", no_args_is_help=True)
encoder = typer.Typer(help="Look at encoders.", no_args_is_help=True)
for name, verbs in {"data": data, "encoder": encoder, "probe": probe, "bench": bench}.items():
    app.add_typer(verbs, name=name)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pivot {__version__}")
        raise typer.Exit


@app.callback()
def _always(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)] = False,
) -> None:
    """Options of the command line itself."""
    # Long work that no verb names, such as the index of a large file, is shown on stderr: stdout may be for machines.
    aside = Screen(lambda line: typer.echo(visible(line), err=True), sys.stderr if sys.stderr.isatty() else None, json=False)
    context.with_resource(aside)
    context.with_resource(heard(aside.work))


Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="A change of the recipe, such as post.batch=16, or out=DIR.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would be run and what it takes; run nothing.")]
Only = Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone; 'bench-*' takes several.")]
Again = Annotated[bool, typer.Option("--again", help="With --only: from its beginning if it is finished.")]
Source = Annotated[str, typer.Option("--data", metavar="READER,KEY=VALUE,...", help="What to read.")]
HELDOUT = "world,split=test,size=600"
KEPT = "what is finished is kept, the same command goes on from there"
RESUME = (("demo",), ("run",), ("bench", "run"), ("data", "prefer"), ("saliency",))  # the verbs of which that is true


def live(json: bool, quiet: bool = False) -> Screen:
    """Where a verb shows how far it is."""
    say = (lambda _line: None) if quiet else typer.echo
    return Screen(say, sys.stderr if sys.stderr.isatty() and not (json or quiet) else None, json)


def show(facts: Mapping[str, Any], json: bool, text: str) -> None:
    """What a verb found: for machines, or for people. Data may hold half of a surrogate pair, which no stream takes: it is spelt out."""
    typer.echo((to_json(facts) if json else text).encode(errors="backslashreplace").decode())


def results(found: Sequence[Measurement], page: Path | None, json: bool, pairs: Pairs = ()) -> None:
    """The tables that a run ends with, paired differences (a less b, by metric) among them, and where its page is."""
    if json:
        kept = [{"arm": m.arm, "seed": m.seed, "kind": m.kind, "name": m.name, "n": m.n, "metrics": m.metrics} for m in found]
        apart = [{"a": a.arm, "b": b.arm, "kind": a.kind, "name": a.name, "differences": _told(of)} for a, b, of in pairs]
        typer.echo(to_json({"event": "results", "measurements": kept, "pairs": apart, "page": str(page) if page else None}))
        return
    for head, rows in [*scores(found), *compared(pairs)]:
        typer.echo("\n" + table(head, rows))
    if page and page.exists():
        typer.echo(f"\npage: {page}")


def _told(of: Mapping[str, Estimate]) -> dict[str, Any]:
    return {metric: {"difference": one.value, "low": one.low, "high": one.high, "n": one.n} for metric, one in of.items()}


def free(out: Path) -> None:
    """Never write over what someone else put there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists already; give another path, or remove it first")


def device() -> torch.device:
    """Where this process computes."""
    from pivot.train.launch import processes

    return processes().device
