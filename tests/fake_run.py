"""A run folder as a real run leaves it, with invented numbers: pictures and questions are the world's, replies are drawn by lot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_probes
import numpy as np
import yaml

from pivot.bench import run as asking
from pivot.data import world
from pivot.files import write_json, write_jsonl, write_text
from pivot.records import Example, Measurement
from pivot.runfolder import ORIGINAL, RunFolder

SKILL = {ORIGINAL: 0.55, "sft": 0.62, "dpo": 0.7}
RATES = {"sft": 5e-5, "dpo": 1e-5}
STEPS = 40
WRITING = {"grpo": 1, "ppo": 2}  # arms that write their own responses, and how often they learn from each


def make(
    path: Path,
    *,
    arms: Sequence[str] = (ORIGINAL, "sft", "dpo"),
    seeds: Sequence[int] = (0,),
    size: int = 96,
    skill: Mapping[str, float] = SKILL,
    name: str = "demo",
    probes: Sequence[str] = (),
) -> RunFolder:
    """Write the folder. Arms that `skill` does not know have 0.6. `probes` are those besides the linear one."""
    folder = RunFolder(path)
    items = list(world.read(split="test", size=size, seed=3))
    trained = [arm for arm in arms if arm != ORIGINAL]
    folder.note(name=name, versions={"pivot-vision": "0.1.0", "torch": "2.13.0", "transformers": "5.14.1"}, stages={})
    write_text(folder.recipe_file, yaml.safe_dump(_recipe(name, arms, seeds, probes), sort_keys=False))
    bare = [replace(item, images=()) for item in items]  # the first arm keeps the pictures: writing them is slow
    for arm in arms:
        for seed in [0] if arm == ORIGINAL else seeds:
            dice = np.random.default_rng([*map(ord, arm), seed])
            ability = skill.get(arm, 0.6) + 0.01 * dice.standard_normal()
            answers(folder, arm, seed, items if arm == arms[0] else bare, ability)
            folder.write_measurement(linear(arm, seed, ability, dice))
            for probe in probes:
                # Gradients are those of the weights that all seeds begin with.
                found = fake_probes.MAKERS[probe](arm, seed, ability, dice, items) if probe != "gradcam" or seed == seeds[0] else None
                if found:
                    folder.write_measurement(found)
            encoder(folder, arm, seed)
            if arm in trained:
                training(folder, arm, seed, dice, trained.index(arm))
    return folder


def answers(folder: RunFolder, arm: str, seed: int, items: Sequence[Example], ability: float) -> None:
    """Each item has its own difficulty, the same for all arms; so arms agree on most items, as real ones do."""
    lot = np.random.default_rng(5).random(len(items))
    sway = np.random.default_rng([seed, *map(ord, arm)])

    def reply(asked: Sequence[Example]) -> list[str]:
        said = []
        for bare in asked:
            index = next(i for i, item in enumerate(items) if item.id == bare.id)
            responses = items[index].responses
            right = lot[index] + 0.08 * sway.standard_normal() < ability
            said.append(str(responses[0 if right else 1 + index % 2].text))
        return said

    benchmark = _World()
    file = folder.answers_file(arm, seed, "world")
    found = asking.run(benchmark, reply, file, examples=items, arm=arm, seed=seed)
    folder.write_measurement(replace(found, name="world"))


class _World:
    """The world's benchmark without its own data."""

    def prompt(self, example: Example) -> Any:
        return example.prompt

    def parse(self, reply: str, example: Example) -> str | None:
        return reply.rstrip(".").split()[-1] if reply.strip() else None

    def grade(self, reply: str, example: Example) -> float:
        return float(reply == example.responses[0].text)

    def examples(self) -> Sequence[Example]:
        return []


def linear(arm: str, seed: int, ability: float, dice: np.random.Generator) -> Measurement:
    """Three objects a picture, four targets, three classifiers."""
    targets = {"kind": 0.25, "colour": 0.2, "texture": -0.1, "orientation": -0.05}
    lot = np.random.default_rng(6).random((len(targets), 120))
    items: dict[str, dict[str, float]] = {}
    metrics: dict[str, float] = {}
    for prefix, shift in {"": 0.0, "prototype/": -0.12, "majority/": None}.items():  # type: ignore[dict-item]
        for row, (target, easy) in enumerate(targets.items()):
            hits = lot[row] < 0.2 if shift is None else lot[row] + 0.05 * dice.standard_normal(120) < ability + easy + shift
            items[prefix + target] = {f"world-test-{i // 3}/{i % 3}": float(hit) for i, hit in enumerate(hits)}
            metrics[prefix + target] = float(hits.mean())
        metrics[f"{prefix}mean"] = float(np.mean([metrics[prefix + target] for target in targets]))
    metrics |= {f"C/{target}": 10.0**row for row, target in enumerate(targets)}
    parts = {f"{prefix}mean": [prefix + target for target in targets] for prefix in ("", "prototype/", "majority/")}
    return Measurement("probe", "linear", metrics, 120, "object", arm, seed, "f" * 64, items, parts)


def training(folder: RunFolder, arm: str, seed: int, dice: np.random.Generator, place: int) -> None:
    """metrics.jsonl and ledger.json of stage post."""
    sides, rate = (1, RATES.get(arm, 1e-5)) if arm == "sft" else (2, RATES.get(arm, 1e-5))
    writes = arm in WRITING
    lines = []
    for step in range(STEPS + 1):
        fall = math.exp(-step / 15)
        for kind in [*(["train"] if step else []), *(["eval"] if step % 10 == 0 else [])]:
            noise = (0.12 if kind == "train" else 0.02) * dice.standard_normal()
            line: dict[str, Any] = {"step": step, "kind": kind, "loss": (1.4 if sides == 1 else 0.1) + 0.6 * fall + 0.3 * noise}
            if writes:
                line |= {"reward": 0.4 + 0.3 * (1 - fall) + noise, "frac_reward_zero_std": 0.2 * fall, "sampler/difference": 1e-6}
                line |= {"completions/mean_length": 6 + noise, **({"loss": -float(line["reward"])} if kind == "eval" else {})}
            elif sides == 2:
                line |= {"rewards/margins": 2 * (1 - fall) + noise, "rewards/accuracies": min(1.0, 0.5 + 0.3 * (1 - fall) + 0.2 * noise)}
                line["logps/rejected"] = -9 - 4 * (1 - fall) + noise
            line |= {} if writes else {"logps/chosen": -8 + (1 - fall) + noise}
            lines.append(line | {"seconds": 0.4 * step, "lr/tower": rate * (1 - step / STEPS)})
    write_jsonl(folder.post(arm, seed) / "metrics.jsonl", lines)
    objective = {"name": arm, "beta": 0.1} if sides == 2 else {"name": arm}
    learns = "the chosen response alone" if sides == 1 else "the chosen and the rejected response"
    reference = {"seconds": 9.5, "flops": 4.1e12, "cached": False} if sides == 2 and not writes else None
    ledger = {"stage": "post", "arm": arm, "seed": seed, "objective": objective, "examples": 1280, "epochs": 1, "batch": 32, "steps": STEPS}
    ledger |= {"image_tokens": 1280 * 36, "text_tokens": 1280 * 22 * sides, "flops": 1.9e13 * (1 + 0.35 * (sides - 1)), "device": "cpu"}
    ledger |= {"seconds": 31.4 + 11 * place, "precision": "fp32", "rates": dict.fromkeys(("tower", "projector", "llm"), rate)}
    ledger |= {"parts": {part: {"trained": True, "gradient": 0.12, "moved": 0.003} for part in ("tower", "projector", "llm")}}
    ledger |= {"ids_sha256": f"{seed:02d}" + "ab" * 31, "versions": {"torch": "2.13.0"}, "reference": reference, "processes": 1}
    ledger |= {"learns": "its prompt and 4 replies that the model writes itself" if writes else learns, "passes": WRITING.get(arm, 1)}
    ledger |= {"steps": STEPS * WRITING[arm], "written_tokens": 7680} if writes else {}
    ledger |= {"settings": {"schedule": "cosine", "warmup": 0.03, "keep": "last", "seed": seed}, "best": [STEPS, 0.4]}
    ledger |= {"alarms": [] if sides == 1 else ["lengths/chosen went from 9 to 14 tokens: rows are not mixed, or lengths are being gamed"]}
    write_json(folder.post(arm, seed) / "ledger.json", ledger)


def encoder(folder: RunFolder, arm: str, seed: int) -> None:
    """parity.json and tap.json of a detached encoder."""
    stale = [
        "block 6 of 6: above the tap, as before training",
        "post_layernorm: the final norm, as before training; the tap is in front of it",
    ]
    parity = {"difference": 0.0, "projector_difference": 0.0, "against": "mllm", "read": "hidden_states[-2][:, 0:]", "images": 4}
    parity |= {"shape": [4, 36, 128], "dtype": "float32", "device": "cpu", "through": "transformers 5.14.1, SiglipVisionModel"}
    write_json(folder.encoder(arm, seed) / "parity.json", parity | {"truncated": False, "stale": stale, "exact": True})
    tap = {"layer": -2, "norm": False, "prefix": 0, "pooling": "mean"}
    write_json(
        folder.encoder(arm, seed) / "tap.json", {"family": "siglip", "tap": tap, "weights": "c" * 64, "projector": None, "left_out": []}
    )


def _recipe(name: str, arms: Sequence[str], seeds: Sequence[int], probes: Sequence[str]) -> dict[str, Any]:
    def choice(arm: str) -> dict[str, Any]:
        objective = {"name": arm} if arm == "sft" else {"name": arm, "beta": 0.1}
        return {"objective": objective, "rates": dict.fromkeys(("tower", "projector", "llm"), RATES.get(arm, 1e-5))}

    return {
        "name": name,
        "init": "base",
        "data": {
            "pairs": {"read": "world", "split": "train", "size": 1280, "seed": 7},
            "heldout": {"read": "world", "split": "test", "size": 96},
        },
        "seeds": list(seeds),
        "arms": {arm: {} if arm == ORIGINAL else choice(arm) for arm in arms},
        "post": {"data": "pairs", "epochs": 1, "batch": 32, "schedule": "cosine", "warmup": 0.03, "precision": "fp32"},
        "probes": {name: {"data": "heldout"} for name in ("linear", *probes)},
        "bench": {"world": {"data": "heldout"}},
    }


# ---- a folder whose every text is out to break the page

EVIL = "\"><img src=x onerror=alert(1)><script>alert(2)</script></title></style></pre>{{ 7*7 }}'<b id=evil>&amp;\x00\u202e\ud800"
EVIL_ARMS = (ORIGINAL, "<script>alert(3)<script>", "\"><img src=x onerror=alert(4)>'><svg onload=alert(5)>" + "w" * 60)
KEPT = {"arm", "kind", "name", "stage", "image", "fingerprint", "id", "pair", "ids_sha256", "picture"}  # what files are found or joined by


def evil(path: Path) -> RunFolder:
    """Markup in arm names, metrics, prompts, replies, ledgers, parity, versions and the recipe. Valid JSON throughout."""
    folder = make(path, arms=EVIL_ARMS, name=EVIL, probes=tuple(fake_probes.MAKERS))
    for file in [*path.rglob("*.json"), *path.rglob("*.jsonl")]:
        lines = [json.loads(line) for line in ([file.read_text()] if file.suffix == ".json" else file.read_text().splitlines())]
        file.write_text("".join(json.dumps(_poisoned(line)) + "\n" for line in lines))
    text = folder.recipe_file.read_text().replace("cosine", json.dumps(EVIL))
    folder.recipe_file.write_text(text, encoding="utf-8", errors="replace")
    return folder


def _poisoned(value: Any, key: str = "") -> Any:
    """Texts get `EVIL` behind them, names of metrics too, in the same way wherever they stand."""
    if isinstance(value, str):
        return value if key in KEPT else value + EVIL
    if isinstance(value, list):
        return [_poisoned(one) for one in value]
    if isinstance(value, dict):
        named = key in ("metrics", "items", "parts", "versions")
        return {name + EVIL if named and "tower" not in value else name: _poisoned(one, name) for name, one in value.items()}
    return value
