"""LLaVA-RLHF's bonus for correctness, which is small where a model that always says yes would be right. Its weight there is 2."""

from __future__ import annotations

from pivot import answers
from pivot.records import BadInput, Example
from pivot.reward._contract import unjudged


def reward(reply: str, example: Example) -> float:
    """Of several choices: 1 if right. Of yes and no where "no" is true: 0.5 for no, -0.5 for yes. Everything else: 0."""
    if example.answer_kind != "choice" or example.answer is None:
        return 0.0
    try:
        said = answers.parse(reply, example)
        if {answers.normal(choice) for choice in example.meta["choices"]} != {"yes", "no"}:
            return float(answers.same(said, example))
    except BadInput as ungradable:
        return unjudged(str(ungradable))
    if answers.normal(example.answer) == "yes" or said is None:
        return 0.0
    return 0.5 if answers.normal(said) == "no" else -0.5
