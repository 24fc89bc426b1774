"""Measurements as the probes leave them, with invented numbers: pictures, classes and regions are the world's."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from pivot.pictures import picture
from pivot.records import Example, Measurement, Shown
from pivot.runfolder import ORIGINAL
from pivot.world.scene import CLASSES

SIDE = 6  # patches
SHOWN = 4
BLOCKS = 5
PARTS = ("attention", "mlp", "norms")


def uri(example: Example) -> str:
    file = io.BytesIO()
    picture(example.images[0]).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def patches(pixels: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, pixels of a patch)."""
    side = len(pixels) // SIDE
    return pixels[: side * SIDE, : side * SIDE].reshape(SIDE, side, SIDE, side).swapaxes(1, 2).reshape(SIDE, SIDE, -1)


def segment(arm: str, seed: int, ability: float, dice: np.random.Generator, examples: Sequence[Example]) -> Measurement:
    """Which class a head finds in each patch; it errs as often as the arm is not able."""
    shown = []
    for example in examples[:SHOWN]:
        assert example.truth
        cells = patches(example.truth.classes)
        truth = cells.max(axis=2).astype(int)
        wrong = dice.random(truth.shape) > ability
        found = np.where(wrong, dice.permutation(truth.ravel()).reshape(truth.shape), truth)
        names = {str(number): CLASSES[number] for number in sorted({*truth.ravel().tolist(), *found.ravel().tolist()})}
        right = f"{(found == truth).mean():.0%} of the patches as the truth has them"
        shown.append(Shown(example.id, uri(example), found.tolist(), truth.tolist(), right, names))
    items = {metric: _items(dice, level * ability, 0.2) for metric, level in (("recall", 0.8), ("precision", 0.9), ("miou", 0.6))}
    metrics = {metric: float(np.mean(list(of.values()))) for metric, of in items.items()}
    metrics |= {"majority/recall": 0.07, "majority/miou": 0.05, "spread/recall": 0.004}
    metrics |= {f"recall/{name}": float(dice.random()) for name in CLASSES}
    return Measurement("probe", "segment", metrics, 60, "image", arm, seed, "f" * 64, items, shown=tuple(shown))


def gradcam(arm: str, seed: int, ability: float, dice: np.random.Generator, examples: Sequence[Example]) -> Measurement | None:
    """Where the arm's loss looks. The original has none."""
    if arm == ORIGINAL:
        return None
    shown = []
    for example in examples[:SHOWN]:
        assert example.truth
        truth = patches(example.truth.region.astype(float)).mean(axis=2)
        found = dice.random(truth.shape) ** 2 + 2 * ability * truth
        says = f"{example.prompt}\nloss {dice.random():.3g}"
        shown.append(Shown(example.id, uri(example), (found / found.max()).round(4).tolist(), truth.round(4).tolist(), says))
    items: dict[str, dict[str, float]] = {}
    for prefix, worth in {"": 1.0, "cam/": 0.5, "global/": 0.1, "elsewhere/": 0.05}.items():
        levels = {
            "energy": (1 + ability * worth, 0.5),
            "pointing": (0.2 + 0.4 * ability * worth, None),
            "auc": (0.5 + 0.3 * ability * worth, 0.1),
        }
        for metric, (level, spread) in {**levels, "ap": (0.2 + 0.4 * ability * worth, 0.1), "entropy": (0.9 - 0.2 * worth, 0.05)}.items():
            items[prefix + metric] = _items(dice, level, spread)
    items["chance/ap"] = _items(dice, 0.15, 0.05)
    metrics = {metric: float(np.mean(list(of.values()))) for metric, of in items.items()} | {"left_out/region": 3.0}
    return Measurement("probe", "gradcam", metrics, 60, "item", arm, seed, "f" * 64, items, shown=tuple(shown))


def align(arm: str, seed: int, ability: float, dice: np.random.Generator, _: Sequence[Example]) -> Measurement:
    items = {metric: _items(dice, level * ability, 0.08) for metric, level in (("mutual_knn", 0.3), ("last/mutual_knn", 0.25))}
    metrics = {metric: float(np.mean(list(of.values()))) for metric, of in items.items()}
    metrics |= {"cka": 0.2 * ability, "cknna": 0.15 * ability, "layer/vision": 4.0, "layer/text": 2.0}
    metrics |= {"chance/mutual_knn": 0.02, "permuted/mutual_knn": 0.03}
    return Measurement("probe", "align", metrics, 60, "caption", arm, seed, "f" * 64, items)


def change(arm: str, seed: int, ability: float, dice: np.random.Generator, _: Sequence[Example]) -> Measurement | None:
    """How far each block has moved from the original, which is not compared with itself."""
    if arm == ORIGINAL:
        return None
    places = ["embeddings", *(f"block-{number:02d}" for number in range(BLOCKS))]
    metrics: dict[str, float] = {}
    for depth, place in enumerate(places):
        moved = ability * (depth + 1) * (1 + 0.1 * dice.standard_normal())
        metrics[f"weights/{place}"] = 1e-3 * moved
        metrics[f"cka/{place}"], metrics[f"cosine/{place}"] = 1 - 0.01 * moved, 1 - 0.02 * moved
        if place != "embeddings":
            metrics |= {f"weights/{place}/{part}": 1e-3 * moved * (1 + row) for row, part in enumerate(PARTS)}
    items = {f"cosine/{place}": _items(dice, metrics[f"cosine/{place}"], 0.01) for place in places}
    metrics |= {metric: float(np.mean(list(of.values()))) for metric, of in items.items()}
    parts = {name: [f"{name}/{place}" for place in places[1:]] for name in ("weights", "cka", "cosine")}
    means = {name: float(np.mean([metrics[part] for part in of])) for name, of in parts.items()}
    return Measurement("probe", "change", {**metrics, **means}, 60, "image", arm, seed, "f" * 64, items, parts)


MAKERS = {"segment": segment, "gradcam": gradcam, "align": align, "change": change}


def _items(dice: np.random.Generator, level: float, spread: float | None, n: int = 60) -> dict[str, float]:
    """Values of items around a level; right or wrong where there is no spread."""
    values = dice.random(n) < level if spread is None else np.abs(level + spread * dice.standard_normal(n))
    return {f"world-test-{number}": float(value) for number, value in enumerate(values)}
