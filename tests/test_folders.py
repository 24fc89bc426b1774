"""Folders of pictures as data: classes, masks, captions beside. Names alone are held, and what a row needs is read when it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import called, captioned_folder, drawn, put
from published import classes as class_folders
from published import masks as mask_folders

from pivot.data import captions, classes, masks
from pivot.data.lazy import Lazy
from pivot.pictures import picture
from pivot.records import BadInput
from pivot.seen import reader_of


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = classes.read(str(class_folders(tmp_path)))
    assert [row.answer for row in rows] == ["n01440764"] * 2 + ["n01443537"] * 3 + ["n01484850"] * 4
    assert [row.meta["class"] for row in rows] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert rows[4].id == "n01443537/n01443537_2.JPEG" and rows[4].prompt == "" and rows[4].answer_kind == "text"
    assert rows.where(4).endswith("imagenet/n01443537/n01443537_2.JPEG") and len({row.id for row in rows}) == 9
    assert rows.fingerprint() == classes.read(rows.root.folder.as_posix()).fingerprint()
    put(rows.root.folder, "n01443537/n01443537_1.JPEG", 3)
    assert rows.fingerprint() != classes.read(str(rows.root.folder), size=8).fingerprint()


def test_limit_and_size_take_the_first_and_keep_the_numbers(tmp_path: Path) -> None:
    whole = str(class_folders(tmp_path))
    (Path(whole) / "n00000001").mkdir()  # a class without pictures has a number, too
    assert [row.meta["class"] for row in classes.read(whole, limit=1)] == [1, 2, 3]
    assert [row.meta["class"] for row in classes.read(whole, limit=2, size=3)] == [1, 1, 2]
    for options, says in (({"limit": 0}, "limit 0: give at least one"), ({"size": 0}, "size 0: give at least one")):
        with pytest.raises(BadInput, match=says):
            classes.read(whole, **options)


@pytest.mark.parametrize("odd", [False, True])
def test_classes_are_known_though_the_first_ones_are_empty(odd: bool, tmp_path: Path) -> None:
    whole = class_folders(tmp_path, odd=odd)
    for name in ("a", "b"):
        (whole / ("train" if odd else "") / name).mkdir()
    (whole / ("train" if odd else "") / "b" / "readme.txt").touch()
    assert reader_of(whole) == "classes"
    for file in sorted(whole.rglob("*.*")):
        if file.suffix in (".JPEG", ".png"):
            file.with_suffix(".txt").touch()
    assert reader_of(whole) != "classes", "captions lie beside them"


def test_splits_of_classes_are_asked_for_by_name(tmp_path: Path) -> None:
    whole = class_folders(tmp_path, odd=True)
    rows = classes.read(str(whole), split="val")
    assert len(rows) == 9 and rows[0].images == (whole / "val/n01440764/n01440764_0.png",)  # the .txt beside is no picture
    with pytest.raises(BadInput, match="has no folders with pictures in them; give split=train"):
        classes.read(str(whole))
    with pytest.raises(BadInput, match="has no split 'test'; it holds train, val"):
        classes.read(str(whole), split="test")
    assert reader_of(whole / "val") == "classes"


def test_a_million_names_would_be_tens_of_megabytes(tmp_path: Path) -> None:
    folder = tmp_path / "n01440764"
    folder.mkdir()
    for number in range(500):
        (folder / f"n01440764_{number}.JPEG").touch()
    rows = classes.read(str(tmp_path))
    held = rows.names.joined.nbytes + rows.names.ends.nbytes + rows.ends.nbytes
    assert len(rows) == 500 and held < 40 * 500
    names = sorted(f"n01440764/{file.name}" for file in folder.iterdir())
    assert [rows[number].id for number in (0, 1, 499)] == [names[0], names[1], names[499]]


def test_a_link_out_of_a_class_folder_is_refused_unless_allowed(tmp_path: Path) -> None:
    whole = class_folders(tmp_path)
    put(tmp_path, "elsewhere.jpg", 1)
    (whole / "n01440764" / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    number = next(at for at, row in enumerate(classes.read(str(whole), links=True)) if row.id.endswith("a.jpg"))
    with pytest.raises(BadInput, match="is a link out of"):
        _ = classes.read(str(whole))[number]


@pytest.mark.parametrize("odd", [False, True], ids=["grey", "palette"])
def test_masks_hold_class_numbers_however_they_are_stored(odd: bool, tmp_path: Path) -> None:
    whole, dice = mask_folders(tmp_path, odd=odd), np.random.default_rng(0)
    for split, count in (("training", 3), ("validation", 2)):
        rows = masks.read(str(whole), split=split)
        assert len(rows) == count and reader_of(whole) == "masks"
        for row in rows:
            assert row.truth is not None and row.truth.classes.dtype == np.uint8 and not row.truth.region.any()
            assert np.array_equal(row.truth.classes, dice.integers(0, 151, (24, 32), dtype=np.uint8))
            assert picture(row.images[0]).size == row.truth.classes.shape[::-1] and row.prompt == ""
    assert rows[1].id == "ADE_val_00000002"
    with pytest.raises(BadInput, match="give split= one of training, validation"):
        masks.read(str(whole))
    with pytest.raises(BadInput, match=r"folder not found: .*images/test; check split= \(training, validation there\)"):
        masks.read(str(whole), split="test")


def test_a_mask_is_looked_at_when_its_row_is_asked_for(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / "images", f"{number}.jpg", number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (32, 24), number).save(tmp_path / "masks" / f"{number}.png")
    Image.new("L", (24, 32)).save(tmp_path / "masks/1.png")
    Image.new("RGB", (32, 24)).save(tmp_path / "masks/2.png")
    (tmp_path / "masks/3.png").unlink()
    (tmp_path / "masks/4.png").write_bytes(b"no picture")
    Image.fromarray(np.full((24, 32), 300, np.uint16)).save(tmp_path / "masks/5.png")
    rows, says = (
        masks.read(str(tmp_path)),
        ["is of 24 x 32 pixels, its picture of 32 x 24", "is in colour", "image not found", "cannot be read"],
    )
    assert len(rows) == 6 and rows[0].truth is not None and reader_of(tmp_path) == "masks"
    for number, what in enumerate([*says, "has class numbers up to 300"], start=1):
        with pytest.raises(BadInput, match=what) as wrong:
            _ = rows[number]
        assert f"masks/{number}.png" in str(wrong.value)


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_turned_picture_has_a_mask_of_its_upright_size(turned: int, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = turned
    upright = (24, 32) if turned > 4 else (32, 24)
    drawn(1).save(tmp_path / "images/a.jpg", exif=exif)
    Image.new("L", upright, 7).save(tmp_path / "masks/a.png")
    (row,) = masks.read(str(tmp_path))
    assert row.truth is not None and picture(row.images[0]).size == upright == row.truth.classes.shape[::-1]


def test_captions_lie_beside_their_pictures(tmp_path: Path) -> None:
    whole = captioned_folder(tmp_path)
    rows = captions.read(str(whole))
    assert [row.responses[0].text for row in rows] == [f"A {called(number)}." for number in (151, 152, 153)]
    before = rows.fingerprint()
    (whole / "152.txt").write_text("Another caption.")
    assert captions.read(str(whole)).fingerprint() != before
    (whole / "153.txt").unlink()
    assert rows[1].responses[0].text == "Another caption."
    with pytest.raises(BadInput, match=r"caption cannot be read: .*153.txt"):
        _ = rows[2]


@pytest.mark.parametrize("layout", [class_folders, mask_folders, captioned_folder])
def test_each_is_lazy_and_says_where_rows_lie(layout: object, tmp_path: Path) -> None:
    whole = layout(tmp_path)  # type: ignore[operator]
    reader = {class_folders: classes, mask_folders: masks, captioned_folder: captions}[layout]  # type: ignore[index]
    rows = reader.read(str(whole), **({"split": "training"} if layout is mask_folders else {}))
    assert isinstance(rows, Lazy) and Path(rows.where(1)) == rows[1].images[0]
    shutil.rmtree(whole)
    assert len(rows) >= 3 and rows.where(0)
    with pytest.raises(BadInput, match=r"cannot be read|not found"):
        reader.read(str(whole))
