"""From the plain files of one or several run folders to what a report says: scores, paired differences, and what each arm read.

Nothing is computed that needs a model; any of it can be done again on a machine that has none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from pivot.files import write_json
from pivot.records import BadInput, Measurement
from pivot.report import items, pictures
from pivot.report.matching import matching
from pivot.report.reading import Run, read
from pivot.runfolder import ORIGINAL, RunFolder
from pivot.study.statistics import Estimate, differences, estimates, unlike

Facts = dict[str, Any]
Folder = RunFolder | os.PathLike[str] | str
PROBES = ("linear", "segment", "gradcam", "align", "change")  # their order where no recipe gives one
RESULTS = ("rows", "pairs", "arms", "matching", "left_out")  # what results.json holds


def collect(folders: Folder | Sequence[Folder]) -> Facts:
    """Everything a report needs, as plain values. Arms of several folders are named "RUN: ARM"."""
    runs = [read(folder) for folder in as_folders(folders)]
    _tell_apart(runs)
    found = [_of_run(run, f"{run.name}: " if len(runs) > 1 else "") for run in runs]
    if not any(one["rows"] or one["ledgers"] for one in found):
        places = ", ".join(str(run.folder.path) for run in runs)
        broken = "".join(f"; left out: {fault['file']} ({fault['why']})" for run in runs for fault in run.left_out[:1])
        raise BadInput(
            f"nothing to report in {places}: no measurement and no ledger that can be read{broken}; let a run finish a stage first"
        )
    together = {key: [fact for one in found for fact in one[key]] for key in found[0] if key not in ("arms", "run")}
    pairs = together.pop("pairs")
    for between, a, b in _between(runs):
        pairs += _pairs(*between, a, b)
        together["apart"] += _apart(*between, a, b)
    return {
        "runs": [one["run"] for one in found],
        "arms": {name: arm for one in found for name, arm in one["arms"].items()},
        **together,
        "pairs": pairs,
    }


def as_folders(given: Folder | Sequence[Folder]) -> list[RunFolder]:
    """Run folders from what a caller has. A path that is none is a `BadInput`."""
    several = [given] if isinstance(given, RunFolder | os.PathLike | str) else given
    return [one if isinstance(one, RunFolder) else RunFolder.existing(Path(one)) for one in several]


def write(found: Mapping[str, Any], file: Path) -> None:
    """Write results.json whole."""
    write_json(file, {key: found[key] for key in RESULTS})


def _tell_apart(runs: Sequence[Run]) -> None:
    """Runs of one name get numbers."""
    taken = Counter(run.name for run in runs)
    for run in runs:
        if taken[run.name] > 1:
            run.name = next(name for n in count(1) if not taken[name := f"{run.name} {n}"])
            taken[run.name] += 1


def _of_run(run: Run, prefix: str) -> Facts:
    """One run's share of the whole; `prefix` goes before the names of its arms."""
    groups = _groups(run)
    pairs, apart, moved = [], [], []
    for b_place, b in enumerate(run.arms):
        for a in run.arms[b_place + 1 :]:
            for kind, name in groups:
                of_a, of_b = (_seeds(run, arm, kind, name) for arm in (a, b))
                of_b = _as_often(of_b, of_a, b in run.trained)
                pairs += _pairs(of_a, of_b, prefix + a, prefix + b)
                apart += _apart(of_a, of_b, prefix + a, prefix + b)
                if kind == "bench" and (changed := items.changes(run, name, a, b)):
                    moved.append({**changed, "a": prefix + a, "b": prefix + b})
    place = {arm: number for number, arm in enumerate(run.arms)}
    ledgers = sorted(run.ledgers, key=lambda one: (place[one["arm"]], one["seed"]) if one["stage"] == "post" else (-1, 0))
    curves = sorted((one for one in run.metrics if "arm" in one[0]), key=lambda one: (place[one[0]["arm"]], one[0]["seed"]))
    posts = [one for one in ledgers if one["stage"] == "post"]
    return {
        "run": {"name": run.name, "recipe": run.recipe, "versions": _versions(run)},
        "arms": {prefix + arm: _arm(run, arm) for arm in run.arms},
        "rows": [row for arm in run.arms for kind, name in groups for row in _rows(_seeds(run, arm, kind, name), prefix + arm)],
        "pairs": pairs,
        "apart": apart,
        "matching": [{"run": run.name, **matching(posts, run.tried)}] if posts else [],
        "measured": [_shape(run, kind, name) for kind, name in groups],
        "ledgers": [{**ledger, "run": run.name} for ledger in ledgers],
        "curves": [{**what, "run": run.name, "arm": prefix + what["arm"], "lines": lines} for what, lines in curves],
        "encoders": [{**one, "arm": prefix + one["arm"]} for one in run.encoders],
        "items": [item for kind, name in groups if kind == "bench" for item in _gallery(run, name, prefix)],
        "changes": moved,
        "pictures": [one for kind, name in groups if (one := _pictures(run, kind, name, prefix))],
        "left_out": [{**fault, "file": f"{prefix}{fault['file']}"} for fault in run.left_out],
    }


def _gallery(run: Run, bench: str, prefix: str) -> list[Facts]:
    """Example items of a bench, with the replies of the arms that were asked."""
    asked = [arm for arm in run.arms if any((of, name) == (arm, bench) for of, _, name in run.answers)]
    shown = items.gallery(run, bench, asked)
    return [{**item, "replies": [{**reply, "arm": prefix + reply["arm"]} for reply in item["replies"]]} for item in shown]


def _pictures(run: Run, kind: str, name: str, prefix: str) -> Facts | None:
    """Items of a measurement as pictures, each arm's at its first seed."""
    first = {arm: of[0] for arm in run.arms if (of := _seeds(run, arm, kind, name)) and any(one.shown for one in of)}

    def leave_out(arm: str, why: str) -> None:
        run.leave_out(run.folder.measurement_file(arm, first[arm].seed, kind, name), why)

    shown = pictures.gallery(first, leave_out)
    told = [{**item, "found": {prefix + arm: grid for arm, grid in item["found"].items()}} for item in shown]
    several = any(len(_seeds(run, arm, kind, name)) > 1 for arm in first)
    return {"run": run.name, "kind": kind, "name": name, "items": told, "several": several} if told else None


def _groups(run: Run) -> list[tuple[str, str]]:
    """Kind and name of what was measured: benches first, then as in the recipe, if there is one."""
    order = run.uses or PROBES

    def place(name: str) -> int:
        uses = [number for number, use in enumerate(order) if name == use or name.startswith(f"{use}-")]
        return uses[-1] if uses else len(order)

    found = sorted({(one.kind, one.name) for one in run.measurements})
    return sorted(found, key=lambda group: (group[0], place(group[1])))


def _seeds(run: Run, arm: str, kind: str, name: str) -> list[Measurement]:
    found = [one for one in run.measurements if (one.arm, one.kind, one.name) == (arm, kind, name)]
    return sorted(found, key=lambda one: one.seed)


def _as_often(of_b: Sequence[Measurement], of_a: Sequence[Measurement], trained: bool) -> list[Measurement]:
    """An arm that was never trained has one measurement, which stands beside every seed of the other."""
    if trained or len(of_b) != 1:
        return list(of_b)
    return [replace(of_b[0], seed=one.seed) for one in of_a]


def _rows(seeds: Sequence[Measurement], arm: str) -> list[Facts]:
    """A row per seed and metric; with several seeds another for their mean, whose seed is None."""
    found = []
    for one in seeds:
        found += [_row(arm, one.seed, one, metric, of) for metric, of in estimates([one]).items()]
    if len(seeds) > 1:
        found += [_row(arm, None, seeds[0], metric, of) for metric, of in estimates(seeds).items()]
    return found


def _row(arm: str, seed: int | None, one: Measurement, metric: str, of: Estimate) -> Facts:
    told = {"arm": arm, "seed": seed, "kind": one.kind, "name": one.name, "metric": metric, "value": of.value}
    return {**told, **_rest(of), "n": of.n or one.n}


def _rest(of: Estimate) -> Facts:
    return {"low": of.low, "high": of.high, "n": of.n, "seeds": of.seeds}


def _pairs(of_a: Sequence[Measurement], of_b: Sequence[Measurement], a: str, b: str) -> list[Facts]:
    if not of_a or not of_b:
        return []
    told = {"a": a, "b": b, "kind": of_a[0].kind, "name": of_a[0].name}
    return [
        {
            **told,
            "metric": metric,
            "difference": of.value,
            "low": of.low,
            "high": of.high,
            "n": of.n,
            "seeds": of.seeds,
            "verdict": of.verdict,
        }
        for metric, of in differences(of_a, of_b).items()
    ]


def _apart(of_a: Sequence[Measurement], of_b: Sequence[Measurement], a: str, b: str) -> list[Facts]:
    """Two arms that are not compared because they were not measured alike."""
    return [{"a": a, "b": b, "kind": of_a[0].kind, "name": of_a[0].name}] if unlike(of_a, of_b) else []


def _between(runs: Sequence[Run]) -> Iterator[tuple[tuple[list[Measurement], list[Measurement]], str, str]]:
    """Arms of one name in later runs and in the first run."""
    first = runs[0]
    for run in runs[1:]:
        for arm in run.arms:
            for kind, name in _groups(run):
                of_a, of_b = _seeds(run, arm, kind, name), _seeds(first, arm, kind, name)
                yield (of_a, of_b), f"{run.name}: {arm}", f"{first.name}: {arm}"


def _arm(run: Run, arm: str) -> Facts:
    """What is known of an arm. One that was never trained has no seeds: its measurements hold for all."""
    ledgers = sorted((ledger for ledger in run.ledgers if ledger.get("arm") == arm), key=lambda ledger: ledger["seed"])
    measured = {one.seed for one in run.measurements if one.arm == arm}
    seeds = sorted(measured | {ledger["seed"] for ledger in ledgers})
    return {
        "run": run.name,
        "arm": arm,
        "original": arm == ORIGINAL,
        "trained": arm in run.trained,
        "seeds": seeds if arm in run.trained else [],
        "tried": run.tried.get(arm),
        "ledgers": ledgers,
    }


def _shape(run: Run, kind: str, name: str) -> Facts:
    """How the metrics of a measurement belong together."""
    of = [one for one in run.measurements if (one.kind, one.name) == (kind, name)]
    metrics = list(dict.fromkeys(metric for one in of for metric in one.metrics))
    parts = {metric: list(inside) for one in of for metric, inside in one.parts.items()}
    return {"run": run.name, "kind": kind, "name": name, "metrics": metrics, "parts": parts, "unit": of[0].unit, "n": of[0].n}


def _versions(run: Run) -> dict[str, str]:
    """Versions that the run began with, and those of stages that were run with others."""
    found = {name: [value] for name, value in run.versions.items()}
    for ledger in run.ledgers:
        for name, value in (ledger.get("versions") or {}).items():
            known = found.setdefault(str(name), [])
            if str(value) not in known:
                known.append(str(value))
    return {name: " and ".join(values) for name, values in found.items()}
