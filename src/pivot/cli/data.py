"""Verbs on data: data make, data show, data convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pivot.cli.app import Json, Source, data, free, live, show
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.data.convert import Written


@data.command("make")
def data_make(
    out: Annotated[Path, typer.Argument(help="Folder for data.jsonl and images/.")],
    source: Source = "world,size=100",
    json: Json = False,
) -> None:
    """Write examples as files: one JSON line each, and pictures."""
    free(out)
    from pivot.data.write import ROWS, write
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


@data.command("convert")
def data_convert(
    source: From,
    out: Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file, or a folder.")],
    to: To = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy pictures beside the rows.")] = False,
    json: Json = False,
) -> None:
    """Write data in another format."""
    free(out)
    from pivot.data.convert import write
    from pivot.recipe import read

    examples = read(source)
    with live(json) as screen:
        tick = screen.progress("data convert")
        for written in write(examples, out, to, copy=copy):
            tick(written.rows, len(examples))
    show(_told(written), json, text="\n".join(_lines(written)))


def _told(written: Written) -> dict[str, Any]:
    """What was written, for machines."""
    return {"out": str(written.out), "data": written.source, "rows": written.rows, "copied": written.copied, "lost": dict(written.lost)}


def _lines(written: Written) -> list[str]:
    """The same for people."""
    copied = f", {written.copied:,} pictures beside {'them' if written.rows != 1 else 'it'}" if written.copied else ""
    lost = ", ".join(f"{what} ({rows:,} {'row' if rows == 1 else 'rows'})" for what, rows in written.lost.most_common())
    lines = [f"{written.rows:,} rows: {written.out}{copied}", f"  read it as: {written.source}"]
    return [*lines, f"  it has no place for: {lost}"] if lost else lines


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
        from pivot.pictures import picture

        if not example.images:
            raise BadInput(f"example {example.id} of {source} has no picture; leave out --image, or give another --index")
        with whole_file(image) as unfinished:
            picture(example.images[0]).save(unfinished, "PNG")
    responses = [f"{r['role']:>8}: {r['text']}" + (f"  ({r['error']})" if r["error"] else "") for r in found["responses"]]
    about = ", ".join(word for word in (example.domain, example.task) if word)
    show(found, json, text="\n".join([f"{example.id}  {about}".rstrip(), f"  prompt: {example.prompt}", *responses]))
