"""A policy step by both scorer backends, side by side: FLOPs, time and peak memory.

    python benchmarks/score.py                                  # a small model, CPU
    python benchmarks/score.py --device cuda --size true        # Qwen2.5-1.5B + SigLIP2-So/16 at 384 pixels, random weights

One example of 576 image tokens, 80 prompt tokens and two responses; forward and backward of a DPO-like loss, no optimiser.
FLOPs are counted by torch on the meta device. Times are medians of interleaved runs, so that a busy machine hurts both alike.
Peak memory is what the step needs beyond the model: on CUDA the allocator's figure, on the CPU the growth of the process's
resident set, each step in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import transformers  # its classes are loaded where they are used, after pivot has mended a torchvision that came beside a CPU torch
from accelerate.utils import send_to_device
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

from pivot.data.collate import Row, Trunk, collate
from pivot.data.speech import Span
from pivot.data.vision import Sight
from pivot.encoder import towers
from pivot.model import MLLM, Scorer
from pivot.records import Tap

BACKENDS = ("shared", "repeat")
PROMPT = 80
CASES = {"short": (10, 10), "paper-like": (150, 150), "long": (800, 800)}  # tokens of the two responses
SIZES = {
    "tiny": {
        "vision": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3},
        "text": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2},
        "words": 8192,
    },
    "true": {
        "vision": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
        "text": {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
        "words": 151_936,
    },
}


def build(size: str, device: str, dtype: torch.dtype, pixels: int = 384) -> MLLM:
    sizes = SIZES[size]
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(image_size=pixels, patch_size=16, vision_use_head=False, **sizes["vision"]),
        text_config=transformers.Qwen2Config(vocab_size=sizes["words"], tie_word_embeddings=True, **sizes["text"]),
        image_token_index=1,
        image_seq_length=(pixels // 16) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.LlavaForConditionalGeneration(config).to(dtype).train()
    tap = Tap(layer=-2)
    for parameter in towers.idle_parameters(model.model.vision_tower, tap).values():
        parameter.requires_grad_(False)
    return MLLM(model, None, tap)  # type: ignore[arg-type]


def batch(mllm: MLLM, responses: tuple[int, ...]) -> dict:
    trunk, branches = Span(), [Span() for _ in responses]
    trunk.add([1] * 576, False)
    trunk.add([2] * PROMPT, False)
    for branch, length in zip(branches, responses, strict=True):
        branch.add([3] * length, True)
    model = mllm.model
    sight = Sight({"pixel_values": torch.rand(1, 3, 384, 384, dtype=model.dtype)}, tokens=576)
    row = Row("row", (Trunk(trunk, (sight,), places=(0,), responses=tuple(range(len(responses)))),), tuple(branches))
    return send_to_device(collate([row]), model.device)


def step(scorer: Scorer, given: dict) -> None:
    """Forward and backward of a preference loss."""
    scorer.zero_grad(set_to_none=True)
    for chosen, rejected in scorer(given).logps:
        (-logsigmoid(0.1 * (chosen.sum() - rejected.sum()))).backward()


def counted(size: str, responses: tuple[int, ...], backend: str) -> int:
    mllm = build(size, "meta", torch.float32)
    # transformers reads values to see whether a plain row is packed; there are none here
    no_packing = patch("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), no_packing:
        step(Scorer(mllm, backend), batch(mllm, responses))  # type: ignore[arg-type]
    return counter.get_total_flops()


def timed(scorers: dict[str, Scorer], given: dict, runs: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {backend: [] for backend in scorers}
    for run in range(runs + 1):
        for backend, scorer in scorers.items():
            started = time.perf_counter()
            step(scorer, given)
            if given["tokens"].is_cuda:
                torch.cuda.synchronize()
            if run:  # the first warms up
                seconds[backend].append(time.perf_counter() - started)
    return {backend: median(found) for backend, found in seconds.items()}


def peak_on_cuda(scorer: Scorer, given: dict) -> int:
    scorer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(scorer, given)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(options: argparse.Namespace, case: str, backend: str) -> int:
    command = [sys.executable, __file__, "--size", options.size, "--dtype", options.dtype, "--only", case, backend]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def only(options: argparse.Namespace, case: str, backend: str) -> int:
    """What one step adds to this fresh process's resident set at its peak. Linux keeps the mark and lets it be reset."""
    mllm = build(options.size, "cpu", getattr(torch, options.dtype))
    given = batch(mllm, CASES[case])
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step(Scorer(mllm, backend), given)  # type: ignore[arg-type]
    return _resident("VmHWM") - before


def _resident(mark: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(mark))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU, bfloat16 on CUDA")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each backend")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    parser.add_argument("--only", nargs=2, metavar=("CASE", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    if options.only:
        print(json.dumps(only(options, *options.only)))
        return
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    if not options.json:
        print(f"{options.size} model, {options.dtype}, {where}, torch {torch.__version__}; median of {options.runs} interleaved runs")
        print(f"{'responses':<12}{'tokens':>10}  {'backend':<8}{'TFLOP':>10}{'seconds':>10}{'MB':>10}{'of repeat':>24}")
    mllm = build(options.size, options.device, getattr(torch, options.dtype))
    scorers = {backend: Scorer(mllm, backend) for backend in BACKENDS}  # type: ignore[arg-type]
    for case, responses in CASES.items():
        given = batch(mllm, responses)
        seconds = timed(scorers, given, options.runs)
        found = {
            backend: {
                "tflop": counted(options.size, responses, backend) / 1e12,
                "seconds": seconds[backend],
                "mb": (peak_on_cuda(scorers[backend], given) if options.device == "cuda" else peak_on_cpu(options, case, backend)) / 1e6,
            }
            for backend in BACKENDS
        }
        show(case, responses, found, options)


def show(case: str, responses: tuple[int, ...], found: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    for backend, figures in found.items():
        shares = {name: figures[name] / found["repeat"][name] for name in figures}
        if options.json:
            facts = {"case": case, "responses": responses, "backend": backend, "size": options.size, "dtype": options.dtype}
            print(json.dumps(facts | {"device": options.device} | figures), flush=True)
        else:
            of_repeat = "".join(f"{share:8.2f}" for share in shares.values())
            print(
                f"{case:<12}{'+'.join(map(str, responses)):>10}  {backend:<8}"
                f"{figures['tflop']:>10.4f}{figures['seconds']:>10.3f}{figures['mb']:>10.0f}{of_repeat:>24}",
                flush=True,
            )


if __name__ == "__main__":
    main()
