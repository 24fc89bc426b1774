"""Training on what the model writes itself: draws, rollouts, their numbers, and going on in the middle of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import ALL, SFT, curve, fresh, run, same, weights

from pivot.data.collate import collate
from pivot.files import read_json, read_jsonl
from pivot.model import MLLM, Scorer
from pivot.model.critic import Critic, critic, save_head
from pivot.model.rollout import answered
from pivot.objective._contract import Counts
from pivot.objective._online import Rollouts
from pivot.objective.grpo import Objective as GRPO
from pivot.objective.mpo import Objective as MPO
from pivot.objective.ppo import Objective as PPO
from pivot.objective.reward_model import Objective as RewardModel
from pivot.records import BadInput, CheckFailed, Example, Response
from pivot.reward._contract import Reply, Score
from pivot.train import Settings, rollouts, train
from pivot.train.anchor import Anchor
from pivot.train.feed import Data, said
from pivot.train.judge import Judge, Learned
from pivot.train.parts import freeze
from pivot.train.rollouts import Written, _judge

CHARACTERS = {
    "name": "length",
    "unit": "characters",
    "limit": 60,
}  # random weights write replies of one length in tokens, not in characters
WRITES: dict[str, Any] = {"reward": CHARACTERS, "max_new": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def grpo(**knobs: Any) -> GRPO:
    return GRPO(**{**WRITES, "k": 3, **knobs})


def ppo(**knobs: Any) -> PPO:
    return PPO(**{**WRITES, "critic_rate": 1e-3, "value": 0.5, **knobs})


def left_after(number: int, mllm: MLLM, objective: Any, examples: Sequence[Example], folder: Path, **settings: Any) -> None:
    """The first events of a run that is then left, as by Ctrl-C."""
    running = train(fresh(mllm), objective, examples, Settings(**settings), folder, rates=ALL)
    for _, _event in zip(range(number), running, strict=False):
        pass
    running.close()  # type: ignore[attr-defined]


# ---- rollouts


def test_what_is_sampled_hangs_on_seed_batch_row_and_reply_alone(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """However rows are cut to micro-batches, whoever makes them ahead, and however many batches are sampled at once."""
    small = {"batch": 3, "schedule": "constant", "warmup": 0.0}
    for name, settings in {"one": {"micro": 1, "workers": 0}, "all": {"micro": 8}}.items():
        run(fresh(shared_mllm), grpo(kl=0.0), pairs, tmp_path / name, **{**small, **settings})
    for metric in ("reward", "loss", "grad_norm", "completions/mean_length"):
        assert curve(tmp_path / "one", metric=metric) == pytest.approx(curve(tmp_path / "all", metric=metric), rel=1e-4, abs=1e-6), metric
    run(fresh(shared_mllm), grpo(kl=0.0), pairs, tmp_path / "seed", **small, seed=1)
    assert curve(tmp_path / "seed", metric="reward") != curve(tmp_path / "all", metric="reward")


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that replies are drawn by, as they are asked for from now on."""
    asked, plain = list[str](), rollouts.draws

    def draws(keys: Sequence[str], sampling: Any) -> Any:
        asked.extend(keys)
        return plain(keys, sampling)

    monkeypatch.setattr(rollouts, "draws", draws)
    return asked


def test_each_row_has_draws_of_its_own_in_every_epoch_however_many_batches_are_sampled_at_once(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = drawn(monkeypatch)
    for number in (1, 2, 3):
        run(fresh(shared_mllm), grpo(kl=0.0, rollout=number), pairs[:5], tmp_path / str(number), batch=2, epochs=2)
    each = [asked[at : at + 10] for at in (0, 10, 20)]
    assert len(asked) == 30 and len(set(each[0])) == 10 and each[0] == each[1] == each[2]


def test_held_out_rows_are_tried_by_draws_of_their_own_whatever_the_batch(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in (2, 5):
        run(fresh(shared_mllm), grpo(kl=0.0), pairs[:4], tmp_path / str(batch), validation=pairs[3:], batch=batch)
    first = [curve(tmp_path / str(batch), "eval", "reward")[0] for batch in (2, 5)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    asked = drawn(monkeypatch)
    run(fresh(shared_mllm), grpo(kl=0.0), pairs[:4], tmp_path / "again", validation=pairs[3:], batch=2)
    assert len({key for key in asked if "held out" in key}) == 5


def test_top_p_holds_for_what_is_learned_from(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="all earned the same"):  # of the likeliest token alone, all replies are one
        run(fresh(shared_mllm), grpo(kl=0.0, top_p=1e-9), pairs[:4], tmp_path)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampler_and_the_scorer_agree(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, temperature: float) -> None:
    """At the sampling temperature: trained at another, the ratio of new to old would not begin at 1."""
    run(fresh(shared_mllm), grpo(temperature=temperature, top_p=0.9, passes=2, kl=0.1), pairs[:4], tmp_path)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(line["sampler/difference"] < 1e-4 for line in lines)
    assert [line["ratio"] == pytest.approx(1, abs=1e-5) for line in lines] == [True, False]


def test_a_rollout_is_gone_through_as_often_as_asked(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """Eight rows in batches of two, sampled two batches at once, twice: 8 updates, of which every fourth samples."""
    run(fresh(shared_mllm), grpo(rollout=2, passes=2), pairs, tmp_path, batch=2)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert ["reward" in line for line in lines] == [True, False, False, False] * 2
    facts = read_json(tmp_path / "ledger.json")
    assert facts["steps"] == 8 and facts["examples"] == 8
    run(fresh(shared_mllm), SFT(), pairs, tmp_path / "sft", batch=2)
    assert facts["ids_sha256"] == read_json(tmp_path / "sft" / "ledger.json")["ids_sha256"]  # passes read nothing new


def test_one_update_alone_is_proof_enough(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """A critic's head begins at zero, so that nothing below it has a gradient in the first update."""
    run(fresh(shared_mllm), ppo(critic="separate", passes=1), pairs[:4], tmp_path, batch=4, epochs=1)
    assert read_json(tmp_path / "ledger.json")["steps"] == 1


@pytest.mark.parametrize(
    ("objective", "leave"),
    [(grpo(rollout=2, passes=2, kl=0.1, kl_target=0.01), (2, 3, 5, 8)), (ppo(rollout=2), (4, 7)), (ppo(critic="detached"), (3,))],
)
def test_a_killed_run_goes_on_in_the_middle_of_a_rollout(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, objective: Any, leave: tuple[int, ...]
) -> None:
    """To the same bits: replies that were sampled before the kill are learned from after it, not sampled anew."""
    settings = {"batch": 2, "micro": 2, "save_every": 1, "warmup": 0.0, "schedule": "constant"}
    whole = fresh(shared_mllm)
    run(whole, objective, pairs[:6], tmp_path / "whole", **settings)
    for number in leave:
        folder = tmp_path / str(number)
        left_after(number, shared_mllm, objective, pairs[:6], folder, **settings)
        mllm = fresh(shared_mllm)
        run(mllm, objective, pairs[:6], folder, **settings)
        assert same(weights(mllm), weights(whole)), number
        for metric in ("loss", "grad_norm", "sampler/difference"):
            assert curve(folder, metric=metric) == curve(tmp_path / "whole", metric=metric), number


def test_replies_that_all_earn_the_same_teach_nothing_and_are_counted(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    mllm = fresh(shared_mllm)
    with pytest.raises(CheckFailed, match="all earned the same"):
        run(mllm, grpo(kl=0.0, reward={"name": "length", "unit": "characters", "limit": 1}), pairs[:4], tmp_path)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert line["grad_norm"] == 0 and line["frac_reward_zero_std"] == 1
    assert same(weights(mllm), weights(shared_mllm))


@pytest.mark.parametrize("kind", ["separate", "detached", "shared"])
def test_a_critic_that_learns_from_level_rewards_is_no_proof_that_the_policy_does(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """All replies are cut off, say, and length costs: the tower is not to blame."""
    monkeypatch.setattr(Judge, "__call__", lambda judge, replies, examples: [Score(-1.0)] * len(replies))
    with pytest.raises(CheckFailed, match="all earned the same"):
        run(fresh(shared_mllm), ppo(critic=kind, passes=4, kl=0.0), pairs[:4], tmp_path / "level", batch=4)
    lines = read_jsonl(tmp_path / "level" / "metrics.jsonl")
    assert len(lines) == 4 and all(line["grad_norm"] > 0 and line["advantages/nonzero"] == 0 for line in lines)
    assert lines[0]["reward_std"] == 0 and "frac_reward_zero_std" not in lines[0]
    run(fresh(shared_mllm), ppo(critic=kind, passes=4, kl=0.0), pairs[:4], tmp_path / "later", batch=2)  # then values differ, and teach


def test_held_out_replies_are_judged_by_held_out_rows(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {str(example.prompt) for example in pairs[:4]} - {str(example.prompt) for example in pairs[5:]}
    scores = iter(range(10**6))

    def judge(self: Judge, replies: Sequence[Reply], examples: Sequence[Example]) -> list[Score]:
        return [Score(next(scores) % 2 if str(example.prompt) in own else 7.0) for example in examples]

    monkeypatch.setattr(Judge, "__call__", judge)
    run(fresh(shared_mllm), grpo(kl=0.0), pairs[:4], tmp_path, validation=pairs[5:])
    assert set(curve(tmp_path, "eval", "reward")) == {7.0} and max(curve(tmp_path, metric="reward")) < 7


def test_held_out_prompts_are_tried_by_the_same_draws(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    frozen = {"warmup": 0.0, "eval_every": 1, "batch": 4}
    run(fresh(shared_mllm), grpo(), pairs, tmp_path, validation=pairs[:3], **frozen)
    rewards = curve(tmp_path, "eval", "reward")
    assert len(rewards) == 3 and curve(tmp_path, "eval") == [-reward for reward in rewards]
    run(fresh(shared_mllm), grpo(), pairs, tmp_path / "seed", validation=pairs[:3], **frozen, seed=5)
    assert curve(tmp_path / "seed", "eval", "reward")[0] == rewards[0]  # before any update, whatever the seed


# ---- the weights that training started from


def test_the_anchor_is_the_first_weights_and_gives_the_present_ones_back(mllm: MLLM, pairs: list[Example]) -> None:
    scorer, batch = Scorer(mllm), collate([mllm.encode(example) for example in pairs[:2]])
    first = [[response.clone() for response in row] for row in scorer(batch).logps]
    anchor = Anchor(dict(mllm.model.named_parameters()), scorer)
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            parameter.add_(0.01)
    moved = weights(mllm)
    with anchor.weighed():
        again = scorer(batch).logps
    assert all(torch.equal(a, b) for old, new in zip(first, again, strict=True) for a, b in zip(old, new, strict=True))
    assert same(weights(mllm), moved)


def test_without_a_kl_term_no_reference_is_kept(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("an anchor was made")

    monkeypatch.setattr(Anchor, "__init__", refused)
    run(fresh(shared_mllm), grpo(kl=0.0), pairs[:4], tmp_path)
    with pytest.raises(AssertionError, match="an anchor"):
        run(fresh(shared_mllm), grpo(kl=0.1), pairs[:4], tmp_path / "kl")


def test_the_kl_term_sees_the_policy_leave(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    run(fresh(shared_mllm), grpo(kl=0.1), pairs, tmp_path, batch=2)
    first, *later = curve(tmp_path, metric="kl")
    assert first == pytest.approx(0, abs=1e-6) and max(later) > 1e-4


# ---- critics and reward models


@pytest.mark.parametrize(("kind", "trains"), [("separate", {"critic"}), ("detached", {"head"}), ("shared", {"head", "tower", "llm"})])
def test_what_a_critic_trains(mllm: MLLM, pairs: list[Example], kind: Any, trains: set[str]) -> None:
    """Through a shared one, errors of values would train the tower; that is why it is not the default."""
    freeze(mllm, ALL)
    made = critic(mllm, Scorer(mllm), kind)
    torch.nn.init.normal_(made.head.weight)
    values = made(collate([mllm.encode(example) for example in pairs[:2]])).values
    sum(response.square().sum() for row in values for response in row).backward()
    moved = {name for name, part in mllm.parts().items() if any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())}
    moved |= {"head"} if made.head.weight.grad is not None else set()
    if made.beside is not None:
        moved |= {"critic"} if all(p.grad is not None for p in made.beside.part("tower").parameters() if p.requires_grad) else set()
        moved -= {"head"}
    assert moved - {"projector"} == trains


def test_values_are_those_before_each_token_and_behind_the_last(mllm: MLLM, pairs: list[Example]) -> None:
    made = Critic(Scorer(mllm), "shared")
    torch.nn.init.normal_(made.head.weight)
    rows = [mllm.encode(example) for example in pairs[:3]]
    found = made(collate(rows))
    hidden = made.scorer(collate(rows), hidden=True).hidden
    for values, states, logps in zip(found.values, hidden, found.logps, strict=True):
        for value, state, logp in zip(values, states, logps, strict=True):
            assert len(value) == len(logp) + 1
            torch.testing.assert_close(value, made.head(state)[:, 0])


def test_a_reward_model_is_trained_written_and_then_judges(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    mllm = fresh(shared_mllm)
    run(mllm, RewardModel(head_rate=1e-2), pairs, tmp_path / "rm", model=True, epochs=4)
    accuracy = curve(tmp_path / "rm", metric="rewards/accuracies")
    assert accuracy[0] < accuracy[-1]
    learned = Learned(str(tmp_path / "rm" / "model"), torch.device("cpu"))
    learned.ahead([(response.text, example) for example in pairs for response in example.responses])
    better = [learned(e.responses[0].text, e) > learned(e.responses[1].text, e) for e in pairs]
    assert sum(better) / len(better) == pytest.approx(accuracy[-1], abs=0.3) and sum(better) > 4
    reward = {"reward": {"name": "learned"}, "reward_model": str(tmp_path / "rm" / "model")}
    run(fresh(shared_mllm), grpo(**reward), pairs[:4], tmp_path / "grpo")
    assert curve(tmp_path / "grpo", metric="rewards/failed") == [0]
    run(fresh(shared_mllm), ppo(critic_from=reward["reward_model"]), pairs[:4], tmp_path / "ppo")
    with pytest.raises(BadInput, match="give the objective reward_model"):
        grpo(reward={"name": "learned"})
    with pytest.raises(BadInput, match=r"is no reward model.*reward_model"):
        run(fresh(shared_mllm), ppo(critic_from=str(tmp_path / "rm")), pairs[:4], tmp_path / "wrong")


@pytest.mark.parametrize("who", ["reward_model", "critic_from"])
def test_a_killed_run_goes_on_with_the_same_reward_model_alone(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, who: str) -> None:
    """Its folder is where the next one is written to, too."""
    judge = tmp_path / "judge"
    fresh(shared_mllm).save(judge)
    save_head(judge, {"weight": torch.ones(1, 32), "bias": torch.zeros(1)})
    objective = grpo(reward={"name": "learned"}, reward_model=str(judge)) if who == "reward_model" else ppo(critic_from=str(judge))
    settings = {"batch": 2, "micro": 2, "save_every": 1, "warmup": 0.0, "schedule": "constant"}
    left_after(3, shared_mllm, objective, pairs[:6], tmp_path / "run", **settings)
    save_head(judge, {"weight": -torch.ones(1, 32), "bias": torch.zeros(1)})
    with pytest.raises(BadInput, match=rf"another training \(changed: judges.{who}\)"):
        run(fresh(shared_mllm), objective, pairs[:6], tmp_path / "run", **settings)
    save_head(judge, {"weight": torch.ones(1, 32), "bias": torch.zeros(1)})
    run(fresh(shared_mllm), objective, pairs[:6], tmp_path / "run", **settings)


def test_a_score_of_a_reply_does_not_hang_on_its_company(shared_mllm: MLLM, pairs: list[Example]) -> None:
    """Rows are scored in batches; a reward that changed with them would not be one."""
    made = Critic(Scorer(fresh(shared_mllm)), "only")
    torch.nn.init.normal_(made.head.weight)
    rows = [shared_mllm.encode(replace(example, responses=(Response("A ring, I think."),))) for example in pairs]
    together = [float(row[0][-1].detach()) for row in made(collate(rows)).values]
    alone = [float(made(collate([row])).values[0][0][-1].detach()) for row in rows]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_judge_that_never_judges_stops_the_run(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """A key that is wrong, say. One row that cannot be judged does not: nothing is learned from that one."""
    blank = [replace(example, answer=None) for example in pairs[:4]]
    with pytest.raises(CheckFailed, match=r"in 3 rollouts in a row no reply could be judged.*has no answer"):
        run(fresh(shared_mllm), grpo(reward={"name": "answer"}), blank, tmp_path / "never", batch=1)
    assert len(curve(tmp_path / "never")) == 2
    with pytest.raises(CheckFailed, match="held-out row"):
        run(fresh(shared_mllm), grpo(reward={"name": "answer"}), blank, tmp_path / "held", validation=blank[:2])


@pytest.mark.parametrize("objective", [GRPO(**WRITES, k=3), PPO(**WRITES, k=3)])
def test_a_reply_that_was_not_judged_moves_nothing(objective: Any) -> None:
    """A busy endpoint must not push right replies down: the others are compared among themselves, as if it were not there."""
    logps = [[-torch.rand(4, generator=torch.Generator().manual_seed(n)) for n in range(3)]]
    values = [[torch.linspace(0, 1, 5) for _ in range(3)]]
    finished = torch.ones(1, 3, dtype=torch.bool)
    told = Rollouts(torch.tensor([[1.0, torch.nan, 0.0]]).double(), finished, logps, logps, values)
    two = Rollouts(told.rewards[:, [0, 2]], finished[:, :2], *([[row[0], row[2]] for row in nested] for nested in (logps, logps, values)))
    found, metrics, _ = objective.appraise(told, objective.init())
    wanted, fewer, _ = objective.appraise(two, objective.init())
    assert not found["advantages"][0][1].nan_to_num(0).any()
    for n, other in ((0, 0), (2, 1)):
        torch.testing.assert_close(found["advantages"][0][n], wanted["advantages"][0][other])
    assert metrics["reward"] == fewer["reward"] == 0.5
    nobody, _, _ = objective.appraise(replace(told, rewards=torch.full((1, 3), torch.nan).double()), objective.init())
    assert not any(reply.nan_to_num(0).any() for reply in nobody["advantages"][0])
    leaves = [[reply.clone().requires_grad_() for reply in row] for row in logps]
    away = [[reply - 0.5 for reply in row] for row in logps]
    counts = Counts(1, (4, 4, 4))
    batch = {"counts": counts, "old": logps, "sampler": logps, "reference": away, "values": values, **found}
    objective.loss(leaves, batch, objective.init())[0].backward()
    moves = [bool(reply.grad is not None and reply.grad.any()) for reply in leaves[0]]
    assert moves == [True, False, True]  # nor does the pull to the reference move it


def test_only_rollouts_in_a_row_without_a_judgement_stop_a_run() -> None:
    judge, lost, found = Judge(grpo(), torch.device("cpu")), [Score(0.0, failed="no")], [Score(1.0)]
    for heard in (lost, lost, found, lost, lost, [*lost, *found], lost, lost):
        judge.hear(heard)
    with pytest.raises(CheckFailed, match="in 3 rollouts in a row"):
        judge.hear(lost)


def test_prompts_are_never_learned_from_whatever_the_label_mask(shared_mllm: MLLM, pairs: list[Example]) -> None:
    row = answered(shared_mllm.encode(replace(pairs[0], responses=()), "llava_next"), [[5, 6]])
    assert not any(row.trunks[0].span.supervised) and said(row) == [[5, 6]]


def test_saying_nothing_is_scored_like_any_reply(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    fresh(shared_mllm).save(tmp_path)
    save_head(tmp_path, {"weight": torch.ones(1, 32), "bias": torch.tensor([-50.0])})
    learned = Learned(str(tmp_path), torch.device("cpu"))
    assert learned("", pairs[0]) < 0 and learned("  ", pairs[0]) == learned("", pairs[0]) != learned("A ring.", pairs[0])


def test_the_learned_reward_is_asked_once_for_all_replies(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a gate, where it judges another text than the reply. One by one it would move the model for every reply."""
    made = fresh(shared_mllm)
    made.save(tmp_path)
    save_head(tmp_path, {"weight": torch.ones(1, 32), "bias": torch.zeros(1)})
    judge, calls = Judge(grpo(reward={"name": "open"}, reward_model=str(tmp_path)), torch.device("cpu")), list[int]()
    assert judge.learned is not None
    scored = judge.learned._scored
    monkeypatch.setattr(judge.learned, "_scored", lambda some: calls.append(len(some)) or scored(some))
    judge([Reply(f"reply {n}") for n in range(4)], pairs[:4])
    assert calls == [8]  # four replies and the four answers that they are held against
    twins = [replace(example, id="twin", answer="the same") for example in pairs[:2]]  # real sets repeat ids
    judge([Reply("so")] * 2, twins)
    assert calls == [8, 4]
    assert judge.learned._critic.head.weight.device.type == "cpu" and len(judge.learned._known) == 4  # what was known before is forgotten


def test_the_ledger_counts_critics_and_looks_ahead(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """Against torch's own count of all that a whole run computes: sampling, scoring, the anchor, critics and updates."""
    for name, objective in {"detached": ppo(critic="detached", passes=1), "separate": ppo(passes=1), "mpo": MPO()}.items():
        mllm = fresh(shared_mllm)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(mllm, objective, pairs[:4], tmp_path / name, batch=2, micro=1, workers=0)
        facts = read_json(tmp_path / name / "ledger.json")
        found = facts["flops"] + (facts["reference"] or {"flops": 0})["flops"]
        assert found == pytest.approx(counter.get_total_flops(), rel=0.1), name


def test_rewards_are_told_how_a_reply_ended_and_how_long_it_is(shared_mllm: MLLM, pairs: list[Example]) -> None:
    heard = list[Reply]()

    def judge(replies: Sequence[Reply], examples: Sequence[Example]) -> list[Score]:
        heard.extend(replies)
        assert [example.prompt for example in examples] == [pairs[1].prompt] * 2
        return [Score(0.0)] * len(replies)

    setup: Any = SimpleNamespace(judge=judge, mllm=shared_mllm, objective=grpo(max_new=4))
    _judge(setup, Data(pairs), [Written((0, 0), 1, [[7, 8], [7, 8, 9, 10]], [True, False], {})])
    assert [(reply.share, reply.finished) for reply in heard] == [(0.5, True), (1.0, False)]


def test_the_limit_holds_for_prompt_and_reply(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    longest = max(len(shared_mllm.encode(replace(example, responses=())).trunks[0].span) for example in pairs[:4])
    run(fresh(shared_mllm), grpo(reward=CHARACTERS, max_new=12), pairs[:4], tmp_path, limit=longest + 2)
    assert max(curve(tmp_path, metric="completions/mean_length")) <= 4  # the shortest prompt leaves a little more room than two


def test_a_reward_may_be_given_by_its_name() -> None:
    assert GRPO(reward="answer").learns and GRPO(reward="answer").reward == {"name": "answer"}  # type: ignore[arg-type]
