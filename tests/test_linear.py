"""The linear probe: against scikit-learn, on planted truth, at chance without it, and paired to the last bit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from pivot.encoder import Encoder, towers
from pivot.lookup import find
from pivot.probe._fits import Labelled, Search
from pivot.probe._items import Items, Split, collect
from pivot.probe._logistic import Logistic
from pivot.probe._near import prototypes
from pivot.probe.linear import Probe
from pivot.records import BadInput, Example, Measurement, Thing, Truth

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def scene(index: int, **changes: object) -> Example:
    """Two squares of different colours on noise, each on patches of its own; "luck" is a label that no pixel knows."""
    dice = np.random.default_rng(index)
    pixels = dice.integers(90, 160, (48, 48, 3), dtype=np.uint8)
    things = []
    for colour, place in zip(dice.permutation(list(COLOURS))[:2], dice.permutation(9)[:2], strict=True):
        mask = np.zeros((48, 48), bool)
        mask[place // 3 * 16 : place // 3 * 16 + 16, place % 3 * 16 : place % 3 * 16 + 16] = True
        pixels[mask] = COLOURS[colour]
        things.append(Thing("square", {"colour": str(colour), "luck": str(dice.integers(2))}, mask))
    truth = Truth(np.zeros((48, 48), np.uint8), tuple(things), np.ones((48, 48), bool))
    given = {"id": f"scene-{index}", "images": (Image.fromarray(pixels),), "prompt": "?", "truth": truth, **changes}
    return Example(**given)


SCENES = [scene(i) for i in range(120)]


def probe(encoder: Encoder, data: list[Example] = SCENES, **knobs: object) -> Measurement:
    return next(iter(Probe(**{"targets": ("colour", "luck"), **knobs}).run({"only": encoder}, data)))


def margin(rate: float, n: int, deviations: float = 3.5) -> float:
    """How far a mean of n coin flips strays by chance."""
    return deviations * (rate * (1 - rate) / n) ** 0.5


# ---- the classifier


def blobs(classes: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """1,600 items, 24 features far from zero whose sizes differ by 10**spread, as raw features' do."""
    dice = torch.Generator().manual_seed(classes)
    y = torch.randint(0, classes, (1600,), generator=dice)
    centres = torch.randn(classes, 24, generator=dice)
    x = (0.7 * centres[y] + torch.randn(1600, 24, generator=dice)) * torch.logspace(-spread / 2, spread / 2, 24) + 5
    return x.double(), y


def scikit_learn(
    x: torch.Tensor, y: torch.Tensor, c: float, solver: str = "lbfgs", tolerance: float = 1e-4
) -> tuple[LogisticRegression, float]:
    """Its classifier and objective. Its default tolerance stops short of its minimum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(C=c, max_iter=5000, solver=solver, tol=tolerance).fit(x.numpy(), y.numpy())
    return theirs, objective(theirs.decision_function(x.numpy()), theirs.coef_, y, c)


def objective(scores: np.ndarray, weight: np.ndarray, y: torch.Tensor, c: float) -> float:
    """scikit-learn's, whose two classes have one score and one weight vector."""
    scores = scores if scores.ndim > 1 else np.stack([0 * scores, scores], axis=1)
    logp = torch.log_softmax(torch.from_numpy(scores), dim=1)[torch.arange(len(y)), y]
    return -logp.mean().item() + (weight**2).sum() / (2 * c * len(y))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize(
    ("c", "spread", "solver"), [(1e-3, 0, "lbfgs"), (1, 0, "lbfgs"), (1e-3, 2.5, "lbfgs"), (100, 2.5, "newton-cholesky")]
)
def test_scikit_learn_agrees(classes: int, c: float, spread: float, solver: str) -> None:
    # With sizes this far apart and C large, its default solver stops a point of accuracy short of its own minimum: not an oracle.
    x, y = blobs(classes, spread)
    ours = Logistic(x[:800], y[:800], classes).fit(c)
    theirs, least = scikit_learn(x[:800], y[:800], c, solver, 1e-9)
    right = (ours.scores(x[800:]).argmax(1) == y[800:]).double().mean().item()
    assert abs(right - theirs.score(x[800:].numpy(), y[800:].numpy())) <= 0.001
    scores, weight = ours.scores(x[:800]).numpy(), ours.weight.numpy()
    if classes == 2:
        scores, weight = scores[:, 1] - scores[:, 0], weight[:, 1] - weight[:, 0]
    reached = objective(scores, weight, y[:800], c)
    assert reached == pytest.approx(ours.objective, abs=1e-9), "what a fit says of itself"
    assert reached <= scikit_learn(x[:800], y[:800], c)[1] + 1e-8
    assert reached == pytest.approx(least, rel=1e-5)


def test_the_minimum_has_no_slope() -> None:
    dice = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 10, generator=dice).double() + 3, torch.randint(0, 4, (300,), generator=dice)
    fitted = Logistic(x, y, 4).fit(0.5, tolerance=1e-14)
    weight, bias = fitted.weight.clone().requires_grad_(), fitted.bias.clone().requires_grad_()
    objective = torch.nn.functional.cross_entropy(x @ weight + bias, y) + weight.square().sum() / (2 * 0.5 * 300)
    assert objective.item() == pytest.approx(fitted.objective, rel=1e-12)
    for slope in torch.autograd.grad(objective, (weight, bias)):
        assert slope.abs().max() < 1e-6


def test_features_that_tell_all_apart_are_fitted_to_the_end_from_anywhere() -> None:
    # With no loss left, what is still to be had looks small wherever a fit starts: one that believes this stays where it was.
    dice = torch.Generator().manual_seed(0)
    y = torch.randint(0, 8, (400,), generator=dice)
    x = torch.randn(400, 60, generator=dice) + 2 * torch.randn(8, 60, generator=dice)[y]
    problem = Logistic(x, y, 8)
    near = problem.fit(1.0, tolerance=1e-7)
    cold, warm = problem.fit(100.0), problem.fit(100.0, near, tolerance=1e-7)
    assert near.objective > 10 * cold.objective and warm.objective < 1.01 * cold.objective
    norms = [float(one.weight.norm()) for one in (near, cold, warm)]
    assert abs(norms[2] / norms[1] - 1) < 0.05 and norms[0] < 0.7 * norms[1], norms


def test_where_a_fit_starts_does_not_matter() -> None:
    dice = torch.Generator().manual_seed(0)
    problem = Logistic(torch.randn(200, 8, generator=dice), torch.randint(0, 3, (200,), generator=dice), 3)
    far = problem.fit(1e3)
    cold, warm = problem.fit(0.1, tolerance=1e-14), problem.fit(0.1, far, tolerance=1e-14)
    assert torch.allclose(cold.weight, warm.weight, atol=1e-5)


def test_prototypes_are_unit_means_of_unit_features() -> None:
    # Length must not count: the long feature of class 0 points between the classes.
    x = torch.tensor([[1.0, 0.0], [90.0, 80.0], [0.0, 1.0], [0.1, 1.0]])
    y = torch.tensor([0, 0, 1, 1])
    asked = torch.tensor([[5.0, 1.0], [0.1, 0.2], [9.0, 9.0], [-1.0, 0.1]])
    assert prototypes(x, y, torch.arange(4), 2, asked, torch.tensor([0, 1, 3])).tolist() == [0, 1, 1]
    # The mean of class 0, at 45 degrees, is short, since its items point apart; class 1 is at 0 degrees, and what is asked at 27.
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], *[[1.0, 0.0]] * 3]), torch.tensor([0, 0, 1, 1, 1])
    assert prototypes(x, y, torch.arange(5), 2, torch.tensor([[2.0, 1.0]]), torch.tensor([0])).tolist() == [0]


# ---- planted truth, and none


def random_split(n: int) -> Split:
    order = np.random.default_rng(0).permutation(n).tolist()
    return Split(order[: n // 2], order[n // 2 : n * 5 // 8], order[n * 5 // 8 :])


def classify(features: torch.Tensor, names: list[str], split: Split, **knobs: object) -> tuple[dict[str, list[float]], dict[str, float]]:
    return Probe(**knobs).classify(features, names, features, names, split)


def test_planted_features_score_near_one_and_shuffled_labels_at_chance() -> None:
    dice = np.random.default_rng(1)
    names = [str(i) for i in dice.integers(0, 4, 1600)]
    features = torch.randn(1600, 16, generator=torch.Generator().manual_seed(0))
    features[torch.arange(1600), torch.tensor([int(name) for name in names])] += 8
    split = random_split(1600)
    planted, _ = classify(features, names, split)
    assert np.mean(planted[""]) > 0.99 and min(np.mean(planted[metric]) for metric in ("prototype/", "knn/")) > 0.98
    shuffled, _ = classify(features, [names[i] for i in dice.permutation(1600)], split)
    for metric in ("", "prototype/", "knn/", "majority/"):
        assert abs(np.mean(shuffled[metric]) - 0.25) < margin(0.25, len(split.test))


def test_a_test_item_of_a_class_that_training_lacks_is_wrong() -> None:
    names = ["a", "b"] * 20 + ["new"]
    features = torch.tensor([[float(name == "a"), float(name == "b")] for name in names])
    right, _ = classify(features, names, Split(list(range(20)), list(range(20, 30)), list(range(30, 41))))
    assert right[""] == [1.0] * 10 + [0.0]


def test_the_search_finds_strength_where_features_are_mostly_noise() -> None:
    dice = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (400,), generator=dice)
    x = torch.randn(400, 150, generator=dice)
    x[:, 0] += y
    of = Labelled(x, y, torch.arange(160), torch.arange(160, 400), x, torch.arange(0), 2)
    c, _ = Search(-4, 4, 4).best(of, of.train)
    right = {e: float((Logistic(x[:160], y[:160], 2).fit(10**e).scores(x[160:]).argmax(1) == y[160:]).sum()) for e in (-4, -2, 0, 2, 4)}
    found = float((Logistic(x[:160], y[:160], 2).fit(c).scores(x[160:]).argmax(1) == y[160:]).sum())
    assert c < 1 and found >= max(right.values()) - 1 > right[4]


# ---- the whole probe


def test_what_pixels_show_is_found_and_what_they_do_not_is_chance() -> None:
    found = probe(Encoder.tiny("siglip", layer=0))
    assert found.kind == "probe" and found.name == "linear" and found.unit == "object"
    assert found.metrics["colour"] > 0.97, "patch embeddings hold a flat colour"
    assert abs(found.metrics["luck"] - 0.5) < margin(0.5, found.n)
    assert found.n == 84 and set(found.items) == {f"{m}{t}" for m in ("", "prototype/", "knn/", "majority/") for t in ("colour", "luck")}
    for metric, items in found.items.items():
        assert found.metrics[metric] == pytest.approx(np.mean(list(items.values()))) and len(items) == found.n
    assert found.metrics["mean"] == pytest.approx(np.mean([found.metrics[name] for name in found.parts["mean"]]))


def test_two_copies_of_one_encoder_differ_by_nothing(tmp_path: Path) -> None:
    encoder = Encoder.tiny("vit")
    encoder.save(tmp_path / "copy")
    first, second = Probe(targets=("colour",)).run({"a": encoder, "b": Encoder.load(tmp_path / "copy")}, SCENES)
    assert (first.arm, second.arm) == ("a", "b")
    assert first.items == second.items and first.metrics == second.metrics and first.fingerprint == second.fingerprint
    other = probe(Encoder.tiny("vit", seed=1), targets=("colour",))
    assert other.fingerprint != first.fingerprint and other.items["colour"].keys() == first.items["colour"].keys()


def test_blocks_above_the_tap_are_not_read() -> None:
    encoder = Encoder.tiny("siglip")
    clean = probe(encoder)
    for module in towers.above(encoder.model, encoder.tap).values():
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
    assert probe(encoder).items == clean.items
    next(towers.blocks(encoder.model)[0].parameters()).data.fill_(float("nan"))
    with pytest.raises(BadInput, match="not finite"):
        probe(encoder)


def test_an_objects_feature_is_the_mean_of_its_own_tokens() -> None:
    encoder = Encoder.tiny("siglip")
    found = collect(SCENES[:3], [encoder.geometry])
    rows = Probe().rows(encoder, found)
    tokens = encoder.features([example.images[0] for example in SCENES[:3]]).tokens
    for row, item in zip(rows, found.items, strict=True):
        thing = SCENES[item.image].truth.objects[int(item.id[-1])]
        patches = torch.from_numpy(thing.mask[4::8, 4::8].ravel())  # squares lie on whole patches
        assert torch.allclose(row, tokens[item.image][patches].mean(0), atol=1e-5)


def test_patches_that_an_object_fills_in_part_count_for_that_part() -> None:
    encoder = Encoder.tiny("siglip")
    mask = np.zeros((48, 48), bool)
    mask[4:16, 8:16] = True  # half of one patch, all of the next
    found = collect([scene(0, truth=Truth(mask, (Thing("square", {}, mask),), mask))], [encoder.geometry])
    weights = found.regions[encoder.geometry][0].reshape(6, 6)
    assert weights[:2, 1].tolist() == pytest.approx([1 / 3, 2 / 3]) and weights.sum() == pytest.approx(1)


def test_intervals_draw_a_pair_of_pictures_as_one() -> None:
    data = [scene(i, meta={"pair": f"pair-{i // 2}"}) for i in range(40)]
    items = collect(data, [Encoder.tiny("siglip").geometry]).items
    assert len({item.id for item in items}) == len(items)
    assert {item.id.rpartition("/")[0] for item in items} == {f"pair-{n}" for n in range(20)}


def test_splits_follow_names_only_and_keep_images_and_pairs_together() -> None:
    data = [scene(i, meta={"pair": f"pair-{i // 2}"}) for i in range(40)]
    geometry = Encoder.tiny("siglip").geometry

    def parts(examples: list[Example]) -> Mapping[str, set[str]]:
        items = collect(examples, [geometry]).items
        split = Probe().shares.within(collect(examples, [geometry])).split
        assert sorted(split.train + split.validation + split.test) == list(range(len(items)))
        return {name: {items[i].id for i in getattr(split, name)} for name in ("train", "validation", "test")}

    forward = parts(data)
    assert forward == parts(data[::-1])
    homes = {name: {item.split("/")[0] for item in items} for name, items in forward.items()}
    assert sum(len(pairs) for pairs in homes.values()) == 20 == len(set.union(*homes.values()))
    found = collect(data, [geometry])
    assert Probe(seed=1).shares.within(found).split != Probe().shares.within(found).split


def test_whole_images_with_labels_go_the_same_way() -> None:
    data = []
    for i in range(60):
        name = list(COLOURS)[i % 3]
        picture = Image.fromarray(np.full((30, 40, 3), COLOURS[name], np.uint8))
        data.append(Example(f"{name}/{i}", (picture,), "", answer=name, meta={"class": i % 3}))
    found = probe(Encoder.tiny("clip"), data, targets=("class",))
    assert found.unit == "image" and found.n == 21 and found.metrics["class"] == 1


def test_behind_the_projector() -> None:
    encoder = Encoder.tiny("siglip", layer=0)
    with pytest.raises(BadInput, match="no projector"):
        probe(encoder, at="projector")
    encoder.projector = torch.nn.Linear(32, 1)
    torch.nn.init.zeros_(encoder.projector.weight)
    found = probe(encoder, at="projector", targets=("colour",))
    assert found.name == "linear-projector"
    assert found.metrics["colour"] < 0.6, "a projector that erases everything leaves nothing to read"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([Example(str(i), (Image.new("RGB", (48, 48)),), "") for i in range(9)], "neither objects"),
        ([scene(0)], "too few"),
        ([*(scene(i) for i in range(30)), scene(7)], "have id scene-7 more than once; give every example an id of its own"),
        (
            [scene(i) for i in range(19)],
            r"19 images with labels, a pair as one, are too few \(9 to train, 3 to validate, 7 to test\); give at least 20",
        ),
        ([scene(i) for i in range(20)], r"have colour \(3 classes, 3 of them with two training items\), kind \(1"),
    ],
)
def test_data_without_anything_to_probe_is_one_line(data: list[Example], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        probe(Encoder.tiny("siglip"), data, targets=("size",))
    assert "\n" not in str(error.value)


def test_objects_outside_the_crop_are_left_out() -> None:
    encoder = Encoder.tiny("dinov2")
    crop = {"height": 48, "width": 48}
    encoder.processor = type(encoder.processor)(size={"shortest_edge": 144}, do_center_crop=True, crop_size=crop)
    mask = np.zeros((48, 48), bool)
    mask[:8, :8] = True
    middle = np.zeros((48, 48), bool)
    middle[20:30, 20:30] = True
    things = tuple(Thing("square", {}, m) for m in (mask, middle))
    found: Items = collect([scene(0, truth=Truth(mask, things, mask))], [encoder.geometry])
    assert [item.id for item in found.items] == ["scene-0/1"]
    assert found.regions[encoder.geometry][0].shape == (1, 36)


def test_it_is_found_by_name() -> None:
    assert find("probe", "linear") is Probe and "kind" in Probe.MAIN
