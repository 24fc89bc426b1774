"""What moved: against the formulas, nothing between copies, nothing above the tap, and each planted move where it was planted."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pivot import cli
from pivot.encoder import Encoder, towers
from pivot.encoder.layers import names
from pivot.lookup import find
from pivot.probe import _moved
from pivot.probe.change import Probe, part
from pivot.records import BadInput, Example, Measurement
from pivot.study.statistics import differences, estimates


def row(index: int) -> Example:
    picture = Image.fromarray(np.random.default_rng(index).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    return Example(f"row-{index}", (picture,), "")


ROWS = [row(i) for i in range(5)]
IMAGES = [example.images[0] for example in ROWS]


def moved(encoder: Encoder, by: float = 0.05, seed: int = 1) -> Encoder:
    """A copy, all of whose weights have taken a step at random."""
    other = copy.deepcopy(encoder)
    dice = torch.Generator().manual_seed(seed)
    for parameter in [*other.model.parameters(), *(other.projector.parameters() if other.projector else ())]:
        parameter.data += by * torch.randn(parameter.shape, generator=dice)
    return other


def change(a: Encoder, b: Encoder, **knobs: object) -> Measurement:
    (found,) = Probe(**knobs).run({"original": a, "arm": b}, ROWS)
    return found


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of rows, unbiased (Song et al., 2012, equation 5), by whole kernels."""

    def hsic(kernel: np.ndarray, other: np.ndarray) -> float:
        n, one = len(kernel), np.ones(len(kernel))
        between = (one @ kernel @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        return (np.trace(kernel @ other) + between - 2 / (n - 2) * (one @ kernel @ other @ one)) / (n * (n - 3))

    kernel, other = (side @ side.T * (1 - np.eye(len(side))) for side in (x, y))
    return hsic(kernel, other) / math.sqrt(hsic(kernel, kernel) * hsic(other, other))


def test_a_slow_reference_agrees() -> None:
    a = Encoder.tiny("clip", layer=2)
    b = moved(a)
    found = change(a, b, batch=2)
    assert (found.kind, found.name, found.arm, found.n, found.unit) == ("probe", "change", "arm", 5, "image")
    for layer, name in enumerate(("embeddings", "block-00", "block-01")):
        x, y = (one.tapped(layer=layer).features(IMAGES).tokens.double().numpy() for one in (a, b))  # (B, P, D)
        cosines = (x * y).sum(2) / np.linalg.norm(x, axis=2) / np.linalg.norm(y, axis=2)
        assert list(found.items[f"cosine/{name}"]) == [example.id for example in ROWS]
        assert list(found.items[f"cosine/{name}"].values()) == pytest.approx(cosines.mean(1), abs=1e-6)
        assert found.metrics[f"cosine/{name}"] == pytest.approx(cosines.mean(), abs=1e-6)
        assert found.metrics[f"cka/{name}"] == pytest.approx(slow_cka(x.reshape(-1, 32), y.reshape(-1, 32)), abs=1e-6)
    old, new = (one.model.state_dict() for one in (a, b))
    wanted = {
        "weights/embeddings": ["embeddings.", "pre_layrnorm."],
        "weights/block-01": ["layers.1."],
        "weights/block-01/attention": ["layers.1.self_attn"],
        "weights/block-01/mlp": ["layers.1.mlp"],
        "weights/block-01/norms": ["layers.1.layer_norm1", "layers.1.layer_norm2"],
    }
    for metric, marks in wanted.items():
        chosen = [name for name in old if any(mark in name for mark in marks)]
        step = sum(float((new[name] - old[name]).double().square().sum()) for name in chosen)
        length = sum(float(old[name].double().square().sum()) for name in chosen)
        assert chosen and found.metrics[metric] == pytest.approx(math.sqrt(step / length), rel=1e-6), metric
    for headline in Probe.MAIN:
        assert found.parts[headline] == [f"{headline}/block-00", f"{headline}/block-01"]
        assert found.metrics[headline] == pytest.approx(np.mean([found.metrics[name] for name in found.parts[headline]]))


def test_nothing_has_no_angle_and_no_measure_of_its_move() -> None:
    dice = torch.Generator().manual_seed(0)
    some, nothing = torch.randn(1, 50, 7, generator=dice), torch.zeros(1, 50, 7)
    assert _moved.cosines(some, some) == [1] == _moved.cosines(nothing, nothing), "to the last bit"
    assert _moved.cosines(some, nothing) == [0]
    half = torch.cat([some, nothing], dim=1)
    assert _moved.cosines(half, half.roll(50, 1)) == [0] and _moved.cosines(half, -half) == pytest.approx([0], abs=1e-12)
    assert _moved.relative([(nothing, some)]) == math.inf
    assert _moved.relative([(nothing, nothing)]) == 0 == _moved.relative([])
    assert _moved.relative([(nothing, some), (2 * some, 2 * some)]) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["siglip", "dinov2", "pivot_tower", "resnet", "qwen2_5_vl_vision"])
def test_between_copies_nothing_moved(name: str) -> None:
    encoder = Encoder.tiny(name)
    one, other = Probe().run({"original": encoder, "a": copy.deepcopy(encoder), "b": copy.deepcopy(encoder)}, ROWS)
    for metric, value in one.metrics.items():
        assert value == 0 if metric.startswith("weights") else value == pytest.approx(1, abs=1e-12), metric
    assert all(value == 1 for values in one.items.values() for value in values.values())
    assert (one.metrics, one.items, one.fingerprint) == (other.metrics, other.items, other.fingerprint)
    apart = differences([one], [other])
    assert all(estimate.value == 0 for estimate in apart.values())
    assert (apart["cosine"].low, apart["cosine"].high, apart["cosine"].n) == (0, 0, 5)


@pytest.mark.parametrize("name", [row.name for row in towers.FAMILIES])
def test_a_move_is_seen_where_it_was_made(name: str) -> None:
    encoder = Encoder.tiny(name, layer=-1)
    for inside in ("attention", "mlp", "norms"):
        other = copy.deepcopy(encoder)
        block = towers.blocks(other.model)[1]
        for at, parameter in block.named_parameters():
            if part(at) == inside:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        found = change(encoder, other).metrics
        stirred = {metric for metric, value in found.items() if metric.startswith("weights/") and value > 0}
        assert stirred == {"weights/block-01", f"weights/block-01/{inside}"}
        assert found["cosine/embeddings"] == found["cosine/block-00"] == 1 > found["cosine/block-01"] > found["cosine/block-02"] - 0.1
        assert found["cka/block-00"] == pytest.approx(1) and found["cka/block-01"] < 1 - 1e-9


def test_a_turned_space_has_another_cosine_and_the_same_cka() -> None:
    encoder = Encoder.tiny("siglip", layer=0)
    encoder.projector = torch.nn.Linear(32, 32, bias=False)
    other = copy.deepcopy(encoder)
    turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    other.projector.weight.data = 3 * turn @ encoder.projector.weight.data
    found = change(encoder, other).metrics
    assert found["cka/projector"] == pytest.approx(1, abs=1e-6) and abs(found["cosine/projector"]) < 0.6
    assert found["weights/projector"] > 1 and found["weights"] == 0, "the projector is no block"
    other.projector.weight.data = torch.randn(32, 32)
    assert change(encoder, other).metrics["cka/projector"] < 0.99
    other.projector = None
    assert not any("projector" in metric for metric in change(encoder, other).metrics)


def test_unrelated_encoders_are_near_nothing() -> None:
    """Tokens of two random projections of noise: no cosine; CKA is that of the pixels, which both see, so it is no zero."""
    found = change(Encoder.tiny("ijepa", layer=0), Encoder.tiny("ijepa", layer=0, seed=5)).metrics
    assert abs(found["cosine"]) < 0.3 and found["cka"] < 0.8 and 1 < found["weights"] < 2, "two random steps are at a right angle"


@pytest.mark.parametrize("name", ["clip", "vit", "dinov2", "pivot_tower", "convnext", "qwen2_vl_vision"])
def test_what_lies_above_the_tap_counts_for_nothing(name: str) -> None:
    if name == "pivot_tower":
        a = Encoder.join([Encoder.tiny("siglip", layer=1), Encoder.tiny("convnext", layer=1)])
    else:
        a = Encoder.tiny(name, layer=1)
    b = moved(a)
    clean = change(a, b)
    for parameter in towers.idle_parameters(b.model, b.tap).values():
        parameter.data.fill_(float("nan"))
    poisoned = change(a, b)
    assert poisoned.metrics == clean.metrics and poisoned.items == clean.items
    below = [name for name in names(a) if "block-" in name]
    assert len(below) == (2 if name == "pivot_tower" else 1), "one below each tap"
    assert {metric.removeprefix("cosine/") for metric in clean.items} == set(names(a))


def test_arms_are_paired_image_by_image() -> None:
    encoder = Encoder.tiny("siglip")
    near, far = Probe().run({"original": encoder, "near": moved(encoder, 0.01), "far": moved(encoder, 0.2)}, ROWS)
    assert near.metrics["weights"] < far.metrics["weights"]
    difference = differences([near], [far])
    assert difference["cosine"].value > 0 and difference["cosine"].n == 5 and difference["cosine"].low is not None
    assert difference["cka"].value > 0 and difference["cka"].low is None, "CKA is no mean of items"
    assert estimates([near])["cosine"].low < near.metrics["cosine"]


def test_parts_go_by_the_names_that_families_give() -> None:
    expected = {
        "self_attn.k_proj.weight": "attention",
        "attention.attention.query.bias": "attention",
        "attn.qkv.weight": "attention",
        "attention.q_norm.weight": "attention",
        "layernorm_before.weight": "norms",
        "norm1.bias": "norms",
        "ln_1.weight": "norms",
        "layer_scale2.lambda1": "norms",
        "layers.0.layer_scale_parameter": "norms",
        "mlp.fc1.weight": "mlp",
        "intermediate.dense.weight": "mlp",
        "layers.0.pwconv1.weight": "mlp",
    }
    assert {name: part(name) for name in expected} == expected


def test_what_cannot_be_compared_is_one_line() -> None:
    siglip, clip = Encoder.tiny("siglip"), Encoder.tiny("clip")
    broken = copy.deepcopy(siglip)
    next(broken.model.parameters()).data.fill_(float("nan"))
    wrong = {
        "'a' and 'b' cannot be held against each other: .* different architectures (siglip_vision_model and clip": (siglip, clip),
        "other names or shapes": (siglip, Encoder.tiny("siglip", width=64)),
        "read at different places": (siglip, siglip.tapped(layer=-1)),
        "encoder a or b: features are not finite": (siglip, broken),
    }
    for said, (a, b) in wrong.items():
        with pytest.raises(BadInput, match=said.replace("(", r"\(")) as error:
            next(iter(Probe().run({"a": a, "b": b}, ROWS)))
        assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="nothing to hold 'a' against"):
        next(iter(Probe().run({"a": siglip}, ROWS)))
    with pytest.raises(BadInput, match="have id row-0 more than once"):
        next(iter(Probe().run({"a": siglip, "b": siglip}, [*ROWS, ROWS[0]])))
    with pytest.raises(BadInput, match="no pictures"):
        next(iter(Probe().run({"a": siglip, "b": siglip}, [Example("blind", (), "?")])))
    with pytest.raises(BadInput, match="leave 'at' out"):
        Probe(at="projector")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = Encoder.tiny("siglip")
    encoder.save(tmp_path / "before")
    moved(encoder).save(tmp_path / "after")
    arms = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert cli.call(["probe", "change", *arms, "--data", "world,split=test,size=4", "--json", "--out", str(tmp_path / "run")]) == 0
    (one,) = json.loads(capsys.readouterr().out)["measurements"]
    assert one["arm"] == arms[1] and one["n"] == 4 and one["metrics"]["weights"] > 0
    assert len(list((tmp_path / "run" / "measurements").iterdir())) == 1
    assert cli.call(["probe", "change", *arms, "--data", "world,split=test,size=4"]) == 0
    assert capsys.readouterr().out.split()[:5] == ["probe", "change", "weights", "cka", "cosine"]


def test_it_is_found_by_name() -> None:
    assert find("probe", "change") is Probe and Probe.READS == "original"
