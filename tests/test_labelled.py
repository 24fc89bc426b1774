"""Rows {image, label}, as the Hub has ImageNet, and names of classes from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import HUB_IMAGE, hub, lines, put
from published import classes as class_folders

from pivot import recipe
from pivot.data import classes, labelled
from pivot.data.doctor.diagnosis import examine
from pivot.pictures import picture
from pivot.records import BadInput
from pivot.seen import reader_of

FISH = ("tench, Tinca tinca", "goldfish", "great white shark")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def imagenet(folder: Path, names: tuple[str, ...] | None = FISH) -> Path:
    """Two parts of train and one of validation, as the Hub's library writes them."""
    for part, labels in (("train-00000-of-00002", [2, 0]), ("train-00001-of-00002", [1]), ("validation-00000-of-00001", [0, 1])):
        rows = [{"image": hub(label, f"{label}.jpg"), "label": label} for label in labels]
        label = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
        note = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        schema = pa.schema({"image": HUB_IMAGE, "label": pa.int64()}, metadata={"huggingface": json.dumps(note)})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data" / f"{part}.parquet")
    return folder


def test_the_hubs_imagenet_is_read_with_its_names(tmp_path: Path) -> None:
    whole = imagenet(tmp_path / "imagenet-1k")
    assert reader_of(whole) == "labelled" == reader_of(whole / "data" / "train-00001-of-00002.parquet")
    rows = recipe.read(f"labelled,{whole},split=train")
    assert [(row.answer, row.meta["class"], row.answer_kind, row.prompt) for row in rows] == [(FISH[n], n, "text", "") for n in (2, 0, 1)]
    assert len({row.id for row in rows}) == 3 and all(picture(row.images[0]).size == (32, 24) for row in rows)
    assert [row.answer for row in labelled.read(str(whole), split="validation", size=1)] == [FISH[0]]


def test_names_come_from_a_file_where_none_are_noted_or_others_are_wanted(tmp_path: Path) -> None:
    whole = str(imagenet(tmp_path / "plain", names=None))
    plain = labelled.read(whole, split="train")
    assert [row.answer for row in plain] == ["2", "0", "1"]
    (tmp_path / "names.json").write_text('["a", "b", "c"]')
    named = labelled.read(whole, split="train", names=str(tmp_path / "names.json"))
    assert [row.answer for row in named] == ["c", "a", "b"] and [row.meta["class"] for row in named] == [2, 0, 1]
    assert plain.fingerprint() != named.fingerprint()
    put(tmp_path, "x.jpg", 1)
    words = labelled.read(str(lines(tmp_path / "rows.jsonl", [{"image": "x.jpg", "label": "cat", "by": "me"}])))
    assert (words[0].answer, dict(words[0].meta)) == ("cat", {"by": "me", "class": "cat"})


def test_class_folders_are_called_by_a_file_of_names(tmp_path: Path) -> None:
    whole = class_folders(tmp_path, odd=True)
    plain = classes.read(str(whole), split="val")
    file = whole / "LOC_synset_mapping.txt"
    with pytest.raises(BadInput, match="has none for folder n01443537; add it"):
        classes.read(str(whole), split="val", names=str(file))
    file.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 great white shark\nn99 more\n")
    named = classes.read(str(whole), split="val", names=str(file))
    assert [row.answer for row in named] == [FISH[row.meta["class"]] for row in plain]
    assert [row.meta["class"] for row in named] == [row.meta["class"] for row in plain] and named.fingerprint() != plain.fingerprint()


def test_pictures_with_labels_have_no_faults(tmp_path: Path) -> None:
    assert examine(f"labelled,{imagenet(tmp_path / 'i')},split=train").clean


@pytest.mark.parametrize(
    ("label", "says"), [(-1, "'label' is -1, which says that it is not known"), (1.5, "no number and no text but 1.5"), (True, "but True")]
)
def test_a_label_that_is_none_is_one_line(label: object, says: str, tmp_path: Path) -> None:
    rows = labelled.read(str(lines(tmp_path / "rows.jsonl", [{"image": "x.jpg", "label": label}])))
    with pytest.raises(BadInput, match=says):
        rows[0]


def test_a_split_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    whole = imagenet(tmp_path / "i")
    for options, says in (
        ({}, "holds train, validation; say which, as in split=train"),
        ({"split": "test"}, "has no split 'test'; it holds train, validation"),
        ({"split": "train", "names": str(tmp_path / "none.txt")}, "names of classes cannot be read"),
    ):
        with pytest.raises(BadInput, match=says):
            labelled.read(str(whole), **options)
    (tmp_path / "n.txt").write_text("0 a\n1\n")
    (tmp_path / "n.json").write_text('{"0": 1}')
    for name, says in (("n.txt", "line 2 of those in .*n.txt is not LABEL NAME"), ("n.json", "neither a list of names nor")):
        with pytest.raises(BadInput, match=says):
            labelled.read(str(whole), split="train", names=str(tmp_path / name))
