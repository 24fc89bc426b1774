"""Verbs on encoders: probe linear."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from pivot.cli.app import HELDOUT, Json, Source, device, probe, results

if TYPE_CHECKING:
    from pivot.encoder import Encoder


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
