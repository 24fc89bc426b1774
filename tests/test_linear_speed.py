"""The solver's floor: three times as fast as scikit-learn's default, and never above its objective."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_one_fit_is_three_times_as_fast_as_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_linear", Path(__file__).parents[1] / "benchmarks" / "linear.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)  # where its dataclasses look for their module
    spec.loader.exec_module(benchmark)
    x, y = benchmark.features(20_000 + benchmark.TEST, 384, 100)
    # on one thread CPU seconds are what it takes, whatever else the machine does
    fits = {name: benchmark.fitted(solver, x, y, 100, benchmark.C, threads=1) for name, solver in benchmark.SOLVERS.items()}
    ours, theirs = fits["pivot"], fits["scikit-learn"]
    assert ours.objective <= theirs.objective
    assert abs(ours.accuracy - theirs.accuracy) <= 0.002, "scikit-learn stops short of its minimum, which moves a few items"
    assert theirs.cpu / ours.cpu >= 3, fits
