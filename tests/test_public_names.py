"""The names that users may build on. Adding one is a decision, renaming one a break: both belong into the changelog."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from pivot import cli, lookup

NAMES = {
    "pivot.encoder": {"Encoder", "Features"},
    "pivot.model": {"MLLM", "Scorer", "Scores", "score"},
    "pivot.train": {"Rates", "Settings", "train"},
}
RECORDS = {"BadInput", "CheckFailed", "Example", "Measurement", "Response", "Tap", "Shown", "Thing", "Truth", "Held", "Uncached"}
VERBS = {
    "ask": {"mllm", "image", "question", "--longest", "--json"},
    "bench run": {"mllm", "--suite", "--data", "--out", "--arm", "--json"},
    "data convert": {"source", "out", "--to", "--copy", "--json"},
    "data filter": {"source", "out", "--rule", "--size", "--seed", "--tokenizer", "--to", "--copy", "--json"},
    "data doctor": {
        "source",
        "--model",
        "--limit",
        "--label-mask",
        "--template",
        "--too-long",
        "--against",
        "--fix",
        "--workers",
        "--json",
    },
    "data prefer": {
        *("mllm", "source", "out", "--samples", "--pairs", "--route", "--reward", "--reward-model", "--chat", "--threshold", "--chosen"),
        *("--share", "--temperature", "--top-p", "--max-new", "--batch", "--seed", "--limit", "--json"),
    },
    "data make": {"out", "--data", "--json"},
    "data show": {"source", "--items", "--start", "--seed", "--out", "--index", "--image", "--json"},
    "demo": {"changes", "--plan", "--gpus", "--gpu", "--utilisation", "--only", "--again", "--json"},
    "detach": {"mllm", "out", "--to", "--truncate", "--json"},
    "encoder inspect": {"name", "--layer", "--pixels", "--json"},
    "env": {"--json"},
    "probe align": {
        *("encoders", "--data", "--llm", "--k", "--most", "--pooling", "--at", "--seed", "--precision", "--batch", "--set", "--out"),
        "--json",
    },
    "probe change": {"reference", "encoders", "--data", "--precision", "--batch", "--set", "--out", "--json"},
    "probe gradcam": {"folders", "--map", "--order", "--out", "--json"},
    "probe linear": {
        *("encoders", "--data", "--on", "--at", "--targets", "--validation", "--test", "--subset", "--pooling", "--neighbours", "--shots"),
        *("--texts", "--seed", "--precision", "--batch", "--set", "--out", "--json"),
    },
    "probe segment": {
        *("encoders", "--data", "--on", "--at", "--head", "--labels", "--epochs", "--repeats", "--test", "--seed"),
        *("--precision", "--batch", "--set", "--out", "--json"),
    },
    "push": {"folder", "name", "--private", "--update", "--json"},
    "report": {"runs", "--out", "--json"},
    "saliency": {
        *("mllm", "out", "--objective", "--data", "--at", "--steps", "--rate", "--size", "--control", "--keep", "--precision", "--batch"),
        *("--seed", "--arm", "--json"),
    },
    "run": {"recipe", "changes", "--plan", "--gpus", "--gpu", "--utilisation", "--only", "--again", "--json"},
}
READERS = {
    "strangers",
    "instructed",
    "labelled",
    "captions",
    "classes",
    "llava",
    "llava_dpo",
    "masks",
    "mix",
    "mmpr",
    "onevision",
    "rlaif",
    "rows",
    "trl",
    "vlaa",
    "world",
}
OBJECTIVES = {"sft", "dpo", "mpo", "kto", "orpo", "grpo", "ppo", "reward_model"}
REWARDS = {
    "answer",
    "bonus",
    "choice",
    "digit",
    "finished",
    "format",
    "iou",
    "judge",
    "learned",
    "length",
    "maths",
    "mixed",
    "open",
    "similar",
}
MODULES = {
    "data": READERS,
    "objective": OBJECTIVES,
    "reward": REWARDS,
    "pretrain": {"supervised"},
    "probe": {"align", "change", "gradcam", "linear", "segment"},
    "bench": {"world"},
}


@pytest.mark.parametrize("package", NAMES)
def test_packages_export_these_names_and_have_them(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == NAMES[package]
    assert all(hasattr(module, name) for name in module.__all__)


def test_records_are_these() -> None:
    records = importlib.import_module("pivot.records")
    own = {name for name, value in vars(records).items() if getattr(value, "__module__", "") == "pivot.records" and name[0] != "_"}
    assert own == RECORDS


@pytest.mark.parametrize("folder", MODULES)
def test_modules_that_recipes_name(folder: str) -> None:
    assert set(lookup.names(folder)) == MODULES[folder]
    for name in MODULES[folder]:
        assert lookup.find(folder, name)


def commands(group: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each verb with its arguments and options."""
    for name, command in group.commands.items():
        where = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, where)
        else:
            yield where, {p.opts[-1] if p.opts[0].startswith("-") else p.name for p in command.params if p.name != "help"}


def test_verbs_and_their_options_are_these() -> None:
    import typer

    assert dict(commands(typer.main.get_command(cli.app))) == VERBS
