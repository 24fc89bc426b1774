"""The oracle, loss by loss: TRL's own loss methods are handed the same tensors, without a model or a trainer around them."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_objective import Rows, batch, rows
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pivot.objective._online import Rollouts
from pivot.objective.grpo import Objective as GRPO
from pivot.objective.kto import Objective as KTO
from pivot.objective.orpo import Objective as ORPO
from pivot.objective.reward_model import Objective as RewardModel

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install -e '.[dev]')")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ALONE = SimpleNamespace(
    gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x, num_processes=1, device=torch.device("cpu")
)


class Borrowed(SimpleNamespace):
    """What a trainer's method reads of its trainer. Which branch it takes is said; of the rest, no feature is on."""

    def __init__(self, method: Any, **given: Any) -> None:
        off = {"aux_loss_enabled": False, "off_policy_mask_threshold": None, "_entropy_bonus_enabled": False, "use_vllm": False}
        logs = {"train": defaultdict(list), "eval": defaultdict(list)}
        model = SimpleNamespace(training=True)
        super().__init__(
            **{**off, "accelerator": ALONE, "model": model, "_metrics": logs, "_total_train_tokens": 0, "_tp_size": 1, **given}
        )
        self._method = method

    def __call__(self, *given: Any) -> Any:
        return self._method(self, *given)


def padded(nested: Rows) -> tuple[Tensor, Tensor]:
    """Replies one below the other, and which places are theirs."""
    flat = [reply for row in nested for reply in row]
    return pad_sequence(flat, batch_first=True), pad_sequence([torch.ones(len(reply)) for reply in flat], batch_first=True)


def gradients(loss: Tensor, logps: Rows) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [response for row in logps for response in row], retain_graph=True))


def leaves(nested: Rows) -> Rows:
    return [[response.requires_grad_() for response in row] for row in nested]


@pytest.mark.parametrize(("reduce", "theirs"), [("sequence", "grpo"), ("token", "dapo"), ("token", "bnpo"), ("length", "dr_grpo")])
@pytest.mark.parametrize("knobs", [{"kl": 0.0}, {"kl": 0.3, "clip_low": 0.1, "clip_high": 0.35}])
def test_grpo_is_trls(reduce: Any, theirs: str, knobs: dict[str, float]) -> None:
    """Loss, gradients and the mean distance, with several ratios beyond the clip."""
    objective = GRPO(reward="digit", k=3, max_new=11, reduce=reduce, passes=2, **knobs)
    logps, reference, noise = leaves(rows(0, 6, 3)), rows(1, 6, 3), rows(3, 6, 3, scale=-1)
    old = [[now.detach() + far - 0.5 for now, far in zip(*both, strict=True)] for both in zip(logps, noise, strict=True)]
    rewards = torch.rand(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    more, _, state = objective.appraise(Rollouts(rewards, rewards > 2, old, reference), objective.init())
    loss, metrics = objective.loss(logps, {**batch(reference), "old": old, "sampler": old, **more}, state)

    now, mask = padded(logps)
    method = Borrowed(
        trl.GRPOTrainer._compute_loss,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        beta=objective.kl,
        epsilon_low=objective.clip_low,
        epsilon_high=objective.clip_high,
        loss_type=theirs,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        current_gradient_accumulation_steps=1,
        max_completion_length=11,
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
    )
    ids = torch.zeros(mask.shape, dtype=torch.long)
    wanted = method(
        None,
        {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": mask,
            "advantages": torch.cat([one for row in more["advantages"] for one in row]),
            "old_per_token_logps": padded(old)[0],
            "ref_per_token_logps": padded(reference)[0],
            "num_items_in_batch": mask.sum(),
        },
    )
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    for ours, other in zip(gradients(loss, logps), gradients(wanted, logps), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-14)
    if objective.kl:
        assert metrics["kl"].item() == pytest.approx(method._metrics["train"]["kl"][-1], rel=1e-6)
    assert method._metrics["train"]["clip_ratio/low_mean"][-1] > 0 < method._metrics["train"]["clip_ratio/high_mean"][-1]


@pytest.mark.parametrize("centre", [0.0, 0.01, 0.3])
def test_the_reward_loss_is_trls(centre: float) -> None:
    values = leaves(rows(2, 6, more=1, scale=-2))
    given = batch(rows(0, 6))
    loss, metrics = RewardModel(centre=centre).loss(rows(0, 6), {**given, "values": values}, None)
    scores = torch.stack([row[number][-1] for number in (0, 1) for row in values])[:, None]
    method = Borrowed(trl.RewardTrainer.compute_loss, args=SimpleNamespace(center_rewards_coefficient=centre or None))
    wanted = method(lambda **_: SimpleNamespace(logits=scores), {"attention_mask": torch.ones(12, 3)})
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    for ours, other in zip(gradients(loss, values), gradients(wanted, values), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-15)
    logged = method._metrics["train"]
    assert metrics["rewards/margins"].item() == pytest.approx(logged["margin"][-1], rel=1e-12)
    assert metrics["rewards/accuracies"].item() == pytest.approx(logged["accuracy"][-1])


@pytest.mark.parametrize("against", ["kl", "zero"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("unpaired", [False, True])
def test_kto_is_trls(against: Any, turned: bool, unpaired: bool) -> None:
    """TRL's batch is unpaired: here the chosen responses and behind them the rejected ones, and as many strays; or mixed, as ours is."""
    objective = KTO(beta=0.4, desirable=1.2, undesirable=0.7, against=against, unpaired=unpaired)
    sides = tuple(range(objective.sides))
    one, other = rows(0, 6, objective.k), rows(1, 6, objective.k)
    logps, reference = (leaves(other), one) if turned else (leaves(one), other)
    state = objective.advance(objective.init(), objective.sums(logps, batch(reference))) if against == "kl" else objective.init()
    loss, metrics = objective.loss(logps, batch(reference), state)

    def side(nested: Rows, numbers: tuple[int, ...]) -> Tensor:
        return padded([[row[number] for row in nested] for number in numbers])[0]

    now, before = side(logps, sides), side(reference, sides)
    away = (len(sides),) * len(sides)
    stray = side(logps, away).detach() if against == "kl" else None
    ids = torch.zeros(len(now), now.shape[1] + 1, dtype=torch.long)
    labels = [roles[0] == "chosen" for roles in batch(reference)["roles"]] if unpaired else [True] * 6 + [False] * 6
    method = Borrowed(
        trl.KTOTrainer._compute_loss,
        args=SimpleNamespace(),
        beta=objective.beta,
        desirable_weight=objective.desirable,
        undesirable_weight=objective.undesirable,
        loss_type="kto" if against == "kl" else "apo_zero_unpaired",
        calculate_KL=against == "kl",
        precompute_ref_logps=True,
        _compute_kl_logps=lambda *_: None if stray is None else stray.sum(-1),
    )
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": torch.ones_like(ids),
        "label": torch.tensor(labels),
        "ref_logps": before.sum(-1),
        "ref_KL_logps": None if stray is None else side(reference, away).sum(-1),
    }
    found = SimpleNamespace(log_probs=now, entropy=torch.zeros_like(now), mean_logits=torch.zeros_like(now))
    wanted = method(lambda **_: found, given, False)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    ours, theirs = (torch.autograd.grad(of, [row[n] for row in logps for n in sides]) for of in (loss, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)
    logged = method._metrics["train"]
    for name in ("kl",) if unpaired else ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"):
        assert metrics[name].item() == pytest.approx(logged[name][-1], rel=1e-6, abs=1e-9), name


def test_orpos_odds_are_trls() -> None:
    """Its SFT term is the trainer's own, over the prompt as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOTrainer
    logps = leaves(rows(0, 6))
    means = [torch.stack([row[number].mean() for row in logps]) for number in (0, 1)]
    method = Borrowed(ORPOTrainer.odds_ratio_loss, beta=0.3)
    losses, *_, ratio, odds = method(*means)
    found = [ORPO(beta=beta).loss(logps, batch(rows(0, 6)), None) for beta in (0.3, 0.6)]
    assert (found[1][0] - found[0][0]).item() == pytest.approx(-losses.mean().item(), rel=1e-5)  # TRL computes them in fp32
    assert found[0][1]["log_odds_ratio"].item() == pytest.approx(ratio.item(), rel=1e-5)
    assert found[0][1]["log_odds_chosen"].item() == pytest.approx(odds.item(), rel=1e-5)
