"""Take an encoder out: a folder in a library's own layout, and the proof that its features are those inside the MLLM."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from pivot.encoder import formats, towers
from pivot.encoder.card import CARD_FILE, Provenance, card
from pivot.encoder.encoder import Encoder
from pivot.encoder.parity import PARITY_FILE, Parity, tolerance
from pivot.encoder.stale import stale
from pivot.files import whole_folder, write_json, write_text
from pivot.pictures import picture
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.records import Picture


def export(
    encoder: Encoder,
    folder: str | Path,
    images: Sequence[Picture] | None = None,
    *,
    truncate: bool = False,
    to: str | None = None,
    provenance: Provenance | None = None,
) -> Parity:
    """Write the folder whole, `parity.json` and the model card included. `truncate` leaves out the blocks above the tap.

    `to` is the library whose layout it has, by default the one that the encoder came from. The comparison opens the folder with
    that library alone; without images it uses noise of several sizes. `provenance` is what the card says of parents and data, by
    default no more than what the encoder itself knows.
    """
    library, family = home(encoder) if to is None else to, _family(encoder)
    form = formats.named(library, f"--to {library}: no such layout")
    if why := form.refusal(family):
        raise BadInput(f"a {family} cannot go to {library}: {why}; use --to hf")
    pictures = list(noise(encoder.grid)) if images is None else [picture(image) for image in images]
    out = truncated(encoder) if truncate else encoder
    with whole_folder(folder) as unfinished:
        lost = out.write(unfinished, library)
        parity = _compare(encoder, out, unfinished, pictures, library, lost)
        write_json(unfinished / PARITY_FILE, {**asdict(parity), "exact": parity.exact, "holds": parity.holds})
        told = card(Path(folder).name, family, library, out.outgoing()[1], parity, known(encoder, provenance or Provenance()))
        write_text(unfinished / CARD_FILE, told)
    return parity


def home(encoder: Encoder) -> str:
    """The library whose layout an encoder came in. What open_clip has no place for may be timm's; transformers has one for all."""
    came = getattr(encoder.model.config, "pivot_source", {}).get("library", "hf")
    choices = ("hf",) if came == "hf" else (came, "timm", "hf")
    return next(library for library in choices if formats.FORMATS[library].refusal(_family(encoder)) is None)


def _family(encoder: Encoder) -> str:
    """Of the model that goes out."""
    return towers.family(encoder.outgoing()[0].config).name


def known(encoder: Encoder, provenance: Provenance) -> Provenance:
    """What is said of where an encoder came from, and what its config says where nobody else does."""
    source = getattr(encoder.model.config, "pivot_source", {})
    if "name" not in source:
        return provenance
    name = provenance.encoder or f"{source['library']}:{source['name']}"
    licences = {name: source["licence"]} if "licence" in source else {}
    return replace(provenance, encoder=name, licences={**licences, **provenance.licences})


def _compare(encoder: Encoder, out: Encoder, folder: Path, images: Sequence[Image.Image], library: str, lost: Sequence[str]) -> Parity:
    form, device, dtype = formats.FORMATS[library], encoder.model.device, encoder.model.dtype
    tokens, projected = _inside(encoder, images)
    seen = encoder.pixels(images)
    theirs = form.pixels(folder, images).to(device, dtype)
    # Where the library resizes otherwise, features are compared on the same pixels, and the pixels are compared by themselves.
    pixel_difference = _largest(theirs, seen)
    found, read = form.read(folder, theirs if pixel_difference == 0 else seen, out.outgoing()[1])
    if pixel_difference:
        lost = [
            *lost,
            f"preprocessing: {library}'s own transform of the same pictures differs by up to {pixel_difference:.2g} of a normalised pixel; "
            "it rounds the corner of a centre crop otherwise, by one pixel at some shapes of pictures",
        ]
    behind = None
    if encoder.projector is not None and projected is not None:
        reopened = Encoder.load(folder, dtype=str(dtype).removeprefix("torch.")).to(device)
        behind = _largest(reopened.features(images, "projector", len(images)).tokens, projected)
    return Parity(
        difference=_largest(found, tokens),
        tolerance=0.0 if library == "hf" else tolerance(tokens, dtype),
        pixel_difference=pixel_difference,
        projector_difference=behind,
        against="encoder" if encoder.inside is None else "mllm",
        read=read,
        images=len(images),
        shape=tuple(tokens.shape),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        layout=library,
        through=form.version(),
        truncated=out is not encoder,
        stale=(*stale(out), *lost),
    )


def _inside(encoder: Encoder, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Patches in front of the projector and behind it, as the MLLM computes them; without one, as the encoder in memory does."""
    if encoder.inside is not None:
        rows, columns = encoder.grid
        tokens, projected = encoder.inside(images)
        return tokens[:, -rows * columns :], projected[:, -rows * columns :]  # registers go to the LLM as well, and are no patches
    tokens = encoder.features(images, batch=len(images)).tokens
    return tokens, None if encoder.projector is None else encoder.features(images, "projector", len(images)).tokens


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference. NaN is reported as infinite: it must not pass for equal."""
    difference = (a.detach().float().cpu() - b.detach().float().cpu()).abs().max().item()
    return difference if difference == difference else float("inf")


def truncated(encoder: Encoder) -> Encoder:
    """The encoder without the blocks above its tap, read at the last block. The blocks that stay keep their weights."""
    model, tap = encoder.model, encoder.tap
    if encoder.family.layout == "joined":
        raise BadInput("truncate: an ensemble, or a tower read as maps, goes out with all of its blocks; leave truncate out")
    below, path = towers.depth(model.config, tap), towers.blocks_name(model)
    if below == 0:
        raise BadInput("truncate: a tap at layer 0 leaves no block; choose a higher layer or keep the encoder whole")
    settings = {**copy.deepcopy(model.config.to_dict()), "num_hidden_layers": below}
    for derived in ("stage_names", "out_features", "out_indices"):  # lists of blocks that backbone configs rebuild
        settings.pop(derived, None)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not _block_at_or_after(name, path, below)}
    with torch.random.fork_rng(devices=[]):
        shorter = type(model)._from_config(type(model.config)(**settings))
    shorter.load_state_dict(kept)
    shorter = shorter.to(model.device, model.dtype).eval()
    return replace(encoder, model=shorter, tap=replace(tap, layer=-1))


def _block_at_or_after(name: str, path: str, first: int) -> bool:
    return name.startswith(f"{path}.") and int(name[len(path) + 1 :].split(".")[0]) >= first


def noise(grid: tuple[int, int], number: int = 4) -> Iterator[Image.Image]:
    """Random pictures, wide and tall, to compare two encoders on. The same every time."""
    dice = np.random.default_rng(0)
    for i in range(number):
        height, width = 8 * grid[0] + 5 * i, 8 * grid[1] + 9 * (number - i)
        yield Image.fromarray(dice.integers(0, 256, (height, width, 3), dtype=np.uint8))
