"""One reward for data of several kinds: what counts follows from the example's answer kind, and weighted terms are added.

VLAA-Thinking's mixed reward is `gate: true` with `kinds: {open: open}`: digit, letter, mathematics and box are here by default.
LLaVA-RLHF's is `otherwise: learned` with terms `bonus` (2), `length` (-10) and `finished` (8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from pivot.knobs import Wrong
from pivot.records import AnswerKind, Example
from pivot.reward import format
from pivot.reward._contract import Ask, Score, Scorer, Spec, check, judged, unjudged

# What each kind is judged by unless the recipe says otherwise; open answers need a model.
RULES: dict[str, str] = {"choice": "choice", "number": "digit", "text": "answer", "box": "iou", "maths": "maths"}


def _term(given: Any) -> dict[str, Any]:
    """A reward with a `weight` among its options, 1 by default."""
    if isinstance(given, str):
        return {**check(given), "weight": 1.0}
    if not isinstance(given, Mapping):
        return check(given)
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
        raise Wrong(("weight",), f"must be a number, not {weight!r}")
    return {**check({key: value for key, value in given.items() if key != "weight"}), "weight": float(weight)}


Term: TypeAlias = Annotated[dict[str, Any], BeforeValidator(_term)]


def reward(
    reply: str,
    example: Example,
    *,
    kinds: dict[AnswerKind, Spec] | None = None,
    otherwise: Spec | None = None,
    gate: bool = False,
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0,
    terms: dict[str, Term] | None = None,
    ask: Ask | None = None,
    score: Scorer | None = None,
) -> float:
    """`weight` times what the example's kind of answer earns, plus every term's weight times what it earns.

    `kinds`: rewards by answer kind, before the usual ones. `otherwise`: for examples of every other kind if it is given. `gate`: the answer
    is what stands in `<answer>`, and a reply without one earns nothing for it. Terms see the whole reply and count with or without an
    answer: were they closed off too, breaking the format would be a way out of a penalty.
    """
    handed = {"ask": ask, "score": score}
    parts: dict[str, float] = {}
    failed: list[str] = []

    def add(name: str, share: float, found: Score) -> None:
        parts[name] = parts.get(name, 0.0) + share * float(found)
        if found.failed:
            failed.append(f"{name}: {found.failed}")

    rule = _rule(example.answer_kind, kinds or {}, otherwise)
    said = format.answered(reply) if gate else reply
    name = str(rule["name"]) if rule else "none"
    if said is None:
        add(name, weight, Score(0.0))
    elif rule:
        add(name, weight, judged(rule, said, example, handed))
    else:
        add(name, weight, unjudged(f"no reward for answer kind '{example.answer_kind}'"))
    for key, term in (terms or {}).items():
        share = term["weight"]
        add(key, share, judged({option: value for option, value in term.items() if option != "weight"}, reply, example, handed))
    return Score(sum(parts.values()), parts, gated=said is None, failed="; ".join(failed) or None)


def _rule(kind: str | None, kinds: Mapping[Any, Any], otherwise: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The reward of an answer kind: the recipe's own, else what is for all others, else the usual one."""
    if kind in kinds:
        return dict(kinds[kind])
    if otherwise:
        return otherwise
    return {"name": RULES[kind]} if kind in RULES else None
