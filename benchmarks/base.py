"""What a base can see, and what text alone would give; with --ship, make it the one that the package carries.

    python benchmarks/base.py [--model base] [--items 3200]
    python benchmarks/base.py --model runs/base/instruct/model --log runs/base/instruct/metrics.jsonl --ship

`--ship` writes the weights in half precision, evidence.json (this table) and log.jsonl into src/pivot/base.

Per task: accuracy with the picture, accuracy with another item's picture (pictures rotated among the items of a task, so
that everything but the content stays alike), the best of two models without picture (most frequent answer; logistic
regression from the question's words, trained on 12,800 items), and the linear probe of the tower.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from pivot.bench.run import run, speaking
from pivot.bench.world import Benchmark
from pivot.data.world import read
from pivot.files import read_json, read_jsonl, write_json, write_jsonl
from pivot.model import MLLM
from pivot.model.mllm import BASE
from pivot.probe.linear import Probe
from pivot.records import Example
from pivot.world.item import DOMAINS, FAMILIES, TASKS, draft


def strangers(examples: list[Example]) -> list[Example]:
    """Every item with the picture of another item of its task. Twins get the same stranger, or a pair could be half right."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_task[example.task or ""].append(index)
    given = {}
    for places in by_task.values():
        half = len(places) // 2
        for nth, index in enumerate(places):
            given[index] = examples[places[(nth + half + half % 2) % len(places)]].images
    return [replace(example, images=given[index]) for index, example in enumerate(examples)]


def blind(items: int) -> dict[str, float]:
    """Accuracy per task of the best model that sees the question only, scored by pair where the benchmark is."""
    rows = {split: [draft(split, 0, i) for i in range(count)] for split, count in (("train", 12_800), ("test", items))}
    found = {}
    for task in TASKS:
        fit, held = ([made for name, made in rows[split] if name == task] for split in ("train", "test"))
        words = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\S+", binary=True)
        answers = [made.answer.value for made in fit]
        model = LogisticRegression(max_iter=300).fit(words.fit_transform([made.question for made in fit]), answers)
        guesses = list(model.predict(words.transform([made.question for made in held])))
        most = Counter(answers).most_common(1)[0][0]
        truth = [made.answer.value for made in held]
        found[task] = max(_share(guesses, truth, task), _share([most] * len(truth), truth, task))
    return found


def _share(said: list[str], truth: list[str], task: str) -> float:
    right = [a == b for a, b in zip(said, truth, strict=True)]
    if task == "twins":
        right = [a and b for a, b in zip(right[::2], right[1::2], strict=True)]
    return fmean(right)


def measure(mllm: MLLM, items: int, seed: int = 0) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Per task and domain: accuracy with the picture, with a stranger's, and of text alone; and what the linear probe reads."""
    examples = list(read(split="test", size=items, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        seen = run(Benchmark(), speaking(mllm), Path(folder) / "seen.jsonl", examples=examples, batch=128).metrics
        shuffled = run(Benchmark(), speaking(mllm), Path(folder) / "shuffled.jsonl", examples=strangers(examples), batch=128).metrics
    text = blind(items)
    text |= {domain: fmean(text[task] for task in tasks) for domain, tasks in FAMILIES.items()}
    text["mean"] = fmean(text[domain] for domain in FAMILIES)
    named = {f"{kind}/{name}": name for kind, names in (("tasks", DOMAINS), ("domains", FAMILIES)) for name in names} | {"mean": "mean"}
    table = {
        name: {"seen": round(seen[metric], 4), "shuffled": round(shuffled[metric], 4), "text": round(text[name], 4)}
        for metric, name in named.items()
    }
    probe = next(iter(Probe().run({"base": mllm.detach()}, read(split="test", size=1600, seed=seed + 1))))
    return table, dict(probe.metrics)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--items", type=int, default=3200)
    asked.add_argument("--model", default="base")
    asked.add_argument("--log", type=Path, help="metrics.jsonl of the stage that made it; one line in twenty-five is kept")
    asked.add_argument("--ship", action="store_true")
    options = asked.parse_args()
    mllm = MLLM.load(options.model)
    if options.ship:  # measured as it will be opened: rounded to half precision
        mllm.to(dtype="float16").save(BASE)
        mllm = MLLM.load("base")
    table, probe = measure(mllm, options.items)
    print(f"{'':16s} {'picture':>8s} {'stranger':>9s} {'text':>6s}")
    for name, row in table.items():
        print(f"{name:16s} {100 * row['seen']:8.1f} {100 * row['shuffled']:9.1f} {100 * row['text']:6.1f}")
    print({metric: round(value, 3) for metric, value in probe.items()})
    if options.ship:
        measured = {"items": options.items, "weights": read_json(BASE / "pivot.json")["weights"], "accuracy": table}
        write_json(BASE / "evidence.json", {**measured, "probe": probe})
        lines = read_jsonl(options.log) if options.log else []
        write_jsonl(BASE / "log.jsonl", [line for line in lines if line["kind"] == "eval" or line["step"] % 25 == 0])


if __name__ == "__main__":
    main()
