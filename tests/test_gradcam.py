"""Maps against regions: the numbers against scikit-learn and by hand, planted truth near 1, and chance where there is nothing to find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.metrics import average_precision_score, roc_auc_score

from pivot import cli, files
from pivot.data import world
from pivot.files import read_json, write_json
from pivot.lookup import find
from pivot.model import MLLM
from pivot.probe import _maps
from pivot.probe.gradcam import AGAINST, Probe
from pivot.records import BadInput, Measurement
from pivot.runfolder import RunFolder
from pivot.study.statistics import differences, estimates
from pivot.train.saliency import How, write

GRID = (4, 5)
DICE = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_sync", lambda _path: None)


# ---- the numbers


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps and covers: of shares, of whole patches, with ties, with zeros, of a region that fills no patch by half."""
    found = []
    for _ in range(4):
        values, cover = DICE.random(GRID), DICE.random(GRID) * (DICE.random(GRID) < 0.4)
        cover[0, 0] = 0.7
        found += [(values, cover), (np.round(values, 1), np.round(cover)), (values * (values > 0.6), cover * 0.3)]
    return found


@pytest.mark.parametrize(("values", "cover"), cases())
def test_sorting_numbers_are_scikit_learns(values: np.ndarray, cover: np.ndarray) -> None:
    """Each patch is there twice: as region with the weight of its cover, and as the rest."""
    labels, twice = np.repeat([1, 0], values.size), np.tile(values.ravel(), 2)
    weights = np.concatenate([cover.ravel(), 1 - cover.ravel()])
    assert _maps.auc(values, cover) == pytest.approx(roc_auc_score(labels, twice, sample_weight=weights))
    assert _maps.average_precision(values, cover) == pytest.approx(average_precision_score(labels, twice, sample_weight=weights))


@pytest.mark.parametrize(("values", "cover"), cases())
def test_the_others_are_slow_sums(values: np.ndarray, cover: np.ndarray) -> None:
    patches = [(values[at], cover[at]) for at in np.ndindex(GRID)]
    area = sum(share for _, share in patches) / len(patches)
    assert _maps.energy(values, cover) == pytest.approx(sum(v * c for v, c in patches) / sum(v for v, _ in patches) / area)
    best = [share for value, share in patches if value == max(v for v, _ in patches)]
    assert _maps.pointing(values, cover) == pytest.approx(sum(best) / len(best))
    orders = [DICE.permutation(cover.size).reshape(GRID) for _ in range(600)]
    assert _maps.chance(cover) == pytest.approx(np.mean([_maps.average_precision(order, cover) for order in orders]), abs=0.012)
    shares = [v / sum(v for v, _ in patches) for v, _ in patches if v > 0]
    assert _maps.entropy(values) == pytest.approx(-sum(p * np.log(p) for p in shares) / np.log(len(patches)))


def test_planted_truth_and_a_map_that_knows_nothing() -> None:
    cover = np.zeros(GRID)
    cover[1:3, 1:3] = 1
    planted = cover * (1 + DICE.random(GRID))
    assert [measure(planted, cover) for measure in AGAINST.values()] == pytest.approx([1 / cover.mean(), 1, 1, 1])
    even = np.full(GRID, 0.3)
    assert [measure(even, cover) for measure in AGAINST.values()] == pytest.approx([1, 0.2, 0.5, 0.2])
    assert _maps.entropy(even) == pytest.approx(1) and _maps.entropy(np.eye(4)[:1]) == 0


# ---- measured from folders


def folder(
    path: Path, own: Sequence[np.ndarray], covers: Sequence[np.ndarray | None], overall: Sequence[np.ndarray] = (), **facts: Any
) -> Path:
    """A folder as `pivot saliency` writes it, with these L2 maps; L1 is their square, and Grad-CAM nothing."""
    tensors = dict[str, np.ndarray]()
    for number, (values, cover) in enumerate(zip(own, covers, strict=True)):
        tensors |= {f"{number}/l2": values, f"{number}/l1": values**2, f"{number}/cam": np.zeros_like(values)}
        tensors |= {f"{number}/region": cover} if cover is not None else {}
        tensors |= {f"{number}/global/l2": overall[number]} if len(overall) else {}
    told = [{"id": f"item-{n % 97}", "question": "where?", "losses": [0.7, 0.6], "picture": "data:,"} for n in range(len(own))]
    path.mkdir()
    save_file(
        {name: np.ascontiguousarray(v, np.float32) for name, v in tensors.items()},
        path / "items-000000.safetensors",
        {"items": json.dumps(told)},
    )
    given = {"arm": path.name, "data": "x", "items": len(own), "at": "encoder", "control": bool(len(overall)), **facts}
    write_json(path / "saliency.json", given)
    return path


def measured(*folders: Path, **knobs: Any) -> list[Measurement]:
    return list(Probe(**knobs).measured({one.name: one for one in folders}))


def covers(number: int) -> list[np.ndarray]:
    """Squares of four patches at random places."""
    found = []
    for _ in range(number):
        row, column = DICE.integers(0, GRID[0] - 1), DICE.integers(0, GRID[1] - 1)
        found.append(np.zeros(GRID))
        found[-1][row : row + 2, column : column + 2] = 1
    return found


def test_a_planted_region_is_found_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    """And what looks at the same items' regions elsewhere, or is asked about everything, is at chance."""
    regions = covers(120)
    planted = [cover * (1 + DICE.random(GRID)) for cover in regions]
    blind = [DICE.random(GRID) for _ in regions]
    (sees,) = measured(folder(tmp_path / "sees", planted, regions, blind))
    assert [sees.metrics[name] for name in AGAINST] == pytest.approx([5, 1, 1, 1]) and sees.n == 120
    (shuffled,) = measured(folder(tmp_path / "shuffled", planted, [regions[(n + 7) % 120] for n in range(120)]))
    chance = {"energy": 1.0, "auc": 0.5, "pointing": sees.metrics["chance/pointing"], "ap": sees.metrics["chance/ap"]}
    sure = estimates([sees])
    for metric, expected in chance.items():
        low, high = sure[f"global/{metric}"].low, sure[f"global/{metric}"].high
        assert low is not None and high is not None and low < expected < high, metric
        assert shuffled.metrics[metric] == pytest.approx(sees.metrics[f"elsewhere/{metric}"], rel=0.35), "as good as at others' regions"
        assert shuffled.metrics[metric] < 0.6 * sees.metrics[metric], metric
    assert sees.metrics["chance/pointing"] == pytest.approx(0.2)


def test_a_small_thing_beside_a_large_one_is_hit_by_its_share(tmp_path: Path) -> None:
    cover, found = np.zeros(GRID), np.zeros(GRID)
    cover[0, 0], cover[3, 4], found[3, 4] = 1, 0.3, 1
    assert _maps.pointing(found, cover) == pytest.approx(0.3)
    found[0, 1] = 1
    assert _maps.pointing(found, cover) == pytest.approx(0.15), "of two that are largest, the mean"
    (one,) = measured(folder(tmp_path / "a", [found], [cover]))
    assert one.metrics["chance/pointing"] == pytest.approx(1.3 / 20)


def test_two_copies_do_not_differ_at_all(tmp_path: Path) -> None:
    regions, maps = covers(20), [DICE.random(GRID) for _ in range(20)]
    a, b = measured(folder(tmp_path / "a", maps, regions, maps), folder(tmp_path / "b", maps, regions, maps))
    for metric, difference in differences([a], [b]).items():
        assert difference.value == 0 and (difference.low, difference.high) in ((0, 0), (None, None)), metric
    assert {"energy", "global/auc", "elsewhere/ap", "entropy"} <= {name for name, one in differences([a], [b]).items() if one.low == 0}


def test_every_metric_with_items_is_their_mean_and_items_have_names_of_their_own(tmp_path: Path) -> None:
    (found,) = measured(folder(tmp_path / "a", [DICE.random(GRID) for _ in range(120)], covers(120)))
    assert len(found.items["energy"]) == found.n == 120, "although ids come twice"
    for metric, items in found.items.items():
        assert found.metrics[metric] == pytest.approx(np.mean(list(items.values())))
    assert list(found.metrics)[:5] == list(Probe.MAIN)


def test_what_cannot_be_judged_is_left_out_and_counted(tmp_path: Path) -> None:
    half = np.zeros(GRID)
    half[:2] = 1
    maps = [DICE.random(GRID) for _ in range(6)]
    maps[5] = np.zeros(GRID)
    (found,) = measured(folder(tmp_path / "a", maps, [half, None, np.zeros(GRID), np.ones(GRID), half, half], maps))
    assert found.n == 2 and len(found.items["entropy"]) == 5 and len(found.items["energy"]) == 2
    assert {why: found.metrics[f"left_out/{why}"] for why in ("region", "gradient", "global")} == {"region": 3, "gradient": 1, "global": 1}
    assert not [metric for metric in found.metrics if metric.startswith("cam/")], "its maps are empty"
    assert [one.id for one in found.shown] == ["item-0", "item-4", "item-5"]
    (without,) = measured(folder(tmp_path / "b", maps[:2], [None, None]))
    assert without.n == 2 and set(without.items) == {"entropy"} and "left_out/global" not in without.metrics


def test_knobs_choose_the_map_that_comes_first(tmp_path: Path) -> None:
    regions, maps = covers(8), [DICE.random(GRID) for _ in range(8)]
    path = folder(tmp_path / "a", maps, regions, at="projector")
    (l2,), (l1,) = measured(path), measured(path, order="l1")
    assert l1.metrics["energy"] == pytest.approx(np.mean([_maps.energy(m**2, c) for m, c in zip(maps, regions, strict=True)]), rel=1e-5)
    assert l2.metrics["energy"] == pytest.approx(np.mean([_maps.energy(m, c) for m, c in zip(maps, regions, strict=True)]), rel=1e-5)
    assert l2.name == "gradcam-projector" and l1.fingerprint != l2.fingerprint
    (first,) = l2.shown[:1]
    np.testing.assert_allclose(first.found, maps[0] / maps[0].max(), atol=1e-4)
    np.testing.assert_allclose(first.truth, regions[0], atol=1e-4)
    assert first.says == "where?\nloss 0.7, then 0.6"
    with pytest.raises(BadInput, match="gradients of a: none of 8 items has any"):
        measured(path, map="cam")


# ---- end to end


@pytest.fixture(scope="module")
def random(shared_mllm: MLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with random weights."""
    path = tmp_path_factory.mktemp("gradients") / "random"
    list(
        write(
            shared_mllm,
            find("objective", "sft")(),
            world.read(split="test", size=96),
            path,
            How(steps=0, batch=32, control=False),
            arm="sft",
        )
    )
    return path


def test_random_weights_look_nowhere(random: Path) -> None:
    (found,) = measured(random)
    assert found.n + found.metrics["left_out/region"] == 96
    for metric, chance in (("energy", 1.0), ("auc", 0.5), *((one, found.metrics[f"chance/{one}"]) for one in ("pointing", "ap"))):
        sure = estimates([found])[metric]
        assert sure.low is not None and sure.high is not None and sure.low < chance < sure.high, (metric, chance, sure)


def test_the_command_line_writes_measures_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], random: Path) -> None:
    def said(*arguments: str) -> str:
        code = cli.call(list(arguments))
        out = capsys.readouterr()
        assert (code, out.err.count("\n")) in ((0, 0), (2, 1)), out
        return out.err if code else out.out

    def told(*arguments: str) -> str:
        """What is said of arguments that are refused once there is something to show."""
        assert cli.call(list(arguments)) == 2
        out = capsys.readouterr()
        assert "probe gradcam" in out.out and out.err.count("\n") == 1
        return out.err

    data, sft, dpo = "world,split=test,size=6", str(tmp_path / "sft"), str(tmp_path / "dpo")
    few = ("--data", data, "--size", "4", "--no-control", "--steps")
    assert said("saliency", "base", sft, "--objective", "sft", *few, "1").startswith(f"4 items: {sft}")
    assert json.loads(said("saliency", "base", dpo, "--objective", "{name: dpo, beta: 0.5}", *few, "1", "--json")) == {
        "out": dpo,
        "items": 4,
    }
    assert read_json(tmp_path / "dpo" / "saliency.json")["objective"]["beta"] == 0.5
    table = said("probe", "gradcam", sft, dpo, "--out", str(tmp_path / "run"))
    assert "energy  pointing" in table and "probe gradcam: dpo less sft" in table
    kept = RunFolder(tmp_path / "run").measurements()
    assert [(one.arm, one.name, one.n) for one in kept] == [("dpo", "gradcam", 4), ("sft", "gradcam", 4)] and len(kept[0].shown) == 4

    given = read_json(tmp_path / "dpo" / "saliency.json")
    write_json(tmp_path / "dpo" / "saliency.json", {**given, "objective": {"name": "ipo"}})
    assert "nothing is kept: " in told("probe", "gradcam", dpo, "--out", str(tmp_path / "run"))
    write_json(tmp_path / "dpo" / "saliency.json", {**given, "steps": 0, "model": {**given["model"], "weights": "others"}})
    unlike = said("probe", "gradcam", sft, dpo)
    assert "differ in more than the objective (model.weights, steps); write both in one way" in unlike
    assert "/sft is given twice" in said("probe", "gradcam", sft, f"{tmp_path}/dpo/../sft")
    assert RunFolder(tmp_path / "run").measurements() == kept
    assert "are of different examples" in said("probe", "gradcam", sft, str(random), "--map", "cam")
    assert "tmp/x holds no gradients" in said("probe", "gradcam", "tmp/x")
    assert "order: input should be 'l2' or 'l1'" in said("probe", "gradcam", sft, "--order", "l3")
    assert said("saliency", "base", sft, "--steps", "-1") == "pivot: --steps: input should be greater than or equal to 0, not -1\n"
    assert "did you mean 'dpo'?" in said("saliency", "base", sft, "--objective", "dpoo")
    assert "give a name, or" in said("saliency", "base", sft, "--objective", "[dpo]")
    assert "(changed: arm, objective.name" in said("saliency", "base", sft, *few, "1")
    facts = read_json(tmp_path / "sft" / "saliency.json")
    write_json(tmp_path / "sft" / "saliency.json", {**facts, "items": 5})
    assert "has 4 of 5 items; run the same `pivot saliency` again" in said("probe", "gradcam", sft)
    (tmp_path / "sft" / "items-000000.safetensors").write_bytes(b"half")
    assert "is damaged" in said("probe", "gradcam", sft)
