"""Verbs on encoders: inspect, push, probe linear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pivot.cli.app import HELDOUT, Json, Source, app, device, encoder, probe, results, show
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


@probe.command("linear")
def probe_linear(
    encoders: Annotated[
        list[str], typer.Argument(help="Detached encoders, MLLMs (their encoder is read), transformers folders, or hf:ID.")
    ],
    source: Source = HELDOUT,
    at: Annotated[str, typer.Option(help="Where to read: 'encoder', at its tap, or 'projector', behind that.")] = "encoder",
    targets: Annotated[str | None, typer.Option(metavar="NAME,...", help="Which labels; by default all that the data have.")] = None,
    validation: Annotated[float | None, typer.Option(help="Share of images that choose C.")] = None,
    test: Annotated[float | None, typer.Option(help="Share of images that are measured on; the rest trains.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    json: Json = False,
) -> None:
    """What a linear classifier reads out of encoders' features."""
    from pivot.recipe import instrument, read

    given = {"targets": targets.replace(" ", "").split(",") if targets else None, "validation": validation, "test": test}
    chosen = {key: value for key, value in given.items() if value is not None}  # the probe declares its own defaults
    linear, examples = instrument("probe", "linear", at=at, seed=seed, batch=batch, **chosen), read(source)
    from pivot.chain import steady

    opened = {name: _open(name).to(device()) for name in encoders}
    steady(max((encoder.model for encoder in opened.values()), key=lambda model: model.num_parameters()))
    results(list(linear.run(opened, examples)), None, json)


def _open(name: str) -> Encoder:
    """An encoder, or the one in an MLLM of that name; the LLM is let go."""
    from pivot.encoder import Encoder
    from pivot.model.mllm import MLLM, holds_mllm

    return replace(MLLM.load(name).detach(), inside=None) if holds_mllm(name) else Encoder.load(name)
