"""One step of GRPO without its rewards: eight replies to each prompt are written, then scored, forward and backward.

    python benchmarks/rollout.py                                # a small model, CPU
    python benchmarks/rollout.py --device cuda --size true      # Qwen2.5-1.5B + SigLIP2-So/16 at 224 pixels, random weights

196 image tokens, 60 prompt tokens, replies of 120 tokens that never end by themselves. Scoring is done with the trunk shared and
with one full row a reply, interleaved; its FLOPs are counted by torch on the meta device. Times are medians; tokens a second are
those of the replies.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import torch
from accelerate.utils import send_to_device
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pivot.data.collate import Row, Trunk, collate
from pivot.data.speech import Span
from pivot.data.vision import Sight
from pivot.model import MLLM, Scorer
from pivot.model.rollout import Sampling, answered, draws

BACKENDS = ("shared", "repeat")
PIXELS, IMAGE, PROMPT = 224, 196, 60
STEP = Sampling(k=8, max_new=120)


def prompt(mllm: MLLM, number: int) -> Row:
    trunk = Span()
    trunk.add([1] * IMAGE, False)
    trunk.add([2] * PROMPT, False)
    sight = Sight({"pixel_values": torch.rand(1, 3, PIXELS, PIXELS, dtype=mllm.model.dtype)}, tokens=IMAGE)
    return Row(str(number), (Trunk(trunk, (sight,), places=(0,), responses=()),), ())


def generate(scorer: Scorer, rows: list[Row]) -> list[Row]:
    """The rows with replies."""
    # There is no processor here, and so no end token.
    with patch.object(Scorer, "_ends", lambda _: frozenset({-1})):
        given = send_to_device(collate(rows), scorer.model.device)
        found = scorer(given, sampling=STEP, draws=draws([row.id for row in rows], STEP))
    return [answered(row, ids) for row, ids in zip(rows, found.ids, strict=True)]


def learn(scorer: Scorer, rows: list[Row]) -> None:
    """Forward and backward of a loss in which half of the replies are better than the others."""
    scorer.zero_grad(set_to_none=True)
    advantages = torch.linspace(-1, 1, STEP.k, device=scorer.model.device)
    logps = torch.stack([torch.stack(replies) for replies in scorer(send_to_device(collate(rows), scorer.model.device)).logps])
    ratio = (logps - logps.detach()).exp()  # (prompts, k, s)
    (-ratio.mean(-1) * advantages).mean().backward()


def counted(size: str, backend: str, model: Callable[..., MLLM]) -> int:
    """FLOPs of learning from one prompt's replies."""
    mllm = model(size, "meta", torch.float32, PIXELS)
    rows = [answered(prompt(mllm, 0), [[3] * STEP.max_new] * STEP.k)]
    # transformers reads values to see whether a plain row is packed; there are none here
    no_packing = patch("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), no_packing:
        learn(Scorer(mllm, backend), rows)  # type: ignore[arg-type]
    return counter.get_total_flops()


def seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    from score import SIZES, build  # behind pivot, which mends transformers where torchvision does not fit torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU, bfloat16 on CUDA")
    parser.add_argument("--prompts", type=int, default=2, help="in a batch")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each part")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    mllm = build(options.size, options.device, getattr(torch, options.dtype), PIXELS)
    rows = [prompt(mllm, number) for number in range(options.prompts)]
    scorers = {backend: Scorer(mllm, backend) for backend in BACKENDS}  # type: ignore[arg-type]
    written = generate(scorers["shared"], rows)  # warms up
    taken: dict[str, list[float]] = {part: [] for part in ("generation", *BACKENDS)}
    for run in range(options.runs + 1):
        parts = {"generation": lambda: generate(scorers["shared"], rows)}
        parts |= {backend: lambda scorer=scorer: learn(scorer, written) for backend, scorer in scorers.items()}  # type: ignore[misc]
        for part, work in parts.items():
            found = seconds(work, options.device)
            if run:
                taken[part].append(found)
    flops = {backend: counted(options.size, backend, build) * options.prompts for backend in BACKENDS}
    show({part: median(found) for part, found in taken.items()}, flops, options)


def show(taken: dict[str, float], flops: dict[str, int], options: argparse.Namespace) -> None:
    tokens = options.prompts * STEP.k * STEP.max_new
    if not options.json:
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(f"{options.size} model, {options.dtype}, {where}, torch {torch.__version__}; {options.prompts} prompts, {options.runs} runs")
        print(f"{'part':<18}{'TFLOP':>10}{'seconds':>10}{'tokens/s':>10}{'of repeat: FLOPs, seconds':>28}")
    for part, found in taken.items():
        facts = {
            "part": part,
            "tflop": flops[part] / 1e12 if part in flops else None,
            "seconds": found,
            "tokens_per_second": tokens / found,
        }
        if options.json:
            told = {"size": options.size, "dtype": options.dtype, "device": options.device, "prompts": options.prompts}
            print(json.dumps(facts | told), flush=True)
            continue
        cost = f"{flops[part] / 1e12:.4f}" if part in flops else ""
        shares = f"{flops[part] / flops['repeat']:.3f}  {found / taken['repeat']:.3f}" if part in flops else ""
        name = part if part == "generation" else f"scoring, {part}"
        print(f"{name:<18}{cost:>10}{found:>10.3f}{tokens / found:>10.0f}{shares:>28}", flush=True)


if __name__ == "__main__":
    main()
