"""What an MLLM says to rows when it is asked several times, and what it goes on to say without their pictures, judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from accelerate.utils import send_to_device

from pivot.data.collate import Row, collate
from pivot.data.speech import Span
from pivot.data.talk import turns_of
from pivot.data.turns import IMAGE
from pivot.model.families import context
from pivot.model.rollout import Sampled, draws
from pivot.model.score import Scorer
from pivot.records import BadInput, Example, Response
from pivot.reward._contract import Reply, Score, needs, unjudged
from pivot.train.feed import read
from pivot.train.pairing import Attempt, Record, continuable
from pivot.train.wanted import Known, Method, Settings, known, question

if TYPE_CHECKING:
    from pivot.model.mllm import MLLM

Judge = Callable[[Sequence[Reply], Sequence[Example]], Sequence[Score]]


@dataclass
class Try:
    """A row that is being tried. `said`: of each attempt the tokens, without the one that ends it. `judged`: how many were."""

    number: int
    example: Example
    prompt: Row
    answer: Known
    methods: tuple[Method, ...]
    attempts: list[Attempt] = field(default_factory=list)
    said: list[list[int]] = field(default_factory=list)
    judged: int = 0

    def add(self, attempt: Attempt, said: list[int]) -> None:
        self.attempts.append(attempt)
        self.said.append(said)

    @property
    def record(self) -> Record:
        """What is kept of it."""
        return Record(self.number, self.example.id, self.methods, tuple(self.attempts), answer=self.answer)


class Attempts:
    """Tries rows of examples. What is tried at a row follows from weights, seed and its number, but for rounding."""

    def __init__(self, mllm: MLLM, examples: Sequence[Example], settings: Settings, judge: Judge) -> None:
        self._mllm, self._scorer, self._tokenizer = mllm, Scorer(mllm), mllm.processor.tokenizer  # type: ignore[attr-defined]
        self._examples, self._settings, self._judge = examples, settings, judge
        room = context(mllm.model.config)
        self._limit = None if room is None else room - 1  # of a prompt, so that it can be answered

    def at(self, numbers: Iterable[int]) -> list[Record]:
        """What is tried at rows, together. A row that cannot be asked about says so and keeps none of the others."""
        opened = [self._opened(number) for number in numbers]
        tries = [one for one in opened if isinstance(one, Try)]
        self._sample([one for one in tries if "correctness" in one.methods or self._settings.chosen == "sampled"])
        self._judged(tries)
        self._continue([one for one in tries if "dropout" in one.methods and one.example.images])
        self._judged(tries)
        return [one if isinstance(one, Record) else one.record for one in opened]

    def _opened(self, number: int) -> Try | Record:
        name = ""
        answer: Known = "none"
        try:
            example = read(self._examples, number)
            name, answer = example.id, known(example)
            if refused := self._settings.refusal(example):
                return Record(number, name, self._settings.methods(answer), failed=refused, answer=answer)
            example = question(example)
            prompt = self._mllm.encode(replace(example, responses=()), limit=self._limit)
            found = Try(number, example, prompt, answer, self._settings.methods(answer))
            text = next((response.text for response in example.responses if response.role == "chosen"), None)
            if "dropout" in found.methods and self._settings.chosen == "data" and isinstance(text, str):
                *said, _end = self._mllm.encode(_blind(example, Response(text)), limit=self._limit).branches[0].ids
                found.add(Attempt(text, len(said), "data"), said)
            return found
        except (BadInput, OSError) as wrong:
            return Record(number, name, failed=str(wrong), answer=answer)

    # ---- asking

    def _sample(self, tries: Sequence[Try]) -> None:
        k = self._settings.samples
        found = self._written([one.prompt for one in tries], [str(one.number) for one in tries], k)
        for one, ids, finished in zip(tries, found.ids, found.finished, strict=True):
            for said, done in zip(ids, finished, strict=True):
                said = said[:-1] if done else said
                one.add(Attempt(self._text(said), len(said), finished=done), said)

    def _continue(self, tries: Sequence[Try]) -> None:
        """Let each attempt that could be chosen be continued from its beginning, without pictures.

        How it goes on follows from its own number, and not from which others could be chosen: so it is the same for any threshold.
        """
        settings = self._settings
        begun = list[tuple[Try, int, int]]()
        for one in tries:
            fit = [n for n, at in enumerate(one.attempts) if at.origin == settings.chosen and continuable(at, settings.threshold)]
            begun += [(one, number, time) for number in fit for time in range(settings.samples if settings.chosen == "data" else 1)]
        size = settings.batch * settings.samples
        for some in (begun[start : start + size] for start in range(0, len(begun), size)):
            rows, cuts = [], [max(1, int(len(one.said[number]) * settings.share)) for one, number, _ in some]
            for (one, number, _), kept in zip(some, cuts, strict=True):
                rows.append(_behind(self._mllm.encode(_blind(one.example)), one.said[number][:kept]))
            found = self._written(rows, [f"{one.number} continued {number} {time}" for one, number, time in some], 1)
            for (one, number, _), kept, (ids,), (done,) in zip(some, cuts, found.ids, found.finished, strict=True):
                said = one.said[number][:kept] + (ids[:-1] if done else ids)
                one.add(Attempt(self._text(said), len(said), "continued", done, begun=number, kept=kept), said)

    def _written(self, rows: Sequence[Row], keys: Sequence[str], k: int) -> Sampled:
        if not rows:
            return Sampled([], [], [])
        model, sampling = self._mllm.model, self._settings.sampling(k)
        batch = send_to_device(collate(rows), model.device)
        batch["images"] = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in batch["images"].items()}
        return self._scorer.sample(batch, sampling, draws([f"{self._settings.seed} {key}" for key in keys], sampling), together=False)

    def _text(self, said: Sequence[int]) -> str:
        return str(self._tokenizer.decode(said, skip_special_tokens=True))

    # ---- judging

    def _judged(self, tries: Sequence[Try]) -> None:
        """Judge new attempts where that is how they are paired, or where there is an answer that shows which are right.

        A model that judges nothing of a whole batch is out of order: what it said of later ones would be worth no more.
        """
        asked = [one for one in tries if "correctness" in one.methods or one.answer == "checkable"]
        wanted = [(one, number) for one in asked for number in range(one.judged, len(one.attempts))]
        replies = [Reply(at.text, at.tokens / self._settings.max_new, at.finished) for at in (one.attempts[n] for one, n in wanted)]
        named = [replace(one.example, id=f"row {one.number}") for one, _ in wanted]  # data may repeat an id, and scores go by it
        scores = self._scores(replies, named)
        if scores and needs(self._settings.reward) and all(score.failed for score in scores):
            raise BadInput(
                f"no attempt at {len(tries)} rows could be judged: {scores[0].failed}; see to that and run the same command again"
            )
        for (one, number), score in zip(wanted, scores, strict=True):
            value = None if score.failed or not math.isfinite(score) else float(score)
            one.attempts[number] = replace(one.attempts[number], reward=value, failed=score.failed)
        for one in asked:
            one.judged = len(one.attempts)

    def _scores(self, replies: Sequence[Reply], examples: Sequence[Example]) -> Sequence[Score]:
        """What cannot be judged, say because it is too long for the model that judges, keeps no other from being judged."""
        try:
            return self._judge(replies, examples)
        except Exception as failed:  # rewards may be anyone's
            if len(replies) == 1:
                return [unjudged(f"{type(failed).__name__}: {failed}")]
            return [self._scores([reply], [example])[0] for reply, example in zip(replies, examples, strict=True)]


def _blind(example: Example, *responses: Response) -> Example:
    """The example without its pictures."""
    (turn,) = turns_of(example.prompt, "user")
    return replace(example, images=(), prompt=turn["content"].replace(IMAGE, "").strip(), responses=responses)


def _behind(prompt: Row, said: Sequence[int]) -> Row:
    """A prompt whose answer has begun."""
    (trunk,) = prompt.trunks
    span = Span([*trunk.span.ids, *said], [*trunk.span.supervised, *([False] * len(said))])
    return replace(prompt, trunks=(replace(trunk, span=span),))
