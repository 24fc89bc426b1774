"""Verbs that measure encoders: probe linear, segment, gradcam, align, change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pivot.cli.app import HELDOUT, Json, Source, device, probe, results
from pivot.files import read_json
from pivot.plain import override
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.encoder import Encoder
    from pivot.records import Measurement
    from pivot.runfolder import RunFolder

Encoders = Annotated[list[str], typer.Argument(help="Detached encoders, MLLMs (their encoder is read), transformers folders, or hf:ID.")]
On = Annotated[str | None, typer.Option("--on", metavar="READER,KEY=VALUE,...", help="Measure on these; all of --data then train.")]
At = Annotated[str, typer.Option(help="Where to read: 'encoder', at its tap, or 'projector', behind that.")]
Precision = Annotated[str, typer.Option(help="Of the encoder: fp32 or bf16.")]
Batch = Annotated[int, typer.Option(help="Images at a time.")]
Knobs = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other knob, as in a recipe; again for more.")]
Out = Annotated[Path | None, typer.Option(help="A run folder to keep the measurements in; `pivot report` reads it.")]


@probe.command("linear")
def probe_linear(
    encoders: Encoders,
    source: Source = HELDOUT,
    on: On = None,
    at: At = "encoder",
    targets: Annotated[str | None, typer.Option(metavar="NAME,...", help="Which labels; by default all that the data have.")] = None,
    validation: Annotated[float | None, typer.Option(help="Share of images that choose C.")] = None,
    test: Annotated[float | None, typer.Option(help="Share of images that are measured on, without --on; the rest trains.")] = None,
    subset: Annotated[int | None, typer.Option(help="Train on so many images, drawn at random, as CLIP's sweeps on 50000.")] = None,
    pooling: Annotated[str | None, typer.Option(help="Of whole images: tap, mean, class, or attention (reads above the tap).")] = None,
    neighbours: Annotated[int | None, typer.Option(help="How many vote in the k-NN classifier.")] = None,
    shots: Annotated[str | None, typer.Option(metavar="N,...", help="Few-shot: items of each class, as in 1,2,4,8,16.")] = None,
    texts: Annotated[str | None, typer.Option(help="Zero-shot: the CLIP or SigLIP that they came from (reads above the tap).")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of draws.")] = 0,
    precision: Precision = "fp32",
    batch: Batch = 64,
    knobs: Knobs = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """What a linear classifier reads out of encoders' features."""
    given = {"targets": _listed(targets), "validation": validation, "test": test, "subset": subset, "pooling": pooling}
    given |= {"neighbours": neighbours, "shots": _listed(shots), "texts": texts}
    common = {"at": at, "seed": seed, "precision": precision, "batch": batch}
    _measure("linear", encoders, source, on, {**common, **given}, knobs, out, json)


@probe.command("segment")
def probe_segment(
    encoders: Encoders,
    source: Source = HELDOUT,
    on: On = None,
    at: At = "encoder",
    head: Annotated[str | None, typer.Option(help="What reads the patches: mlp, linear or transformer.")] = None,
    labels: Annotated[str | None, typer.Option(help="What is asked of a patch: 'union', all classes in it, or 'majority', one.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the heads; small data want more than the five of the protocol.")] = None,
    repeats: Annotated[int | None, typer.Option(help="How many heads, each of another seed.")] = None,
    test: Annotated[float | None, typer.Option(help="Share of images that is measured on, without --on.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of the heads.")] = 0,
    precision: Precision = "fp32",
    batch: Batch = 64,
    knobs: Knobs = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Which classes a head finds in each patch of encoders' features."""
    given = {"head": head, "labels": labels, "epochs": epochs, "repeats": repeats, "test": test}
    common = {"at": at, "seed": seed, "precision": precision, "batch": batch}
    _measure("segment", encoders, source, on, {**common, **given}, knobs, out, json)


@probe.command("gradcam")
def probe_gradcam(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Gradients that `pivot saliency` wrote.")],
    map: Annotated[str | None, typer.Option(help="Whose numbers come first: norm, of the gradient, or cam.")] = None,
    order: Annotated[str | None, typer.Option(help="Of the norm: l2 or l1.")] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Whether an objective's loss looks at what a question is about."""
    from pivot.recipe import instrument

    given = {key: value for key, value in {"map": map, "order": order}.items() if value is not None}
    made = instrument("probe", "gradcam", **given)
    named = {str(folder): folder for folder in folders}
    arms = [made.arm(folder) for folder in folders]
    if twice := next((one for n, one in enumerate(folders) if one.resolve() in (other.resolve() for other in folders[:n])), None):
        raise BadInput(f"{twice} is given twice; give each folder once")
    if len(set(arms)) == len(arms):  # as they were called when they were written, where that tells them apart
        named = dict(zip(arms, folders, strict=True))
    else:
        _arms([str(folder) for folder in folders])
    kept = _opened(out)
    _show(list(made.measured(named)), kept, json)


@probe.command("align")
def probe_align(
    encoders: Encoders,
    source: Source = HELDOUT,
    llm: Annotated[str | None, typer.Option(help="The language model: a folder, hf:ID, GGUF, or an MLLM, whose LLM is meant.")] = None,
    k: Annotated[int | None, typer.Option(help="How many neighbours.")] = None,
    most: Annotated[int | None, typer.Option(help="Captions, at most: the first so many.")] = None,
    pooling: Annotated[str | None, typer.Option(help="Of pictures: tap, mean or class.")] = None,
    at: At = "encoder",
    seed: Annotated[int, typer.Option(help="Of the permutation that shows what chance gives.")] = 0,
    precision: Precision = "fp32",
    batch: Batch = 64,
    knobs: Knobs = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Whether pictures that encoders find alike have captions that a language model finds alike."""
    given = {"llm": llm, "k": k, "most": most, "pooling": pooling}
    common = {"at": at, "seed": seed, "precision": precision, "batch": batch}
    _measure("align", encoders, source, None, {**common, **given}, knobs, out, json)


@probe.command("change")
def probe_change(
    reference: Annotated[str, typer.Argument(help="The encoder as it was.")],
    encoders: Encoders,
    source: Source = HELDOUT,
    precision: Precision = "fp32",
    batch: Annotated[int | None, typer.Option(help="Images at a time.")] = None,
    knobs: Knobs = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """How far encoders' weights and features are, layer by layer, from those of the one that they were made from."""
    _measure("change", [reference, *encoders], source, None, {"precision": precision, "batch": batch}, knobs, out, json)


def _measure(
    name: str,
    encoders: Sequence[str],
    source: str,
    on: str | None,
    given: Mapping[str, Any],
    knobs: Sequence[str] | None,
    out: Path | None,
    json: bool,
) -> None:
    """Put encoders to a probe, show what it found of each and how they differ, and keep it if `out` says where.

    Of the knobs, those that were not given (None) are the probe's own defaults.
    """
    from pivot.recipe import instrument, read

    arms = _arms(encoders)
    said = {key: value for key, value in given.items() if value is not None}
    made = instrument("probe", name, **said, **_knobs(knobs, said))
    if on and not made.TESTS:
        raise BadInput(f"--on {on}: probe {name} has no items of its own to measure on; leave it out")
    kept = _opened(out)
    examples, tested = read(source), read(on) if on else None
    from pivot.beginning import steady

    opened = {arm: _open(encoder).to(device()) for arm, encoder in arms.items()}
    steady(max((encoder.model for encoder in opened.values()), key=lambda model: model.num_parameters()))
    found = list(made.run(opened, examples, tested))
    _show([replace(one, seed=made.seed) for one in found], kept, json)


def _opened(out: Path | None) -> RunFolder | None:
    """The run folder to keep measurements in. What is wrong with it comes to light here, and not after the work."""
    if out is None:
        return None
    from pivot.runfolder import RunFolder

    folder = RunFolder(out)
    with folder.alone():
        return folder


def _show(found: Sequence[Measurement], folder: RunFolder | None, json: bool) -> None:
    """Show measurements and their paired differences; write each to a file of its own, but never over one of something else."""
    taken = _write([replace(one, arm=_label(one.arm)) for one in found], folder) if folder else None
    from pivot.study.statistics import differences

    pairs = [(b, a, of) for a, b in combinations(found, 2) if a.name == b.name and (of := differences([b], [a]))]
    results(found, None, json, pairs)
    if taken:
        raise BadInput(f"nothing is kept: {taken} is of something else, of other weights, data or settings; give another --out")


def _write(found: Sequence[Measurement], folder: RunFolder) -> Path | None:
    """Write all of them; or none, if a file of such a name holds another measurement, which is returned."""
    with folder.alone():
        for one in found:
            file = folder.measurement_file(one.arm, one.seed, one.kind, one.name)
            if file.exists() and read_json(file).get("fingerprint") != one.fingerprint:
                return file
        for one in found:
            folder.write_measurement(one)
        if not folder.manifest():
            folder.note(name=folder.path.name)
    return None


def _listed(given: str | None) -> list[str] | None:
    """Names or numbers with commas between them."""
    return given.replace(" ", "").split(",") if given else None


def _arms(encoders: Sequence[str]) -> dict[str, str]:
    """A name for each encoder: as it was given. Two of one name, or that files would call the same, are a `BadInput`."""
    taken: dict[str, str] = {}
    for name in encoders:
        if (other := taken.setdefault(_label(name), name)) is not name:
            raise BadInput(f"'{name}' and '{other}' would have one name in files and tables; give each encoder once")
    return {name: name for name in encoders}


def _label(name: str) -> str:
    """What files call an encoder."""
    return re.sub(r"[^\w.+]+", "_", name).strip("_.") or "encoder"


def _knobs(given: Sequence[str] | None, beside: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs without an option of their own."""
    found: dict[str, Any] = {}
    for one in given or ():
        found = override(found, one)
    if twice := sorted(set(found) & set(beside)):
        raise BadInput(f"--set {twice[0]}=...: there is an option for that; give --{twice[0].replace('_', '-')}")
    return found


def _open(name: str) -> Encoder:
    """An encoder, or the one in an MLLM of that name; the LLM is let go."""
    from pivot.encoder import Encoder
    from pivot.model.mllm import MLLM, holds_mllm

    return replace(MLLM.load(name).detach(), inside=None) if holds_mllm(name) else Encoder.load(name)
