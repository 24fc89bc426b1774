"""Batches that the model writes itself: replies are sampled, judged and scored, then learned from as rows of data are.

    for each `rollout` batches of prompts: k replies each, from draws that depend on seed, batch, row and reply alone
        what they earn; if later updates need it, their log-probabilities, values, and those under the first weights
        the objective appraises all of it, over all processes
        `passes` times: one update from each batch

All of a rollout is in the state, in the order of its prompts: a run that is killed between two updates goes on with it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor

from pivot.data.collate import Row, collate
from pivot.model.flops import row_flops
from pivot.model.rollout import Sampled, answered, draws
from pivot.objective._online import Online, Rollouts
from pivot.records import CheckFailed
from pivot.reward._contract import Reply, Score
from pivot.train.feed import Data, Portion, micros, read
from pivot.train.judge import told as earned
from pivot.train.ledger import models
from pivot.train.order import pieces, share
from pivot.train.state import Rollout, Setup, State

Batches = Sequence[Sequence[int]]
Nested = list[list[Tensor]]  # per row, per reply


def portions(setup: Setup, state: State) -> Iterator[Portion]:
    """What this process takes of each update that is left. A rollout is made when the first of its updates is asked for."""
    objective = _online(setup)
    turn, done = divmod(state.step, objective.rollout * objective.passes)
    plan = setup.batches(turn * objective.rollout)
    while state.step < setup.steps:
        group = list(islice(plan, objective.rollout))
        number, before = turn * objective.rollout, Portion([], [])
        rows = _prompts(setup, setup.data, group)
        if not done or state.rollout is None:
            before = _roll(setup, state, group, rows, number)
        assert state.rollout is not None
        for update in range(done, objective.passes * len(group)):
            at = update % len(group)
            yield _portion(setup, state.rollout, group[at], rows[at], at, update >= len(group), before)
            before = Portion([], [])
        turn, done = turn + 1, 0


def tried(setup: Setup, heldout: Data, plan: Iterable[Sequence[int]]) -> dict[str, float]:
    """What replies to held-out prompts earn, always by the same draws. The loss is what is not earned."""
    group = list(plan)
    own = _sampled(setup, group, _prompts(setup, heldout, group), lambda b, n: f"held out {group[b][n]}")
    _judge(setup, heldout, own)
    written = _gathered(own)
    rewards = [reward for one in written for reward in one.rewards if not math.isnan(reward)]
    if not rewards:
        raise CheckFailed(f"no reply to a held-out row could be judged, the first since {written[0].scores[0].failed}; see to these rows")
    unfinished = [not done for one in written for done in one.finished]
    reward = fmean(rewards)
    told = earned([score for one in written for score in one.scores])
    return {"loss": -reward, "reward": reward, "completions/clipped_ratio": fmean(unfinished), **told}


def _online(setup: Setup) -> Online:
    assert isinstance(setup.objective, Online)
    return setup.objective


def _prompts(setup: Setup, data: Data, group: Batches) -> list[list[Row]]:
    """This process' rows of each batch, without replies; of a batch in which it has none, one to keep step with."""
    crew = setup.accelerator
    wanted = [share(batch, crew.process_index, crew.num_processes) or batch[:1] for batch in group]
    made = setup.ahead.map(lambda number: setup.encode(read(data.examples, number)), [n for own in wanted for n in own], len(wanted[0]))
    return [list(islice(made, len(own))) for own in wanted]


def _portion(setup: Setup, rollout: Rollout, batch: Sequence[int], rows: list[Row], at: int, again: bool, before: Portion) -> Portion:
    """One batch of a rollout, as the loop learns from it."""
    crew, settings = setup.accelerator, setup.settings
    mine = share(range(len(batch)), crew.process_index, crew.num_processes)
    own = [answered(row, [reply.tolist() for reply in rollout.ids[at][n]]) for n, row in zip(mine, rows, strict=False)]
    told = {name: [[reply.numpy() for reply in of[at][n]] for n in mine] for name, of in rollout.told.items()}
    filler = answered(rows[0], [[0] for _ in range(setup.objective.k)])
    cut = micros(own, told, pieces(len(batch), settings.micro, crew.num_processes), filler)
    return Portion(own, cut, again, before.metrics, before.flops, before.seconds)


# ---- a rollout


@dataclass
class Written:
    """Replies to one prompt, by whichever process."""

    at: tuple[int, int]  # batch of the rollout, and row of it
    number: int  # of the prompt, among the examples
    ids: list[list[int]]
    finished: list[bool]
    told: dict[str, list[Tensor]]  # by name: numbers of each reply's tokens
    scores: list[Score] = field(default_factory=list)

    @property
    def rewards(self) -> list[float]:
        """What each reply earns; not a number where it could not be judged."""
        return [math.nan if score.failed else float(score) for score in self.scores]


def _roll(setup: Setup, state: State, group: Batches, rows: list[list[Row]], number: int) -> Portion:
    """Make the rollout of some batches; returns a portion without rows that says what it took."""
    clock = [time.perf_counter()]
    objective, filler = _online(setup), answered(rows[0][0], [[0]])
    # By the batch's number in the run, so that it does not matter how many are sampled at once. The 0 keeps the draws of earlier runs.
    own = _sampled(setup, group, rows, lambda b, n: f"{setup.settings.seed} {number + b} 0 {n}")
    clock.append(time.perf_counter())
    _judge(setup, setup.data, own)
    clock.append(time.perf_counter())
    replied = [answered(rows[one.at[0]][place], one.ids) for place, one in _placed(own)]
    if objective.needs_old:
        for name, nested in _scored(setup, replied, filler, "old").items():
            _lay(own, name, nested)
    if setup.anchor:
        with setup.anchor.weighed():
            _lay(own, "reference", _scored(setup, replied, filler, "reference", values=False)["reference"])
    clock.append(time.perf_counter())
    # Sampling costs what scoring does: every token goes through the LLM once.
    once = sum(row_flops(setup.mllm.model.config, row, "shared", backward=False, adapters=setup.adapters) for row in replied)
    state.rollout, metrics = _appraised(setup, state, _gathered(own), [len(batch) for batch in group])
    times = {f"seconds/{what}": b - a for what, (a, b) in zip(("sampling", "judging", "scoring"), pairwise(clock), strict=True)}
    return Portion(
        rows=[],
        micros=[],
        metrics={**metrics, **times},
        flops=once * (1 + models(objective) * objective.needs_old + (setup.anchor is not None)),
        seconds=time.perf_counter() - clock[0],
    )


def _placed(own: Sequence[Written]) -> Iterator[tuple[int, Written]]:
    """Each with its place among this process' rows of its batch."""
    seen = Counter[int]()
    for one in own:
        yield seen[one.at[0]], one
        seen[one.at[0]] += 1


def _gathered(own: Sequence[Written]) -> list[Written]:
    """Those of all processes, in the order of the prompts."""
    return sorted((one for process in gather_object([list(own)]) for one in process), key=lambda one: one.at)


@torch.no_grad()
def _sampled(setup: Setup, group: Batches, rows: list[list[Row]], key: Callable[[int, int], str]) -> list[Written]:
    """Replies to this process' rows. All processes sample equally often: wrappers wait for each other.

    `key`: what draws the replies to a row of a batch, by their numbers in the group.
    """
    crew, sampling = setup.accelerator, replace(_online(setup).sampling, longest=setup.settings.limit)
    mine = [
        ((b, n), row)
        for b, (batch, of) in enumerate(zip(group, rows, strict=True))
        for n, row in zip(share(range(len(batch)), crew.process_index, crew.num_processes), of, strict=False)
    ]
    own, size = list[Written](), setup.settings.micro
    for call in range(max(gather_object([math.ceil(len(mine) / size)]))):
        some = mine[call * size : (call + 1) * size]
        keys = [key(*at) for at, _ in some]
        batch = send_to_device(collate([row for _, row in some] or rows[0][:1]), crew.device)
        with crew.autocast():
            found: Sampled = setup.scorer(batch, sampling=sampling, draws=draws(keys or ["filler"], sampling))
        for (at, _), ids, logps, finished in zip(some, *found, strict=False):
            own.append(Written(at, group[at[0]][at[1]], ids, finished, {"sampler": [reply.float().cpu() for reply in logps]}))
    return own


def _judge(setup: Setup, data: Data, own: Sequence[Written]) -> None:
    """Give each reply what it earns."""
    assert setup.judge is not None
    tokenizer, longest = setup.mllm.processor.tokenizer, _online(setup).max_new  # type: ignore[attr-defined]
    replies = [
        Reply(tokenizer.decode(ids, skip_special_tokens=True), len(ids) / longest, finished)
        for one in own
        for ids, finished in zip(one.ids, one.finished, strict=True)
    ]
    asked = (replace(read(data.examples, one.number), id=f"{one.number}") for one in own)  # data may repeat an id, and scores go by it
    scores = iter(setup.judge(replies, [example for example, one in zip(asked, own, strict=True) for _ in one.ids]))
    for one in own:
        one.scores = list(islice(scores, len(one.ids)))


def _lay(own: Sequence[Written], name: str, nested: Nested) -> None:
    for one, numbers in zip(own, nested, strict=True):
        one.told[name] = numbers


@torch.no_grad()
def _scored(setup: Setup, rows: Sequence[Row], filler: Row, name: str, values: bool = True) -> dict[str, Nested]:
    """Log-probabilities of replies, and values if there is a critic, on the host. All processes run equally many batches."""
    found: dict[str, Nested] = {name: []}
    options = {**setup.scoring, **({} if values or setup.objective.head == "none" else {"values": False})}
    size = setup.settings.micro
    for call in range(max(gather_object([math.ceil(len(rows) / size)]))):
        some = rows[call * size : (call + 1) * size]
        scores = setup.scorer(send_to_device(collate(some or [filler]), setup.accelerator.device), **options)
        if some:
            found[name] += [[reply.float().cpu() for reply in row] for row in scores.logps]
            if scores.values is not None:
                found.setdefault("values", []).extend([[reply.float().cpu() for reply in row] for row in scores.values])
    return found


def _appraised(setup: Setup, state: State, written: Sequence[Written], sizes: Sequence[int]) -> tuple[Rollout, dict[str, float]]:
    """The rollout of all processes, with what the objective makes of it, and metrics of that."""
    nested: dict[str, Nested] = {name: [one.told[name] for one in written] for name in written[0].told}
    values = nested.pop("values", None)
    rollouts = Rollouts(
        rewards=torch.tensor([one.rewards for one in written], dtype=torch.float64),
        finished=torch.tensor([one.finished for one in written]),
        logps=nested.get("old"),
        reference=nested.get("reference"),
        values=values,
    )
    assert setup.judge is not None
    setup.judge.hear([score for one in written for score in one.scores])
    more, metrics, state.objective = _online(setup).appraise(rollouts, state.objective)
    numbers = {**nested, **{name: [[reply.float() for reply in row] for row in of] for name, of in more.items()}}
    ids = [[torch.tensor(reply) for reply in one.ids] for one in written]
    rollout = Rollout(_by_batch(ids, sizes), {name: _by_batch(of, sizes) for name, of in numbers.items()})
    told = earned([score for one in written for score in one.scores])
    return rollout, {**{name: float(value) for name, value in metrics.items()}, **told}


def _by_batch(rows: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    given = iter(rows)
    return [list(islice(given, size)) for size in sizes]
