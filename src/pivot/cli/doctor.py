"""The verb data doctor."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pivot.cli.app import Json, data, show
from pivot.records import BadInput, CheckFailed, Uncached
from pivot.screen import visible

if TYPE_CHECKING:
    from pivot.data.collate import TooLong
    from pivot.data.doctor.diagnosis import Report
    from pivot.data.doctor.fits import Limit
    from pivot.data.speech import LabelMask, Style

SHOWN = 3  # rows of each kind, for people; machines get more
ADVICE = "--fix OUT writes a copy without these rows, mended where a published rule says how"
UNWRITTEN = "can be read but not written, so there is no --fix: mend or remove what is named; --json names more of it"
UNSEEN = "not looked at: lengths and control tokens; give --model to measure them as it does"


@data.command("doctor")
def data_doctor(
    source: Annotated[str, typer.Argument(metavar="PATH", help="A file or folder, or READER,KEY=VALUE,...")],
    model: Annotated[str | None, typer.Option(metavar="MLLM", help="Whose tokens count: 'base', a folder, or hf:ID.")] = None,
    limit: Annotated[int, typer.Option(help="Tokens that a prompt and one response may have.", min=1)] = 2048,
    label_mask: Annotated[Literal["clean", "llava_next"], typer.Option("--label-mask", help="As in training.")] = "clean",
    template: Annotated[Literal["chat", "plain"], typer.Option("--template", help="As in training.")] = "chat",
    too_long: Annotated[
        Literal["refuse", "cut"], typer.Option("--too-long", help="As in training: 'cut' finds only rows that a cut does not save.")
    ] = "refuse",
    against: Annotated[list[str] | None, typer.Option(metavar="OTHER", help="Data that must share nothing with it.")] = None,
    fix: Annotated[Path | None, typer.Option(metavar="OUT", help="Write a clean copy here, and beside it what was left out.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core.", min=1)] = None,
    json: Json = False,
) -> None:
    """Find what is wrong with data: exits 1 if anything is."""
    from pivot.data.doctor.diagnosis import examine, torn
    from pivot.oneline import described
    from pivot.recipe import read

    if not model and (label_mask, template, too_long) != ("clean", "chat", "refuse"):
        raise BadInput("--label-mask, --template and --too-long say how rows are tokenised; name whose tokens count with --model, too")
    plain = described(source)
    if fix:
        _writable(fix, plain["read"])
    measure: Callable[[], Limit] | None = partial(_limit, model, limit, label_mask, template, too_long) if model else None
    holds = measure().tokens if measure else None  # a model that is not there is said before all rows are read
    try:
        read(source)
    except Uncached:
        raise
    except BadInput:
        if not (wrong := torn(source)):
            raise
        facts = {"data": source, "rows": 0, "clean": False, "counts": {"broken-file": 1}, "findings": {"broken-file": [{"says": wrong}]}}
        show(facts, json, text=visible(f"broken-file: {wrong}"))
        raise typer.Exit(1) from None
    report = examine(source, limit=measure, against=against or (), workers=workers or len(os.sched_getaffinity(0)))
    facts = _facts(report, holds)
    facts |= {"label_mask": label_mask, "template": template, "too_long": too_long} if model else {}
    lines = [*_lines(report, holds, limit), "clean: nothing is wrong with it" if report.clean else _advice(plain["read"])]
    failed: Exception | None = None
    if fix and not (report.clean and not report.count("duplicate-id")):
        try:
            facts["fix"], said = _fixed(report, fix, plain["read"], left_out(fix))
            lines += said
        except (BadInput, CheckFailed, OSError) as wrong:  # what was found is worth as much without a copy
            failed, facts["fix"] = wrong, {"failed": str(wrong)}
    elif fix:
        lines.append(f"nothing to leave out or to mend: {fix} is not written")
    show(facts, json, text="\n".join(lines))
    if failed:
        raise failed
    if not report.clean:
        raise typer.Exit(1)


def _limit(model: str, tokens: int, label_mask: LabelMask, template: Style, too_long: TooLong) -> Limit:
    """What rows must fit into: as many tokens, unless the LLM was made for fewer."""
    from pivot.data.doctor.fits import Limit
    from pivot.data.turns import formatting
    from pivot.model.families import context
    from pivot.model.mllm import describe

    found = describe(model)
    if template == "chat" and label_mask == "llava_next" and formatting(found.processor).anywhere is None:
        raise BadInput("label_mask llava_next is defined for ChatML templates; leave out --label-mask, as training must")
    return Limit(found.processor, min(tokens, context(found.model.config) or tokens), label_mask, template, too_long)


def _facts(report: Report, limit: int | None) -> dict[str, Any]:
    from pivot.data.doctor.checks import FAULTS, NOTES
    from pivot.data.doctor.crew import CAP

    counts = {code: report.count(code) for code in [*FAULTS, *NOTES]}
    return {
        "data": report.data.line,
        "rows": report.rows,
        "pictures": report.pictures,
        "limit": limit,
        "clean": report.clean,
        "counts": {code: count for code, count in counts.items() if count and code in FAULTS},
        "notes": {code: count for code, count in counts.items() if count and code in NOTES},
        "findings": {
            code: [{"row": number, "where": where, "says": says} for number, where, says in report.first(code, CAP)]
            for code, count in counts.items()
            if count
        },
    }


def _lines(report: Report, limit: int | None, asked: int) -> list[str]:
    from pivot.data.doctor.checks import FAULTS, NOTES

    head = f"{visible(report.data.line)}: {report.rows:,} rows, {report.pictures:,} pictures"
    if limit:
        head += f", limit {limit:,} tokens" + (", the LLM's context" if limit < asked else "")
    known = {**FAULTS, **{code: f"{what} (a note: nothing is wrong with it)" for code, what in NOTES.items()}}
    counts = {code: report.count(code) for code in known}
    lines = [head, *(f"{counts[code]:>9,}  {code:<16} {what}" for code, what in known.items() if counts[code])]
    for code in FAULTS:
        if counts[code]:
            lines += ["", f"{code}:", *(visible(f"  {where}: {says}") for _, where, says in report.first(code, SHOWN))]
    return [*lines, "", UNSEEN] if limit is None else [*lines, ""]


def _advice(reader: str) -> str:
    """What can be done about what was found."""
    from pivot.data.writing.convert import row_of

    try:
        if reader != "rows":
            row_of(reader)
    except BadInput:
        return f"'{reader}' {UNWRITTEN}"
    return ADVICE


# ---- a clean copy


def left_out(out: Path) -> Path:
    """Beside the copy, and not within: there it would be taken for rows."""
    return out.with_name(f"{out.stem}.left-out.jsonl")


def _writable(out: Path, reader: str) -> None:
    """Whether a copy can be written, said before all rows are read."""
    from pivot.data.tables.table import JSON
    from pivot.data.writing.convert import copies_of, named

    named(out, reader)
    for path in (out, left_out(out), *([copies_of(out)] if out.suffix in JSON else [])):
        if path.exists():
            raise BadInput(f"{path} exists already; give another path to --fix, or remove it first")


def _fixed(report: Report, out: Path, reader: str, listed: Path) -> tuple[dict[str, Any], list[str]]:
    from pivot import progress
    from pivot.data.doctor.clean import clean
    from pivot.data.writing.convert import write

    rows = clean(report, listed)
    try:
        for written in write(rows, out, reader):
            progress.tell("doctor: clean copy", written.rows, len(rows))
    except BaseException:  # a list without its copy would keep the same command from being run again
        listed.unlink(missing_ok=True)
        raise
    facts = {"file": str(out), "source": written.source, "rows": len(rows), "mended": rows.mended}
    facts |= {"left_out": report.rows - len(rows), "list": str(listed)}
    said = f"{len(rows):,} rows, {rows.mended:,} of them mended; {report.rows - len(rows):,} left out: {listed}"
    lost = [f"not in the copy, for which its format has no place: {visible(what)} ({count:,} rows)" for what, count in written.lost.items()]
    return {**facts, "lost": dict(written.lost)}, ["", f"clean copy: {written.source}", said, *lost]
