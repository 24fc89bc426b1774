"""The oracle: TRL's real DPOTrainer on the same tiny VLM and the same pairs gives the same loss, gradients and metrics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pivot.data.collate import Row, collate, encode, join
from pivot.model import MLLM, Scorer
from pivot.objective.dpo import Objective as DPO
from pivot.records import Example
from pivot.train.feed import count

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install -e '.[dev]')")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PAD = 0
CASES = [
    (DPO(), {"loss_type": ["sigmoid"]}),
    (DPO(beta=0.5), {"beta": 0.5, "loss_type": ["sigmoid"]}),
    (DPO(alpha=0.7, gamma=0.4), {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.4]}),
    (DPO(kind="ipo", beta=0.4), {"beta": 0.4, "loss_type": ["ipo"]}),
    (DPO(kind="robust", label_smoothing=0.2), {"label_smoothing": 0.2, "loss_type": ["robust"]}),
    (DPO(mean=True, beta=2), {"beta": 2, "loss_type": ["sigmoid_norm"]}),
]


@pytest.fixture(scope="module")
def models(shared_mllm: MLLM) -> tuple[MLLM, MLLM]:
    """A policy that has left its reference, and the reference."""
    policy = MLLM(copy.deepcopy(shared_mllm.model), shared_mllm.processor, shared_mllm.tap)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=dice) * parameter.std(correction=0))
    return policy, MLLM(copy.deepcopy(shared_mllm.model), shared_mllm.processor, shared_mllm.tap)


def trainer(models: tuple[MLLM, MLLM], pairs: Sequence[Example], folder: Path, **options: Any) -> Any:
    from datasets import Dataset

    policy, reference = models
    rows = [
        {
            "images": list(pair.images),
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.responses[0].text}],
            "rejected": [{"role": "assistant", "content": pair.responses[1].text}],
        }
        for pair in pairs
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = trl.DPOConfig(
            output_dir=str(folder),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            per_device_train_batch_size=len(rows),
            dataloader_pin_memory=False,
            **{"beta": 0.1, **options},
        )
        return trl.DPOTrainer(
            model=copy.deepcopy(policy.model),
            ref_model=copy.deepcopy(reference.model),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.processor,
        )


def theirs(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Our tokens in the shape that TRL's loss reads: full rows, all chosen ones first, images twice."""
    full = [(row.trunks[0], row.branches[k]) for k in (0, 1) for row in rows]
    width = max(len(trunk.span) + len(branch) for trunk, branch in full)

    def padded(values: list[int], empty: int) -> list[int]:
        return values + [empty] * (width - len(values))

    return {
        "input_ids": torch.tensor([padded(trunk.span.ids + branch.ids, PAD) for trunk, branch in full]),
        "attention_mask": torch.tensor([padded([1] * (len(trunk.span) + len(branch)), 0) for trunk, branch in full]),
        "completion_mask": torch.tensor([padded([0] * len(trunk.span) + [int(s) for s in branch.supervised], 0) for trunk, branch in full]),
        "pixel_values": join([image for trunk, _ in full for image in trunk.images])["pixel_values"],
    }


def ours(policy: MLLM, reference: MLLM, rows: Sequence[Row], objective: DPO) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    policy.model.zero_grad()
    batch = collate(rows)
    with torch.no_grad():
        before = Scorer(reference)(batch).logps
    loss, metrics = objective.loss(Scorer(policy)(batch).logps, {"counts": count(rows, 2), "reference": before}, None)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}, metrics


@pytest.mark.parametrize(("objective", "options"), CASES)
def test_same_loss_gradients_and_metrics(
    models: tuple[MLLM, MLLM], pairs: list[Example], tmp_path: Path, objective: DPO, options: dict[str, Any]
) -> None:
    policy, reference = models
    rows = [encode(pair, policy.processor) for pair in pairs]
    other = trainer(models, pairs, tmp_path, **options)
    other.model.train()
    wanted = other.compute_loss(other.model, theirs(rows))
    wanted.backward()
    loss, gradients, metrics = ours(policy, reference, rows, objective)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=0)

    expected = {name: p.grad for name, p in other.model.named_parameters() if p.grad is not None}
    assert expected.keys() == gradients.keys()
    prefixes = ("model.vision_tower", "model.multi_modal_projector", "model.language_model")
    assert all(name.startswith(prefixes) for name in gradients)
    for prefix in prefixes:  # against the part's largest: gradients of attention key biases are zero by theory
        names = [name for name in gradients if name.startswith(prefix)]
        largest = max(expected[name].abs().max() for name in names)
        assert largest > 0
        assert max((gradients[name] - expected[name]).abs().max() for name in names) / largest < 1e-4, prefix

    logged = {name: values[-1] for name, values in other._metrics["train"].items()}
    shared = [name for name in metrics if name in logged]
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"} <= set(shared)
    for name in shared:
        if name.startswith("rewards/") and (objective.mean or objective.kind == "ipo"):
            continue  # TRL tells of sums, whatever the loss is made of
        assert metrics[name].item() == pytest.approx(logged[name], rel=1e-4, abs=1e-6), name


def test_the_oracle_sees_another_beta(models: tuple[MLLM, MLLM], pairs: list[Example], tmp_path: Path) -> None:
    policy, reference = models
    rows = [encode(pair, policy.processor) for pair in pairs]
    other = trainer(models, pairs, tmp_path, beta=0.1)
    loss, _, _ = ours(policy, reference, rows, DPO(beta=0.11))
    wanted = other.compute_loss(other.model, theirs(rows)).detach()
    assert abs(loss - wanted) / wanted > 1e-4


def test_its_collator_makes_the_same_tokens(models: tuple[MLLM, MLLM], pairs: list[Example], tmp_path: Path) -> None:
    """But for the newline after a turn, which the clean label mask leaves out and TRL supervises."""
    policy, _ = models
    rows = [encode(pair, policy.processor) for pair in pairs]
    other = trainer(models, pairs, tmp_path)
    batch = other.data_collator([dict(row) for row in other.train_dataset])
    mine = theirs(rows)
    newline = policy.processor.tokenizer("\n").input_ids
    for n in range(len(rows) * 2):
        a = mine["input_ids"][n][mine["attention_mask"][n].bool()].tolist()
        assert batch["input_ids"][n][batch["attention_mask"][n].bool()].tolist() == a + newline
        assert int(batch["completion_mask"][n].sum()) == int(mine["completion_mask"][n].sum()) + len(newline)
    torch.testing.assert_close(batch["pixel_values"], mine["pixel_values"])
