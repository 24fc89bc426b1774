"""Verbs on encoders: inspect, push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pivot.cli.app import Json, app, encoder, show
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.encoder import Encoder

NAMES = "hf:ID, timm:NAME, open_clip:MODEL/TAG, a folder, or an MLLM (its encoder is meant)."


@encoder.command("inspect")
def inspect(
    name: Annotated[str, typer.Argument(help=NAMES)],
    layer: Annotated[int | None, typer.Option(help="Where it would be read: -1 the last block, -2 the one before.")] = None,
    pixels: Annotated[int | None, typer.Option(help="Side of the pictures, where not the native one.", min=1)] = None,
    json: Json = False,
) -> None:
    """Say what an encoder is, what would train at a layer, and what would be stale. Loads no weights where the config is enough."""
    from pivot.encoder.inspect import inspect as look
    from pivot.encoder.inspect import lines

    facts = look(_described(name, layer, pixels))
    show({"encoder": name, **facts}, json, text="\n".join(lines(name, facts)))


def _described(name: str, layer: int | None, pixels: int | None) -> Encoder:
    """An encoder without its weights; an MLLM's own with them."""
    from pivot.encoder import Encoder
    from pivot.model.mllm import MLLM, holds_mllm

    if holds_mllm(name):
        if pixels:
            raise BadInput(f"--pixels {pixels}: '{name}' is joined already, its projector has learnt its size; give the encoder alone")
        found = MLLM.load(name).detach()
    else:
        found = Encoder.described(name, pixels=pixels)
    return found if layer is None else found.tapped(layer=layer)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A detached encoder.")],
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub, or a NAME of your own.")],
    private: Annotated[bool, typer.Option("--private", help="For you alone.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add a commit to a repository that exists.")] = False,
    json: Json = False,
) -> None:
    """Send a detached encoder to the Hub, with your own login."""
    from pivot.encoder.push import push as send

    address = send(folder, name, private=private, update=update)
    show({"address": address}, json, text=address)
