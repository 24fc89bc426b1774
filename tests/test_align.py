"""Alignment: against a slow reference, on planted truth, at chance without any, in blocks, and paired to the last bit."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pivot.encoder import Encoder, towers
from pivot.lookup import find
from pivot.model import MLLM
from pivot.probe import _similar, _texts
from pivot.probe.align import Probe, Side
from pivot.records import BadInput, Example, Measurement, Response, Truth
from pivot.study.statistics import differences

WORDS = ("red", "green", "small", "round", "left", "under", "seven", "old", "loud", "far", "ring", "cross", "square", "star")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def captioned(index: int) -> Example:
    """Noise and a caption that has nothing to do with it."""
    dice = np.random.default_rng(index)
    picture = Image.fromarray(dice.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    return Example(f"row-{index}", (picture,), "", (Response(" ".join(dice.choice(WORDS, dice.integers(2, 9)))),))


ROWS = [captioned(i) for i in range(120)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a tiny MLLM, whose LLM is the reference."""
    folder = tmp_path_factory.mktemp("mllm")
    MLLM.tiny().save(folder)
    return str(folder)


def probe(encoder: Encoder, llm: str, **knobs: object) -> Measurement:
    return next(iter(Probe(**{"llm": llm, "k": 5, **knobs}).run({"only": encoder}, ROWS)))


def features(n: int, width: int, seed: int = 0) -> np.ndarray:
    """A few strong directions, many weak ones, and outliers."""
    dice = np.random.default_rng(seed)
    rows = dice.standard_normal((n, width)) / np.arange(1, width + 1)
    rows[:, 0] *= 40
    return rows.astype(np.float32)


# ---- the arithmetic, against the formulas written out


def slow_prepared(layers: list[np.ndarray]) -> list[np.ndarray]:
    every = np.sort(np.abs(np.concatenate([layer.ravel() for layer in layers])))
    limit = every[int(0.95 * len(every))]
    clamped = [np.clip(layer, -limit, limit).astype(np.float64) for layer in layers]
    return [layer / np.linalg.norm(layer, axis=1, keepdims=True) for layer in clamped]


def slow_near(x: np.ndarray, k: int) -> list[set[int]]:
    near = []
    for i in range(len(x)):
        others = [(float(x[i] @ x[j]), j) for j in range(len(x)) if j != i]
        near.append({j for _, j in sorted(others, reverse=True)[:k]})
    return near


def slow_hsic(kernel: np.ndarray, other: np.ndarray, unbiased: bool) -> float:
    """Song et al. (2012), equations 4 and 5."""
    n = len(kernel)
    if not unbiased:
        centre = np.eye(n) - 1 / n
        return np.trace(kernel @ centre @ other @ centre) / (n - 1) ** 2
    kernel, other = kernel - np.diag(np.diag(kernel)), other - np.diag(np.diag(other))
    one = np.ones(n)
    between = (one @ kernel @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    return (np.trace(kernel @ other) + between - 2 / (n - 2) * (one @ kernel @ other @ one)) / (n * (n - 3))


def slow_cka(kernel: np.ndarray, other: np.ndarray, unbiased: bool = True) -> float:
    own = slow_hsic(kernel, kernel, unbiased) * slow_hsic(other, other, unbiased)
    return slow_hsic(kernel, other, unbiased) / math.sqrt(own)


def slow_cknna(x: np.ndarray, y: np.ndarray, k: int) -> float:
    n = len(x)
    mask_x, mask_y = np.zeros((n, n)), np.zeros((n, n))
    for mask, side in ((mask_x, x), (mask_y, y)):
        for i, near in enumerate(slow_near(side, k)):
            mask[i, list(near)] = 1
    both = mask_x * mask_y
    over = slow_hsic(both * (x @ x.T), both * (y @ y.T), True)
    own = [slow_hsic(mask * (side @ side.T), mask * (side @ side.T), True) for mask, side in ((mask_x, x), (mask_y, y))]
    return over / math.sqrt(own[0] * own[1])


@pytest.mark.parametrize("widths", [(6, 9), (150, 200)])  # moments, and blocks of kernels
@pytest.mark.parametrize("at_once", [4_000_000, 700])
def test_a_slow_reference_agrees(widths: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_similar, "AT_ONCE", at_once)
    monkeypatch.setattr(_similar, "ROWS", 7)
    n, k = 90, 10
    a = features(n, widths[0])
    b = np.concatenate([0.3 * a[:, :3] + features(n, 3, 1), features(n, widths[1] - 3, 2)], axis=1)
    one, other = slow_prepared([a])[0], slow_prepared([b])[0]
    x, y = (_similar.prepared(layer, _similar.quantile([layer]), CPU) for layer in (a, b))
    assert np.abs(x.numpy() - one).max() < 1e-6
    near_x, near_y = _similar.neighbours(x, k), _similar.neighbours(y, k)
    assert [set(row) for row in near_x.tolist()] == slow_near(one, k)
    expected = [len(p & q) / k for p, q in zip(slow_near(one, k), slow_near(other, k), strict=True)]
    assert _similar.shared(near_x, near_y).tolist() == pytest.approx(expected, abs=1e-6)
    sums = _similar.sums(x, y), _similar.sums(x, x), _similar.sums(y, y)
    kernel, second = one @ one.T, other @ other.T
    assert _similar.cka(*sums) == pytest.approx(slow_cka(kernel, second), abs=1e-6)
    assert _similar.cka(*sums, _similar.Sums.biased) == pytest.approx(slow_cka(kernel, second, unbiased=False), abs=1e-6)
    assert sums[0].unbiased() == pytest.approx(slow_hsic(kernel, second, True), abs=1e-9)
    assert sums[0].biased() == pytest.approx(slow_hsic(kernel, second, False), abs=1e-9)
    assert _similar.cknna(x, y, near_x, near_y) == pytest.approx(slow_cknna(one, other, k), abs=1e-6)
    assert _similar.cknna(x, x, near_x, near_x) == pytest.approx(1)


def test_moments_may_come_in_batches() -> None:
    x, y = (torch.from_numpy(features(50, width, width)) for width in (4, 7))
    whole, parts = _similar.Moments(), _similar.Moments()
    whole.add(x, y)
    for at in (0, 13, 20):
        parts.add(x[at : {0: 13, 13: 20}.get(at)], y[at : {0: 13, 13: 20}.get(at)])
    assert parts.sums().n == 50 and parts.sums().unbiased() == pytest.approx(whole.sums().unbiased(), rel=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.999])
def test_the_quantile_is_exact(share: float) -> None:
    layers = [features(40, 9), features(33, 5, 3) * 1e-30, -np.full((20, 4), 2.5, np.float32), np.zeros((5, 5), np.float32)]
    every = np.sort(np.abs(np.concatenate([layer.ravel() for layer in layers])))
    assert _similar.quantile(layers, share) == every[int(share * len(every))]
    for odd in (np.nan, np.inf, -np.inf):
        assert math.isnan(_similar.quantile([*layers, np.array([[odd]], np.float32)], share))


def test_features_that_do_not_vary_are_like_nothing() -> None:
    same, x = torch.ones(30, 4, dtype=torch.float64) / 2, torch.from_numpy(features(30, 5)).double()
    for hsic in (_similar.Sums.unbiased, _similar.Sums.biased):
        assert _similar.cka(_similar.sums(x, same), _similar.sums(x, x), _similar.sums(same, same), hsic) == 0
        left = []
        for seed in range(20):  # what is left of their variance by rounding is no variance, though often above 0
            same = torch.nn.functional.normalize(torch.from_numpy(features(1, 7, seed)).double()).expand(30, -1)
            left.append(hsic(_similar.sums(same, same)))
            assert _similar.cka(_similar.sums(same, same), _similar.sums(same, same), _similar.sums(same, same), hsic) == 0
        assert max(left) > 0


@pytest.mark.slow
def test_ten_thousand_items_never_make_a_whole_kernel() -> None:
    script = """
import numpy as np, torch
from pathlib import Path
from pivot.probe import _similar
layers = [np.random.default_rng(seed).standard_normal((10_000, width), dtype=np.float32) for seed, width in ((0, 768), (1, 1024))]
x, y = (_similar.prepared(layer, _similar.quantile([layer])) for layer in layers)
near = _similar.neighbours(x, 10), _similar.neighbours(y, 10)
sums = _similar.sums(x, y), _similar.sums(x, x), _similar.sums(y, y)
found = float(_similar.shared(*near).mean()), _similar.cka(*sums), _similar.cknna(x, y, *near)
status = Path("/proc/self/status").read_text()
print(*found, int(status.split("VmHWM:")[1].split()[0]) / 1e6)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    knn, cka, cknna, peak = map(float, told.split())
    assert abs(knn - 10 / 9999) < 4 * math.sqrt(1e-3 / 1e5) and abs(cka) < 0.01 and abs(cknna) < 0.01
    assert peak < 1.5, f"{peak} GB"


# ---- the probe: truth, none, and what must not matter


def compared(vision: list[np.ndarray], text: list[np.ndarray], k: int = 10) -> dict[str, float]:
    made = Probe(k=k)
    sides = [made.side(layers, "it", CPU) for layers in (vision, text)]
    assert isinstance(sides[0], Side)
    metrics, items = made.compare(*sides, [f"item-{i}" for i in range(len(vision[0]))], CPU)
    for name, values in items.items():
        assert np.mean(list(values.values())) == pytest.approx(metrics[name], abs=1e-9)
    return metrics


def test_planted_truth_is_found_at_its_layers_and_permuted_rows_are_at_chance() -> None:
    n = 400
    mess = [features(n, 8, seed) for seed in range(1, 5)]
    true = np.random.default_rng(9).standard_normal((n, 12), dtype=np.float32)  # smaller than what is clamped of the mess
    turn, _ = np.linalg.qr(np.random.default_rng(10).standard_normal((12, 12)))
    found = compared([mess[0], true, mess[1]], [mess[2], mess[3], (true @ turn).astype(np.float32) * 0.5])
    assert found["mutual_knn"] > 0.999 and found["cka"] > 0.999 and found["cknna"] > 0.999
    assert (found["layer/vision"], found["layer/text"]) == (1, 2)
    chance, error = 10 / (n - 1), math.sqrt(10 / (n - 1) / (10 * n))
    assert found["chance/mutual_knn"] == chance
    assert abs(found["last/mutual_knn"] - chance) < 5 * error, "the last pair is not the planted one"
    assert abs(found["last/cka"]) < 0.05 and abs(found["last/cknna"]) < 0.05
    assert chance - 2 * error < found["permuted/mutual_knn"] < chance + 6 * error, "the largest of nine"
    shuffled = compared([true], [true[np.random.default_rng(3).permutation(n)]])
    for name in ("mutual_knn", "permuted/mutual_knn"):
        assert abs(shuffled[name] - chance) < 5 * error
    assert abs(shuffled["cka"]) < 0.03 and shuffled["biased/cka"] > shuffled["cka"]


def test_permuting_twice_is_the_truth_again() -> None:
    """What `permuted` compares is what a probe of permuted captions would."""
    n, made = 200, Probe(k=8, most=200)
    x, noise = np.random.default_rng(0).standard_normal((2, n, 6), dtype=np.float32)
    y = x + 0.3 * noise
    vision, text = made.side([x], "it", CPU), made.side([y], "it", CPU)
    said, _ = made.compare(vision, text, list(map(str, range(n))), CPU)
    moved = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    by_hand, _ = made.compare(vision, made.side([y[moved]], "it", CPU), list(map(str, range(n))), CPU)
    assert said["permuted/mutual_knn"] == by_hand["mutual_knn"] < 0.2 < said["mutual_knn"]
    several, _ = made.compare(made.side([x, noise, y], "it", CPU), made.side([y, x], "it", CPU), list(map(str, range(n))), CPU)
    each = [compared([a], [b], 8)["permuted/mutual_knn"] for a in (x, noise, y) for b in (y, x)]
    assert several["permuted/mutual_knn"] == max(each) > min(each)


def test_what_has_nothing_to_do_with_each_other_is_at_chance(llm: str) -> None:
    found = probe(Encoder.tiny("siglip"), llm)
    n, chance = found.n, 5 / (found.n - 1)
    margin = 4 * math.sqrt(chance / (5 * n))
    assert n == len(ROWS) == len(found.items["mutual_knn"]) and found.unit == "caption"
    assert abs(found.metrics["last/mutual_knn"] - chance) < margin
    assert chance - margin < found.metrics["mutual_knn"] < chance + 1.5 * margin, "the largest of 2 x 3"
    assert abs(found.metrics["permuted/mutual_knn"] - found.metrics["mutual_knn"]) < 2 * margin
    assert found.metrics["layer/vision"] in (1, 2) and found.metrics["layer/text"] in (0, 1, 2), "of vision, blocks alone"


def test_an_encoder_that_shows_the_captions_is_aligned(llm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts.read(llm, [row.responses[0].text for row in ROWS], dtype="float32", device=CPU, batch=64)
    shown = {f"block-{i:02d}": texts[:, i] for i in range(3)}
    monkeypatch.setattr("pivot.encoder.layers.pooled", lambda *_, **__: {"embeddings": 0 * texts[:, 0], **shown})
    found = probe(Encoder.tiny("siglip"), llm)
    assert found.metrics["mutual_knn"] == 1 == found.metrics["last/mutual_knn"]
    assert (found.metrics["layer/vision"], found.metrics["layer/text"]) == (1, 0), "the first of three equals, behind the embeddings"
    assert found.metrics["cka"] == pytest.approx(1) == found.metrics["cknna"]


def test_two_copies_differ_by_nothing_and_others_are_paired(llm: str) -> None:
    encoder = Encoder.tiny("clip")
    arms = {"a": encoder, "b": copy.deepcopy(encoder), "c": Encoder.tiny("convnext", seed=1)}
    a, b, c = Probe(llm=llm, k=5).run(arms, ROWS)
    assert (a.arm, a.name, a.metrics, a.items, a.fingerprint) == ("a", "align", b.metrics, b.items, b.fingerprint)
    for metric in ("mutual_knn", "last/mutual_knn"):
        none = differences([a], [b])[metric]
        assert (none.value, none.low, none.high, none.n) == (0, 0, 0, 120)
        some = differences([a], [c])[metric]
        assert some.low < some.value < some.high and some.n == 120
    assert c.fingerprint != a.fingerprint and c.of == a.of


def test_pooling_is_by_class_token_or_mean(llm: str) -> None:
    clip = Encoder.tiny("clip")
    token, mean = probe(clip, llm, pooling="class"), probe(clip, llm, pooling="mean")
    assert token.items != mean.items == probe(clip, llm).items
    assert probe(clip.tapped(pooling="class"), llm).items == token.items
    with pytest.raises(BadInput, match="siglip has no class token"):
        probe(Encoder.tiny("siglip"), llm, pooling="class")


def test_blocks_above_the_tap_are_not_read(llm: str) -> None:
    encoder = Encoder.tiny("clip")
    clean = probe(encoder, llm)
    for module in towers.above(encoder.model, encoder.tap).values():
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
    assert probe(encoder, llm).items == clean.items
    next(towers.blocks(encoder.model)[0].parameters()).data.fill_(float("nan"))
    with pytest.raises(BadInput, match="features are not finite"):
        probe(encoder, llm)


def test_behind_the_projector(llm: str) -> None:
    encoder = Encoder.tiny("siglip")
    with pytest.raises(BadInput, match="no projector"):
        probe(encoder, llm, at="projector")
    torch.manual_seed(0)
    encoder.projector = torch.nn.Linear(32, 7)
    found = probe(encoder, llm, at="projector")
    assert found.name == "align-projector" and found.items["last/mutual_knn"] != probe(encoder, llm).items["last/mutual_knn"]


# ---- text


def test_padding_counts_for_nothing(llm: str) -> None:
    body, tokenizer = _texts.opened(llm, "float32")
    ids = [tokenizer(text)["input_ids"] for text in ("a red star", "a", " ".join(WORDS))]
    together = _texts.means(body, ids)
    assert together.shape == (3, 3, 32)
    for row, one in enumerate(ids):
        with torch.no_grad():
            alone = body(input_ids=torch.tensor([one]), output_hidden_states=True).hidden_states
        assert torch.allclose(together[row], torch.stack([state[0].mean(0) for state in alone]), atol=1e-5)


def test_half_precision_is_averaged_in_full(llm: str) -> None:
    body, tokenizer = _texts.opened(llm, "bfloat16")
    ids = tokenizer(" ".join(WORDS))["input_ids"]
    with torch.no_grad():
        states = body(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    found = _texts.means(body, [ids])
    assert states[0].dtype == torch.bfloat16 and found.dtype == torch.float32
    assert torch.allclose(found[0], torch.stack([state[0].double().mean(0) for state in states]).float(), atol=1e-6)


def test_text_is_read_once(llm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"dtype": "float32", "device": CPU, "batch": 2}
    first = _texts.read(llm, ["one", "two words", "and three words"], **how)
    monkeypatch.setattr(_texts, "means", lambda *_: pytest.fail("it is in the cache"))
    assert np.array_equal(_texts.read(llm, ["one", "two words", "and three words"], **how), first)
    with pytest.raises(pytest.fail.Exception):
        _texts.read(llm, ["one", "two words", "and four words"], **how)


def test_any_causal_llm_will_do(tmp_path: Path, llm: str) -> None:
    """One whose head stock LLaVA could not hold, too: it is not asked to speak."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    _, tokenizer = _texts.opened(llm, "float32")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=len(tokenizer), head_dim=8, max_position_embeddings=16, **sizes)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = _texts.read(str(tmp_path), ["a star", "a cross and a ring"], dtype="float32", device=CPU, batch=8)
    assert found.shape == (2, 3, 16) and np.isfinite(found).all()
    with pytest.raises(BadInput, match=r"tokens, and LLM .* takes 16; shorten it"):
        _texts.read(str(tmp_path), [" ".join(WORDS * 3)], dtype="float32", device=CPU, batch=8)


# ---- data


def test_a_caption_is_the_truth_or_the_chosen_response() -> None:
    truth = Truth(np.zeros((48, 48), np.uint8), (), np.zeros((48, 48), bool), "a star")
    rows = [
        Example("true", ROWS[0].images, "?", (Response("no"),), truth=truth),
        Example("said", ROWS[1].images, "", (Response("rejected", role="rejected"), Response(" a ring "))),
        Example("turns", ROWS[2].images, "", (Response(({"role": "assistant", "content": "Red."},)),)),
        Example("blind", (), "", (Response("nothing to see"),)),
        *ROWS[:18],
    ]
    found = Probe(k=2, most=20).collect(rows)
    assert found.ids[:3] == ["true", "said", "row-0"] and found.captions[:2] == ["a star", "a ring"] and len(found.images) == 20
    with pytest.raises(
        BadInput, match=r"20 captions \(2 rows have no picture or no caption\) are too few for k=5; give at least 50"
    ) as error:
        Probe(k=5).collect(rows)
    assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="have id row-3 more than once"):
        Probe(k=2).collect([*ROWS[:30], ROWS[3]])
    with pytest.raises(BadInput, match="most=40 captions are too few for k=5"):
        Probe(k=5, most=40)


def test_it_is_found_by_name() -> None:
    assert find("probe", "align") is Probe
