"""Verbs on data: data make, data show, data convert, data filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pivot.cli.app import Json, Source, data, free, live, show
from pivot.records import BadInput, Example
from pivot.screen import visible

if TYPE_CHECKING:
    from pivot.data.writing.convert import Written

Set = tuple[str, Sequence[Example], str, Mapping[str, int]]  # how its file's name ends, its rows, their format, how many of what


@data.command("make")
def data_make(
    out: Annotated[Path, typer.Argument(help="Folder for data.jsonl and images/.")],
    source: Source = "world,size=100",
    json: Json = False,
) -> None:
    """Write examples as files: one JSON line each, and pictures."""
    free(out)
    from pivot.data.writing.write import ROWS, write
    from pivot.files import whole_folder
    from pivot.recipe import read

    examples = read(source)
    with whole_folder(out) as unfinished, live(json) as screen:
        tick = screen.progress("data make")
        for number in write(examples, unfinished):
            tick(number, len(examples))
    show({"folder": str(out), "examples": len(examples)}, json, text=f"{len(examples)} examples: {out / ROWS}")


From = Annotated[str, typer.Argument(metavar="DATA", help="A file or folder, or READER,KEY=VALUE,...")]
To = Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the result; else what its name says.")]
Copy = Annotated[bool, typer.Option("--copy", help="Copy pictures beside the rows.")]


@data.command("convert")
def data_convert(
    source: From,
    out: Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file, or a folder.")],
    to: To = None,
    copy: Copy = False,
    json: Json = False,
) -> None:
    """Write data in another format."""
    free(out)
    from pivot.data.writing.convert import write
    from pivot.recipe import read

    examples = read(source)
    with live(json) as screen:
        tick = screen.progress("data convert")
        for written in write(examples, out, to, copy=copy):
            tick(written.rows, len(examples))
    show(_told(written), json, text="\n".join(_lines(written)))


@data.command("filter")
def data_filter(
    source: From,
    out: Annotated[Path, typer.Argument(help="As for convert; of official20k a folder for two files.")],
    rule: Annotated[str, typer.Option(help="under30, nothink, shift:PERCENT, nested:N,N,... or official20k.")],
    size: Annotated[int, typer.Option(min=1, help="How many rows to take; nested has sizes of its own.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 777,
    tokenizer: Annotated[str | None, typer.Option(help="For official20k: a folder or hf:OWNER/NAME.")] = None,
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the result; else that of the data.")] = None,
    copy: Copy = False,
    json: Json = False,
) -> None:
    """Take rows as the paper's sets were taken."""
    from pivot.data.filters import path
    from pivot.data.writing.convert import write
    from pivot.recipe import read

    examples = read(source)
    sets = (
        _official(examples, tokenizer, size, seed)
        if rule == "official20k"
        else _picked(examples, rule, size, seed, _format(source, out, to))
    )
    places = [out / ending if rule == "official20k" else path(out, ending) for ending, _, _, _ in sets]
    for place in places:
        free(place)
    told, lines = [], []
    with live(json) as screen:
        for place, (_, rows, form, counts) in zip(places, sets, strict=True):
            tick = screen.progress(f"data filter, {place.name}")
            for written in write(rows, place, form, copy=copy):
                tick(written.rows, len(rows))
            told.append({**_told(written), "counts": counts})
            lines += [*_lines(written), "  of " + ", ".join(f"{count:,} {what}" for what, count in counts.items())]
    show({"rule": rule, "seed": seed, "sets": told}, json, text="\n".join(lines))


def _format(source: str, out: Path, to: str | None) -> str:
    """The asked one, else the data's own, else what the file's name says."""
    from pivot.data.writing.convert import default, written
    from pivot.oneline import described

    own = described(source)["read"]
    return to or (own if own in written() else default(out))


def _picked(examples: Sequence[Example], rule: str, size: int, seed: int, form: str) -> list[Set]:
    from pivot.data.filters import pick, summary
    from pivot.data.writing.convert import Subset

    found = pick(rule, summary(examples), size, seed)
    return [(ending, Subset(examples, one.numbers), form, one.counts) for ending, one in found.items()]


def _official(examples: Sequence[Example], tokenizer: str | None, size: int, seed: int) -> list[Set]:
    from pivot.data.official import counter, dpo, pick, sft, whole
    from pivot.data.writing.convert import Subset
    from pivot.encoder.torchvision import mend

    if not tokenizer:
        raise BadInput("rule official20k counts tokens; name whose with --tokenizer, as in --tokenizer hf:Qwen/Qwen2.5-1.5B-Instruct")
    mend()  # beside a torchvision made for another torch, transformers opens no tokenizer
    examples = whole(examples)
    one = pick(examples, counter(tokenizer), size, seed)
    return [
        ("sft.json", Subset(examples, one.numbers, sft), "llava", one.counts),
        ("dpo.json", Subset(examples, one.numbers, dpo), "llava_dpo", one.counts),
    ]


def _told(written: Written) -> dict[str, Any]:
    """What was written, for machines."""
    return {"out": str(written.out), "data": written.source, "rows": written.rows, "copied": written.copied, "lost": dict(written.lost)}


def _lines(written: Written) -> list[str]:
    """The same for people."""
    copied = f", {written.copied:,} pictures beside {'them' if written.rows != 1 else 'it'}" if written.copied else ""
    lost = ", ".join(f"{visible(what)} ({rows:,} {'row' if rows == 1 else 'rows'})" for what, rows in written.lost.most_common())
    lines = [f"{written.rows:,} rows: {written.out}{copied}", f"  read it as: {written.source}"]
    return [*lines, f"  it has no place for: {lost}"] if lost else lines


@data.command("show")
def data_show(
    source: From = "world,size=100",
    items: Annotated[int, typer.Option(min=1, help="How many rows the page shows.")] = 24,
    start: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Show rows drawn at random instead.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page of many rows here.")] = None,
    index: Annotated[int, typer.Option(help="Which row, without a page.", min=0)] = 0,
    image: Annotated[Path | None, typer.Option(help="Write its picture here.")] = None,
    json: Json = False,
) -> None:
    """Show one row, or a page of many."""
    from pivot.recipe import read

    examples = read(source)
    if out:
        _page(examples, source, out, (items, start, seed), json)
        return
    if index >= len(examples):
        raise BadInput(f"no example {index}: {source} has {len(examples)}; give --index below that")
    example = examples[index]
    if image:
        from pivot.files import whole_file
        from pivot.pictures import picture

        if not example.images:
            raise BadInput(f"example {example.id} of {source} has no picture; leave out --image, or give another --index")
        with whole_file(image) as unfinished:
            picture(example.images[0]).save(unfinished, "PNG")
    _one(example, json)


def _page(examples: Sequence[Example], source: str, out: Path, which: tuple[int, int, int | None], json: bool) -> None:
    from pivot.data.page import chosen_rows, write

    free(out)
    rows = chosen_rows(len(examples), *which)
    write(examples, rows, source, out)
    show({"page": str(out), "rows": rows}, json, text=f"page of {len(rows):,} of {len(examples):,} rows: {out}")


def _one(example: Example, json: bool) -> None:
    from pivot.data.writing.write import row

    found = row(example)
    responses = [f"{r['role']:>8}: {r['text']}" + (f"  ({r['error']})" if r["error"] else "") for r in found["responses"]]
    about = ", ".join(word for word in (example.domain, example.task) if word)
    said = [visible(f"{example.id}  {about}".rstrip()), f"  prompt: {example.prompt}", *responses]
    show(found, json, text="\n".join(visible(line) for part in said for line in part.split("\n")))
