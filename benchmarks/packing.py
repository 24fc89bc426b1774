"""Rows of one response, padded and packed, side by side: tokens per second of forward and backward.

    python benchmarks/packing.py                                # a small model, CPU
    python benchmarks/packing.py --device cuda --size true      # Qwen2.5-1.5B, random weights, under bf16 autocast

Text alone, a micro-batch of 8 rows, no optimiser. Medians of interleaved runs; on the CPU of processor time, which other work on
the machine does not stop.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from statistics import median

import torch
from accelerate.utils import send_to_device

from pivot.data.collate import Row, Trunk, collate
from pivot.data.speech import Span
from pivot.model import MLLM, Scorer

CASES = {
    "30 to 900 tokens": (30, 40, 60, 80, 120, 200, 400, 900),
    "60 to 500 tokens": (60, 80, 110, 150, 200, 270, 370, 500),
    "300 tokens each": (300,) * 8,
    "50 tokens each": (50,) * 8,
}


def row(length: int) -> Row:
    prompt, response = Span(), Span()
    prompt.add([2] * (length * 2 // 3), False)
    response.add([3] * (length - len(prompt)), True)
    return Row(str(length), (Trunk(prompt, (), (), (0,)),), (response,))


def seconds(mllm: MLLM, packing: bool, lengths: tuple[int, ...], device: str) -> float:
    """Of one step."""
    mllm.model.get_submodule(mllm.family.llm).set_attn_implementation("sdpa")
    scorer, batch = Scorer(mllm, packing=packing), send_to_device(collate(map(row, lengths)), device)
    scorer._blank = lambda: torch.zeros((), device=device)  # type: ignore[method-assign]  # these rows have no processor for a picture
    mllm.model.zero_grad()
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    with nullcontext() if device == "cpu" else torch.autocast(device, torch.bfloat16):
        logps = scorer(batch).logps
    torch.cat([response for example in logps for response in example]).sum().neg().backward()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def main() -> None:
    from score import SIZES, build  # behind pivot, which mends transformers where torchvision does not fit torch

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu")
    options.add_argument("--size", choices=SIZES, default="tiny")
    options.add_argument("--runs", type=int, default=5)
    asked = options.parse_args()
    if asked.device == "cpu":
        torch.set_num_threads(1)
    mllm = build(asked.size, asked.device, torch.float32)
    for name, lengths in CASES.items():
        took: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(asked.runs + 1):  # the first warms up
            for packing, found in took.items():
                found.append(seconds(mllm, packing, lengths, asked.device))
        padded, packed = (sum(lengths) / median(found[1:]) for found in took.values())
        padding = 1 - sum(lengths) / (len(lengths) * max(lengths))
        facts = {"padding": round(padding, 2), "padded tokens/s": round(padded), "packed tokens/s": round(packed)}
        print(json.dumps({"rows": name, **facts, "times as fast": round(packed / padded, 2)}))


if __name__ == "__main__":
    main()
