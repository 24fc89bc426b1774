"""Read the answer out of a free reply and compare it with the truth. Benchmarks and rewards share these rules; no torch.

Reading never looks at the true answer: a reply is one guess, whoever asks. A reply that leaves it open ("red or blue") is none.

- choice  one of `meta["choices"]`. Of yes and no, the first that is said decides. Of other choices the one that is named and
          not denied ("not red", "red is wrong"). A short answer may name only one. An explained one that names several must settle on one:
          1. If it concludes ("so ...", "therefore ...", "the answer ..."), only that sentence counts.
          2. What follows "because" or "since" in a sentence is evidence and does not count.
          3. Where the question is what stands in front, the one counts that is said to ("red is in front of blue", "behind the red
             one"), whatever else is named.
          If several are left, the reply is open. Single letters must have their case, or every article would be an A. What is said not
          to fit is denied, unless the question asks what does not.
- number  the last number, in digits of any script or in words below a hundred, negative behind "minus" or "negative". "one" counts only
          where no other number stands, because it is a pronoun as well ("the red one"). Ordinals, digits inside words, powers, what is of
          another magnitude ("3 thousand") and what is denied ("not 3") are no numbers. A reply that is a bare list of several settles on
          none, nor does one that ends in a range or a difference ("2 to 3", "5-3") or in a guess beside another number ("2, maybe 3").
- text    what stands after the last colon, else the last quoted part, else the last run of capitals and digits, else what
          follows the last "is", "says", "reach" and the like, else all of it. Compared without case, punctuation and extra space.
- box     the first four numbers that stand together as a list, two points, four labelled sides or bare. Right from an overlap of a
          half on, which asks that both speak in the same coordinates.
- maths   the last formula, as it is written: boxed, else between dollars or their like, else what the last sentence comes to. Of
          two different boxes the last counts only if it concludes or takes back the one before.
          Whether two are equal is for the reward `maths`: it takes a library and a time limit.
- open    all of it. How good it is, only a model can say.
"""

from __future__ import annotations

from decimal import Decimal
from typing import get_args

from pivot.answers.choosing import choice
from pivot.answers.formulas import formula
from pivot.answers.mention import normal
from pivot.answers.numbers import number
from pivot.answers.places import Box, boxes, overlap
from pivot.answers.quoting import text
from pivot.records import AnswerKind, BadInput, Example

__all__ = ["Box", "boxes", "choice", "formula", "grade", "normal", "number", "overlap", "parse", "same", "text"]


def parse(reply: str, example: Example) -> str | None:
    """What the reply answers, in the form of the example's answer kind; None if it answers nothing."""
    if example.answer_kind == "choice":
        choices = example.meta.get("choices")
        if not choices:
            raise BadInput(f"example {example.id} is a choice without choices; give them in meta['choices']")
        return choice(reply, choices, several=example.meta.get("style") != "short", question=_question(example))
    if example.answer_kind == "number":
        return number(reply)
    if example.answer_kind == "text":
        return text(reply)
    if example.answer_kind == "box":
        found = boxes(reply)
        return ", ".join(format(side, ".10g") for side in found[0]) if found else None
    if example.answer_kind == "maths":
        return formula(reply)
    if example.answer_kind == "open":
        return reply.strip() or None
    raise BadInput(f"example {example.id} has no answer kind, hence no rule; known: {', '.join(get_args(AnswerKind))}")


def _question(example: Example) -> str:
    """What was said last before the reply."""
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1]["content"]


def same(parsed: str | None, example: Example) -> bool:
    """Whether a parsed answer is the example's. Numbers are equal as numbers, words without case, punctuation and extra space."""
    if example.answer is None:
        raise BadInput(f"example {example.id} has no answer to compare with; give one or leave it out of the benchmark")
    if example.answer_kind in ("maths", "open"):
        raise BadInput(
            f"example {example.id} has answer kind '{example.answer_kind}', which words cannot compare; use reward {example.answer_kind}"
        )
    if example.answer_kind == "box" and len(boxes(example.answer)) != 1:
        raise BadInput(f"example {example.id} has answer '{example.answer}', which is not one box; mend it or its answer kind")
    if parsed is None:
        return False
    if example.answer_kind == "box":
        return overlap(boxes(parsed)[0], boxes(example.answer)[0]) >= 0.5
    if example.answer_kind != "number":
        return normal(parsed) == normal(example.answer)
    truth = number(example.answer)
    if truth is None:
        raise BadInput(f"example {example.id} has answer '{example.answer}', which is not a number; mend it or its answer kind")
    return Decimal(parsed) == Decimal(truth)


def grade(reply: str, example: Example) -> float:
    """1 for a right reply, 0 for any other."""
    return float(same(parse(reply, example), example))
