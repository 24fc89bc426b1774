"""Pictures of every mode, turned, moving, huge or broken: RGB, upright and opaque comes out, or one line that names the file."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from published import drawn

from pivot import pictures
from pivot.pictures import picture
from pivot.records import BadInput

DAMAGED = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
SHADES = np.linspace(0, 255, 16 * 12).reshape(12, 16)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def near(one: Image.Image, other: np.ndarray | Image.Image, off: float) -> None:
    assert one.mode == "RGB"
    assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= off


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


# ---- kinds and modes


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO"])
def test_each_kind_that_keeps_pixels_gives_them_back(kind: str, tmp_path: Path) -> None:
    image = drawn(5, (16, 16))
    options = {"lossless": True} if kind == "WEBP" else {"sizes": [(16, 16)]} if kind == "ICO" else {}
    (tmp_path / "named.jpg").write_bytes(saved(image, kind, **options))  # what a file is called says nothing
    near(picture(tmp_path / "named.jpg"), image, 0)
    near(picture(str(tmp_path / "named.jpg")), image, 0)
    near(picture((tmp_path / "named.jpg").read_bytes()), image, 0)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        near(picture(saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)), frames[0], 1)
    near(picture(saved(frames[0], "MPO", save_all=True, append_images=frames[1:])), frames[0], 3)  # as phones write them, called .jpg


def test_cmyk_is_seen_in_its_colours() -> None:
    flat = Image.new("RGB", (16, 12), (200, 60, 30)).convert("CMYK")
    near(picture(saved(flat, "JPEG", quality=95)), Image.new("RGB", (16, 12), (200, 60, 30)), 12)
    near(picture(saved(flat, "TIFF")), Image.new("RGB", (16, 12), (200, 60, 30)), 2)


def test_sixteen_bits_are_sixteen_though_all_its_values_are_small() -> None:
    """Night: 0 .. 255 of 65,535."""
    dark = Image.fromarray(SHADES.astype(np.uint16))
    near(picture(saved(dark, "PNG")), np.zeros((12, 16, 3)), 1)
    near(picture(dark), np.zeros((12, 16, 3)), 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    deep = Image.fromarray((SHADES * 257).round().astype(np.uint16))
    near(picture(saved(deep, kind)), grey(SHADES.round()), 0.51)
    near(picture(Image.fromarray((SHADES * 257).round().astype(np.int32))), grey(SHADES.round()), 0.51)


def test_floats_are_shades_whether_to_1_or_to_255() -> None:
    for values in (SHADES, SHADES / 255):
        near(picture(saved(Image.fromarray(values.astype(np.float32)), "TIFF")), grey(SHADES), 0.51)
    odd = np.array([[np.nan, np.inf], [-np.inf, 128]], np.float32)
    assert picture(Image.fromarray(odd)).mode == "RGB"


def test_one_bit_is_black_and_white() -> None:
    near(picture(saved(Image.fromarray(SHADES > 99), "PNG")), grey((SHADES > 99) * 255), 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    """Under transparent pixels stand colours that nobody is meant to see."""
    left = np.zeros((12, 16), bool)
    left[:, :8] = True
    dark, clear = Image.new("L", (16, 12), 50), Image.fromarray(np.where(left, 0, 255).astype(np.uint8))
    marked = Image.fromarray(np.where(left, 7, 50).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        source: Image.Image | bytes = saved(Image.merge(mode, (*[dark] * (len(mode) - 1), clear)), "PNG")
    elif mode == "PA":
        source = dark.convert("P")
        source.putalpha(clear)
        assert source.mode == "PA"
    elif mode == "P":
        marked.putpalette([9] * 21 + [1, 2, 3] + [9] * 126 + [50, 50, 50])
        source = saved(marked, "GIF", transparency=7)
    elif mode == "L":
        source = saved(marked, "PNG", transparency=7)
    else:
        colours = np.where(left[..., None], np.uint8([[[1, 2, 3]]]), np.uint8([[[50, 50, 50]]]))
        source = saved(Image.fromarray(colours), "PNG", transparency=(1, 2, 3))
    near(picture(source), grey(np.where(left, 255, 50)), 0)


def test_what_is_transparent_among_sixteen_bits_lies_on_white() -> None:
    values = np.where(np.arange(16) < 8, 40_000, 50 * 257)[None].repeat(12, 0)
    clear = Image.fromarray(values.astype(np.uint16))
    near(picture(saved(clear, "PNG", transparency=40_000)), grey(np.where(values == 40_000, 255, 50)), 0)
    rgb = coloured(np.stack([values] * 3, axis=-1), (40_000,) * 3)
    near(picture(rgb), grey(np.where(values == 40_000, 255, 50)), 0)


def coloured(values: np.ndarray, clear: tuple[int, int, int]) -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">HHH", *clear)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def test_half_transparent_is_half_white() -> None:
    near(picture(Image.new("RGBA", (4, 4), (0, 0, 0, 128))), np.full((4, 4, 3), 127), 1)


# ---- orientation


@pytest.mark.parametrize("turned", range(2, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_a_turned_picture_stands_upright(kind: str, turned: int) -> None:
    """Stored as the camera held it, with the tag that says how, it is equal to the picture as it was seen."""
    upright, exif = drawn(3, (32, 24)), Image.Exif()
    exif[pictures.ORIENTATION] = turned
    back = {2: (0,), 3: (3,), 4: (1,), 5: (5,), 6: (2,), 7: (6,), 8: (4,)}[turned]  # Pillow's numbers of what undoes each
    stored = upright.transpose(Image.Transpose(back[0]))
    check = stored.copy()
    check.getexif()[pictures.ORIENTATION] = turned
    assert np.array_equal(ImageOps.exif_transpose(check), upright)  # the table above against Pillow's own
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = picture(saved(stored, kind, exif=exif, **options))
    assert found.size == (32, 24)
    near(found, upright, 3 if kind == "JPEG" else 0)


def test_damaged_exif_says_nothing() -> None:
    near(picture(saved(drawn(3), "PNG", exif=DAMAGED)), drawn(3), 0)


# ---- size


def huge(width: int, height: int) -> bytes:
    """A PNG whose header promises so much, and which ends there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(huge(60_000, 60_000))
    start = time.perf_counter()
    with pytest.raises(BadInput, match=r"image is too large: .*bomb.png has more than 178,956,970 pixels; shrink it or drop the row"):
        picture(tmp_path / "bomb.png")
    assert time.perf_counter() - start < 0.5


def test_a_frame_of_a_gif_and_a_text_chunk_are_no_way_around() -> None:
    gif = bytearray(saved(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(BadInput, match="too large"):
        picture(bytes(gif))
    plain = saved(Image.new("L", (4, 4)), "PNG")
    text = b"zTXtx\0\0" + zlib.compress(b"\0" * (8 << 20), 1)  # 8 MB of nothing
    bomb = plain[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + plain[33:]
    with pytest.raises(BadInput, match="cannot be read"):
        picture(bomb)


@pytest.mark.slow
def test_a_huge_picture_is_a_picture() -> None:
    assert picture(saved(Image.new("1", (12_000, 9_000), 1), "PNG")).size == (12_000, 9_000)


def test_what_pillow_only_warns_of_is_taken_without_a_word(tmp_path: Path) -> None:
    """A set of a million pictures would fill the screen. In a process of its own, since pytest turns all warnings on."""
    (tmp_path / "exif.png").write_bytes(saved(drawn(3), "PNG", exif=DAMAGED))
    (tmp_path / "large.png").write_bytes(saved(Image.new("1", (30, 20), 1), "PNG"))
    code = f"""
from PIL import Image
from pivot.pictures import picture
Image.MAX_IMAGE_PIXELS = 1000
picture({str(tmp_path / "exif.png")!r})
Image.MAX_IMAGE_PIXELS = 400
assert picture({str(tmp_path / "large.png")!r}).size == (30, 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- broken ones


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_file_that_was_cut_off_is_named(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = saved(noise, kind)
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput) as wrong:
        picture(tmp_path / "cut")
    assert str(wrong.value).startswith(f"image cannot be read: {tmp_path / 'cut'} (") and str(wrong.value).endswith(
        "replace it or drop the row"
    )
    assert str(wrong.value).count(str(tmp_path)) == 1 and "\n" not in str(wrong.value) and " at 0x" not in str(wrong.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is no image of a known kind"),
        (b"<html>404</html>", "it is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadInput, match=says):
        picture(tmp_path / "a.jpg")
    with pytest.raises(BadInput, match=f"{len(content)} bytes"):
        picture(content)


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "gone.png", "image not found: .*gone.png"),
        (tmp_path, "cannot be read"),
        (Path("nul\0.png"), "cannot be read"),
    ):
        with pytest.raises(BadInput, match=says):
            picture(path)
    with pytest.raises(BadInput, match="image not found"):
        pictures.read(tmp_path / "gone.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000"])
def test_whatever_bytes_are_changed_it_is_a_picture_or_one_line(kind: str) -> None:
    dice = np.random.default_rng(7)
    whole = np.frombuffer(saved(drawn(9), kind), np.uint8)
    for round in range(60):
        broken = whole.copy()
        where = dice.integers(0, min(len(broken), (64, len(broken))[round % 2]), dice.integers(1, 6))
        broken[where] = dice.integers(0, 256, len(where))
        try:
            found = picture(broken[: len(broken) - (round % 5 == 4) * int(dice.integers(0, len(broken)))].tobytes())
            assert found.mode == "RGB" and found.size > (0, 0)
        except BadInput as refused:
            assert "\n" not in str(refused)
