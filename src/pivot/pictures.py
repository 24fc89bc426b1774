"""Pictures as they come: paths, bytes, inside larger files, of any mode. What an encoder gets of each is RGB, upright and opaque."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.records import Picture

# What is opened. Pillow knows more kinds, one of which (EPS) runs another program.
KINDS = {"JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA"}
Image.init()
FORMATS = tuple(kind for kind in Image.OPEN if kind in KINDS)  # Pillow may be built without some
ORIENTATION = 0x0112  # EXIF's tag
TURNED = (5, 6, 7, 8)  # its values of pictures whose sides change places
# Pillow refuses more than 179 million pixels, which decoded are half a gigabyte. Of half as many it warns; that is big, but a picture.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damaged EXIF data, once for each of a million pictures


class Missing(BadInput):
    """A picture that is not there."""


class TooLarge(BadInput):
    """A picture of more pixels than are decoded."""


def picture(source: Picture) -> Image.Image:
    """Decode one picture to RGB: upright as its EXIF data says, transparency on white, 16 bits brought to 8, an animation's first frame.

    A broken file, or one so large that it must be a trap, is a `BadInput` that names it.
    """
    if isinstance(source, Image.Image):
        return _rgb(source)
    with opened(source) as image:
        return _rgb(_upright(image))


def size(source: Picture) -> tuple[int, int]:
    """(width, height) of what `picture` makes of it, which refuses the same. A JPEG is read to its end, but most of its pixels not made."""
    if isinstance(source, Image.Image):
        return source.size
    with opened(source) as image:
        if image.format != "JPEG":
            return _rgb(_upright(image)).size
        width, height = image.size
        image.draft("L", (1, 1))
        image.load()
        return (height, width) if turned(image) else (width, height)


@contextmanager
def opened(source: Path | str | bytes | Picture) -> Iterator[Image.Image]:
    """A picture whose header has been read. What goes wrong then and while the block decodes it is a `BadInput` that names it."""
    where = named(source)
    try:
        with Image.open(io.BytesIO(read(source)) if not isinstance(source, Path | str) else source, formats=FORMATS) as image:
            yield image
    except BadInput:
        raise
    except FileNotFoundError:
        raise Missing(f"image not found: {where}; check the path or the data's image root") from None
    except Image.DecompressionBombError:
        raise TooLarge(
            f"image is too large: {where} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; shrink it or drop the row"
        ) from None
    except MemoryError:
        raise TooLarge(f"image is too large for this machine's memory: {where}; shrink it or drop the row") from None
    except Exception as broken:  # decoders of damaged files raise whatever they run into: struct.error, IndexError, ...
        raise BadInput(f"image cannot be read: {where} ({_said(broken, where)}); replace it or drop the row") from None


def _said(broken: Exception, where: str) -> str:
    """Pillow's own words, without the object's address or the path once more."""
    if isinstance(broken, Image.UnidentifiedImageError):
        return "it is no image of a known kind"
    if isinstance(broken, OSError) and broken.strerror:
        return broken.strerror
    return " ".join(str(broken).replace(where, "it").split()) or type(broken).__name__


class Once:
    """A picture whose file is read when it is first asked for, and kept for who asks again: one hashes it, another decodes it."""

    def __init__(self, source: Picture) -> None:
        self._source = source

    def __str__(self) -> str:
        return named(self._source)

    @cached_property
    def _content(self) -> bytes:
        return read(self._source)

    def read(self) -> bytes:
        return self._content


def once(images: Sequence[Picture]) -> tuple[Picture, ...]:
    """Pictures, those that are not in memory as `Once`."""
    return tuple(image if isinstance(image, bytes | Image.Image) else Once(image) for image in images)


def named(source: Picture) -> str:
    """What to call a picture in a message."""
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def read(source: Picture) -> bytes:
    """The bytes of a picture's file. One that exists in memory alone becomes a PNG."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path | str):
        try:
            return Path(source).read_bytes()
        except FileNotFoundError:
            raise Missing(f"image not found: {source}; check the path or the data's image root") from None
        except (OSError, ValueError) as failed:
            raise BadInput(f"image cannot be read: {source} ({failed}); replace it or drop the row") from None
    if isinstance(source, Image.Image):
        png = io.BytesIO()
        source.save(png, "PNG")
        return png.getvalue()
    return source.read()


def turned(image: Image.Image) -> bool:
    """Whether its sides change places when it is held as its EXIF data say."""
    return _orientation(image) in TURNED


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its camera meant it to be held. Damaged EXIF data say nothing."""
    with suppress(Exception):
        if _orientation(image) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        image = Image.fromarray(_eight_bits(values))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    elif isinstance(clear, tuple) and max(clear) > 255:  # a colour of 16 bits, of which Pillow has kept the upper eight of each pixel's
        image.info["transparency"] = tuple(shade >> 8 for shade in clear)
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """(H, W) grey of 16 bits, or of floats in 0 .. 1 or 0 .. 255, as 8 bits. Pillow's own conversion cuts off what is above 255."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        return np.clip(values * 255 if values.max(initial=0) <= 1 else values, 0, 255).round().astype(np.uint8)
    # A file of 16 bits may be opened as one of 32.
    wide = values.dtype.itemsize == 2 or values.max(initial=0) > 255
    return np.clip((values.astype(np.int64) + 128) // 257 if wide else values, 0, 255).astype(np.uint8)


def fingerprint(images: Sequence[Picture]) -> str:
    """sha256 over what the pictures hold, in order: pixels of images in memory, bytes of files. Caches and resumed runs must notice one
    that changed under the same name.
    """
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image, Image.Image):
            # As RGB, which is what encoders get: the bytes of a palette image do not hold its palette.
            kind, content = f"pixels {image.size}", picture(image).tobytes()
        else:
            kind, content = "file", read(image)
        digest.update(f"{kind} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
