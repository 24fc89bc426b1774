"""Verbs on encoders: probe linear."""

from __future__ import annotations

from typing import Annotated

import typer

from pivot.cli.app import HELDOUT, Json, Source, device, probe, results


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

    opened = {name: Encoder.load(name).to(device()) for name in encoders}
    steady(max((encoder.model for encoder in opened.values()), key=lambda model: model.num_parameters()))
    results(list(linear.run(opened, examples)), None, json)
