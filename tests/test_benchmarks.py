"""Benchmarks are run by hand, mostly on GPUs: one that no longer runs must not be found out there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pivot.model import Scorer

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "linear", "packing", "score"])
def test_a_benchmark_explains_itself(name: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_a_step_of_both_scorers_runs() -> None:
    spec = importlib.util.spec_from_file_location("benchmark", FOLDER / "score.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    mllm = benchmark.build("tiny", "cpu", torch.float32)
    for backend in benchmark.BACKENDS:
        benchmark.step(Scorer(mllm, backend), benchmark.batch(mllm, (10, 10)))
        assert mllm.model.model.multi_modal_projector.linear_1.weight.grad is not None
