"""How pairs of a model's own attempts are wanted, and what that means for a row. Settings and text: no model, no disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from pivot.records import BadInput, Example
from pivot.reward._contract import Spec, needs
from pivot.reward.mixed import RULES

if TYPE_CHECKING:
    from pivot.model.rollout import Sampling

Method = Literal["correctness", "dropout"]
Route = Literal["correctness", "dropout", "both"]
Known = Literal["checkable", "open", "of no kind", "none"]  # a row's answer
CHECKABLE = ("choice", "number", "text", "box", "maths")  # kinds of answers that a rule can compare with
PAIRING = ("pairs", "route", "threshold")  # settings that choose among attempts, and may change while these are kept
ADD = "say of which kind it is: answer_kind in the row, or for all rows as in rows,PATH,kind=number (docs/data.md, Answers)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pairs are made: of `samples` attempts a row, by each method up to `pairs` pairs a row.

    `route`: right against wrong attempts (correctness), attempts against their beginning continued without pictures (dropout), or both;
    by default correctness where a row has an answer that can be checked, else dropout. `reward` judges, with a `reward_model` or a `chat`
    if it asks for one; from `threshold` on an attempt is right. `chosen`: whether dropout begins with attempts or with the data's own
    response, of which it keeps a `share`.
    """

    samples: Annotated[int, Field(ge=1)] = 8
    pairs: Annotated[int, Field(ge=1)] = 1
    route: Route | None = None
    reward: Spec = field(default_factory=lambda: {"name": "mixed"})
    reward_model: str | None = None
    chat: dict[str, Any] | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    chosen: Literal["sampled", "data"] = "sampled"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new: Annotated[int, Field(ge=1)] = 128
    batch: Annotated[int, Field(ge=1)] = 16
    seed: int = 0
    limit: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        given = {"score": ("reward_model", self.reward_model), "ask": ("chat", self.chat)}
        for name in sorted(name for what in needs(self.reward) for name, value in [given[what]] if value is None):
            raise BadInput(f"reward '{self.reward['name']}' judges with a model; give {name}")
        if self.samples < 2 and self.route != "dropout":
            raise BadInput("one attempt cannot be right and wrong; give samples of 2 or more, or the route dropout")

    def methods(self, answer: Known) -> tuple[Method, ...]:
        """How pairs are made of a row with such an answer."""
        if self.route == "both":
            return get_args(Method)
        return (self.route or ("correctness" if answer == "checkable" else "dropout"),)

    def sampling(self, k: int) -> Sampling:
        from pivot.model.rollout import Sampling

        return Sampling(k, self.temperature, self.top_p, self.max_new)

    @property
    def by_kind(self) -> bool:
        """Whether the reward goes by the kind of the answer."""
        return self.reward["name"] == "mixed" and not self.reward.get("otherwise")

    def loses(self, answer: Known) -> bool:
        """Whether a row's answer judges no attempt although there is one."""
        return answer == "of no kind" and (self.by_kind or "correctness" not in self.methods(answer))

    def refusal(self, example: Example) -> str | None:
        """Why no attempt at a row could make a pair, whatever it says; None if one could."""
        kind = example.answer_kind
        if self.route != "correctness" or not self.by_kind or kind in {**RULES, **(self.reward.get("kinds") or {})}:
            return None
        if kind is None and example.answer is None:
            return "the row has no answer by which an attempt could be right; leave it out, or give another route"
        if kind is None:
            return f"the row has an answer and no answer_kind, by which reward 'mixed' goes; {ADD}"
        return f"no reward judges answers of kind {kind}; give one, as in --reward '{{name: mixed, kinds: {{{kind}: judge}}}}'"


def known(example: Example) -> Known:
    """Whether a row has an answer, and whether a rule can compare with it."""
    if example.answer is None:
        return "none"
    if example.answer_kind is None:
        return "of no kind"
    return "checkable" if example.answer_kind in CHECKABLE else "open"


def question(example: Example) -> Example:
    """The example as a row of MMPR can ask it: as one text, a system turn in front of what the user says."""
    if isinstance(example.prompt, str):
        return example
    roles = [turn["role"] for turn in example.prompt]
    if roles not in (["user"], ["system", "user"]):
        told = f"a row of MMPR has one question, and at most a system turn before it; here turns are {', '.join(roles) or 'none'}"
        raise BadInput(f"row {example.id}: {told}; leave the row out")
    return replace(example, prompt="\n\n".join(turn["content"].strip() for turn in example.prompt))
