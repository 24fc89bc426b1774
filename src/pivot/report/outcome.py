"""What a report may claim, in sentences. One seed is called one seed and gives no verdict; arms that are not matched give none either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pivot.report import words
from pivot.report.scores import Scores

Facts = dict[str, Any]


def outcome(found: Mapping[str, Any], measured: Sequence[Scores]) -> Facts:
    """A badge, the outcome of each run in a sentence or two, and what has to be said beside it."""
    judged = {run["name"]: _of_run(found, run["name"], measured) for run in found["runs"]}
    seeds = [seeds for _, _, seeds in judged.values() if seeds]
    return {
        "badges": list(dict.fromkeys(badge for badge, _, _ in judged.values())),
        "leads": [(run, lead) for run, (_, lead, _) in judged.items()],
        "notes": [*_searched(found), *(_notes(min(seeds), measured) if seeds else [])],
    }


def _of_run(found: Mapping[str, Any], run: str, measured: Sequence[Scores]) -> tuple[str, str, int]:
    """A run's badge, its sentences, and how many seeds its main comparison has (0 without one)."""
    first = next((scores for scores in measured if scores.shape["run"] == run), None)
    if first is None:
        return "nothing measured yet", "No score can be read yet; what was trained is shown below.", 0
    pairs = _main_pairs(first)
    if not pairs:
        return "one arm", f"{_values(first)} There is no other arm to compare with.", 0
    seeds = min(of["seeds"] for pair in pairs if (of := first.pair(*pair, first.headline)))
    if any(one["run"] == run and one["matched"] is False for one in found["matching"]):
        lead = f"The arms did not read the same examples in the same way, so what differs may come from that. {_values(first)}"
        return "not matched, no verdict", lead, seeds
    if seeds < 2:
        differences = " ".join(_difference(first, *pair) for pair in pairs)
        return "one seed, no verdict", f"One seed, so no verdict. {_values(first)} {differences}", seeds
    return f"{seeds} seeds", " ".join([*(_verdict(first, *pair) for pair in pairs), _values(first)]), seeds


def _main_pairs(scores: Scores) -> list[tuple[str, str]]:
    """Trained arms against the first trained one, since nothing but the objective is between them; with one alone, against the others."""
    known = [pair for pair in scores.contrasts if pair[1] in scores.arms and scores.pair(*pair, scores.headline)]
    control = next((arm for arm in scores.arms if arm in scores.trained), None)
    return [pair for pair in known if pair[1] == control] or known


def _values(scores: Scores) -> str:
    told = {arm: scores.told(scores.row(arm, scores.headline)) for arm in scores.arms}
    each = [f"{scores.name(arm)} {one['text']}{scores.unit}" for arm, one in told.items() if one]
    n = max((row["n"] for row in scores.rows if row["metric"] == scores.headline), default=0)
    return f"On {_what(scores)} ({words.count(n)} items): {words.listed(each)}."


def _what(scores: Scores) -> str:
    return f"the {scores.shape['name']} {scores.shape['kind']}"


def _points(scores: Scores, a: str, b: str) -> str:
    told = scores.told(scores.pair(a, b, scores.headline), "difference")
    if not told:
        return words.NONE
    return f"{told['text']} {'points ' if scores.scale == 100 else ''}{told['interval']}".strip()


def _difference(scores: Scores, a: str, b: str) -> str:
    return f"{scores.contrast(a, b)} is {_points(scores, a, b)}."


def _verdict(scores: Scores, a: str, b: str) -> str:
    told = scores.pair(a, b, scores.headline)
    assert told
    over, points = f"Over {told['seeds']} seeds", _points(scores, a, b)
    if told["verdict"] in ("higher", "lower"):
        side = "above" if told["verdict"] == "higher" else "below"
        return f"{over}, {scores.name(a)} is {side} {scores.name(b)} on {_what(scores)}: {points}."
    if told["verdict"] == "open":
        return f"{over}, no difference between {scores.name(a)} and {scores.name(b)} shows on {_what(scores)}: {points}."
    return f"{over}, {scores.contrast(a, b)} is {points} on {_what(scores)}, without an interval."


def _searched(found: Mapping[str, Any]) -> list[str]:
    """That one arm's learning rate was looked for harder than another's, where it was, or may have been."""
    if not any(one["searches"] for one in found["matching"]):
        return []
    return ["Not all arms' learning rates are known to have been searched alike (see What was compared): a difference may come from that."]


def _notes(seeds: int, measured: Sequence[Scores]) -> list[str]:
    """What the intervals do not say."""
    if seeds < 2:
        items, training = "what other items of the same kind would change", "what another training run would change"
        notes = [f"The intervals (95 %) say {items}; {training}, one seed cannot say."]
    else:
        notes = ["The intervals (95 %) hold what other items of the same kind and other seeds would change."]
    many = sum(pair["low"] is not None for scores in measured for pair in scores.pairs)
    if many >= 20:
        chance = f"if nothing differed, about {many // 20} of their intervals would leave out 0 all the same"
        notes.append(f"This page shows {words.count(many)} differences; {chance}.")
    return notes
