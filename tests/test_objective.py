"""Objectives as arithmetic: against formulas in fp64, and the promise that shares of a batch add up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pivot import lookup
from pivot.knobs import Wrong, fill
from pivot.objective._contract import Counts, log_not
from pivot.objective._online import Rollouts, graded
from pivot.objective._pairs import Cropped, differing
from pivot.objective.dpo import Objective as DPO
from pivot.objective.grpo import Objective as GRPO
from pivot.objective.kto import Objective as KTO
from pivot.objective.mpo import Objective as MPO
from pivot.objective.orpo import Objective as ORPO
from pivot.objective.ppo import Objective as PPO
from pivot.objective.reward_model import Objective as RewardModel
from pivot.objective.sft import Objective as SFT
from pivot.pictures import picture
from pivot.records import BadInput, Example, Response

Rows = list[list[Tensor]]
WRITES: dict[str, Any] = {"reward": "digit", "max_new": 11}
DPOS = [
    DPO(),
    DPO(beta=0.5, label_smoothing=0.1, alpha=0.7, gamma=0.3),
    DPO(kind="robust", label_smoothing=0.2, mean=True),
    DPO(kind="ipo", beta=0.3),
    DPO(differ=5, mean=True, beta=0.5),
    DPO(differ=3),
    DPO(image=0.8, anchor=0.6, differ=2),
]
OFFLINE = [SFT(), SFT(unlikelihood=0.7), *DPOS, MPO(beta=0.3), KTO(beta=0.4, undesirable=1.3), KTO(against="zero"), ORPO(beta=0.3)]
OFFLINE += [KTO(beta=0.4, unpaired=True, desirable=1.3), KTO(against="zero", unpaired=True)]
GRPOS = [
    GRPO(**WRITES, k=3, kl=0.0, passes=2),
    GRPO(**WRITES, k=3, kl=0.1, reduce="token", clip_high=0.3),
    GRPO(**WRITES, k=3, kl=0.1, reduce="length", scale=False, passes=2),
]
PPOS = [PPO(**WRITES, k=2, value=0.5), PPO(**WRITES, kl=0.2, kl_floor=True, lam=0.9, gamma=0.95, whiten=False, value_clip=0.1)]
OBJECTIVES = [*OFFLINE, RewardModel(centre=0.1), *GRPOS, *PPOS]
NAMES = [f"{type(one).__module__.rpartition('.')[2]}-{n}" for n, one in enumerate(OBJECTIVES)]


def rows(seed: int, number: int, k: int = 2, dtype: torch.dtype = torch.float64, more: int = 0, scale: float = 3) -> Rows:
    """Responses of uneven lengths; a third is as long as the first. `more`: that many numbers beyond each response's end."""
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (number, 2), generator=torch.Generator().manual_seed(5)).tolist()
    return [[-scale * torch.rand(both[n % 2] + more, generator=dice, dtype=dtype) for n in range(k)] for both in lengths]


def tokens(logps: Rows) -> list[list[list[int]]]:
    """What responses of these lengths might say, in few words, so that pairs share some. A third says what the first does."""
    dice = torch.Generator().manual_seed(9)
    said = [[torch.randint(0, 4, (len(response),), generator=dice).tolist() for response in row] for row in logps]
    return [[*row[:2], *[row[0]] * (len(row) - 2)] for row in said]


def counted(logps: Rows) -> Counts:
    return Counts(len(logps), tuple(sum(len(row[k]) for row in logps) for k in range(len(logps[0]))))


def batch(reference: Rows) -> dict[str, Any]:
    roles = [["chosen", "rejected"][n % 3 == 1 :][: len(row)] for n, row in enumerate(reference)]  # of unpaired rows, two of three chosen
    return {"counts": counted(reference), "reference": reference, "said": tokens(reference), "roles": roles}


@dataclass
class Case:
    """An objective with a batch, whose log-probabilities and values take gradients, and its state for that batch."""

    objective: Any
    logps: Rows
    batch: dict[str, Any]
    state: Any = None
    leaves: list[Tensor] = field(default_factory=list)

    def loss(self, begin: int = 0, end: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        part = {name: of if name == "counts" else of[begin:end] for name, of in self.batch.items()}
        return self.objective.loss(self.logps[begin:end], part, self.state)


def made(objective: Any, number: int = 7, apart: bool = True) -> Case:
    """`apart`: policy and reference differ."""
    k = objective.k
    logps = rows(0, number, k)
    case = Case(objective, logps, batch(rows(1 if apart else 0, number, k)), objective.init())
    if objective.head != "none":
        case.batch["values"] = rows(2, number, k, more=1, scale=-1)
    if objective.online:
        # Old ones near the present, so that some ratios are clipped and some are not.
        noise = rows(3, number, k, scale=-1)
        old = [[now + (far - 0.5) for now, far in zip(*both, strict=True)] for both in zip(logps, noise, strict=True)]
        case.batch |= {"old": old, "sampler": old}
        rewards = torch.rand(number, k, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        reference = case.batch["reference"] if objective.needs_reference else None
        values = rows(5, number, k, more=1, scale=-1) if objective.head != "none" else None
        rollouts = Rollouts(rewards, rewards > 0.3, old, reference, values)
        more, _, case.state = objective.appraise(rollouts, case.state)
        case.batch |= more
    if objective.needs_sums:
        case.state = objective.advance(case.state, objective.sums(logps, case.batch))
    case.leaves = [number.requires_grad_() for nested in (logps, case.batch.get("values", [])) for row in nested for number in row]
    return case


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain(nested: Rows) -> list[list[list[float]]]:
    return [[response.tolist() for response in row] for row in nested]


# ---- what holds for all


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
@pytest.mark.parametrize("cuts", [(0, 1, 7), (0, 3, 4, 7), tuple(range(8))])
def test_shares_add_up_however_a_batch_is_cut(objective: Any, cuts: Sequence[int]) -> None:
    case = made(objective)
    whole, metrics = case.loss()
    wanted = torch.autograd.grad(whole, case.leaves, allow_unused=True)
    parts = [case.loss(a, b) for a, b in pairwise(cuts)]
    assert sum(part[0] for part in parts).item() == pytest.approx(whole.item(), rel=1e-12)
    for name, value in metrics.items():
        assert not value.requires_grad, name
        assert sum(part[1][name] for part in parts).item() == pytest.approx(value.item(), rel=1e-6, abs=1e-9), name
    found = torch.autograd.grad(sum(part[0] for part in parts), case.leaves, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("objective", [MPO(), KTO()])
def test_a_state_does_not_see_how_a_batch_is_cut(objective: Any) -> None:
    """Sums of the parts, added up in any order, lead to the state of the whole."""
    case = made(objective)
    parts = [objective.sums(case.logps[a:b], {"reference": case.batch["reference"][a:b]}) for a, b in ((5, 7), (0, 3), (3, 5))]
    found = objective.advance(objective.init(), torch.stack(parts).sum(dim=0))
    assert found == pytest.approx(case.state, rel=1e-12) and any(case.state.values())


def test_a_mean_of_means_would_be_noticed() -> None:
    """The fault that token counts guard against: micro-batches of different sizes weighing the same."""
    logps = rows(0, 7, 1)
    whole = SFT().loss(logps, batch(logps), None)[0]
    halves = [SFT().loss(part, batch(part), None)[0] for part in (logps[:2], logps[2:])]
    assert abs((sum(halves) / 2 - whole).item()) > 1e-3


@pytest.mark.parametrize("objective", OFFLINE, ids=NAMES[: len(OFFLINE)])
def test_gradients_push_the_right_way(objective: Any) -> None:
    """Where policy and reference agree: a step down the loss makes chosen tokens likelier, rejected ones and those to crops less likely."""
    case = made(objective, 4, apart=False)
    case.loss()[0].backward()
    for row, roles in zip(case.logps, batch(case.logps)["roles"], strict=True):
        liked = not getattr(objective, "unpaired", False) or roles[0] == "chosen"
        assert row[0].grad is not None and ((row[0].grad < 0) == liked).all()
        for other in row[1:]:
            assert other.grad is None or (other.grad > 0).all()
    moved = [number for number in range(objective.k) if case.logps[0][number].grad is not None]
    own = getattr(
        objective, "sides", objective.k if isinstance(objective, DPO) else min(objective.k, 2)
    )  # a stray response has no gradient
    assert moved == list(range(own))


@pytest.mark.parametrize("objective", [one for one in OFFLINE if one.needs_reference])
def test_margins_are_zero_where_policy_and_reference_agree(objective: Any) -> None:
    logps = rows(3, 5, objective.k, torch.float32)
    assert objective.margins(logps, batch(logps)).abs().max() == 0
    assert objective.loss(logps, batch(logps), objective.init())[1]["rewards/margins"] == 0
    for number in range(objective.k):  # and are not, where one response of one row does not
        other = [[response.clone() for response in row] for row in logps]
        other[2][number] += 0.5
        assert (objective.margins(other, batch(logps)) != 0).tolist() == [False, False, True, False, False], number


# ---- formulas, written out once more over Python numbers


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_sft_is_a_mean_over_tokens_of_each_side(weight: float) -> None:
    logps = rows(0, 5)
    loss, metrics = SFT(unlikelihood=weight).loss(logps, batch(logps), None)
    chosen, rejected = (torch.cat([row[n] for row in logps]).tolist() for n in (0, 1))
    unlike = sum(-math.log(1 - math.exp(logp)) for logp in rejected) / len(rejected)
    assert loss.item() == pytest.approx(-sum(chosen) / len(chosen) + weight * unlike, rel=1e-12)
    assert metrics["logps/chosen"].item() == pytest.approx(sum(chosen) / 5)
    assert metrics["lengths/chosen"].item() == pytest.approx(len(chosen) / 5)


def slow_pair(objective: DPO, margin: float) -> float:
    s, beta = objective.label_smoothing, objective.beta
    right, wrong = -math.log(sigmoid(margin)), -math.log(sigmoid(-margin))
    if objective.kind == "ipo":
        return float((margin / beta - 1 / (2 * beta)) ** 2)
    return ((1 - s) * right - s * wrong) / (1 - 2 * s) if objective.kind == "robust" else (1 - s) * right + s * wrong


@pytest.mark.parametrize("objective", DPOS)
def test_dpo_is_its_formula(objective: DPO) -> None:
    case = made(objective, 6)
    losses, margins, chosen, n = 0.0, [], list[float](), len(case.logps)
    for now, before, said in zip(plain(case.logps), plain(case.batch["reference"]), case.batch["said"], strict=True):
        apart = differing(said[0], said[1])
        rewards = []
        for a, b, heavy in zip(now, before, (*apart, apart[0]), strict=False):
            weight = [objective.differ if is_heavy else 1.0 for is_heavy in heavy]
            gained = sum(w * (x - y) for w, x, y in zip(weight, a, b, strict=True))
            rewards.append(objective.beta * gained / (sum(weight) if objective.mean or objective.kind == "ipo" else 1))
        margins.append(rewards[0] - rewards[1])
        losses += objective.alpha * slow_pair(objective, margins[-1]) - objective.anchor * math.log(sigmoid(rewards[0]))
        losses += objective.image * slow_pair(objective, rewards[0] - rewards[2]) if objective.image else 0
        chosen += now[0]
    loss, metrics = case.loss()
    assert loss.item() == pytest.approx(losses / n - objective.gamma * sum(chosen) / len(chosen), rel=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(sum(margins) / n, rel=1e-12)
    assert metrics["rewards/accuracies"].item() == pytest.approx(sum(h > 0 for h in margins) / n)
    assert metrics["rewards/chosen"].item() - metrics["rewards/rejected"].item() == pytest.approx(sum(margins) / n, rel=1e-10)


def test_robust_is_right_on_average_about_labels_that_are_wrong() -> None:
    """The promise of that loss: with a share s of labels turned round, its mean is the plain loss of the true labels."""
    logps, reference = rows(0, 6), rows(1, 6)
    turned = [[row[1], row[0]] for row in logps], [[row[1], row[0]] for row in reference]
    robust, plainly = DPO(kind="robust", label_smoothing=0.2), DPO()
    found = 0.8 * robust.loss(logps, batch(reference), None)[0] + 0.2 * robust.loss(turned[0], batch(turned[1]), None)[0]
    assert found.item() == pytest.approx(plainly.loss(logps, batch(reference), None)[0].item(), rel=1e-12)


def test_mpo_is_its_formula_and_delta_the_mean_of_all_rewards_so_far() -> None:
    """Over several batches: InternVL's running moments are a cumulative mean, which has the present batch in it when it is used."""
    objective, state, seen = MPO(beta=0.3, preference=0.7, quality=0.4, generation=0.9), MPO().init(), list[float]()
    for step in range(4):
        logps, reference = rows(2 * step, 3 + step), rows(2 * step + 1, 3 + step)
        pairs = [
            [0.3 * (sum(a) - sum(b)) for a, b in zip(now, before, strict=True)]
            for now, before in zip(plain(logps), plain(reference), strict=True)
        ]
        seen += [reward for pair in pairs for reward in pair]
        delta = sum(seen) / len(seen)
        preference = sum(-math.log(sigmoid(c - r)) for c, r in pairs) / len(pairs)
        quality = sum(-math.log(sigmoid(c - delta)) - math.log(sigmoid(delta - r)) for c, r in pairs) / len(pairs)
        chosen = [logp for row in plain(logps) for logp in row[0]]
        state = objective.advance(state, objective.sums(logps, batch(reference)))
        loss, metrics = objective.loss(logps, batch(reference), state)
        assert loss.item() == pytest.approx(0.7 * preference + 0.4 * quality - 0.9 * sum(chosen) / len(chosen), rel=1e-12)
        assert metrics["delta"].item() == pytest.approx(delta, rel=1e-6)
    assert state["seen"] == len(seen)


@pytest.mark.parametrize("objective", [KTO(beta=0.4, desirable=1.5, undesirable=0.5), KTO(beta=0.4, against="zero")])
@pytest.mark.parametrize("turned", [False, True])
def test_kto_is_its_formula(objective: KTO, turned: bool) -> None:
    """`turned`: stray responses have become less likely, and then z is zero."""
    logps, reference = rows(0, 6, objective.k), rows(1, 6, objective.k)
    logps, reference = (reference, logps) if turned else (logps, reference)
    gains = [[sum(a) - sum(b) for a, b in zip(*row, strict=True)] for row in zip(plain(logps), plain(reference), strict=True)]
    z = max(0.0, sum(row[2] for row in gains) / 6) if objective.k == 3 else 0.0
    losses = [objective.desirable * (1 - sigmoid(0.4 * (row[0] - z))) for row in gains]
    losses += [objective.undesirable * (1 - sigmoid(0.4 * (z - row[1]))) for row in gains]
    state = objective.advance(objective.init(), objective.sums(logps, batch(reference))) if objective.needs_sums else objective.init()
    assert objective.loss(logps, batch(reference), state)[0].item() == pytest.approx(sum(losses) / 12, rel=1e-12)
    assert state["kl"] == pytest.approx(z)


@pytest.mark.parametrize("against", ["kl", "zero"])
def test_unpaired_kto_takes_each_row_by_its_own_side(against: Any) -> None:
    objective = KTO(beta=0.4, desirable=1.5, undesirable=0.5, against=against, unpaired=True)
    logps, reference = rows(0, 6, objective.k), rows(1, 6, objective.k)
    given = batch(reference)
    gains = [[sum(a) - sum(b) for a, b in zip(*row, strict=True)] for row in zip(plain(logps), plain(reference), strict=True)]
    z = max(0.0, sum(row[1] for row in gains) / 6) if against == "kl" else 0.0
    liked = [roles[0] == "chosen" for roles in given["roles"]]
    assert sum(liked) == 4
    losses = [
        1.5 * (1 - sigmoid(0.4 * (row[0] - z))) if good else 0.5 * (1 - sigmoid(0.4 * (z - row[0])))
        for row, good in zip(gains, liked, strict=True)
    ]
    state = objective.advance(objective.init(), objective.sums(logps, given)) if objective.needs_sums else objective.init()
    loss, metrics = objective.loss(logps, given, state)
    assert loss.item() == pytest.approx(sum(losses) / 6, rel=1e-12) and state["kl"] == pytest.approx(z)
    gone = [0.4 * row[0] * (1 if good else -1) for row, good in zip(gains, liked, strict=True)]
    assert metrics["rewards/margins"].item() == pytest.approx(sum(gone) / 6)
    assert metrics["rewards/accuracies"].item() == pytest.approx(sum(one > 0 for one in gone) / 6)
    assert metrics["rewards/liked"].item() == pytest.approx(4 / 6)


def test_unpaired_rows_have_one_response_and_stray_ones_come_from_the_next_row() -> None:
    good, bad = Response("yes"), Response("no", role="rejected")
    found = KTO(unpaired=True).source([Example("a", (), "?", (good,)), Example("b", (), "?", (bad,)), Example("c", (), "?", (bad, good))])
    assert [[(one.text, one.role) for one in row.responses] for row in (found[0],)] == [[("yes", "chosen"), ("no", "rejected")]]
    with pytest.raises(BadInput, match=r"row c has 2 responses \(rejected, chosen\); unpaired rows have one"):
        found[2]
    with pytest.raises(BadInput, match="row d has no response; unpaired"):
        KTO(unpaired=True, against="zero").source([Example("d", (), "?")])[0]


def test_ktos_z_is_never_below_zero() -> None:
    states = [
        KTO().advance(KTO().init(), KTO().sums(*pair))
        for pair in ((rows(0, 6, 3), batch(rows(1, 6, 3))), (rows(1, 6, 3), batch(rows(0, 6, 3))))
    ]
    assert sorted(state["kl"] > 0 for state in states) == [False, True]


def test_orpo_is_its_formula() -> None:
    logps = rows(0, 6)
    odds, chosen = 0.0, list[float]()
    for row in plain(logps):
        a, b = (math.exp(sum(response) / len(response)) for response in row)
        odds += -math.log(sigmoid(math.log(a / (1 - a)) - math.log(b / (1 - b)))) / 6
        chosen += row[0]
    loss = ORPO(beta=0.3).loss(logps, batch(logps), None)[0]
    assert loss.item() == pytest.approx(0.3 * odds - sum(chosen) / len(chosen), rel=1e-10)


def test_log_not_keeps_its_digits_and_its_gradient() -> None:
    logps = torch.tensor([-30.0, -3.0, -0.7, -0.69, -1e-3, -1e-5], requires_grad=True)
    found = log_not(logps)
    exact = torch.log1p(-torch.exp(logps.detach().double()))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-13)
    found.sum().backward()
    assert logps.grad is not None
    torch.testing.assert_close(logps.grad.double(), -1 / torch.expm1(-logps.detach().double()), rtol=1e-5, atol=1e-13)
    certain = torch.zeros(2, requires_grad=True)
    log_not(certain).sum().backward()
    assert log_not(certain).isfinite().all() and (certain.grad == 0).all()  # type: ignore[union-attr]


# ---- online


@pytest.mark.parametrize("objective", GRPOS)
def test_grpo_is_its_formula(objective: GRPO) -> None:
    """Replies by replies, tokens by tokens, from rewards on."""
    case = made(objective, 6)
    rewards = torch.rand(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).tolist()
    names = ("old", "reference")
    expected, all_tokens = 0.0, sum(case.batch["counts"].tokens)
    for p, row in enumerate(plain(case.logps)):
        group = rewards[p]
        mean = sum(group) / 3
        spread = math.sqrt(sum((r - mean) ** 2 for r in group) / 2)
        for n, reply in enumerate(row):
            advantage = (group[n] - mean) / (spread + 1e-4 if objective.scale else 1)
            costs = []
            for t, now in enumerate(reply):
                old, reference = (case.batch[name][p][n][t].item() for name in names)
                rho = math.exp(now - old)
                held = min(max(rho, 1 - objective.clip_low), 1 + objective.clip_high)
                far = reference - now
                costs.append(-min(rho * advantage, held * advantage) + objective.kl * (math.exp(far) - far - 1))
            expected += {"sequence": sum(costs) / len(costs) / 18, "token": sum(costs) / all_tokens, "length": sum(costs) / 11 / 18}[
                objective.reduce
            ]
    loss, metrics = case.loss()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert 0 < metrics["clip_ratio/low"] < 1 and 0 < metrics["clip_ratio/high"] < 1


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_a_group_that_earned_the_same_teaches_nothing(reward: float) -> None:
    """Exactly: the mean of three times 0.1 is not 0.1."""
    rewards = torch.tensor([[reward] * 3, [reward, reward, 0.5]], dtype=torch.float64)
    found, metrics, _ = GRPOS[0].appraise(Rollouts(rewards, rewards > 2), {"kl": 0.0})
    assert [float(one) for one in found["advantages"][0]] == [0, 0, 0]
    assert all(float(one) for one in found["advantages"][1]) and metrics["frac_reward_zero_std"] == 0.5


def test_grpo_steers_the_weight_of_the_distance() -> None:
    objective = GRPO(**WRITES, k=2, kl=0.1, kl_target=0.05, kl_horizon=100)
    near, far = rows(0, 5), rows(1, 5)
    rewards = torch.rand(5, 2, dtype=torch.float64)
    up = objective.appraise(Rollouts(rewards, rewards > 2, near, far), objective.init())[2]
    down = objective.appraise(Rollouts(rewards, rewards > 2, near, near), objective.init())[2]
    assert up["kl"] == pytest.approx(0.1 * (1 + 0.2 * 5 / 100)) and down["kl"] == pytest.approx(0.1 * (1 - 0.2 * 5 / 100))


def test_the_steered_weight_follows_the_mean_distance_and_never_changes_its_sign() -> None:
    near, far, rewards = rows(0, 5), rows(1, 5), torch.rand(5, 2, dtype=torch.float64)
    apart = [
        b - a
        for now, before in zip(plain(near), plain(far), strict=True)
        for x, y in zip(now, before, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    distance = sum(math.exp(one) - one - 1 for one in apart) / len(apart)
    objective = GRPO(**WRITES, k=2, kl=0.1, kl_target=distance / 1.1, kl_horizon=100)
    _, metrics, state = objective.appraise(Rollouts(rewards, rewards > 2, near, far), objective.init())
    assert state["kl"] == pytest.approx(0.1 * (1 + 0.1 * 5 / 100), rel=1e-9) and metrics["kl_weight"].item() == state["kl"]
    hasty, state = GRPO(**WRITES, k=2, kl=0.1, kl_target=0.05, kl_horizon=1), GRPO(**WRITES, k=2, kl=0.1).init()
    for _ in range(3):  # five prompts, of which one is the whole horizon
        state = hasty.appraise(Rollouts(rewards, rewards > 2, near, near), state)[2]
    assert state["kl"] == pytest.approx(0.1 * 0.8**3)


def test_what_is_watched_of_replies_is_what_it_is_called() -> None:
    """By hand: of two replies with four tokens, ratios 0.5, 1, 1, 2, and a sampler that was off by 0.3 in one of them."""
    ratios = [[0.5, 1.0], [1.0, 2.0]]
    old = [[torch.full((2,), -1.0, dtype=torch.float64) for _ in range(2)]]
    now = [[-1 + torch.tensor(one, dtype=torch.float64).log() for one in ratios]]
    sampler = [[old[0][0] + torch.tensor([0.0, 0.3]), old[0][1]]]
    given = {"counts": Counts(1, (2, 2)), "old": old, "sampler": sampler, "advantages": [[torch.ones(1), -torch.ones(1)]]}
    _, metrics = GRPO(**WRITES, k=2, kl=0.0).loss(now, given, {"kl": 0.0})
    found = {name: value.item() for name, value in metrics.items()}
    assert found["ratio"] == pytest.approx(4.5 / 4) and found["sampler/difference"] == pytest.approx(0.3 / 4)
    assert (found["clip_ratio/low"], found["clip_ratio/high"], found["advantages/nonzero"]) == (0.25, 0.25, 1)
    assert found["completions/mean_length"] == 2

    rewards, finished = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).double(), torch.tensor([[True, False], [True, True]])
    told = {name: value.item() for name, value in graded(Rollouts(rewards, finished)).items()}
    assert told == pytest.approx(
        {"reward": 2, "completions/clipped_ratio": 0.25, "reward_std": math.sqrt(2) / 2, "frac_reward_zero_std": 0.5}
    )
    single = {name: value.item() for name, value in graded(Rollouts(rewards[:, :1], finished[:, :1])).items()}
    assert single == pytest.approx({"reward": 1.5, "completions/clipped_ratio": 0, "reward_std": math.sqrt(0.5)})


def test_what_ppo_tells_of_values_and_distance_is_what_it_is_called() -> None:
    """Values that are the returns explain all of them; constant ones nothing; and the distance is that of the policy from the reference."""
    objective = PPO(**WRITES, kl=0.2, lam=1.0, gamma=1.0, value_clip=0.1)
    old = [[torch.tensor([-1.0, -2.0]).double()], [torch.tensor([-1.0, -1.0]).double()]]
    before = [[reply - 0.25 for reply in row] for row in old]
    rewards, finished = torch.tensor([[1.0], [0.0]]).double(), torch.ones(2, 1, dtype=torch.bool)
    flat_values = [[torch.full((3,), 0.5).double()] for _ in old]
    more, metrics, _ = objective.appraise(Rollouts(rewards, finished, old, before, flat_values), None)
    assert metrics["kl"].item() == pytest.approx(0.25) and metrics["values/explained"].item() == pytest.approx(0, abs=1e-9)
    perfect = [[torch.cat([row[0].double(), torch.zeros(1).double()])] for row in more["returns"]]
    assert objective.appraise(Rollouts(rewards, finished, old, before, perfect), None)[1]["values/explained"].item() == pytest.approx(1)
    # Where the clipped value is the worse one, the clip counts: a value that went from 0.5 to the return of 0.9, held at 0.6.
    returns = [[torch.tensor([0.9, 0.5]).double()]]
    given = {"counts": Counts(1, (2,)), "old": old[:1], "sampler": old[:1], "advantages": [[torch.ones(2).double()]], "returns": returns}
    given |= {"values_old": [[torch.full((2,), 0.5).double()]], "values": [[torch.tensor([0.9, 0.5, 0.0]).double()]]}
    assert objective.loss(old[:1], given, None)[1]["clip_ratio/value"].item() == 0.5


@pytest.mark.parametrize("objective", PPOS)
def test_ppo_is_its_formula(objective: PPO) -> None:
    """Rewards of tokens, generalised advantages as the double sum that defines them, returns, whitening and both losses."""
    case, k = made(objective, 5), objective.k
    rewards = torch.rand(5, k, generator=torch.Generator().manual_seed(4), dtype=torch.float64).tolist()
    stated = plain(rows(5, 5, k, more=1, scale=-1))
    advantages, returns = list[float](), list[float]()
    for p, row in enumerate(plain(case.batch["old"])):
        for n, reply in enumerate(row):
            value, last = [*stated[p][n][:-1], 0.0], len(reply) - 1
            far = [now - before for now, before in zip(reply, case.batch["reference"][p][n].tolist(), strict=True)]
            earned = [-objective.kl * (max(c, 0) if objective.kl_floor else c) + (t == last) * rewards[p][n] for t, c in enumerate(far)]
            surprise = [earned[t] + objective.gamma * value[t + 1] - value[t] for t in range(len(reply))]
            for t in range(len(reply)):
                found = sum((objective.gamma * objective.lam) ** (u - t) * surprise[u] for u in range(t, len(reply)))
                advantages.append(found)
                returns.append(found + value[t])
    if objective.whiten:
        mean = sum(advantages) / len(advantages)
        spread = math.sqrt(sum((one - mean) ** 2 for one in advantages) / len(advantages))
        advantages = [(one - mean) / (spread + 1e-8) for one in advantages]
    policy = critic = 0.0
    tokens = [(p, n, t) for p, row in enumerate(case.logps) for n, reply in enumerate(row) for t in range(len(reply))]
    for (p, n, t), advantage, back in zip(tokens, advantages, returns, strict=True):
        rho = math.exp(case.logps[p][n][t].item() - case.batch["old"][p][n][t].item())
        policy += max(-rho * advantage, -min(max(rho, 1 - objective.clip), 1 + objective.clip) * advantage)
        now, before = case.batch["values"][p][n][t].item(), stated[p][n][t]
        held = min(max(now, before - objective.value_clip), before + objective.value_clip)
        critic += max((now - back) ** 2, (held - back) ** 2) / 2
    loss, metrics = case.loss()
    assert torch.cat([r for row in case.batch["returns"] for r in row]).tolist() == pytest.approx(returns, rel=1e-10)
    assert torch.cat([r for row in case.batch["advantages"] for r in row]).tolist() == pytest.approx(advantages, rel=1e-9, abs=1e-12)
    assert loss.item() == pytest.approx((policy + objective.value * critic) / len(tokens), rel=1e-10)
    assert metrics["loss/value"].item() == pytest.approx(critic / len(tokens), rel=1e-10)


# ---- numbers


def test_dpo_keeps_its_digits_where_sums_are_large() -> None:
    """1,500 tokens: sums of thousands, of which fp32 keeps four decimals; the difference is what counts."""
    reference = [[torch.full((1500,), -2.7), torch.full((1500,), -2.7)]]
    logps = [[reference[0][0] + 1e-6, reference[0][1].clone()]]
    steps = (logps[0][0] - reference[0][0]).double().sum()  # what fp32 makes of 1e-6 at that place, 1,500 times
    assert DPO(beta=1).margins(logps, batch(reference)).item() == pytest.approx(steps.item(), rel=1e-5)


def test_extreme_margins_stay_finite() -> None:
    logps, reference = [[torch.tensor([-900.0]), torch.tensor([-1.0])]], [[torch.tensor([-1.0]), torch.tensor([-900.0])]]
    loss = DPO(beta=10).loss(logps, batch(reference), None)[0]
    assert loss.item() == pytest.approx(10 * 1798)


@pytest.mark.parametrize("objective", [DPO(), DPO(differ=2), MPO(), KTO(against="zero")])
def test_a_reference_of_other_lengths_is_refused(objective: Any) -> None:
    """One log-probability would be broadcast over a whole response without a word."""
    logps, reference = [[torch.zeros(5), torch.zeros(3)]], [[torch.zeros(1), torch.zeros(3)]]
    with pytest.raises(ValueError, match="do not fit"):
        objective.loss(logps, {**batch(reference), "said": tokens(logps)}, objective.init())


def longest(one: Sequence[int], other: Sequence[int]) -> int:
    """Of the common subsequences, by the table that every textbook has."""
    row = [0] * (len(other) + 1)
    for a in one:
        row = list(
            accumulate(range(1, len(row)), lambda left, n, a=a, up=row: max(left, up[n], up[n - 1] + (a == other[n - 1])), initial=0)
        )
    return row[-1]


def test_tokens_that_differ_are_all_but_a_longest_common_subsequence() -> None:
    assert differing([1, 2, 3, 4], [1, 9, 3, 4, 5]) == ([False, True, False, False], [False, True, False, False, True])
    assert differing([1, 2], [1, 2]) == ([False, False], [False, False]) and differing([], [3]) == ([], [True])
    dice = torch.Generator().manual_seed(0)
    for n in range(60):
        one, other = (
            torch.randint(0, 2 + n % 7, (int(size),), generator=dice).tolist() for size in torch.randint(0, 30, (2,), generator=dice)
        )
        first, second = differing(one, other)
        kept = [token for token, apart in zip(one, first, strict=True) if not apart]
        assert kept == [token for token, apart in zip(other, second, strict=True) if not apart]
        assert len(kept) == longest(one, other)


# ---- sources


def example(*roles: str) -> Example:
    return Example("row-1", (), "?", tuple(Response(f"{role} {n}", role=role) for n, role in enumerate(roles)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "roles", "taken"),
    [
        (SFT(), ("rejected", "chosen", "chosen"), ["chosen 1"]),
        *[
            (objective, ("rejected", "chosen", "rejected", "chosen"), ["chosen 1", "rejected 0"])
            for objective in (SFT(unlikelihood=0.1), DPO(), MPO(), ORPO(), KTO(against="zero"), RewardModel())
        ],
    ],
)
def test_a_source_takes_the_first_of_each_role(objective: Any, roles: Sequence[str], taken: list[str]) -> None:
    source = objective.source([example(*roles)] * 3)
    assert len(source) == 3 and objective.k == len(taken)
    assert [response.text for response in source[1].responses] == taken
    assert len(source[:2]) == 2 and replace(source[0], responses=()) == replace(example(*roles), responses=())


@pytest.mark.parametrize(
    ("objective", "roles", "lacks"),
    [
        (SFT(), ("rejected",), "chosen"),
        (DPO(), ("chosen",), "rejected"),
        (KTO(), ("chosen",), "rejected"),
        (ORPO(), ("rejected",), "chosen"),
    ],
)
def test_a_row_without_a_needed_response_is_named(objective: Any, roles: Sequence[str], lacks: str) -> None:
    with pytest.raises(BadInput, match=f"row-1 has no {lacks} response"):
        objective.source([example(*roles)] * 2)[0]


def test_the_chosen_answer_is_held_against_itself_to_a_crop(pairs: list[Example]) -> None:
    source = DPO(image=1).source(pairs)
    row = source[0]
    chosen, _, blind = row.responses
    assert blind.text == chosen.text and blind.images and row.images == pairs[0].images
    whole, crop = picture(row.images[0]), picture(blind.images[0])
    assert crop.size == whole.size and crop.tobytes() != whole.tobytes()
    again = source[0].responses[2].images
    assert again and picture(again[0]).tobytes() == crop.tobytes()  # the reference was made of this very crop
    others = [Cropped(row.images[0], str(n)).read() for n in range(9)]
    assert len(set(others)) == 9
    with pytest.raises(BadInput, match="row-1 has no picture to crop"):
        DPO(image=1).source([example("chosen", "rejected")])[0]


def test_a_stray_response_is_the_next_rows_each_side_in_turn(pairs: list[Example]) -> None:
    source = KTO().source(pairs)
    strays = [row.responses[2] for row in source]
    assert [stray.text for stray in strays[:2]] == [pairs[1].responses[0].text, pairs[2].responses[1].text]
    assert strays[-1].text == pairs[0].responses[1].text and KTO().k == 3
    with pytest.raises(BadInput, match="the only one"):
        KTO().source(pairs[:1])[0]


# ---- knobs


@pytest.mark.parametrize("name", ["sft", "dpo", "mpo", "kto", "orpo", "reward_model"])
def test_every_knob_does_something(name: str) -> None:
    """To the loss; `head_rate` alone belongs to the optimiser."""
    objective = lookup.find("objective", name)
    other = {"kind": "ipo", "against": "zero", "mean": True}
    before = made(objective()).loss()[0]
    for knob in fields(objective):
        turned = objective(**{knob.name: other.get(knob.name) or knob.default + 0.2})
        assert (made(turned).loss()[0] != before) == (knob.name != "head_rate"), knob.name


@pytest.mark.parametrize(
    ("objective", "knobs"),
    [
        (GRPOS[1], {"clip_low": 0.1, "clip_high": 0.1, "kl": 0.2, "reduce": "sequence", "scale": False}),
        (
            PPOS[1],
            {"kl": 0.1, "kl_floor": False, "clip": 0.1, "value_clip": 0.3, "value": 1.0, "gamma": 0.5, "lam": 0.5, "whiten": True},
        ),
    ],
)
def test_every_knob_of_an_online_loss_does_something(objective: Any, knobs: Mapping[str, Any]) -> None:
    before = made(objective).loss()[0]
    for name, value in knobs.items():
        assert made(replace(objective, **{name: value})).loss()[0] != before, name


@pytest.mark.parametrize(
    ("objective", "wrong"),
    [
        *[
            (DPO, wrong)
            for wrong in ({"beta": 0}, {"label_smoothing": 0.5}, {"gamma": -1}, {"betta": 0.1}, {"kind": "hinge"}, {"differ": 0})
        ],
        (DPO, {"kind": "ipo", "label_smoothing": 0.1}),
        (KTO, {"against": "chosen"}),
        (ORPO, {"beta": 0}),
        (SFT, {"unlikelihood": -0.1}),
        (GRPO, {**WRITES, "k": 1}),
        (GRPO, {**WRITES, "kl": 0, "kl_target": 0.1}),
        (PPO, {**WRITES, "critic": "own"}),
    ],
)
def test_wrong_knobs_are_refused_in_a_recipe(objective: Any, wrong: Mapping[str, Any]) -> None:
    with pytest.raises(Wrong):
        fill(objective, wrong)


def test_only_objectives_are_found_by_name() -> None:
    assert {"sft", "dpo", "mpo", "kto", "orpo", "reward_model", "grpo", "ppo"} == set(lookup.names("objective"))
    assert all(hasattr(lookup.find("objective", name), "loss") for name in lookup.names("objective"))


def test_kto_says_that_it_reads_another_rows_response() -> None:
    assert KTO().learns == "the chosen and the rejected response, and another row's"
    assert KTO(against="zero").learns == "the chosen and the rejected response"
    assert KTO(unpaired=True).learns == "one response a row, chosen or rejected, and another row's"
