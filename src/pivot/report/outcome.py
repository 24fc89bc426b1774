"""What a report may claim, in sentences. One seed is called one seed and gives no verdict; arms that are not matched give none either.

The lead speaks of the first measurement; each further one has a sentence of its own below, on its headline.
"""

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
        "findings": [_findings(found, run["name"], measured) for run in found["runs"]],
        "notes": [*_searched(found), *(_notes(min(seeds), measured) if seeds else [])],
    }


def _of_run(found: Mapping[str, Any], run: str, measured: Sequence[Scores]) -> tuple[str, str, int]:
    """A run's badge, its sentences, and how many seeds its main comparison has (0 without one)."""
    first = next((scores for scores in measured if scores.shape["run"] == run and scores.headline), None)
    if first is None:
        return "nothing measured yet", "No score can be read yet; what was trained is shown below.", 0
    pairs = _main_pairs(first)
    if not pairs and first.uncompared:
        return "not measured alike, no verdict", f"{_values(first)} {first.uncompared}", 0
    if not pairs:
        return "one arm", f"{_values(first)} There is no other arm to compare with.", 0
    seeds = min(of["seeds"] for pair in pairs if (of := first.pair(*pair, first.headline)))
    if not _matched(found, run):
        lead = f"The arms did not read the same examples in the same way, so what differs may come from that. {_values(first)}"
        return "not matched, no verdict", lead, seeds
    if seeds < 2:
        differences = " ".join(_difference(first, *pair) for pair in pairs)
        return "one seed, no verdict", f"One seed, so no verdict. {_values(first)} {differences}", seeds
    return f"{seeds} seeds", " ".join([*(_verdict(first, *pair) for pair in pairs), _values(first)]), seeds


def _matched(found: Mapping[str, Any], run: str) -> bool:
    return not any(one["run"] == run and one["matched"] is False for one in found["matching"])


def _findings(found: Mapping[str, Any], run: str, measured: Sequence[Scores]) -> list[tuple[str, str]]:
    """Behind the first measurement for each: what it is, and how the main pairs differ in its headline."""
    of = [scores for scores in measured if scores.shape["run"] == run and scores.headline]
    several, matched = any(scores.several_seeds for scores in of), _matched(found, run)
    return [(_headline(scores), _finding(scores, matched, several)) for scores in of[1:] if _main_pairs(scores)]


def _headline(scores: Scores) -> str:
    metric = "" if scores.headline == "mean" else f", {words.metric(scores.headline)}"
    return f"{scores.shape['name']} {scores.shape['kind']}{metric}"


def _finding(scores: Scores, matched: bool, several: bool) -> str:
    """`several`: whether the run has seeds, so that it must be said where a measurement has not."""
    each = []
    for a, b in _main_pairs(scores):
        of = scores.pair(a, b, scores.headline)
        assert of
        if matched and of["seeds"] > 1:
            each.append(_judged(scores, a, b, of))
        else:
            each.append(
                f"{scores.contrast(a, b)} is {_points(scores, a, b)}{', measured once, so no verdict' if several and matched else ''}"
            )
    values = [f"{scores.name(arm)} {told['text']}{_unit(scores)}" for arm in scores.arms if (told := _told(scores, arm))]
    return f"{'; '.join(each)} ({words.listed(values)})."


def _judged(scores: Scores, a: str, b: str, of: Facts) -> str:
    """What several seeds say of a difference. Without an interval their signs are counted, which is no verdict."""
    over, points = f"over {of['seeds']} seeds", _points(scores, a, b)
    if of["verdict"] == "open":
        return f"no difference between {scores.name(a)} and {scores.name(b)} shows {over}, {points}"
    if of["verdict"]:
        return f"{scores.name(a)} is {'above' if of['verdict'] == 'higher' else 'below'} {scores.name(b)} {over}, {points}"
    of_a, of_b = (scores.by_seed(arm, scores.headline) for arm in (a, b))
    moves = [value - of_b.get(seed, next(iter(of_b.values()))) for seed, value in of_a.items() if of_b]
    return f"{scores.contrast(a, b)} is {points} {over}, without an interval; above 0 in {sum(move > 0 for move in moves)} of them"


def _told(scores: Scores, arm: str) -> Facts | None:
    return scores.told(scores.row(arm, scores.headline))


def _unit(scores: Scores) -> str:
    return scores.scale(scores.headline).unit


def _main_pairs(scores: Scores) -> list[tuple[str, str]]:
    """Trained arms against the first trained one, since nothing but the objective is between them; with one alone, against the others."""
    known = [pair for pair in scores.contrasts if pair[1] in scores.arms and scores.pair(*pair, scores.headline)]
    control = next((arm for arm in scores.arms if arm in scores.trained), None)
    return [pair for pair in known if pair[1] == control] or known


def _values(scores: Scores) -> str:
    each = [f"{scores.name(arm)} {told['text']}{_unit(scores)}" for arm in scores.arms if (told := _told(scores, arm))]
    n = max((row["n"] for row in scores.rows if row["metric"] == scores.headline), default=0)
    return f"On {_what(scores)} ({words.count(n)} items): {words.listed(each)}."


def _what(scores: Scores) -> str:
    return f"the {scores.shape['name']} {scores.shape['kind']}"


def _points(scores: Scores, a: str, b: str) -> str:
    told = scores.told(scores.pair(a, b, scores.headline), "difference")
    if not told:
        return words.NONE
    return f"{told['text']} {'points ' if scores.scale(scores.headline).factor == 100 else ''}{told['interval']}".strip()


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
