"""The linear probe on labelled images: class folders and parquet, data of their own to measure on, subsets, neighbours, few shots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from published import HUB_IMAGE

from pivot import cli, recipe
from pivot.encoder import Encoder
from pivot.probe._apart import hold_apart
from pivot.probe._items import Item, Items, Shares, Split
from pivot.probe._near import TEMPERATURE, neighbours
from pivot.probe.linear import Probe
from pivot.records import BadInput, Example, Measurement

NAMES = ("ant", "bee", "cow")
SHADES = ((220, 30, 30), (30, 220, 30), (30, 30, 220))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def shaded(label: int, seed: int) -> Image.Image:
    """A flat colour on a little noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (24, 24, 3))
    return Image.fromarray((np.array(SHADES[label]) + noise).clip(0, 255).astype(np.uint8))


def images(count: int, start: int = 0) -> list[Example]:
    return [Example(f"{i}", (shaded(i % 3, i),), "", answer=NAMES[i % 3], meta={"class": i % 3}) for i in range(start, start + count)]


def probe(data: list[Example], on: list[Example] | None = None, **knobs: object) -> Measurement:
    return next(Probe(**{"targets": ("class",), **knobs}).run({"only": Encoder.tiny("siglip", layer=0)}, data, on))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout twice: class folders below train/ and val/, and the Hub's parquet. Class 'cow' is not in train."""
    whole = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 24), ("val", 9)):
        rows = []
        for number in range(count):
            label = number % (2 if split == "train" else 3)
            file = whole / split / NAMES[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shaded(label, number if split == "train" else 1000 + number).save(file)
            rows.append({"image": {"bytes": file.read_bytes(), "path": file.name}, "label": label})
        note = {"info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}}
        schema = pa.schema({"image": HUB_IMAGE, "label": pa.int64()}, metadata={"huggingface": json.dumps(note)})
        (whole / "hub").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), whole / "hub" / f"{split}-00000-of-00001.parquet")
    return whole


@pytest.mark.parametrize("reader", ["classes", "labelled"])
def test_class_folders_and_parquet_train_and_are_measured_on(reader: str, folders: Path) -> None:
    place = folders if reader == "classes" else folders / "hub"
    data, on = (recipe.read(f"{reader},{place},split={split}") for split in ("train", "val"))
    found = probe(data, on)
    assert found.n == 9 and found.unit == "image" and found.metrics["trained/class"] == 24
    truth = {row.id: row.answer for row in on}
    assert found.items["class"] == {name: float(answer != "cow") for name, answer in truth.items()}, "a class that training lacks is wrong"


def test_the_command_line_measures_class_folders(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Encoder.tiny("siglip", layer=0).save(tmp_path / "encoder")
    data, on = (f"classes,{folders},split={split}" for split in ("train", "val"))
    command = ["probe", "linear", str(tmp_path / "encoder"), "--data", data, "--on", on]
    with pytest.raises(SystemExit) as ended:
        cli.app([*command, "--shots", "1, 2", "--pooling", "mean", "--neighbours", "3", "--json"])
    assert ended.value.code == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    assert found["name"] == "linear-mean" and found["metrics"]["class"] == pytest.approx(6 / 9)
    assert {"knn/class", "1-shot/class", "2-shot/class"} <= found["metrics"].keys()


# ---- splits


def items(count: int, pairs: bool = False, shown: str = "") -> Items:
    """Of pictures that nobody decodes."""
    made = [Item(f"{i}", i, f"pair-{i // 2}" if pairs else f"{i}", {"class": NAMES[i % 3]}) for i in range(count)]
    return Items([f"{shown}{i}.png".encode() for i in range(count)], made, None)


def test_a_subset_is_drawn_from_all_training_images_by_the_seed() -> None:
    drawn = {seed: Shares(0.15, 0.35, 30, seed).within(items(200)) for seed in (0, 1)}
    whole = Shares(0.15, 0.35, None, 0).within(items(200))
    names = {seed: {task.fit.items[i].id for i in (*task.split.train, *task.split.validation)} for seed, task in drawn.items()}
    assert all(len(kept) == 30 for kept in names.values()) and len(names[0] & names[1]) < 15
    assert names[0] <= {whole.fit.items[i].id for i in (*whole.split.train, *whole.split.validation)}
    assert [drawn[0].fit.items[i].id for i in drawn[0].split.test] == [whole.fit.items[i].id for i in whole.split.test]
    assert len(drawn[0].fit.images) == 100, "images that nobody asks for need no features"
    assert all(drawn[0].fit.images[item.image] == f"{item.id}.png".encode() for item in drawn[0].fit.items)
    assert 0 < len(drawn[0].split.validation) <= 8
    across = Shares(0.15, 0.35, 30, 0).across(items(200), items(10, pairs=True, shown="on"))
    assert len(across.fit.images) == 30 and across.split.test == list(range(10)) and len(across.split.validation) == round(0.15 * 30)
    pairs = Shares(0.15, 0.35, 31, 0).within(items(200, pairs=True))
    assert len(pairs.split.train) + len(pairs.split.validation) == 32, "pairs stay together"
    with pytest.raises(BadInput, match="a subset of 131 images cannot be drawn from 130 to train on"):
        Shares(0.15, 0.35, 131, 0).within(items(200))


def test_all_of_the_data_train_where_others_are_measured_on() -> None:
    found = probe(images(30), images(12, start=100))
    assert found.n == 12 and found.metrics["trained/class"] == 30 and found.metrics["class"] == 1
    assert list(found.items["class"]) == [str(i) for i in range(100, 112)]
    shuffled = [Example(one.id, one.images, "", answer=NAMES[int(i)], meta=one.meta) for one, i in zip(images(30), dice(30), strict=True)]
    assert probe(shuffled, images(12, start=100)).fingerprint != found.fingerprint


def test_pictures_to_measure_on_that_are_trained_on_are_refused_whatever_their_names() -> None:
    renamed = [replace(one, id=f"other-{one.id}") for one in images(12, start=28)]
    with pytest.raises(BadInput, match="of the 12 images to measure on, 2 are trained on too, as other-28 is"):
        probe(images(30), renamed)
    again = [replace(one, id=str(number)) for number, one in enumerate(images(12, start=100))]
    assert probe(images(30), again).n == 12, "equal names of other pictures"
    kept = Shares(0.15, 0.35, 20, 0).across(items(60), items(5, shown="on")).fit
    outside = sorted(set(range(60)) - {int(item.id) for item in kept.items})
    on = Items([f"{i}.png".encode() for i in outside], [Item(f"{i}", n, f"{i}", {"class": "ant"}) for n, i in enumerate(outside)], None)
    assert Shares(0.15, 0.35, 20, 0).across(items(60), on).test is on, "what the subset leaves out is not trained on"


def dice(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, count)


def test_two_copies_of_an_encoder_differ_by_nothing_in_any_metric() -> None:
    encoders = {"a": Encoder.tiny("clip"), "b": Encoder.tiny("clip")}
    a, b = Probe(targets=("class",), shots=(1, 2), draws=2).run(encoders, images(45))
    assert a.items == b.items and a.metrics == b.metrics and a.fingerprint == b.fingerprint


# ---- neighbours and few shots


def test_neighbours_vote_as_a_slow_count_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pivot.probe._near.BLOCK", 7)
    torch.manual_seed(0)
    x, y, asked = torch.randn(40, 5) * torch.rand(40, 1), torch.randint(0, 4, (40,)), torch.randn(20, 5)
    fitted, rows = torch.arange(2, 39), torch.arange(1, 20)
    unit = torch.nn.functional.normalize
    for k in (1, 6, 99):
        slow = []
        for row in rows.tolist():
            near = sorted(((float(unit(x[i], dim=0) @ unit(asked[row], dim=0)), int(y[i])) for i in fitted.tolist()), reverse=True)[:k]
            votes = [sum(np.exp(cosine / TEMPERATURE) for cosine, label in near if label == c) for c in range(4)]
            slow.append(int(np.argmax(votes)))
        assert neighbours(x, y, fitted, 4, asked, rows, k).tolist() == slow


def planted(noise: float) -> tuple[torch.Tensor, list[str]]:
    torch.manual_seed(0)
    y = torch.arange(400) % 4
    return torch.nn.functional.one_hot(y, 16).float() * 4 + noise * torch.randn(400, 16), [str(int(i)) for i in y]


def test_few_shots_see_few_items_and_learn_with_them() -> None:
    x, names = planted(noise=2.0)
    split = Split(list(range(200)), list(range(200, 260)), list(range(260, 400)))
    found, facts = Probe(shots=(1, 4, 16), draws=4).classify(x, names, x, names, split)
    means = [np.mean(found[f"{k}-shot/"]) for k in (1, 4, 16)] + [np.mean(found[""])]
    assert all(a < b + 0.02 for a, b in pairwise(means)) and 0.3 < means[0] < means[2] - 0.1, means
    assert set(found["1-shot/"]) <= {0, 0.25, 0.5, 0.75, 1} and facts["trained"] == 260
    kept = [int(row) for k in (1, 4) for draw in range(4) for row in _drawn(x, names, split, k, draw)]
    assert len(set(kept)) > 16 and all(row < 200 for row in kept), "of the training items alone"
    with pytest.raises(BadInput, match="shots 51, but a class has only 50 training items; give at most 50"):
        Probe(shots=(51,)).classify(x, names, x, names, split)


def _drawn(x: torch.Tensor, names: list[str], split: Split, k: int, draw: int) -> list[int]:
    from pivot.probe._fits import Labelled

    of = Labelled.of(x, names, x, (split.train, split.validation, split.test), sorted(set(names)))
    rows = of.shots(k, draw, seed=0).tolist()
    assert sorted(names[row] for row in rows) == sorted(sorted(set(names)) * k)
    return rows


def test_shuffled_labels_are_at_chance_with_few_shots_too() -> None:
    x, names = planted(noise=0.5)
    order = np.random.default_rng(1).permutation(400)
    split = Split(list(range(200)), list(range(200, 260)), list(range(260, 400)))
    shuffled = [names[i] for i in order]
    found, _ = Probe(shots=(2,), draws=2).classify(x, shuffled, x, shuffled, split)
    for metric in ("", "prototype/", "knn/", "2-shot/"):
        assert abs(np.mean(found[metric]) - 0.25) < 3.5 * (0.25 * 0.75 / 140) ** 0.5, metric


def test_a_class_of_one_picture_is_counted_where_nothing_can_be_told_apart() -> None:
    data = [Example(str(i), (shaded(0, i),), "", answer=NAMES[i == 0], meta={"class": int(i == 0)}) for i in range(31)]
    said = r"two classes of at least two training items each; the data have class \(2 classes, 1 of them with two training items\); give"
    with pytest.raises(BadInput, match=said):
        probe(data)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"prompt": "a photo"}, "has no {} for the class's name"),
        ({"validation": 0.6, "test": 0.5}, "leave nothing to train on"),
        ({"lowest": 3, "highest": 2}, "swap them"),
    ],
)
def test_knobs_that_cannot_be_are_one_line(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Probe(**knobs)


def test_one_picture_in_a_hundred_may_be_in_both_sets() -> None:
    """Published splits share a few. Names do not matter."""
    measured = [(f"other-{n}", Image.new("L", (2, 2), n)) for n in range(200)]
    hold_apart("linear", [Image.new("L", (2, 2), 7), Image.new("L", (2, 2), 8)], measured)
    with pytest.raises(BadInput, match="of the 200 images to measure on, 3 are trained on too, as other-7 is"):
        hold_apart("linear", [Image.new("L", (2, 2), n) for n in (7, 8, 9)], measured)
