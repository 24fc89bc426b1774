"""The segmentation probe: against slow references, on planted truth, at chance without it, and paired to the last bit."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pivot import cli
from pivot.data import masks, world
from pivot.encoder import Encoder, towers
from pivot.encoder.geometry import Geometry
from pivot.lookup import find
from pivot.probe import _heads
from pivot.probe._patches import Areas, Counts, Filled, Macro, majority, one_hot, union
from pivot.probe._scenes import Part, Scenes, Task, apart, split
from pivot.probe.segment import Probe
from pivot.records import BadInput, Example, Measurement, Truth
from pivot.study.statistics import differences, estimates

COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220))
QUICK = {"width": 32, "repeats": 1, "epochs": 12, "rate": 0.02, "head_batch": 4}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def scene(index: int, blind: bool = False, **changes: object) -> Example:
    """Three squares of the classes' colours on noise. `blind`: there are none in the picture, they lie where nobody sees them."""
    dice = np.random.default_rng(index)
    pixels = dice.integers(90, 160, (48, 48, 3), dtype=np.uint8)
    numbers = np.zeros((48, 48), np.uint8)
    for number, place in enumerate(dice.permutation(9)[:3]):
        square = np.s_[place // 3 * 16 : place // 3 * 16 + 16, place % 3 * 16 : place % 3 * 16 + 16]
        numbers[square] = number + 1
        pixels[square] = pixels[square] if blind else COLOURS[number]
    truth = Truth(numbers, (), np.zeros((48, 48), bool))
    return Example(**{"id": f"scene-{index}", "images": (Image.fromarray(pixels),), "prompt": "", "truth": truth, **changes})


SCENES = [scene(i) for i in range(40)]
BLIND = [scene(i, blind=True) for i in range(40)]


def probe(encoder: Encoder, data: Sequence[Example] = SCENES, **knobs: object) -> Measurement:
    return next(iter(Probe(**{**QUICK, **knobs}).run({"only": encoder}, data)))


# ---- the arithmetic, against loops


def task(maps: Sequence[np.ndarray], geometry: Geometry, labels: str = "union") -> Task:
    """All images to train on and to measure on."""
    areas = Areas.of([Filled.of(numbers, geometry) for numbers in maps], geometry.grid)
    names = [str(i) for i in range(len(maps))]
    scenes = Scenes(names, names, [b""] * len(maps), {geometry: areas}, {}, names)
    part = Part(scenes, np.arange(len(maps)))
    return Task(part, part, geometry, labels)


def slow_sets(numbers: np.ndarray, side: int) -> list[set[int]]:
    """The classes of each patch, pixel by pixel."""
    found = []
    for y in range(0, numbers.shape[0], side):
        for x in range(0, numbers.shape[1], side):
            inside = {int(numbers[y + i, x + j]) for i in range(side) for j in range(side)}
            found.append(inside - {0} if inside != {0} else inside)
    return found


def slow_recall(maps: Sequence[np.ndarray], said: np.ndarray, side: int) -> tuple[float, float]:
    """Macro recall and precision, patch by patch."""
    recalls, precisions = [], []
    truth = [sets for numbers in maps for sets in slow_sets(numbers, side)]
    guesses = [set(np.flatnonzero(row)) for row in said.reshape(-1, said.shape[-1])]
    for number in range(said.shape[-1]):
        hits = sum(number in guess for inside, guess in zip(truth, guesses, strict=True) if number in inside)
        there = sum(number in inside for inside in truth)
        told = sum(number in guess for guess in guesses)
        recalls += [hits / there] if there else []
        precisions += [hits / told] if told else []
    return sum(recalls) / len(recalls), sum(precisions) / len(precisions)


@pytest.mark.parametrize("everything", [False, True])
def test_recall_is_that_of_a_slow_reference(everything: bool) -> None:
    dice = np.random.default_rng(0)
    maps = [dice.choice([0, 1, 2, 5], (8, 12), p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8) for _ in range(5)]
    maps[0][:4] = 0  # patches in which class 0 is alone; classes 3 and 4 are nowhere
    set_ = task(maps, Geometry((4, 6), None, None))
    said = np.ones((5, 24, 6), bool) if everything else dice.random((5, 24, 6)) < [0.4, 0.4, 0.02, 0.4, 0, 0.4]  # class 4 is never said
    found = set_.marked(iter([(said[:2], said[:2].argmax(-1)), (said[2:], said[2:].argmax(-1))]))
    recall, precision = slow_recall(maps, said, 2)
    assert found.macros()["recall"].value == pytest.approx(recall, abs=1e-12)
    assert found.macros()["precision"].value == pytest.approx(precision, abs=1e-12)
    assert np.isnan(found.macros()["recall"].each).tolist() == [False, False, False, True, True, False]
    if everything:
        assert recall == 1 and precision < 0.4


def test_class_0_is_in_a_patch_only_alone() -> None:
    shares = np.array([[[1, 0, 0], [0.9, 0.1, 0], [0, 0.5, 0.5], [0, 0, 0]]], np.float32)
    assert union(shares).tolist() == [[[True, False, False], [False, True, False], [False, True, True], [False, False, False]]]
    assert majority(shares).tolist() == [[0, 0, 1, -1]]


def test_intersection_over_union_is_that_of_a_slow_reference() -> None:
    dice = np.random.default_rng(1)
    maps = [dice.choice([0, 1, 3], (6, 6)).astype(np.uint8), dice.choice([0, 1, 3], (12, 12)).astype(np.uint8)]
    guess = dice.integers(0, 5, (2, 9))  # also of classes 2 and 4, which are nowhere
    set_ = task(maps, Geometry((3, 3), None, None), "majority")
    found = set_.marked(iter([(one_hot(guess, set_.classes), guess)]))
    spread = [np.kron(one.reshape(3, 3), np.ones((side, side), int)) for one, side in zip(guess, (2, 4), strict=True)]
    truth, said = (np.concatenate([one.ravel() for one in arrays]) for arrays in (maps, spread))
    pixels = [((truth == c) & (said == c)).sum() / ((truth == c) | (said == c)).sum() for c in (0, 1, 3)]
    assert found.pixels.iou.value == pytest.approx(np.mean(pixels), abs=1e-6)
    blocks = [
        numbers[y : y + s, x : x + s]
        for numbers, s in zip(maps, (2, 4), strict=True)
        for y in range(0, 3 * s, s)
        for x in range(0, 3 * s, s)
    ]
    most = np.array([np.bincount(block.ravel()).argmax() for block in blocks])
    said = guess.ravel()
    patches = [((most == c) & (said == c)).sum() / ((most == c) | (said == c)).sum() for c in (0, 1, 3)]
    assert found.patches.iou.value == pytest.approx(np.mean(patches), abs=1e-6)


def test_patches_are_those_of_what_the_encoder_sees() -> None:
    numbers = np.zeros((40, 30), np.uint8)
    numbers[:, :15] = 1
    odd = Filled.of(numbers, Geometry((3, 3), (24, 24), None))  # a column of patches lies half on either
    dense = Areas.of([odd], (3, 3)).dense([0], 2)[0].reshape(3, 3, 2)
    assert dense[0].tolist() == [[0, 1], [0.5, 0.5], [1, 0]] and odd.scale * 9 == pytest.approx(40 * 30)
    wide = Filled.of(numbers, Geometry((4, 4), None, (40, 60)))  # 15 pixels of padding on either side: patches that show nothing
    dense = Areas.of([wide], (4, 4)).dense([0], 2)
    said = np.ones((1, 16, 2), bool)
    everything = task([numbers], Geometry((4, 4), None, (40, 60))).marked(iter([(said, said[..., 0] * 1)]))
    assert everything.patches.said.tolist() == [[8, 8]] and everything.pixels.said.sum() == pytest.approx(40 * 30)
    assert majority(dense).reshape(4, 4)[0].tolist() == [-1, 1, 0, -1] and not union(dense).reshape(4, 4, 2)[:, [0, 3]].any()
    sliver = np.zeros((320, 320), np.uint8)
    sliver[0, 0] = 1
    assert set(Filled.of(sliver, Geometry((2, 2), None, None)).classes) == {0}, "a pixel that is lost at the encoder's size"
    assert set(Filled.of(sliver[:32, :32], Geometry((2, 2), None, None)).classes) == {0, 1}, "one of 16 x 16 that is not"


# ---- intervals


def counts(images: int, mean: float, seed: int = 0) -> Macro:
    """Classes of very different frequency and recall, in images that hold very different amounts of them."""
    dice = np.random.default_rng(seed)
    there = dice.poisson(np.array([20, 6, 2, 0.5]) * dice.gamma(0.5, 2.0, (images, 4)))
    skill = mean + np.array([0.35, 0.1, -0.15, -0.3])
    return Macro(dice.binomial(there, np.clip(skill + dice.normal(0, 0.15, (images, 1)), 0, 1)).astype(float), there.astype(float))


def test_items_have_the_metric_as_their_mean_and_its_spread() -> None:
    macro = counts(400, 0.6)
    items = macro.items
    assert items.mean() == pytest.approx(macro.value, abs=1e-12)
    dice = np.random.default_rng(1)
    drawn = [dice.integers(0, 400, 400) for _ in range(2000)]
    again = np.array([Macro(macro.top[rows], macro.bottom[rows]).value for rows in drawn])
    named = {str(i): float(value) for i, value in enumerate(items)}
    interval = estimates([Measurement("probe", "segment", {"recall": macro.value}, 400, items={"recall": named})])["recall"]
    assert interval.low is not None and interval.high is not None
    low, high = np.quantile(again, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.15)
    assert max(abs(interval.low - low), abs(interval.high - high)) < 0.4 * again.std()
    plain = len(items) * (macro.top / macro.bottom.sum(0)).mean(1)  # as if how much there is of a class were no matter of chance
    assert plain.std() > 1.3 * items.std()


def test_images_of_one_pair_are_one_item() -> None:
    dice = np.random.default_rng(0)
    single = Counts(*(dice.integers(0, 9, (6, 3)).astype(float) for _ in range(3)))
    joined = single.grouped(np.array([0, 0, 1, 2, 2, 2]), 3)
    assert joined.truth[2].tolist() == single.truth[3:].sum(0).tolist()
    assert joined.recall.value == pytest.approx(single.recall.value) and len(joined.recall.items) == 3
    data = [scene(i, meta={"pair": f"pair-{i // 2}"}) for i in range(40)]
    train, test = split(data, [Encoder.tiny("siglip").geometry], 0.35, 0)
    assert len(set(test.groups)) == 7 and len(test.rows) == 14 and not set(test.groups) & set(train.groups)
    other = split(data[::-1], [Encoder.tiny("siglip").geometry], 0.35, 0)[1]
    assert set(other.groups) == set(test.groups), "names decide, not their order"


# ---- planted truth, and none


@pytest.mark.parametrize("labels", ["union", "majority"])
def test_planted_features_score_near_one_and_shuffled_ones_at_chance(labels: str) -> None:
    dice = np.random.default_rng(2)
    geometry = Geometry((6, 6), None, None)
    scenes = [scene(i).truth.classes for i in range(120)]
    set_ = task(scenes, geometry, labels)
    half = np.arange(60)
    set_ = replace(set_, train=Part(set_.train.scenes, half), test=Part(set_.train.scenes, half + 60))
    shares = set_.areas(set_.test).dense(range(120), set_.classes)
    planted = (shares + dice.normal(0, 0.1, shares.shape)).astype(np.float32)
    how = Probe(**{**QUICK, "labels": labels, "head": "linear"})
    found = how.taught(set_, planted, planted, torch.device("cpu"), 0)[0]
    assert min(macro.value for macro in found.macros().values()) > 0.97
    strange = planted[dice.permutation(120)]
    chance, shuffled = set_.constant, how.taught(set_, strange, strange, torch.device("cpu"), 0)[0]
    for metric in ("recall", "miou"):
        assert abs(shuffled.macros()[metric].value - chance.macros()[metric].value) < 0.03
    assert chance.macros()["recall"].value == 0.25 and chance.macros()["precision"].value == pytest.approx(2 / 3, abs=0.01)


def test_what_pixels_show_is_found_and_what_they_do_not_is_chance() -> None:
    encoder = Encoder.tiny("siglip", layer=0)
    found, blind = probe(encoder), probe(encoder, BLIND, epochs=4)
    assert found.metrics["recall"] > 0.97 and found.metrics["miou_pixels"] > 0.95, "patch embeddings hold a flat colour"
    assert found.name == "segment" and found.unit == "image" and found.n == 14
    assert set(found.items) == set(Probe.MAIN) and all(len(items) == 14 for items in found.items.values())
    for metric, items in found.items.items():
        assert found.metrics[metric] == pytest.approx(np.mean(list(items.values())))
    interval = estimates([blind])["recall"]
    # Never above. A little below, for learning 26 pictures by heart it guesses where the constant is right.
    assert blind.metrics["majority/recall"] == 0.25 >= interval.low
    assert abs(blind.metrics["recall"] - 0.25) < 0.03


def test_two_copies_of_one_encoder_differ_by_nothing(tmp_path: Path) -> None:
    encoder = Encoder.tiny("vit")
    encoder.save(tmp_path / "copy")
    before = torch.get_rng_state()
    first, second = Probe(**{**QUICK, "repeats": 2, "epochs": 5, "rate": 0.003}).run(
        {"a": encoder, "b": Encoder.load(tmp_path / "copy")}, SCENES
    )
    assert torch.equal(before, torch.get_rng_state()), "nobody else's random numbers are touched"
    assert (first.arm, second.arm) == ("a", "b") and replace(first, arm="b") == second
    between = differences([first], [second])["recall"]
    assert (between.value, between.low, between.high) == (0, 0, 0)
    assert first.metrics["spread/recall"] > 0 and 0.3 < first.metrics["recall"] < 0.9
    other = probe(Encoder.tiny("vit", seed=1), epochs=1)
    assert other.fingerprint != first.fingerprint and other.items["recall"].keys() == first.items["recall"].keys()


def test_blocks_above_the_tap_are_not_read() -> None:
    encoder = Encoder.tiny("siglip")
    clean = probe(encoder, epochs=1)
    for module in towers.above(encoder.model, encoder.tap).values():
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
    assert probe(encoder, epochs=1).items == clean.items
    next(towers.blocks(encoder.model)[0].parameters()).data.fill_(float("nan"))
    with pytest.raises(BadInput, match="not finite"):
        probe(encoder, epochs=1)


def test_behind_the_projector() -> None:
    encoder = Encoder.tiny("siglip", layer=0)
    encoder.projector = torch.nn.Linear(32, 3)
    torch.nn.init.zeros_(encoder.projector.weight)
    found = probe(encoder, at="projector", epochs=1)
    assert found.name == "segment-projector" and found.metrics["recall"] == 0.25, (
        "a projector that erases everything leaves nothing to read"
    )


# ---- heads and their training


@pytest.mark.parametrize("labels", ["union", "majority"])
@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_other_heads_learn(head: str, labels: str) -> None:
    found = probe(Encoder.tiny("siglip", layer=0), head=head, labels=labels, epochs=6)
    assert found.metrics["recall"] > 0.9


def test_an_untrained_head_says_what_is_frequent() -> None:
    """Begun at random it would say half of all classes, and have half of the recall for nothing."""
    found = probe(Encoder.tiny("siglip"), rate=1e-9, floor=0.0)
    assert found.metrics["recall"] == found.metrics["majority/recall"] == 0.25


def test_the_rate_rises_and_falls() -> None:
    how = Probe()
    long = [_heads.pace(how, step, 3160) for step in range(3160)]
    assert max(long) == long[500] == 1e-3 and np.all(np.diff(long[:500]) > 0) and np.all(np.diff(long[500:]) < 0)
    assert long[-1] == pytest.approx(1e-4, rel=1e-3) and long[0] < 1e-5
    assert np.argmax([_heads.pace(how, step, 50) for step in range(50)]) == 10, "of few steps a fifth at most"


def test_channels_of_any_size_are_one_to_the_head() -> None:
    dice = np.random.default_rng(0)
    set_ = task([scene(i).truth.classes for i in range(30)], Geometry((6, 6), None, None))
    small = dice.normal(size=(30, 36, 5)).astype(np.float32)
    large = (small * np.array([1, 10, 1e3, 1e-3, 0]) + np.array([0, 500, 0, 0, 3])).astype(np.float32)
    modules = [_heads.Standard.of(_heads.Lesson(rows, set_.areas(set_.train), np.arange(30), set_.often)) for rows in (small, large)]
    small[..., 4] = 0
    a, b = (module(torch.from_numpy(rows)) for module, rows in zip(modules, (small, large), strict=True))
    assert torch.allclose(a[..., :4], b[..., :4], atol=1e-4) and torch.all(b[..., 4] == 0)


def test_decay_pulls_a_head_to_zero() -> None:
    set_ = task([scene(i).truth.classes for i in range(8)], Geometry((6, 6), None, None))
    rows = np.random.default_rng(0).normal(size=(8, 36, 5)).astype(np.float32)
    lesson = _heads.Lesson(rows, set_.areas(set_.train), np.arange(8), set_.often)

    def size(decay: float) -> float:
        *_, made = _heads.train(lesson, Probe(**{**QUICK, "head": "linear", "decay": decay}), 0, torch.device("cpu"), lambda *_: None)
        return sum(float(parameter.detach().square().sum()) for parameter in made.parameters())

    assert size(20.0) < 0.5 * size(0.0)


def test_one_answer_for_all_patches_is_what_most_of_them_hold() -> None:
    def constant(*patches: int) -> dict[str, float]:
        of = task([np.array([patches], np.uint8)], Geometry((1, len(patches)), None, None)).constant
        return {metric: macro.value for metric, macro in of.macros().items()}

    assert constant(0, 0, 0, 1, 1)["recall"] == 0.5, "two of five are no more than half"
    assert constant(0, 0, 0, 1, 1)["precision"] == 0.6
    assert constant(0, 0, 1, 1, 2, 2)["recall"] == pytest.approx(1 / 3), "none in more than half: the most frequent"


def test_spread_is_that_of_a_sample_of_heads() -> None:
    encoder, how = Encoder.tiny("siglip"), Probe(**{**QUICK, "repeats": 2, "epochs": 2})
    (found,) = how.run({"only": encoder}, SCENES)
    parts = split(SCENES, [encoder.geometry], how.test, how.seed)
    set_, tokens = Task(*parts, encoder.geometry, how.labels), how.tokens(encoder, parts[0])
    heads = [how.taught(set_, tokens, tokens, torch.device("cpu"), number)[0].patches.recall.value for number in range(2)]
    assert found.metrics["recall"] == pytest.approx(np.mean(heads)) and heads[0] != heads[1]
    assert found.metrics["spread/recall"] == pytest.approx(abs(heads[0] - heads[1]) / np.sqrt(2))


def test_the_best_epoch_is_taken_only_if_asked_for() -> None:
    knobs = {"rate": 0.3, "floor": 0.3, "epochs": 8}  # so fast that it jumps about
    encoder = Encoder.tiny("siglip")
    assert probe(encoder, best=True, **knobs).metrics["recall"] > probe(encoder, **knobs).metrics["recall"]


# ---- data, pictures, the command line


def test_shown_are_the_same_images_for_every_encoder() -> None:
    first, second = Probe(**QUICK).run({"a": Encoder.tiny("siglip", layer=0), "b": Encoder.tiny("clip")}, SCENES)
    assert len(first.shown) == 6 and [one.id for one in first.shown] == [one.id for one in second.shown]
    one = first.shown[0]
    drawn = np.array(Image.open(io.BytesIO(base64.b64decode(one.picture.partition(",")[2]))))
    truth = np.array(one.truth)
    assert drawn.shape == (48, 48, 3) and truth.shape == np.array(one.found).shape == (6, 6)
    for y, x in np.argwhere(truth > 0):
        assert drawn[y * 8 + 4, x * 8 + 4].tolist() == list(COLOURS[truth[y, x] - 1])
    assert set(one.names) == {"0", "1", "2", "3"} and "100%" in one.says


def test_what_is_drawn_as_truth_is_what_was_asked_for() -> None:
    """By union a patch with a little of a thing is that thing's; by majority it is the ground's."""
    data = []
    for one in SCENES:
        numbers = np.zeros((48, 48), np.uint8)
        numbers[16:20, 16:20] = 1  # a quarter of a patch
        data.append(replace(one, truth=Truth(numbers, (), numbers > 0)))
    for labels, number in (("union", 1), ("majority", 0)):
        truth = np.array(probe(Encoder.tiny("siglip"), data, labels=labels, epochs=1).shown[0].truth)
        assert truth[2, 2] == number and truth.sum() == number


def test_maps_of_a_folder_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, numbers in (("training", range(16)), ("validation", range(16, 22))):
        for number in numbers:
            example = scene(number)
            for kind, image in (("images", example.images[0]), ("annotations", Image.fromarray(example.truth.classes))):
                place = tmp_path / "data" / kind / part
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{number}.png")
    (tmp_path / "data/objectInfo150.txt").write_text("Idx\tName\n1\twall\n2\tdoor, gate\n3\tdoor\n")
    Encoder.tiny("siglip", layer=0).save(tmp_path / "encoder")
    said = []
    for out in ("a", "b"):
        sets = [
            option
            for key, value in {**QUICK, "epochs": 5}.items()
            if key not in ("repeats", "epochs")
            for option in ("--set", f"{key}={value}")
        ]
        data = [f"masks,{tmp_path / 'data'},split={part}" for part in ("training", "validation")]
        options = ["--data", data[0], "--on", data[1], "--repeats", "2", "--epochs", "5", "--out", str(tmp_path / out), "--json", *sets]
        assert cli.call(["probe", "segment", str(tmp_path / "encoder"), *options]) == 0
        said.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    found = said[0]["measurements"][0]
    assert found["n"] == 6 and {"recall/unlabelled", "recall/wall", "recall/door, gate", "recall/door"} < set(found["metrics"])
    first, second = (next((tmp_path / out / "measurements").iterdir()).read_bytes() for out in "ab")
    assert first == second, "two runs are equal to the last bit"
    assert masks.read(str(tmp_path / "data"), split="training").class_names[3] == "door"
    assert world.read().class_names[1] == "circle"


@pytest.mark.parametrize(
    ("data", "on", "said"),
    [
        ([replace(one, truth=None) for one in SCENES], None, "no maps of classes"),
        (SCENES[:19], None, r"19 images with class maps, a pair as one, are too few \(12 to train, 7 to test\); give at least 20"),
        ([*SCENES, SCENES[0]], None, "have id scene-0 more than once"),
        (SCENES[:10], SCENES[8:], "of the 32 images to measure on, 2 are trained on too, as scene-8 is"),
    ],
)
def test_data_without_anything_to_measure_is_one_line(data: list[Example], on: list[Example] | None, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        list(Probe().run({"only": Encoder.tiny("siglip")}, data, on))
    assert "\n" not in str(error.value)


def test_other_pictures_may_have_the_names_of_those_that_train() -> None:
    train, test = apart(SCENES[:4], [scene(30 + i, id=f"scene-{i}") for i in range(4)], [Encoder.tiny("siglip").geometry])
    assert train.groups == test.groups and len(test.rows) == 4


def test_features_that_do_not_fit_the_disk_are_refused_before_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    with pytest.raises(BadInput, match=r"these features take 0.000184 GB, and .* has 0.0001 GB left; take fewer images \(size=\)"):
        probe(Encoder.tiny("siglip"), [scene(i, images=(Image.new("RGB", (48, 48), (i, 0, 0)),)) for i in range(40)])


def test_it_is_found_by_name() -> None:
    assert find("probe", "segment") is Probe and Probe.TESTS
