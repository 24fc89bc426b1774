"""Objectives as arithmetic: against formulas in fp64, and the promise that shares of a batch add up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pivot import lookup
from pivot.knobs import Wrong, fill
from pivot.objective._contract import Counts
from pivot.objective.dpo import Objective as DPO
from pivot.objective.sft import Objective as SFT
from pivot.records import BadInput, Example, Response

OBJECTIVES = [SFT(), DPO(), DPO(beta=0.5, label_smoothing=0.1, alpha=0.7, gamma=0.3)]
Rows = list[list[Tensor]]


def rows(seed: int, number: int, dtype: torch.dtype = torch.float64) -> Rows:
    """Pairs of responses of uneven lengths."""
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (number, 2), generator=torch.Generator().manual_seed(5))
    return [[-3 * torch.rand(int(n), generator=dice, dtype=dtype) for n in pair] for pair in lengths]


def counted(logps: Rows) -> Counts:
    return Counts(len(logps), tuple(sum(len(row[k]) for row in logps) for k in range(2)))


def batch(reference: Rows) -> dict[str, Any]:
    return {"counts": counted(reference), "reference": reference}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_sft_is_the_mean_over_tokens() -> None:
    logps = rows(0, 5)
    loss, metrics = SFT().loss(logps, batch(logps), None)
    tokens = torch.cat([row[0] for row in logps])
    assert loss.item() == pytest.approx(-tokens.mean().item(), rel=1e-14)
    assert metrics["logps/chosen"].item() == pytest.approx(tokens.sum().item() / 5)
    assert metrics["lengths/chosen"].item() == pytest.approx(len(tokens) / 5)


@pytest.mark.parametrize("objective", [one for one in OBJECTIVES if isinstance(one, DPO)])
def test_dpo_is_its_formula(objective: DPO) -> None:
    """Written out once more, over Python numbers."""
    logps, reference = rows(0, 6), rows(1, 6)
    losses, margins, tokens = [], [], []
    for now, before in zip(logps, reference, strict=True):
        rewards = [objective.beta * (sum(a.tolist()) - sum(b.tolist())) for a, b in zip(now, before, strict=True)]
        h, s = rewards[0] - rewards[1], objective.label_smoothing
        losses.append(-(1 - s) * math.log(sigmoid(h)) - s * math.log(sigmoid(-h)))
        margins.append(h)
        tokens += now[0].tolist()
    expected = objective.alpha * sum(losses) / 6 - objective.gamma * sum(tokens) / len(tokens)
    loss, metrics = objective.loss(logps, batch(reference), None)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(sum(margins) / 6, rel=1e-12)
    assert metrics["rewards/accuracies"].item() == pytest.approx(sum(h > 0 for h in margins) / 6)
    assert metrics["rewards/chosen"].item() - metrics["rewards/rejected"].item() == pytest.approx(sum(margins) / 6, rel=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("cuts", [(0, 7), (0, 1, 7), (0, 3, 4, 7), tuple(range(8))])
def test_shares_add_up_however_a_batch_is_cut(objective: Any, cuts: Sequence[int]) -> None:
    logps, reference = rows(0, 7), rows(1, 7)
    for row in logps:
        for response in row:
            response.requires_grad_()
    whole, metrics = objective.loss(logps, batch(reference), None)
    flat = [response for row in logps for response in row]
    wanted = torch.autograd.grad(whole, flat, allow_unused=True)
    parts = [objective.loss(logps[a:b], {"counts": counted(reference), "reference": reference[a:b]}, None) for a, b in pairwise(cuts)]
    assert sum(part[0] for part in parts).item() == pytest.approx(whole.item(), rel=1e-13)
    for name, value in metrics.items():
        assert sum(part[1][name] for part in parts).item() == pytest.approx(value.item(), rel=1e-12), name
    found = torch.autograd.grad(sum(part[0] for part in parts), flat, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_mean_of_means_would_be_noticed() -> None:
    """The fault that token counts guard against: micro-batches of different sizes weighing the same."""
    logps = rows(0, 7)
    whole = SFT().loss(logps, batch(logps), None)[0]
    halves = [SFT().loss(part, batch(part), None)[0] for part in (logps[:2], logps[2:])]
    assert abs((sum(halves) / 2 - whole).item()) > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_push_the_right_way(objective: Any) -> None:
    logps, reference = rows(0, 4), rows(0, 4)
    for row in logps:
        for response in row:
            response.requires_grad_()
    objective.loss(logps, batch(reference), None)[0].backward()
    assert all((row[0].grad < 0).all() for row in logps)  # a step down the loss makes chosen tokens likelier
    rejected = [row[1].grad for row in logps]
    assert all(g is None for g in rejected) if isinstance(objective, SFT) else all((g > 0).all() for g in rejected if g is not None)


@pytest.mark.parametrize("objective", [one for one in OBJECTIVES if one.needs_reference])
def test_margins_are_zero_where_policy_and_reference_agree(objective: Any) -> None:
    logps = rows(3, 5, torch.float32)
    assert objective.margins(logps, batch(logps)).abs().max() == 0
    assert objective.loss(logps, batch(logps), None)[1]["rewards/margins"] == 0


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


def test_a_reference_of_other_lengths_is_refused() -> None:
    """One log-probability would be broadcast over a whole response without a word."""
    logps, reference = [[torch.zeros(5), torch.zeros(3)]], [[torch.zeros(1), torch.zeros(3)]]
    with pytest.raises(ValueError, match="do not fit"):
        DPO().loss(logps, batch(reference), None)


# ---- sources


def example(*roles: str) -> Example:
    return Example("row-1", (), "?", tuple(Response(f"{role} {n}", role=role) for n, role in enumerate(roles)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "roles", "taken"),
    [
        (SFT(), ("rejected", "chosen", "chosen"), ["chosen 1"]),
        (DPO(), ("rejected", "chosen", "rejected", "chosen"), ["chosen 1", "rejected 0"]),
    ],
)
def test_a_source_takes_the_first_of_each_role(objective: Any, roles: Sequence[str], taken: list[str]) -> None:
    source = objective.source([example(*roles)] * 3)
    assert len(source) == 3 and objective.k == len(taken)
    assert [response.text for response in source[1].responses] == taken
    assert len(source[:2]) == 2 and replace(source[0], responses=()) == replace(example(*roles), responses=())


@pytest.mark.parametrize(("objective", "roles", "lacks"), [(SFT(), ("rejected",), "chosen"), (DPO(), ("chosen",), "rejected")])
def test_a_row_without_a_needed_response_is_named(objective: Any, roles: Sequence[str], lacks: str) -> None:
    with pytest.raises(BadInput, match=f"row-1 has no {lacks} response"):
        objective.source([example(*roles)])[0]


# ---- knobs


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_every_knob_does_something(name: str) -> None:
    objective = lookup.find("objective", name)
    logps, reference = rows(0, 3), rows(1, 3)
    plain = objective().loss(logps, batch(reference), None)[0]
    for knob in fields(objective):
        turned = objective(**{knob.name: knob.default + 0.2})
        assert turned.loss(logps, batch(reference), None)[0] != plain, knob.name


@pytest.mark.parametrize("wrong", [{"beta": 0}, {"label_smoothing": 0.5}, {"gamma": -1}, {"betta": 0.1}])
def test_wrong_knobs_are_refused_in_a_recipe(wrong: Mapping[str, float]) -> None:
    with pytest.raises(Wrong):
        fill(DPO, wrong)


def test_only_objectives_are_found_by_name() -> None:
    assert {"sft", "dpo"} <= set(lookup.names("objective"))
    assert all(hasattr(lookup.find("objective", name), "loss") for name in lookup.names("objective"))
