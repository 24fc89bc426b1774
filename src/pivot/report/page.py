"""One self-contained page of a run, or of several: no script, nothing from elsewhere, and no way for data to become markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from pivot import markup
from pivot.files import write_bytes
from pivot.report import collect, depth, figures, maps, panels, terms, words
from pivot.report.collect import Folder
from pivot.report.figures import Series
from pivot.report.matching import passes, steps
from pivot.report.outcome import outcome
from pivot.report.scores import Scores, glances

Facts = dict[str, Any]
# What is drawn of metrics.jsonl with all arms in one figure: caption, what it means, ends of the axis.
CURVES = {
    "rewards/accuracies": ("Reward accuracy", "how often the chosen response gained more", 0.0, 1.0),
    "rewards/margins": ("Reward margin", "how much more the chosen response gained", None, None),
    "logps/chosen": ("Log-probability", "of chosen responses", None, None),
    "logps/rejected": ("Log-probability", "of rejected responses", None, None),
    "reward": ("Reward", "of replies that the model wrote itself", None, None),
    "frac_reward_zero_std": ("Without spread", "share of prompts whose replies all earned the same", 0.0, 1.0),
    "completions/mean_length": ("Length", "of replies that the model wrote itself, in tokens", 0.0, None),
    "sampler/difference": ("Sampler", "mean difference of its log-probabilities from those learned from", 0.0, None),
    "kl": ("Distance", "from the weights before training, a token", None, None),
    "kl_weight": ("Weight of the distance", "as it is steered", None, None),
}
EARNED = "reward"  # what an arm that writes its own responses is after: its loss around each step says nothing, and held out it is none
HELD_OUT = "held out"
HELD = {"loss": "loss", "rewards/accuracies": "reward accuracy", "rewards/margins": "reward margin", EARNED: "reward"}
COSTS = {"image_tokens": "image tokens", "text_tokens": "text tokens"}


def write(folders: Folder | Sequence[Folder], out: Path | str | None = None) -> Path:
    """Write index.html and results.json into `out`, by default report/ of the first run folder; the page's path."""
    given = collect.as_folders(folders)
    found = collect.collect(given)
    place = Path(out) if out else given[0].report
    collect.write(found, place / "results.json")
    page = place / "index.html"
    write_bytes(page, render(found).encode())
    return page


def render(found: Mapping[str, Any]) -> str:
    """The page of what `collect` found."""
    return markup.rendered(_template(), view(found))


@cache
def _template() -> Template:
    return markup.template(Path(__file__).with_name("template.html"), words=words, swatch=figures.swatch, panels=panels, heat=maps.scale)


def view(found: Mapping[str, Any]) -> Facts:
    """What the template shows."""
    tones = _tones(found["arms"])
    measured = [Scores.of(dict(found), shape, tones) for shape in found["measured"]]
    encoders = [_encoder(one) for one in found["encoders"]]
    return {
        **found,
        "tones": tones,
        "title": _title(found),
        "outcome": outcome(found, measured),
        "measured": measured,
        "glances": [(run["name"], table) for run in found["runs"] if (table := glances(_of(measured, run["name"])))],
        "depths": [depth.section(scores.layered, scores.rows, {arm: scores.tones[arm] for arm in scores.arms}) for scores in measured],
        "seen": [maps.section(found["pictures"], scores.shape) for scores in measured],
        "compared": [_compared(found, one) for one in found["matching"]],
        "curve_figures": [one for run in found["runs"] for one in _curves(run["name"], found["curves"], tones)],
        "ledger": [_ledger(ledger) for ledger in found["ledgers"]],
        "alarms": [(_where(ledger), str(alarm)) for ledger in found["ledgers"] for alarm in ledger.get("alarms") or []],
        "heldout": [_heldout(one) for one in found["curves"] if any(line.get("kind") == "eval" for line in one["lines"])],
        "held": list(HELD.values()),
        "objectives": list(terms.objectives({_name(ledger) for ledger in found["ledgers"]})),
        "terms": list(terms.metrics({row["metric"] for row in found["rows"]})),
        "parts": [_parts(ledger) for ledger in found["ledgers"] if isinstance(ledger.get("parts"), Mapping)],
        "encoders": encoders,
        "stale": _stale(encoders),
        "arm_lines": [_arm(name, arm, arm["run"] in _recorded(found)) for name, arm in found["arms"].items()],
    }


def _title(found: Mapping[str, Any]) -> str:
    runs = [run["name"] for run in found["runs"]]
    return words.listed(runs) if len(runs) > 1 else f"{runs[0]}: {words.listed(list(found['arms']))}"


def _tones(arms: Mapping[str, Facts]) -> dict[str, int]:
    """A tone for each arm, the same in all runs: the original is grey, the others go through the rest."""
    others = list(dict.fromkeys(arm["arm"] for arm in arms.values() if not arm["original"]))
    return {name: 0 if arm["original"] else 1 + others.index(arm["arm"]) % (figures.TONES - 1) for name, arm in arms.items()}


def _recorded(found: Mapping[str, Any]) -> set[str]:
    """The runs of which a recipe or a ledger says what they trained. Others are measurements alone, of whatever was given."""
    return {run["name"] for run in found["runs"] if run["recipe"]} | {ledger["run"] for ledger in found["ledgers"]}


def _arm(name: str, arm: Facts, recorded: bool) -> Facts:
    ledger = arm["ledgers"][0] if arm["ledgers"] else {}
    seeds = f"{len(arm['seeds'])} ({words.listed([str(seed) for seed in arm['seeds']])})"
    if not arm["trained"]:
        what = "as it enters stage post: not trained further" if recorded else "not known: measured by itself, without a recipe or a ledger"
        return {"name": name, "what": what, "rates": words.NONE, "seeds": words.NONE}
    what = _objective(ledger.get("objective")) if ledger else "trained; no ledger can be read"
    among = f"; chosen among {len(set(arm['tried']))}" if arm.get("tried") else ""
    return {"name": name, "what": what, "rates": words.rates(ledger.get("rates")) + among, "seeds": seeds}


def _objective(given: Any) -> str:
    """'dpo, beta 0.1'."""
    if not isinstance(given, Mapping):
        return words.NONE
    knobs = [f"{key.replace('_', ' ')} {_knob(value)}" for key, value in given.items() if key != "name" and value not in (None, {}, [])]
    return ", ".join([str(given.get("name", "")), *knobs])


def _knob(value: Any) -> str:
    """A value; one with knobs of its own in brackets."""
    if isinstance(value, Mapping):
        return f"({_objective(value)})" if "name" in value else f"({', '.join(f'{key} {_knob(of)}' for key, of in value.items())})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return words.count(value) if isinstance(value, int) else words.plain(value) if words.is_number(value) else str(value)


def _name(ledger: Facts) -> str:
    of = ledger.get("objective")
    return str(of.get("name", "")) if isinstance(of, Mapping) else ""


def _of(measured: Sequence[Scores], run: str) -> list[Scores]:
    return [scores for scores in measured if scores.shape["run"] == run]


# ---- matched arms and the ledger


def _compared(found: Mapping[str, Any], judged: Facts) -> Facts:
    """The table that shows whether arms are matched: arms at their first common seed as columns."""
    posts = [ledger for ledger in found["ledgers"] if ledger["stage"] == "post" and ledger["run"] == judged["run"]]
    seeds = [ledger["seed"] for ledger in posts]
    seed = max(dict.fromkeys(seeds), key=seeds.count)
    shown = [ledger for ledger in posts if ledger["seed"] == seed]
    must = {
        "examples": [words.count(one.get("examples")) for one in shown],
        "their order (hash of ids)": [words.short(one.get("ids_sha256")) for one in shown],
        "epochs": [words.count(one.get("epochs")) for one in shown],
        "batch": [words.count(one.get("batch")) for one in shown],
        "steps": [words.count(steps(one)) for one in shown],
    }
    often, wrote = [passes(one) for one in shown], [one.get("written_tokens") for one in shown]
    may = {
        **({"updates from each batch": [words.count(number) for number in often]} if max(often) > 1 else {}),
        **{what: [words.count(one.get(key)) for one in shown] for key, what in COSTS.items()},
        **({"tokens it wrote itself": [words.count(number or 0) for number in wrote]} if any(wrote) else {}),
        "learning rates": [words.rates(one.get("rates")) for one in shown],
        "FLOPs": [words.plain(one.get("flops")) for one in shown],
        "time": [words.duration(one.get("seconds")) for one in shown],
    }
    return {**judged, "seed": seed, "arms": [one["arm"] for one in shown], "must": _lines(must), "may": _lines(may)}


def _lines(table: Mapping[str, Sequence[str]]) -> list[Facts]:
    """Rows of a table; `equal` is None where a ledger does not say."""
    return [
        {"label": label, "cells": cells, "equal": None if words.NONE in cells else len(set(cells)) == 1} for label, cells in table.items()
    ]


def _where(ledger: Facts) -> str:
    return ledger["stage"] if ledger["stage"] != "post" else f"{ledger['arm']}, seed {ledger['seed']}"


def _ledger(ledger: Facts) -> Facts:
    numbers = [words.count(ledger.get(key)) for key in ("examples", "steps", *COSTS)]
    costs = [words.plain(ledger.get("flops")), words.duration(ledger.get("seconds"))]
    return {"run": ledger["run"], "where": _where(ledger), "cells": [*numbers, *costs], "on": _joined(ledger, "device", "precision")}


def _joined(facts: Facts, *keys: str) -> str:
    return ", ".join(str(facts[key]) for key in keys if facts.get(key)) or words.NONE


def _parts(ledger: Facts) -> Facts:
    """The proof that what should train did train, and that the rest stood still."""
    return {"where": _where(ledger), "cells": [_part(ledger["parts"].get(part)) for part in ("tower", "projector", "llm")]}


def _part(of: Any) -> str:
    if not isinstance(of, Mapping):
        return words.NONE
    moved = words.plain(of.get("moved"))
    if of.get("trained"):
        return f"moved {moved}, gradient {words.plain(of.get('gradient'))}"
    return f"frozen, but moved {moved}" if of.get("moved") else "frozen, did not move"


def _encoder(one: Facts) -> Facts:
    parity, tap = one.get("parity") or {}, (one.get("tap") or {}).get("tap")
    stale = parity.get("stale")
    return {
        "folder": one["folder"],
        "arm": one["arm"],
        "read": parity.get("read") or (f"hidden_states[{tap.get('layer')}]" if isinstance(tap, Mapping) else words.NONE),
        "difference": words.plain(parity.get("difference")),
        "projector": words.plain(parity.get("projector_difference")),
        "exact": parity.get("exact"),
        "through": parity.get("through") or words.NONE,
        "stale": [str(what) for what in stale] if isinstance(stale, list) else [],
    }


def _stale(encoders: Sequence[Facts]) -> list[Facts]:
    """What is stale, once for all folders of which it is said alike."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in encoders:
        groups.setdefault(tuple(one["stale"]), []).append(one["folder"])
    return [{"folders": folders, "parts": parts} for parts, folders in groups.items() if parts]


# ---- curves


def _curves(run: str, curves: Sequence[Facts], tones: Mapping[str, int]) -> Iterator[Facts]:
    """A figure of the loss for each arm that has one, as losses of two objectives have no common scale; then other metrics of all arms."""
    curves = [one for one in curves if one["run"] == run]
    several = len({one["seed"] for one in curves}) > 1
    for arm in dict.fromkeys(one["arm"] for one in curves):
        series = [line for one in curves if one["arm"] == arm and not _earns(one) for line in _series(one, "loss", tones[arm], several)]
        if series:
            ends = [replace(one, end=HELD_OUT if one.sparse else "training") for one in series]
            yield {
                "run": run,
                "caption": "Loss",
                "means": f"of {arm}",
                "svg": figures.curves(_ended_once(ends), f"loss of {arm} over steps"),
            }
    for metric, (caption, means, low, high) in CURVES.items():
        series = []
        for one in curves:
            own = list(_series(one, metric, tones[one["arm"]], several))
            series += [*(replace(faint, end="") for faint in own[:-1]), *(replace(last, end=one["arm"]) for last in own[-1:])]
        if series:
            svg = figures.curves(_ended_once(series), f"{caption}, {means}, over steps", low=low, high=high)
            yield {"run": run, "caption": caption, "means": means, "svg": svg}


def _earns(one: Facts) -> bool:
    """Whether an arm learns from what its replies earn."""
    return any(EARNED in line for line in one["lines"])


def _heldout(one: Facts) -> Facts:
    """Held-out metrics before the first step and after the last: an arm at which they stand still has not learned."""
    lines = [line for line in one["lines"] if line.get("kind") == "eval"]
    known = [key for key in HELD if key in lines[0] and not (key == "loss" and _earns(one))]
    cells = [
        f"{words.plain(lines[0].get(key))} \N{RIGHTWARDS ARROW} {words.plain(lines[-1].get(key))}" if key in known else words.NONE
        for key in HELD
    ]
    return {"where": f"{one['arm']}, seed {one['seed']}", "cells": cells}


def _series(one: Facts, metric: str, tone: int, seeds: bool) -> Iterator[Series]:
    """Training as a thin line, what was held out with points. `seeds`: whether a label must say which."""
    name = f"{one['arm']} {one['seed']}" if seeds else one["arm"]
    for kind, label in {"train": name, "eval": f"{name}, {HELD_OUT}"}.items():
        points = {line["step"]: line[metric] for line in one["lines"] if line.get("kind") == kind and words.is_number(line.get(metric))}
        if points:
            yield Series(label, sorted(points.items()), tone, sparse=kind == "eval", faint=kind == "train")


def _ended_once(series: Sequence[Series]) -> list[Series]:
    """Of several seeds the first alone has its name at its end."""
    seen: set[str] = set()
    found = []
    for one in series:
        found.append(replace(one, end="" if one.end in seen else one.end))
        seen.add(one.end)
    return found
