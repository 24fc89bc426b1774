"""Logistic regression of the linear probe, side by side with scikit-learn's.

    python benchmarks/linear.py             # 20,000 x 384 features, 100 classes, one C, both at their own defaults
    python benchmarks/linear.py --large     # 50,000 x 1,152, 1,000 classes on this CPU: a few evaluations, and what all would take
    python benchmarks/linear.py --gpu       # the same on CUDA: the whole search for C and the last fit

Features are made, not read: classes apart by less than the noise within them, axes whose spread falls with their rank and which are
turned at random, and a mean far from zero. That is how features of an encoder look to a solver, and what makes it slow.

Objectives are taken anew from the weights, in float64, over all items. scikit-learn gets float32, with which it is faster, and 1,000
iterations. Both get the same threads; CPU seconds are of all threads together, and change less with what else the machine does.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from pivot.probe._fits import Labelled, Search
from pivot.probe._logistic import Logistic

C = 0.316  # of CLIP's published example
TEST = 10_000


@dataclass(frozen=True)
class Fit:
    """What a solver found, and what it took."""

    seconds: float
    cpu: float
    iterations: int
    objective: float
    accuracy: float  # of items that it has not seen


def features(n: int, width: int, classes: int, device: str = "cpu", seed: int = 0, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """(n, width) float32, and class ids."""
    dice = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=dice)
    centres = torch.randn(classes, width, generator=dice) * apart / width**0.25
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=dice))
    spread = 3 * torch.arange(1, width + 1).float() ** -0.5
    mean = torch.randn(width, generator=dice) / 2
    x = torch.empty(n, width)
    for rows in torch.arange(n).split(10_000):
        x[rows] = ((torch.randn(len(rows), width, generator=dice) + centres[y[rows]]) * spread) @ turn + mean
    return x.to(device), y.to(device)


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c: float) -> float:
    """That of `pivot.probe._logistic`, by C * N."""
    logp = torch.log_softmax(x.double() @ weight.double() + bias.double(), dim=1)
    return float(-logp.gather(1, y[:, None]).mean() + weight.double().square().sum() / (2 * c * len(x)))


def ours(x: Tensor, y: Tensor, classes: int, c: float) -> tuple[Tensor, Tensor, int]:
    found = Logistic(x, y, classes).fit(c)
    return found.weight, found.bias, found.iterations


def theirs(x: Tensor, y: Tensor, classes: int, c: float) -> tuple[Tensor, Tensor, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge, which its iterations say
        found = LogisticRegression(C=c, max_iter=1000).fit(x.numpy(), y.numpy())
    return torch.from_numpy(found.coef_.T.copy()), torch.from_numpy(found.intercept_), int(found.n_iter_[0])


Solver = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor, int]]
SOLVERS: dict[str, Solver] = {"pivot": ours, "scikit-learn": theirs}


def fitted(solver: Solver, x: Tensor, y: Tensor, classes: int, c: float, threads: int) -> Fit:
    """One fit on all but the last TEST items (a third of few), measured on those."""
    test = min(TEST, len(x) // 3)
    fit, seen = (x[:-test], y[:-test]), (x[-test:], y[-test:])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        wall, cpu = time.perf_counter(), time.process_time()
        weight, bias, iterations = solver(*fit, classes, c)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    torch.set_num_threads(before)
    right = (seen[0].double() @ weight.double() + bias.double()).argmax(1) == seen[1]
    return Fit(wall, cpu, iterations, objective(*fit, weight, bias, c), float(right.double().mean()))


def side_by_side(threads: int, runs: int) -> None:
    x, y = features(20_000 + TEST, 384, 100)
    print(f"20,000 x 384, 100 classes, C {C}, {threads} threads; medians of {runs}, interleaved")
    print(f"{'':<14}{'seconds':>9}{'CPU s':>9}{'iterations':>12}{'objective':>12}{'accuracy':>10}")
    found: dict[str, list[Fit]] = {name: [] for name in SOLVERS}
    for _ in range(runs):
        for name, solver in SOLVERS.items():
            found[name].append(fitted(solver, x, y, 100, C, threads))
    middle = {name: sorted(fits, key=lambda fit: fit.seconds)[len(fits) // 2] for name, fits in found.items()}
    for name, fit in middle.items():
        print(f"{name:<14}{fit.seconds:>9.2f}{fit.cpu:>9.2f}{fit.iterations:>12}{fit.objective:>12.7f}{100 * fit.accuracy:>10.2f}")
    a, b = middle["pivot"], middle["scikit-learn"]
    print(f"scikit-learn takes {b.seconds / a.seconds:.1f} times as long ({b.cpu / a.cpu:.1f} times the CPU seconds)")


def large(threads: int, evaluations: int) -> None:
    """Time single evaluations; a search needs some 300, most of them float32."""
    n, width, classes = 50_000, 1_152, 1_000
    torch.set_num_threads(threads)
    x, y = features(n, width, classes)
    begun = time.perf_counter()
    problem = Logistic(x, y, classes)
    flops = 4 * n * width * classes
    print(f"{n:,} x {width:,}, {classes:,} classes, CPU, {threads} threads; {flops / 1e9:.0f} GFLOP an evaluation")
    print(f"axes: {time.perf_counter() - begun:.1f} s")
    weight = torch.zeros(width + 1, classes, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        begun = time.perf_counter()
        for _ in range(evaluations):
            problem._mean_loss(weight, dtype)
        each = (time.perf_counter() - begun) / evaluations
        print(f"{dtype}: {each:.2f} s an evaluation, {flops / each / 1e9:.0f} GFLOP/s; 300 of them {300 * each / 60:.0f} minutes")


def gpu() -> None:
    """The whole search on CUDA, then the last fit, as the probe makes them."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu: there is no CUDA device here; run it where there is one, or --large")
    n, width, classes = 50_000, 1_152, 1_000
    x, y = features(n + TEST, width, classes, "cuda")
    names = [str(int(label)) for label in y]
    split = (range(n * 4 // 5), range(n * 4 // 5, n), range(n, n + TEST))
    of = Labelled.of(x, names, x, split, sorted(set(names)))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate = Logistic._mean_loss
    with patch.object(Logistic, "_mean_loss", autospec=True, side_effect=evaluate) as counted:
        begun = time.perf_counter()
        c, near = Search(-6, 6, 4).best(of, of.train)
        torch.cuda.synchronize()
        searched = time.perf_counter() - begun
        sought = counted.call_count
        of.logistic(c, of.fitted, near)
        torch.cuda.synchronize()
    whole = time.perf_counter() - begun
    peak = (torch.cuda.max_memory_allocated() - before) / 1e9
    print(f"{n:,} x {width:,}, {classes:,} classes, {torch.cuda.get_device_name()}: C {c:.3g} after {searched:.1f} s, {sought} evaluations")
    print(f"with the last fit {whole:.1f} s ({counted.call_count} evaluations), {peak:.2f} GB beside the features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="50,000 x 1,152 on this CPU")
    parser.add_argument("--gpu", action="store_true", help="50,000 x 1,152 on CUDA")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=2, help="timed by --large")
    options = parser.parse_args()
    if options.gpu:
        gpu()
    elif options.large:
        large(options.threads, options.evaluations)
    else:
        side_by_side(options.threads, options.runs)


if __name__ == "__main__":
    main()
