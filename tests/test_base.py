"""The shipped base: what it says about itself is true, and it sees."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from pivot.bench.run import run, speaking
from pivot.bench.world import Benchmark
from pivot.data.world import read
from pivot.files import read_json, read_jsonl
from pivot.model import MLLM
from pivot.model.mllm import BASE
from pivot.world.item import FAMILIES, TASKS


@pytest.fixture(scope="module")
def evidence() -> dict:
    return read_json(BASE / "evidence.json")


def test_the_evidence_is_about_these_weights(evidence: dict) -> None:
    assert evidence["weights"] == read_json(BASE / "pivot.json")["weights"]
    assert {*evidence["accuracy"]} == {*TASKS, *FAMILIES, "mean"}
    assert read_jsonl(BASE / "log.jsonl")


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 10 * 2**20


def test_it_opens_with_plain_transformers() -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(BASE), AutoProcessor.from_pretrained(BASE, backend="pil")
    assert type(model).__name__ == "LlavaForConditionalGeneration" and processor.image_token == "<image>"


def test_measured_anew_it_scores_what_the_evidence_says(evidence: dict, tmp_path: Path) -> None:
    """On 320 other items: the mean of 16 tasks of 20 items has a standard error of about 2 points; four of them are allowed."""
    examples = read(split="test", size=320, seed=77)
    found = run(Benchmark(), speaking(MLLM.load("base")), tmp_path / "answers.jsonl", examples=examples, batch=64)
    assert abs(found.metrics["mean"] - evidence["accuracy"]["mean"]["seen"]) < 0.08


def sees(table: dict, slack: float = 0.0) -> None:
    """Each domain 10 points over text alone, ten tasks 15 points over it, and strangers' pictures destroy the gain."""
    assert all(table[domain]["seen"] >= table[domain]["text"] + 0.10 for domain in FAMILIES)
    assert sum(table[task]["seen"] >= table[task]["text"] + 0.15 for task in TASKS) >= 10
    assert all(table[domain]["shuffled"] <= table[domain]["text"] + 0.03 + slack for domain in FAMILIES)


def has_room(probe: dict) -> None:
    """Attributes that no stage supervised are neither invisible to the tower nor solved."""
    assert all(0.40 <= probe[attribute] <= 0.85 for attribute in ("texture", "orientation"))


def test_it_sees(evidence: dict) -> None:
    sees(evidence["accuracy"])


def test_the_probe_has_room(evidence: dict) -> None:
    has_room(evidence["probe"])


@pytest.mark.slow
def test_the_evidence_can_be_had_again(evidence: dict) -> None:
    """On 1,280 other items. A difference over a domain's 320 has a standard error below 3 points; two of them are allowed."""
    spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "benchmarks" / "base.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    table, probe = benchmark.measure(MLLM.load("base"), items=1280, seed=78)
    sees(table, slack=0.06)
    has_room(probe)
    for domain in FAMILIES:
        assert all(abs(table[domain][kind] - evidence["accuracy"][domain][kind]) < 0.06 for kind in ("seen", "shuffled"))
    assert all(abs(value - evidence["probe"][name]) < 0.06 for name, value in probe.items() if name in ("texture", "orientation"))
