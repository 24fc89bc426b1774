"""What is preferred becomes likelier, by every objective: a tiny MLLM that says "3" as readily as "5" learns which of them is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import SFT, curve, fresh, run

from pivot.data.collate import collate
from pivot.model import MLLM, Scorer
from pivot.objective.dpo import Objective as DPO
from pivot.objective.grpo import Objective as GRPO
from pivot.objective.kto import Objective as KTO
from pivot.objective.mpo import Objective as MPO
from pivot.objective.orpo import Objective as ORPO
from pivot.objective.ppo import Objective as PPO
from pivot.objective.reward_model import Objective as RewardModel
from pivot.records import Example, Response
from pivot.train import Rates

QUICK = Rates(tower=5e-3, projector=5e-3, llm=5e-3)
SAYS = ("3", "5")
OFFLINE = [SFT(), SFT(unlikelihood=1.0), DPO(), DPO(kind="ipo"), DPO(image=1.0, anchor=1.0), MPO(), KTO(), ORPO(beta=1.0)]
WRITES: dict[str, Any] = {"reward": {"name": "digit"}, "max_new": 3, "k": 8}
ONLINE = [GRPO(**WRITES, kl=0.01), PPO(**WRITES, kl=0.01, passes=1, critic="detached", critic_rate=1e-2)]


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def asked(picture: Callable[..., Any]) -> Callable[[int], list[Example]]:
    """Four questions, and which answer is preferred."""

    def examples(preferred: int) -> list[Example]:
        chosen, rejected = Response(SAYS[preferred]), Response(SAYS[1 - preferred], role="rejected")
        return [
            Example(f"row-{n}", (picture(n, 32),), "How many?", (chosen, rejected), answer=chosen.text, answer_kind="number")  # type: ignore[arg-type]
            for n in range(4)
        ]

    return examples


@pytest.fixture(scope="module")
def undecided(
    shared_mllm: MLLM, asked: Callable[[int], list[Example]], tmp_path_factory: pytest.TempPathFactory, own_cache: None
) -> tuple[MLLM, list[float]]:
    """It was shown both answers, and how likely each is now."""
    mllm = fresh(shared_mllm)
    both = [replace(row, id=f"{row.id} {n}", responses=row.responses[:1]) for n in (0, 1) for row in asked(n)]
    rates = Rates(tower=1e-3, projector=1e-2, llm=1e-2)
    run(mllm, SFT(), both, tmp_path_factory.mktemp("start"), batch=8, micro=8, epochs=16, rates=rates)
    likely = probabilities(mllm, asked(0))
    assert min(likely) > 0.1 and max(likely) < 1.5 * min(likely)
    return mllm, likely


@torch.no_grad()
def probabilities(mllm: MLLM, examples: list[Example]) -> list[float]:
    """Of each response, over its whole length; mean over the examples."""
    scores = Scorer(mllm)(collate([mllm.encode(example) for example in examples])).logps
    return [sum(float(row[number].sum().exp()) for row in scores) / len(scores) for number in (0, 1)]


@pytest.mark.parametrize(("objective", "preferred"), [(objective, n % 2) for of in (OFFLINE, ONLINE) for n, objective in enumerate(of)])
def test_the_preferred_answer_becomes_likelier_and_the_other_does_not(
    undecided: tuple[MLLM, list[float]],
    asked: Callable[[int], list[Example]],
    tmp_path: Path,
    objective: Any,
    preferred: int,
) -> None:
    """Now the one, now the other is preferred, and a sign turned round anywhere would show."""
    start, before = undecided
    mllm = fresh(start)
    run(mllm, objective, asked(preferred), tmp_path, batch=4, micro=4, epochs=8 if objective.online else 4, rates=QUICK)
    after = probabilities(mllm, asked(0))
    assert after[preferred] > 1.25 * before[preferred], (before, after)
    assert after[1 - preferred] < 0.8 * before[1 - preferred], (before, after)


@pytest.mark.parametrize("preferred", [0, 1])
@pytest.mark.parametrize("against", ["kl", "zero"])
def test_thumbs_up_and_down_move_each_answer_its_own_way(
    undecided: tuple[MLLM, list[float]], asked: Callable[[int], list[Example]], tmp_path: Path, preferred: int, against: Any
) -> None:
    """Rows of one response each; the disliked come first, so that a side taken from the place would show."""
    start, before = undecided
    mllm = fresh(start)
    single = [replace(row, id=f"{row.id} {one.role}", responses=(one,)) for row in asked(preferred) for one in reversed(row.responses)]
    run(mllm, KTO(unpaired=True, against=against), single, tmp_path, batch=8, micro=3, epochs=4, rates=QUICK)
    after = probabilities(mllm, asked(0))
    assert after[preferred] > 1.25 * before[preferred] and after[1 - preferred] < 0.8 * before[1 - preferred], (before, after)
    assert curve(tmp_path, metric="rewards/liked")[0] == 0.5 and curve(tmp_path, metric="rewards/accuracies")[-1] == 1


def test_a_reward_model_tells_the_answers_apart(
    shared_mllm: MLLM, asked: Callable[[int], list[Example]], tmp_path: Path, own_cache: None
) -> None:
    run(fresh(shared_mllm), RewardModel(head_rate=1e-2), asked(1), tmp_path, batch=4, micro=4, epochs=14, rates=QUICK)
    margins, losses = curve(tmp_path, metric="rewards/margins"), curve(tmp_path)
    assert margins[0] == 0 and losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert margins[-1] > 0.5 and losses[-1] < 0.5 and curve(tmp_path, metric="rewards/accuracies")[-1] == 1


# ---- optima that are known exactly, of pairs whose margins are free


def descended(objective: DPO, gained: float, step: float) -> float:
    """The margin at which plain gradient descent on one pair of one-token responses comes to rest."""
    logps = [[torch.full((1,), -1.0, dtype=torch.float64, requires_grad=True) for _ in (0, 1)]]
    reference = [[torch.full((1,), -1.0 - gained, dtype=torch.float64), torch.full((1,), -1.0, dtype=torch.float64)]]
    batch = {"counts": type("One", (), {"examples": 1, "tokens": (1, 1)}), "reference": reference, "said": [[[1], [2]]]}
    for _ in range(80):
        loss, _ = objective.loss(logps, batch, None)
        for response, gradient in zip(logps[0], torch.autograd.grad(loss, logps[0]), strict=True):
            response.data -= step * gradient
    return objective.margins(logps, batch).item()


@pytest.mark.parametrize("gained", [-3.0, 5.0])
def test_smoothed_dpo_rests_where_it_is_as_sure_as_its_labels(gained: float) -> None:
    """sigmoid(m) = 1 - s, from either side."""
    assert descended(DPO(beta=1, label_smoothing=0.2), gained, 2.0) == pytest.approx(math.log(0.8 / 0.2), abs=1e-6)


@pytest.mark.parametrize("gained", [-3.0, 5.0])
def test_ipo_rests_at_its_margin(gained: float) -> None:
    """g(chosen) - g(rejected) = 1 / (2 beta), so that the rewards are half apart."""
    assert descended(DPO(kind="ipo", beta=0.5), gained, 0.2) == pytest.approx(0.5, abs=1e-9)
