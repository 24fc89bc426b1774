"""What replies earn: a recipe's reward, handed what it needs to judge with, over all replies of a rollout at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device

from pivot.data.collate import Row, collate
from pivot.data.turns import formatting
from pivot.files import hash_json, hash_tensors
from pivot.knobs import fill
from pivot.model import Scorer
from pivot.model.critic import Critic, load
from pivot.model.rollout import answered
from pivot.records import CheckFailed, Example, Response
from pivot.reward._contract import Ask, Reply, Score, check, made, needs, scored

AT_ONCE = 8  # rows that a reward model scores, and judges that are asked, at once
PATIENCE = 3  # rollouts without a judgement
Pairs = Sequence[tuple[str, Example]]


class Learned:
    """A reward model as a function of reply and example. Between uses it waits on the host, so that it costs no memory in updates."""

    def __init__(self, folder: str, device: torch.device) -> None:
        mllm, weights = load(folder)
        self._mllm, self._device = mllm, device
        self.identity = hash_json([mllm.hashes(), hash_tensors(weights)])
        self._critic = Critic(Scorer(mllm), "only").eval()
        self._critic.head.load_state_dict(weights)
        self._known: dict[tuple[str, str, str], float] = {}

    def ahead(self, pairs: Pairs) -> None:
        """Score all of these at once, and forget what was known before."""
        wanted = {_key(reply, example): (reply, example) for reply, example in pairs}
        self._known = {}
        self._critic.to(self._device)
        for start in range(0, len(wanted), AT_ONCE):
            keys = list(wanted)[start : start + AT_ONCE]
            self._known |= zip(keys, self._scored([wanted[key] for key in keys]), strict=True)
        self._critic.to("cpu")

    def __call__(self, reply: str, example: Example) -> float:
        """The score of a reply."""
        if _key(reply, example) not in self._known:
            self.ahead([(reply, example)])
        return self._known[_key(reply, example)]

    @torch.no_grad()
    def _scored(self, pairs: Pairs) -> list[float]:
        rows = [self._row(reply, example) for reply, example in pairs]
        values = self._critic(send_to_device(collate(rows), self._device)).values
        return [float(row[0][-1]) for row in values]

    def _row(self, reply: str, example: Example) -> Row:
        """A reply that says nothing is its end: left out, it would earn more than all that are worth less than nothing."""
        if reply.strip():
            return self._mllm.encode(replace(example, responses=(Response(reply),)))
        return answered(self._mllm.encode(replace(example, responses=())), [formatting(self._mllm.processor).tail[:1]])


def _key(reply: str, example: Example) -> tuple[str, str, str]:
    """Of a reply to an example. Ids alone may come twice in a data set."""
    return example.id, str(example.prompt), reply


class Asks(Protocol):
    """Whoever wants replies judged: an objective, or the making of pairs."""

    @property
    def reward(self) -> Any: ...
    @property
    def reward_model(self) -> str | None: ...
    @property
    def chat(self) -> Mapping[str, Any] | None: ...


class Judge:
    """The reward of who has a model write responses."""

    def __init__(self, asks: Asks, device: torch.device) -> None:
        self._spec = check(asks.reward)
        wanted = needs(self._spec)
        self.learned = Learned(asks.reward_model, device) if "score" in wanted and asks.reward_model else None
        ask = _chat(asks) if "ask" in wanted else None
        self.waits = ask is not None  # for others, so that it pays to ask many at once
        self._silent = 0  # rollouts in a row of which no reply could be judged
        self._reward = made(self._spec, score=self.learned, ask=ask)

    def __call__(self, replies: Sequence[Reply], examples: Sequence[Example]) -> list[Score]:
        """What each reply to its example earns."""
        pairs = list(zip(replies, examples, strict=True))
        if self.learned:
            self.learned.ahead(scored(self._spec, pairs))
        with ThreadPoolExecutor(AT_ONCE) if self.waits else nullcontext() as pool:
            scores = list((pool.map if pool else map)(lambda pair: self._reward(*pair), pairs))
        return scores

    def hear(self, scores: Sequence[Score]) -> None:
        """Take in what a rollout earned, over all processes. A judge that has judged nothing for a while stops the run."""
        failed = bool(scores) and all(score.failed for score in scores)
        self._silent = self._silent + 1 if failed else 0
        if self._silent == PATIENCE:
            why = f"in {PATIENCE} rollouts in a row no reply could be judged, the last since {scores[-1].failed}"
            raise CheckFailed(f"{why}; mend that and run the same command again")


def _chat(asks: Asks) -> Ask:
    from pivot.chat import Chat

    return Chat(**fill(Chat, asks.chat or {})).ask


def told(scores: Sequence[Score]) -> Mapping[str, float]:
    """What each term brought, how many replies could not be judged, and how many had no answer where one must stand."""
    number = max(len(scores), 1)
    parts = dict.fromkeys((name for score in scores for name in score.parts), 0.0)
    for score in scores:
        for name, value in score.parts.items():
            parts[name] += value / number
    found = {f"rewards/{name}/mean": value for name, value in parts.items()}
    failed, gated = sum(score.failed is not None for score in scores), sum(score.gated for score in scores)
    return {**found, "rewards/failed": failed / number, "rewards/gated": gated / number}
