"""Intervals: coverage of a planted truth, known closed forms, and a slow reference that draws items one by one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student_t

from pivot.records import Measurement
from pivot.study.statistics import differences, estimates, wilson


def measurement(items: Mapping[str, Mapping[str, float]], parts: Mapping[str, Sequence[str]] | None = None, seed: int = 0) -> Measurement:
    """A measurement whose metrics follow from its items and parts, as a bench computes them."""
    metrics = {leaf: float(np.mean(list(values.values()))) for leaf, values in items.items()}
    for metric, of in (parts or {}).items():
        metrics[metric] = float(np.mean([metrics[part] for part in of]))
    n = sum(map(len, items.values()))
    return Measurement("bench", "world", metrics, n, arm="arm", seed=seed, items=items, parts=parts or {})


def tasks(values: np.ndarray, seed: int = 0) -> Measurement:
    """Tasks (T, N) in two domains and their mean."""
    items = {f"t{t}": {f"{t}-{i}": float(v) for i, v in enumerate(row)} for t, row in enumerate(values)}
    names, half = list(items), len(values) // 2
    return measurement(items, {"d0": names[:half], "d1": names[half:], "mean": ["d0", "d1"]}, seed)


def covered(low: float | None, high: float | None, truth: float) -> bool:
    assert low is not None and high is not None
    return low <= truth <= high


# ---- proportions


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 10), (10, 10), (37, 50), (3, 1000), (1, 1)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    reference = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_a_proportion_has_wilsons_interval_and_is_never_surely_all_or_nothing() -> None:
    found = estimates([measurement({"some": {str(i): float(i < 7) for i in range(20)}, "none": {str(i): 0.0 for i in range(20)}})])
    assert (found["some"].low, found["some"].high) == wilson(7, 20)
    assert found["none"].low == 0 and found["none"].high == pytest.approx(0.161, abs=1e-3)


# ---- coverage of a planted truth


def test_the_mean_of_domain_means_is_covered_as_often_as_said() -> None:
    """Tasks from nearly never to nearly always right, few items each: the normal case of a bench."""
    dice = np.random.default_rng(1)
    chance = np.array([0.03, 0.3, 0.5, 0.7, 0.9, 0.97])
    found = [estimates([tasks(dice.random((6, 20)) < chance[:, None])], resamples=300) for _ in range(200)]
    hits = np.mean([covered(one["mean"].low, one["mean"].high, chance.mean()) for one in found])
    assert 0.92 <= hits <= 0.985  # 0.95 with a standard error of 0.015


def test_a_paired_difference_is_covered_and_narrower_than_an_unpaired_one() -> None:
    dice = np.random.default_rng(2)
    base, hits, widths = np.array([0.2, 0.4, 0.6, 0.8])[:, None], [], []
    for _ in range(150):
        a = dice.random((4, 30)) < base
        b = np.where(dice.random((4, 30)) < 0.15, dice.random((4, 30)) < base + 0.1, a)  # most replies stay as they were
        found = differences([tasks(b)], [tasks(a)], resamples=300)["mean"]
        hits.append(covered(found.low, found.high, 0.15 * 0.1))
        alone = estimates([tasks(b)], resamples=300)["mean"]
        widths.append((found.high - found.low) / (alone.high - alone.low))  # type: ignore[operator]
    assert 0.92 <= np.mean(hits) <= 0.995
    assert np.mean(widths) < 0.75


@pytest.mark.parametrize(("spread", "least"), [(0.5, 0.92), (0.0, 0.94)])
def test_three_seeds_cover_what_another_seed_would_give(spread: float, least: float) -> None:
    """Where seeds decide, items alone would cover almost never; where they do nothing, the interval errs on the wide side."""
    dice = np.random.default_rng(3)
    hits, items_alone = [], []
    for _ in range(120):
        item = dice.normal(size=(2, 30))
        seeds = [tasks(item + spread * dice.normal() + 0.1 * dice.normal(size=(2, 30)), seed) for seed in range(3)]
        found = estimates(seeds, resamples=300)["mean"]
        hits.append(covered(found.low, found.high, 0.0))
        one = estimates(seeds[:1], resamples=300)["mean"]
        items_alone.append(covered(one.low, one.high, 0.0))
    assert np.mean(hits) >= least
    if spread:
        assert np.mean(items_alone) < 0.6


# ---- closed forms and slow references


def test_the_spread_of_a_stratified_mean_is_the_textbooks() -> None:
    """Var = sum over tasks of share^2 s^2 / n, with the unbiased s^2, also for tasks of three items."""
    dice = np.random.default_rng(4)
    values = dice.normal(size=(4, 3)) * np.array([1, 2, 3, 4])[:, None]
    error = np.sqrt((values.var(axis=1, ddof=1) / 3).sum()) / 4
    found = estimates([tasks(values)], level=0.6827, resamples=40_000)["mean"]
    assert (found.high - found.low) / 2 == pytest.approx(error, rel=0.05)  # type: ignore[operator]
    assert found.value == pytest.approx(values.mean())


def test_numbers_between_right_and_wrong_are_as_sure_as_they_spread() -> None:
    """Two unseen items, one right and one wrong, are for answers: of cosines near 1 they would say that nothing is known."""
    values = np.random.default_rng(0).uniform(0.9, 0.92, 400)
    both = measurement({"cosine": {f"{n}": v for n, v in enumerate(values)}, "hits": {f"{n}": float(n % 2) for n in range(400)}})
    found, error = estimates([both]), values.std(ddof=1) / 20
    assert found["cosine"].high - found["cosine"].low == pytest.approx(2 * 1.96 * error, rel=0.1)
    quiet = measurement(
        {"cosine": {f"{n}": v for n, v in enumerate(values - 1e-3)}, "hits": {f"{n}": float((n + (n > 397)) % 2) for n in range(400)}}
    )
    apart = differences([both], [quiet])
    assert apart["cosine"].high - apart["cosine"].low < 1e-6 < 0.01 < apart["hits"].high - apart["hits"].low


def test_drawing_kinds_is_drawing_items_one_by_one() -> None:
    dice = np.random.default_rng(5)
    a, b = (np.round(9 * dice.random((2, 25))) for _ in range(2))
    found = differences([tasks(a)], [tasks(b)], resamples=8_000)["mean"]
    drawn = [np.mean([dice.choice(task, len(task) - 1).mean() for task in a - b]) for _ in range(8_000)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.08)
    assert found.value == pytest.approx((a - b).mean())


def test_metrics_that_share_items_are_drawn_together() -> None:
    """Attributes of the same objects: right in one is right in all, so that their mean is as unsure as one of them."""
    right = {str(i): 2.0 * (i % 3 == 0) for i in range(60)}
    same = measurement({"kind": right, "colour": dict(right)}, {"mean": ["kind", "colour"]})
    found = differences([same], [measurement({leaf: dict.fromkeys(right, 0.0) for leaf in ("kind", "colour")}, same.parts)])
    assert (found["mean"].low, found["mean"].high) == (found["kind"].low, found["kind"].high)
    apart = measurement({"kind": right, "colour": {f"other {i}": v for i, v in right.items()}}, {"mean": ["kind", "colour"]})
    assert (found["mean"].high - found["mean"].low) > 1.25 * np.diff([estimates([apart])["mean"].low, estimates([apart])["mean"].high])  # type: ignore[operator,list-item]
    assert (found["mean"].n, estimates([apart])["mean"].n) == (60, 120)


def test_an_item_that_only_some_metrics_have_counts_where_it_is() -> None:
    shared = measurement({"a": {"1": 1.0, "2": 0.0, "3": 1.0}, "b": {"3": 1.0, "4": 0.0}}, {"mean": ["a", "b"]})
    found = estimates([shared])
    assert (found["a"].n, found["b"].n, found["mean"].n) == (3, 2, 4)
    assert found["mean"].value == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_objects_of_one_picture_are_drawn_with_it() -> None:
    """Five objects a picture, all right or all wrong, are as unsure as the picture; apart they would seem twice as sure."""
    dice = np.random.default_rng(13)
    right = dice.random(60) < 0.5
    objects = measurement({"kind": {f"{i}/{j}": float(hit) for i, hit in enumerate(right) for j in range(5)}})
    pictures = measurement({"kind": {str(i): float(hit) for i, hit in enumerate(right)}})
    found, same = estimates([replace(objects, unit="object")])["kind"], estimates([pictures])["kind"]
    assert (found.low, found.high) == pytest.approx((same.low, same.high), abs=0.02) and found.n == 300
    apart = estimates([objects])["kind"]
    assert (found.high - found.low) > 2 * (apart.high - apart.low)  # type: ignore[operator]


# ---- arms


def test_two_copies_of_one_arm_differ_by_exactly_nothing() -> None:
    dice = np.random.default_rng(6)
    one = [tasks(dice.random((4, 10)), seed) for seed in range(3)]
    for count in (1, 3):
        for metric, found in differences(one[:count], one[:count]).items():
            assert (found.value, found.low, found.high) == (0, 0, 0), metric


def test_arms_are_compared_on_the_items_that_both_have() -> None:
    a = measurement({"t": {"1": 1.0, "2": 1.0, "3": 0.0}})
    b = measurement({"t": {"2": 0.0, "3": 0.0, "4": 1.0}})
    found = differences([a], [b])["t"]
    assert (found.value, found.n) == (0.5, 2)
    assert differences([a], [measurement({"t": {"9": 1.0}})])["t"].low is None


def test_items_of_one_name_are_not_compared_where_other_things_were_measured() -> None:
    a = measurement({"t": {"1": 1.0, "2": 1.0, "3": 0.0}})
    one, other = replace(a, of="one"), replace(a, of="other")
    assert differences([one], [other]) == {} and differences([one], [one])["t"].value == 0
    assert differences([one], [a]) == differences([a], [other]) == differences([a], [a]), "an old measurement does not say"
    again, later = replace(one, seed=1), replace(other, seed=1)
    assert differences([one, again], [one, later]) == {} and differences([one, again], [one, again])["t"].seeds == 2


def quiet(n: int, fingerprint: str) -> Measurement:
    """Two tasks in which nothing changes between arms, and which are all right."""
    return replace(tasks(np.ones((2, n))), fingerprint=fingerprint)


def test_where_nothing_changed_the_rule_of_three_leaves_room() -> None:
    found = differences([quiet(40, "a")], [quiet(40, "b")])
    for metric, n in {"t0": 40, "d0": 40, "mean": 80}.items():
        assert (found[metric].low, found[metric].value, found[metric].high) == pytest.approx((-3 / n, 0, 3 / n))
    alone = estimates([quiet(40, "a")])
    assert (alone["mean"].low, alone["mean"].high) == pytest.approx((1 - 3 / 80, 1))


def test_a_difference_is_covered_where_few_items_change() -> None:
    """Resampling alone would be sure of 0 in every fifth such task."""
    dice = np.random.default_rng(12)
    hits: dict[str, list[bool]] = {"t0": [], "mean": []}
    for _ in range(150):
        gained, lost = dice.random((2, 4, 40)) < np.array([0.04, 0.01])[:, None, None]
        found = differences([tasks(gained & ~lost)], [tasks(lost & ~gained)], resamples=300)
        for metric in hits:
            hits[metric].append(covered(found[metric].low, found[metric].high, 0.03))
    assert np.mean(hits["t0"]) >= 0.95 and 0.92 <= np.mean(hits["mean"]) <= 0.99


def test_two_seeds_of_one_arm_are_not_taken_for_two_arms() -> None:
    seeds = [measurement({"t": {str(i): float(i < right) for i in range(40)}}, seed=seed) for seed, right in enumerate((20, 22))]
    found = estimates(seeds)["t"]
    assert found.value == pytest.approx(21 / 40) and found.low < 0.4 < 0.65 < found.high  # type: ignore[operator]


def test_arms_are_compared_seed_by_seed() -> None:
    """A seed that moves both arms alike is no difference."""
    dice = np.random.default_rng(7)
    item, shifts = dice.normal(size=(2, 20)), (-5.0, 0.0, 5.0)
    a = [tasks(item + shift + 1, seed) for seed, shift in enumerate(shifts)]
    b = [tasks(item + shift, seed) for seed, shift in enumerate(shifts)]
    found = differences(a, b[::-1])["mean"]
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1)) and found.seeds == 3
    assert differences(a[:2], b[1:])["mean"].seeds == 1
    assert differences(a[:1], b[1:]) == {}


def test_seeds_vary_as_student_says() -> None:
    """Equal items and different seeds leave nothing but the t interval of the seeds' means."""
    means = np.array([1.0, 4.0, 2.0, 7.0])
    found = estimates([tasks(np.full((2, 5), mean), seed) for seed, mean in enumerate(means)], resamples=40_000)["mean"]
    half = student_t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half), rel=0.1)


def test_one_seed_gives_no_verdict() -> None:
    good, bad = (tasks(np.full((2, 50), value)) for value in (1.0, 0.0))
    assert differences([good], [bad])["mean"].verdict is None
    several = [[replace(one, seed=seed) for seed in range(3)] for one in (good, bad)]
    assert differences(*several)["mean"].verdict == "higher"
    assert differences(*several[::-1])["mean"].verdict == "lower"
    assert differences(several[0], several[0])["mean"].verdict == "open"


# ---- what has no interval


def test_a_metric_that_is_no_mean_of_its_items_has_no_interval() -> None:
    """A recall over classes beside per-item hits, a composite that is weighted, one whose parts go round in a circle."""
    items = {"a": {"1": 1.0, "2": 0.0}, "b": {"1": 1.0, "2": 1.0}}
    metrics = {"a": 0.5, "b": 0.9, "even": 0.75, "weighted": 0.6, "x": 1.0, "y": 1.0, "loose": 3.0}
    parts = {"even": ["a", "a"], "weighted": ["a", "b"], "x": ["y"], "y": ["x"]}
    found = estimates([Measurement("probe", "p", metrics, 2, items=items, parts=parts)])
    assert {metric for metric, one in found.items() if one.low is not None} == {"a"}
    assert {metric: one.value for metric, one in found.items()} == metrics


def test_one_item_has_no_spread() -> None:
    assert estimates([measurement({"t": {"1": 4.0}})])["t"].low is None
    right, wrong = (measurement({"t": {"1": value}}) for value in (1.0, 0.0))
    assert differences([right], [wrong])["t"].low < -0.5  # type: ignore[operator]


# ---- cost


def test_the_same_items_give_the_same_interval() -> None:
    values = np.random.default_rng(8).random((4, 30))
    assert estimates([tasks(values)]) == estimates([tasks(values)])


def test_sixteen_tasks_of_six_hundred_items_take_well_under_a_second() -> None:
    dice = np.random.default_rng(9)
    a, b = (tasks(dice.random((16, 600)) < 0.6) for _ in range(2))
    began = time.process_time()
    differences([a], [b])
    assert time.process_time() - began < 0.5


def test_many_kinds_of_items_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [tasks(np.random.default_rng(seed).normal(size=(2, 80))) for seed in (10, 11)]
    whole = differences(values[:1], values[1:], resamples=500)
    monkeypatch.setattr("pivot.study.statistics.AT_ONCE", 800)  # ten draws of eighty kinds at a time
    pieces = differences(values[:1], values[1:], resamples=500)
    assert [(one.low, one.high) for one in pieces.values()] == [pytest.approx((one.low, one.high)) for one in whole.values()]
