"""LLaVA-RLHF's bonus for correctness, which is small where a model that always says yes would be right. Its weight there is 2."""

from __future__ import annotations

from pivot import answers
from pivot.records import Example
from pivot.reward import choice
from pivot.reward._contract import unjudged


def reward(reply: str, example: Example) -> float:
    """Of several choices: 1 if right, by `choice`. Of yes and no where "no" is true: 0.5 for no, -0.5 for yes. Everything else: 0."""
    if example.answer_kind != "choice" or example.answer is None:
        return 0.0
    choices = example.meta.get("choices")
    if not isinstance(choices, list | tuple) or {answers.normal(str(one)) for one in choices} != {"yes", "no"}:
        return choice.reward(reply, example)
    truth, said = answers.normal(example.answer), answers.parse(reply, example)
    if truth not in ("yes", "no"):
        return unjudged(f"the answer of {example.id} is none of its choices")
    if truth == "yes" or said is None:
        return 0.0
    return 0.5 if answers.normal(said) == "no" else -0.5
