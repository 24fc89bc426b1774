"""Two processes over gloo follow one: as DDP, as FSDP2, and as users launch them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training import curve, distance

from pivot.files import read_json, read_jsonl
from pivot.model import MLLM

BLOCKS = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
GROUPED = {"batch": 3, "group_by": "modality", "drop_last": True}
CHARACTERS = {"name": "length", "unit": "characters", "limit": 60}
GRPO = {"reward": CHARACTERS, "k": 3, "max_new": 3, "kl": 0.1, "passes": 2}
PPO = {"reward": CHARACTERS, "max_new": 3, "critic_rate": 1e-3}
LORA = {"lora": {"rank": 4, "alpha": 8}}
RUNS: list[dict[str, Any]] = [
    {"name": "dpo-1", "objective": "dpo", "knobs": {"gamma": 0.3}, "size": 1},
    {"name": "dpo-ddp", "objective": "dpo", "knobs": {"gamma": 0.3}},
    {"name": "dpo-fsdp", "objective": "dpo", "knobs": {"gamma": 0.3}, "sharded": {}},
    {"name": "grouped-1", "objective": "sft", "settings": GROUPED, "size": 1},
    {"name": "grouped-ddp", "objective": "sft", "settings": GROUPED},
    {"name": "grpo-1", "objective": "grpo", "knobs": GRPO, "size": 1, "settings": {"epochs": 1}},
    {"name": "grpo-ddp", "objective": "grpo", "knobs": GRPO, "settings": {"epochs": 1}},
    {"name": "dpo-planted", "objective": "dpo", "knobs": {"gamma": 0.3}, "planted": True},
]
SLOW: list[dict[str, Any]] = [
    {"name": "sft-1", "objective": "sft", "size": 1},
    {"name": "sft-ddp", "objective": "sft"},
    {"name": "sft-3", "objective": "sft", "size": 3},
    {"name": "sft-fsdp", "objective": "sft", "sharded": BLOCKS},
    {"name": "sft-checkpointing", "objective": "sft", "sharded": BLOCKS, "settings": {"checkpointing": True}},
    {"name": "sft-packed-ddp", "objective": "sft", "settings": {"packing": True}},
    {"name": "sft-packed-fsdp", "objective": "sft", "sharded": BLOCKS, "settings": {"packing": True}},
    {"name": "sft-packed-checkpointing", "objective": "sft", "sharded": BLOCKS, "settings": {"packing": True, "checkpointing": True}},
    {"name": "dpo-1", "objective": "dpo", "size": 1},
    {"name": "dpo-ddp-left", "objective": "dpo", "leave": 9},
    {"name": "dpo-ddp", "objective": "dpo"},
    {"name": "dpo-fsdp-left", "objective": "dpo", "leave": 9, "sharded": BLOCKS},
    {"name": "dpo-fsdp", "objective": "dpo", "sharded": BLOCKS},
    {"name": "grpo-1", "objective": "grpo", "knobs": GRPO, "size": 1},
    {"name": "grpo-fsdp", "objective": "grpo", "knobs": GRPO, "sharded": {}},
    {"name": "mpo-1", "objective": "mpo", "size": 1},
    {"name": "mpo-ddp", "objective": "mpo"},
    {"name": "ppo-1", "objective": "ppo", "knobs": PPO, "size": 1},
    {"name": "ppo-ddp", "objective": "ppo", "knobs": PPO},
    {"name": "ppo-ddp-left", "objective": "ppo", "knobs": PPO, "leave": 4},
    {"name": "ppo-fsdp", "objective": "ppo", "knobs": PPO, "sharded": BLOCKS},
    {"name": "lora-1", "objective": "dpo", "size": 1, "settings": LORA},
    {"name": "lora-ddp", "objective": "dpo", "settings": LORA},
    {"name": "lora-fsdp-left", "objective": "dpo", "leave": 9, "sharded": BLOCKS, "settings": LORA},
    {"name": "lora-checkpointing", "objective": "dpo", "sharded": {}, "settings": {**LORA, "checkpointing": True}},
    {"name": "lora-ppo-1", "objective": "ppo", "knobs": PPO, "size": 1, "settings": LORA},
    {"name": "lora-ppo-fsdp", "objective": "ppo", "knobs": PPO, "sharded": BLOCKS, "settings": LORA},
    {"name": "reward-1", "objective": "reward_model", "size": 1},
    {"name": "reward-fsdp", "objective": "reward_model", "sharded": {}},
    {"name": "bf16-1", "objective": "dpo", "size": 1, "settings": {"precision": "bf16"}},
    {"name": "bf16-ddp", "objective": "dpo", "settings": {"precision": "bf16"}},
    {"name": "bf16-fsdp", "objective": "dpo", "settings": {"precision": "bf16"}, "sharded": {}},
]


def crews(root: Path, runs: list[dict[str, Any]]) -> Path:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, str(here / "crew.py"), json.dumps({"root": str(root), "runs": runs})]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def ran_more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crews(tmp_path_factory.mktemp("crews"), SLOW)


def check_same(root: Path, name: str, one: str, tolerance: float = 1e-5) -> None:
    """Same curves, weights, and counts as the run of one process."""
    for kind in ("train", "eval"):
        assert curve(root / name, kind) == pytest.approx(curve(root / one, kind), rel=tolerance)
    for metric in ("grad_norm", "logps/chosen", "lengths/chosen"):
        assert curve(root / name, metric=metric) == pytest.approx(curve(root / one, metric=metric), rel=max(tolerance, 1e-4)), metric
    a, b = (load_file(root / run / "model" / "model.safetensors") for run in (name, one))
    assert distance(a, b) < max(1e-4, 3 * tolerance)
    ledgers = [read_json(root / run / "ledger.json") for run in (name, one)]
    assert [ledger["processes"] for ledger in ledgers][1] == 1 < ledgers[0]["processes"]
    for fact in ("image_tokens", "text_tokens", "ids_sha256", "steps"):
        assert ledgers[0][fact] == ledgers[1][fact], fact
    again = ledgers[0]["settings"]["checkpointing"]  # then activations are computed twice
    assert ledgers[0]["flops"] > ledgers[1]["flops"] if again else ledgers[0]["flops"] == ledgers[1]["flops"]
    for part in ("tower", "projector", "llm"):
        facts = [ledger["parts"][part] for ledger in ledgers]
        assert facts[0]["gradient"] == pytest.approx(facts[1]["gradient"], rel=max(0.01, 10 * tolerance))
        assert facts[0]["moved"] == pytest.approx(facts[1]["moved"], rel=0.25)  # over samples, of each shard its own


def check_same_rollouts(root: Path, name: str, one: str) -> None:
    """Same replies, what they earned, and what was learned from them."""
    logs = [read_jsonl(root / run / "metrics.jsonl") for run in (name, one)]
    for metric in ("reward", "completions/clipped_ratio", *(["reward_std"] if "grpo" in name else [])):
        rewards = [[line[metric] for line in log if metric in line] for log in logs]
        assert rewards[0] and rewards[0] == pytest.approx(rewards[1], rel=1e-6), metric
    for metric in ("loss", "grad_norm", "ratio", "completions/mean_length"):
        assert curve(root / name, metric=metric) == pytest.approx(curve(root / one, metric=metric), rel=1e-3, abs=1e-5), metric
    assert curve(root / name, "eval") == pytest.approx(curve(root / one, "eval"), rel=1e-6)
    a, b = (load_file(root / run / "model" / "model.safetensors") for run in (name, one))
    assert distance(a, b) < 1e-4
    ledgers = [read_json(root / run / "ledger.json") for run in (name, one)]
    for fact in ("image_tokens", "text_tokens", "ids_sha256", "steps", "flops"):
        assert ledgers[0][fact] == pytest.approx(ledgers[1][fact]) if fact == "flops" else ledgers[0][fact] == ledgers[1][fact], fact


def ends(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(root.glob(f"{name}-[0-9].json"))]


def test_two_processes_follow_one_as_ddp_and_as_fsdp2(tmp_path: Path) -> None:
    """Batches of 7 and of 1 row: the second process has fewer rows, then none, and once no image.

    One test, since what takes time is to start the process that forks all of these.
    """
    root = crews(tmp_path, RUNS)
    check_same(root, "dpo-ddp", "dpo-1")
    assert len(curve(root / "dpo-ddp")) == 4
    assert len({end["weights"] for end in ends(root, "dpo-ddp")}) == 1  # both processes end with the same weights

    check_same(root, "grouped-ddp", "grouped-1")
    assert len(curve(root / "grouped-ddp")) == 4  # of 8 rows each epoch two batches of 3

    check_same(root, "dpo-fsdp", "dpo-1")
    assert all(end["sharded"] for end in ends(root, "dpo-fsdp"))
    MLLM.load(root / "dpo-fsdp" / "model")  # gathered, whole, and with the hashes that it was saved with

    check_same_rollouts(root, "grpo-ddp", "grpo-1")

    # Planted: the module that is trained is not the one that was wrapped. Then all of this fails but the first loss.
    planted, wanted = curve(root / "dpo-planted"), curve(root / "dpo-1")
    assert planted[0] == pytest.approx(wanted[0], rel=1e-5)
    assert max(abs(a / b - 1) for a, b in zip(planted, wanted, strict=True)) > 1e-3
    assert len({end["weights"] for end in ends(root, "dpo-planted")}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "one", "tolerance"),
    [
        ("sft-ddp", "sft-1", 1e-5),
        ("sft-3", "sft-1", 1e-5),
        ("sft-fsdp", "sft-1", 1e-5),
        ("sft-checkpointing", "sft-1", 1e-5),
        ("dpo-ddp", "dpo-1", 1e-5),
        ("mpo-ddp", "mpo-1", 1e-5),
        ("dpo-ddp-left", "dpo-1", 1e-5),
        ("lora-ddp", "lora-1", 1e-5),
        ("lora-fsdp-left", "lora-1", 1e-5),
        ("lora-checkpointing", "lora-1", 1e-5),
        ("dpo-fsdp", "dpo-1", 1e-5),
        ("dpo-fsdp-left", "dpo-1", 1e-5),
        ("bf16-ddp", "bf16-1", 2e-2),
        ("sft-packed-ddp", "sft-1", 1e-5),
        ("sft-packed-fsdp", "sft-1", 1e-5),
        ("sft-packed-checkpointing", "sft-1", 1e-5),
        ("bf16-fsdp", "bf16-1", 2e-2),
    ],
)
def test_every_way_of_spreading_follows_one_process(ran_more: Path, name: str, one: str, tolerance: float) -> None:
    check_same(ran_more, name, one, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo-ddp", "dpo-fsdp"])
def test_a_crew_that_was_left_goes_on_to_the_same_bits(ran_more: Path, name: str) -> None:
    assert ends(ran_more, name) == ends(ran_more, f"{name}-left")
    lines = read_jsonl(ran_more / f"{name}-left" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("grpo-fsdp", "grpo-1"),
        ("ppo-ddp", "ppo-1"),
        ("ppo-ddp-left", "ppo-1"),
        ("ppo-fsdp", "ppo-1"),
        ("lora-ppo-fsdp", "lora-ppo-1"),
    ],
)
def test_more_crews_write_and_learn_as_one_process(ran_more: Path, name: str, one: str) -> None:
    check_same_rollouts(ran_more, name, one)


@pytest.mark.slow
def test_the_head_of_a_reward_model_comes_out_of_its_shards(ran_more: Path) -> None:
    heads = [load_file(ran_more / name / "model" / "head.safetensors") for name in ("reward-fsdp", "reward-1")]
    assert distance(heads[0], heads[1]) < 1e-4 and heads[0]["weight"].abs().max() > 0


# ---- as users launch it

RECIPE = """
name: two
init: tiny
data: {pairs: {read: world, size: 10, seed: 3}, held: {read: world, split: validation, size: 3}}
arms:
  dpo: {objective: {name: dpo}, rates: {tower: 1.0e-3, projector: 1.0e-3, llm: 1.0e-3}}
post: {data: pairs, validation: held, epochs: 2, batch: 4, micro: 2, save_every: 3}
"""


def pivot_run(recipe: Path, out: Path, launcher: list[str]) -> None:
    environment = {**os.environ, "PIVOT_CACHE": str(out.parent / "cache" / out.name), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, *launcher, "-m", "pivot", "run", str(recipe), f"out={out}", "--json"]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["ddp", "fsdp2"])
def test_accelerate_launch_runs_a_recipe(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "two.yaml").write_text(RECIPE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    pivot_run(tmp_path / "two.yaml", tmp_path / "one", [])
    pivot_run(tmp_path / "two.yaml", tmp_path / "two", ["-m", "accelerate.commands.launch", *how, "--num_processes", "2", *fixed])
    a, b = tmp_path / "two" / "post-dpo" / "seed-0", tmp_path / "one" / "post-dpo" / "seed-0"
    assert read_json(a / "ledger.json")["processes"] == 2
    assert len(curve(a)) == 6 and curve(a) == pytest.approx(curve(b), rel=1e-5)
    assert curve(a, "eval") == pytest.approx(curve(b, "eval"), rel=1e-5)
    MLLM.load(a / "model")
