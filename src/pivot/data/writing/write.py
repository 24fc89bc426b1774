"""Examples as files: one JSON line each, pictures and, as compressed arrays, truth beside them. `rows` reads them back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pivot.files import to_json, whole_file
from pivot.pictures import opened, picture, read
from pivot.records import BadInput, Example, Truth

if TYPE_CHECKING:
    from pivot.records import Picture

ROWS = "data.jsonl"
NAMED = 80  # characters of an id in a picture's name, which is there for people: file systems take 255 bytes
ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "DIB": "bmp", "TIFF": "tif", "JPEG2000": "jp2"}  # of other kinds: their own name


def write(examples: Sequence[Example], folder: Path) -> Iterator[int]:
    """Write `data.jsonl`, `images/` and, where there is truth, `truth/` into a folder; yields how many examples are written."""
    for place in ("images", "truth"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    with (
        whole_file(folder / ROWS) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        for number, example in enumerate(examples):
            file.write(_line(example, f"{number:06d}", folder) + "\n")
            yield number + 1
    if not any((folder / "truth").iterdir()):
        (folder / "truth").rmdir()


def row(example: Example) -> dict[str, Any]:
    """An example as plain values, without its pictures and its truth."""
    responses = [{"text": r.text, "role": r.role, "rating": r.rating, "error": r.error} for r in example.responses]
    kept = ("id", "prompt", "answer", "answer_kind", "task", "domain", "meta")
    return {**{name: getattr(example, name) for name in kept}, "responses": responses}


def _line(example: Example, number: str, folder: Path) -> str:
    """One line of `data.jsonl`; what it names is written before."""
    plain = row(example)
    name = f"{number}-{{}}-{safe(example.id)}"
    plain["images"] = _pictures(example.images, folder, name)
    for which, response in enumerate(example.responses):
        if response.images is not None:
            plain["responses"][which]["images"] = _pictures(response.images, folder, name.replace("{}", f"r{which}-{{}}"))
    plain["truth"] = _truth(example.truth, folder, f"truth/{number}.npz") if example.truth else None
    try:
        return to_json(plain)
    except TypeError as odd:
        raise BadInput(f"row {example.id}: its meta cannot be written ({odd}); keep plain values there") from None


def safe(name: str) -> str:
    """What of a name any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:NAMED]


def content(source: Picture) -> bytes:
    """The bytes of a picture's own file, as they are; of one that exists in memory alone, those of a PNG."""
    return read(picture(source) if isinstance(source, Image.Image) else source)


def store(source: Picture, folder: Path, name: str) -> str:
    """Write a picture's own bytes, under a name that ends as what they hold does; the name."""
    held = content(source)
    try:
        with opened(held) as image:
            kind = str(image.format)
    except BadInput:
        with opened(source):  # whose message names it
            raise
    whole = f"{name}.{ENDINGS.get(kind, kind.lower())}"
    (folder / whole).write_bytes(held)
    return whole


def _pictures(pictures: Sequence[Picture], folder: Path, name: str) -> list[str]:
    return [store(image, folder, f"images/{name.format(which)}") for which, image in enumerate(pictures)]


def _truth(truth: Truth, folder: Path, place: str) -> dict[str, Any]:
    """Words go into the line, arrays into one file: an object's mask takes a bit a pixel before it is compressed."""
    masks = np.zeros((len(truth.objects), *truth.region.shape), bool)
    for mask, thing in zip(masks, truth.objects, strict=True):
        mask[:] = thing.mask
    np.savez_compressed(
        folder / place,
        classes=np.asarray(truth.classes, np.uint8),
        region=np.packbits(np.asarray(truth.region, bool)),
        masks=np.packbits(masks),
    )
    objects = [{"kind": thing.kind, "attributes": thing.attributes} for thing in truth.objects]
    return {"file": place, "objects": objects, "caption": truth.caption}
