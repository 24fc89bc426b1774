"""The verb data prefer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pivot.cli.app import Json, data, device, show
from pivot.records import BadInput, Example
from pivot.screen import visible

if TYPE_CHECKING:
    from pivot.train.wanted import Settings

SHOWN = 3  # rows that failed, for people; machines get all
LOOKED = 1000  # rows that are looked at before the model is asked


@data.command("prefer")
def data_prefer(
    mllm: Annotated[str, typer.Argument(help="'base', a folder, or hf:ID.")],
    source: Annotated[str, typer.Argument(metavar="DATA", help="A file or folder, or READER,KEY=VALUE,...")],
    out: Annotated[Path, typer.Argument(help="Folder for pairs and pictures, which `mmpr` reads; data convert writes other formats.")],
    samples: Annotated[int, typer.Option(help="Attempts a row.")] = 8,
    pairs: Annotated[int, typer.Option(help="Of each method, the most that a row gives.")] = 1,
    route: Annotated[
        Literal["correctness", "dropout", "both"] | None,
        typer.Option(help="Right against wrong, or against what it says without the picture; by default as the row's answer allows."),
    ] = None,
    reward: Annotated[str, typer.Option(metavar="NAME", help="What judges: a reward, or '{name: NAME, OPTION: VALUE}'.")] = "mixed",
    reward_model: Annotated[str | None, typer.Option(metavar="FOLDER", help="Of a trained reward model, for rewards that ask one.")] = None,
    chat: Annotated[str | None, typer.Option(metavar="{url: ...}", help="Of an LLM, for rewards that ask one.")] = None,
    threshold: Annotated[float, typer.Option(help="The least reward that is right.")] = 0.5,
    chosen: Annotated[Literal["sampled", "data"], typer.Option(help="Whose responses dropout begins with.")] = "sampled",
    share: Annotated[float, typer.Option(help="How much of them it keeps.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    max_new: Annotated[int, typer.Option(help="Tokens of an attempt.")] = 128,
    batch: Annotated[int, typer.Option(help="Rows at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only so many of the first rows.")] = None,
    json: Json = False,
) -> None:
    """Make preference pairs of what an MLLM says to rows itself. The same command goes on after a kill; with another --threshold, --pairs
    or --route it makes other pairs of the same attempts."""
    given = {name: value for name, value in locals().items() if name not in ("mllm", "source", "out", "json")}
    settings = _settings({**given, "reward": _plain(reward, "--reward"), "chat": _endpoint(chat)})
    from pivot.beginning import steady
    from pivot.bench.run import identity
    from pivot.model import MLLM
    from pivot.recipe import read
    from pivot.train.attempts import Attempts
    from pivot.train.judge import Judge
    from pivot.train.prefer import prefer

    examples, where = read(source), device()
    _look(examples, settings)
    judge = Judge(settings, where)
    model = MLLM.load(mllm, device=where)
    steady(model.model)
    summary = prefer(Attempts(model, examples, settings, judge).at, examples, out, settings, identity(model))
    show({"out": str(out), "data": f"mmpr,{out}", **summary}, json, text="\n".join(_lines(summary, out, settings)))


def _plain(text: str | None, option: str) -> Any:
    """A name, or a mapping as in a recipe."""
    from pivot.plain import parse

    return None if text is None else parse(text, option)


def _endpoint(text: str | None) -> Any:
    """What --chat says of an LLM, checked before a model is opened."""
    from pivot.chat import Chat
    from pivot.knobs import Wrong, fill

    plain = _plain(text, "--chat")
    if plain is not None and not isinstance(plain, Mapping):
        raise BadInput(f"--chat: {plain!r} is no mapping; write --chat '{{url: {plain}, model: NAME}}'")
    try:
        _ = plain and fill(Chat, plain)
    except Wrong as wrong:
        raise BadInput(f"--chat: {'.'.join(map(str, wrong.place))} {wrong.message}; write --chat '{{url: ..., model: NAME}}'") from None
    return plain


def _settings(given: Mapping[str, Any]) -> Settings:
    from pivot.knobs import Wrong, fill
    from pivot.train.wanted import Settings

    try:
        return Settings(**fill(Settings, given))
    except Wrong as wrong:
        option = ".".join(map(str, wrong.place)).replace("_", "-")
        raise BadInput(f"--{option}: {wrong.message}" if option else wrong.message) from None


def _look(examples: Sequence[Example], settings: Settings) -> None:
    """Warn, before a long job, of answers that will judge nothing. A row that cannot be read is told when it is asked about."""
    from pivot.train.wanted import known

    rows, count = min(len(examples), settings.limit or LOOKED, LOOKED), 0
    for number in range(rows):
        try:
            count += settings.loses(known(examples[number]))
        except BadInput:
            continue
    if count:
        typer.echo(f"warning: of the first {rows:,} rows {_unsaid(count)}", err=True)


def _unsaid(count: int) -> str:
    from pivot.train.wanted import ADD

    return f"{count:,} have an answer and no answer_kind, so that it judges no attempt; {ADD}"


def _lines(summary: Mapping[str, Any], out: Path, settings: Settings) -> list[str]:
    tokens, rows = summary["tokens"], summary["rows"]
    lines = [f"{tokens['all']['pairs']:,} pairs of {summary['rows_with_pairs']:,} of {rows:,} rows: {out}", f"  read them as: mmpr,{out}"]
    if summary["begun"]:
        begun = ", ".join(f"{name} {'as the answer allows' if value is None else value}" for name, value in summary["begun"].items())
        lines.append(f"  made anew of attempts that are kept, which were begun with {begun}")
    for method, found in tokens.items():
        sides = f"{found['chosen']:.2f} tokens chosen, {found['rejected']:.2f} rejected, difference {found['difference']:+.3f}"
        lines.append(f"  {method}: {found['pairs']:,} pairs, {sides}, within a pair {found['within']:.2f}")
    lines += [f"  no pair by {visible(why)}: {count:,} rows" for why, count in summary["without_pair"].items()]
    if (count := summary["answers"].get("of no kind", 0)) and settings.loses("of no kind"):
        lines.append(f"  of {rows:,} rows {_unsaid(count)}")
    unjudged = sum(count for what, count in summary["attempts"].items() if what.endswith("not judged"))
    for what, found, count in (
        ("rows failed", summary["failed"], len(summary["failed"])),
        ("attempts not judged", summary["unjudged"], unjudged),
    ):
        if found:
            lines.append(f"  {count:,} {what}, the first:")
            lines += [visible(f"    row {one['row']}: {one['says']}") for one in found[:SHOWN]]
    return [*lines, *(f"  no place for: {visible(what)} ({count:,} rows)" for what, count in summary["lost"].items())]
