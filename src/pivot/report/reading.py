"""Read the plain files of one run folder, whatever state it is in: what is broken or half is named and left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pivot.files import read_json, read_jsonl
from pivot.plain import parse
from pivot.records import BadInput, Measurement, Shown
from pivot.report import pictures
from pivot.runfolder import ORIGINAL, RunFolder

Facts = dict[str, Any]
LEDGER = {**dict.fromkeys(("objective", "rates", "parts", "settings", "versions", "reference"), dict), "alarms": list, "best": list}
Found = TypeVar("Found")
TEXTS, WHOLES, TABLES = ("arm", "kind", "name", "unit"), ("seed", "n"), ("metrics", "items", "parts")  # fields of a measurement
TRAINING = ("pretrain", "align", "instruct")  # stages of the whole run; stage post has a folder per arm and seed


@dataclass
class Run:
    """What the files of one run folder say."""

    name: str
    folder: RunFolder
    versions: Facts = field(default_factory=dict)
    recipe: str = ""
    arms: list[str] = field(default_factory=list)  # original first, then as in the recipe
    trained: set[str] = field(default_factory=set)  # those with a stage post, finished or not
    tried: dict[str, list[float] | None] = field(default_factory=dict)  # learning rates, by trained arm; None where the recipe does not say
    measurements: list[Measurement] = field(default_factory=list)
    ledgers: list[Facts] = field(default_factory=list)
    metrics: list[tuple[Facts, list[Facts]]] = field(default_factory=list)  # (arm and seed, lines of metrics.jsonl)
    encoders: list[Facts] = field(default_factory=list)
    answers: dict[tuple[str, int, str], list[Facts]] = field(default_factory=dict)  # by arm, seed and bench
    uses: list[str] = field(default_factory=list)  # the recipe's benches and probes, in its order
    left_out: list[dict[str, str]] = field(default_factory=list)

    def take(self, file: Path, read: Callable[[Path], Found]) -> Found | None:
        """What `read` makes of a file; None for one that is left out."""
        try:
            return read(file)
        except (BadInput, OSError, UnicodeDecodeError) as why:
            self.leave_out(file, str(why))
            return None

    def leave_out(self, file: Path, why: str) -> None:
        """Name a file that cannot be shown, or not all of it, once."""
        inside = file.relative_to(self.folder.path).as_posix()
        fault = {"file": inside, "why": why.replace(str(file), inside)}
        if fault not in self.left_out:
            self.left_out.append(fault)


def read(folder: RunFolder) -> Run:
    """Read one run folder."""
    run = Run(folder.path.resolve().name, folder)
    if folder.manifest_file.exists() and (manifest := run.take(folder.manifest_file, _mapping)):
        run.name = str(manifest.get("name") or run.name)
        versions = manifest.get("versions")
        run.versions = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
    named = _recipe(run)
    for file in sorted((folder.path / "measurements").glob("*.json")):
        found = run.take(file, lambda path: _measurement(path, run.leave_out))
        if found:
            _add_measurement(run, file, found)
    seen = [*named, *(one.arm for one in run.measurements)]
    for arm, seed, at in _posts(folder):
        run.trained.add(arm)
        _training(run, at, {"stage": "post", "arm": arm, "seed": seed})
        seen.append(arm)
    for stage in TRAINING:
        _training(run, folder.path / stage, {"stage": stage})
    run.arms = sorted(dict.fromkeys(seen), key=lambda arm: arm != ORIGINAL)
    for arm in run.arms:
        _encoders(run, arm)
    for found in run.measurements:
        file = folder.answers_file(found.arm, found.seed, found.name)
        if found.kind == "bench" and file.exists() and (rows := run.take(file, _answers)):
            run.answers[found.arm, found.seed, found.name] = rows
    return run


def _recipe(run: Run) -> list[str]:
    """Keep the recipe's text, and which rates it says were tried; the names of its arms."""
    file = run.folder.recipe_file
    text = run.take(file, lambda path: path.read_text(encoding="utf-8")) if file.exists() else None
    plain = run.take(file, lambda path: parse(text or "", path.name)) if text else None
    run.recipe = text or ""
    run.uses = [str(use) for kind in ("bench", "probes") if isinstance(plain, Mapping) for use in _keys(plain.get(kind))]
    arms = plain.get("arms") if isinstance(plain, Mapping) else None
    if not isinstance(arms, Mapping):
        return []
    run.tried = {str(arm): _tried(choice) for arm, choice in arms.items() if isinstance(choice, Mapping) and choice.get("objective")}
    run.trained |= run.tried.keys()
    return [str(arm) for arm in arms]


def _keys(of: Any) -> list[Any]:
    return list(of) if isinstance(of, Mapping) else []


def _tried(choice: Mapping[str, Any]) -> list[float] | None:
    rates = choice.get("tried")
    return [float(rate) for rate in rates if _is_number(rate)] if isinstance(rates, list) else None


def _add_measurement(run: Run, file: Path, found: Measurement) -> None:
    if any((one.arm, one.seed, one.kind, one.name) == (found.arm, found.seed, found.kind, found.name) for one in run.measurements):
        run.leave_out(file, f"arm {found.arm}, seed {found.seed} has a measurement named {found.kind} {found.name} already")
    else:
        run.measurements.append(found)


def _posts(folder: RunFolder) -> Iterator[tuple[str, int, Path]]:
    """Arm, seed and folder of every stage post."""
    for at in sorted(folder.path.glob("post-*/seed-*")):
        seed = at.name.removeprefix("seed-")
        if at.is_dir() and seed.isdecimal():
            yield at.parent.name.removeprefix("post-"), int(seed), at


def _training(run: Run, at: Path, what: Facts) -> None:
    """Ledger and metrics of a stage that trained."""
    if (at / "ledger.json").exists() and (ledger := run.take(at / "ledger.json", _ledger)):
        run.ledgers.append({**ledger, **what})
    if (at / "metrics.jsonl").exists() and (lines := run.take(at / "metrics.jsonl", _lines)):
        run.metrics.append((what, lines))


def _encoders(run: Run, arm: str) -> None:
    """Parity and tap of an arm's detached encoders."""
    places = [run.folder.encoder(arm)] if arm == ORIGINAL else sorted((run.folder.path / f"encoder-{arm}").glob("seed-*"))
    for at in places:
        facts = {name: run.take(at / f"{name}.json", _mapping) for name in ("parity", "tap") if (at / f"{name}.json").exists()}
        if any(facts.values()):
            seed = at.name.removeprefix("seed-")
            run.encoders.append(
                {"arm": arm, "seed": int(seed) if seed.isdecimal() else 0, "folder": at.relative_to(run.folder.path).as_posix(), **facts}
            )


# ---- one file


def _mapping(file: Path) -> Facts:
    found = read_json(file)
    if not isinstance(found, dict):
        raise BadInput("holds no facts; delete it and run its stage again")
    return found


def _ledger(file: Path) -> Facts:
    found = _mapping(file)
    odd = [key for key, kind in LEDGER.items() if not isinstance(found.get(key), kind | None)]
    if odd:
        raise BadInput(f"is no ledger, its '{odd[0]}' is of another kind; delete it and run its stage again")
    return found


def _lines(file: Path) -> list[Facts]:
    return [line for line in read_jsonl(file) if isinstance(line, dict) and _is_number(line.get("step"))]


def _answers(file: Path) -> list[Facts]:
    rows = read_jsonl(file)
    if not all(isinstance(row, dict) and isinstance(row.get("id"), str) and _is_number(row.get("grade")) for row in rows):
        raise BadInput("a line is no answer with an id and a grade; delete the file and run its stage again")
    if not all(isinstance(row.get("draw", 0), int) for row in rows):
        raise BadInput("a line's draw is no whole number; delete the file and run its stage again")
    return rows


def _measurement(file: Path, leave_out: Callable[[Path, str], None]) -> Measurement:
    """The measurement of a file. Pictures that cannot be shown take no more than themselves out of it."""
    stored = _mapping(file)
    for key, kind in {**dict.fromkeys(TEXTS, str), **dict.fromkeys(WHOLES, int), **dict.fromkeys(TABLES, dict)}.items():
        if not isinstance(stored.get(key), kind):
            raise BadInput(f"is no measurement, its '{key}' is missing or of another kind; delete it and run its stage again")
    try:
        stored["metrics"] = _numbers(stored["metrics"])
        stored["items"] = {leaf: _numbers(values) for leaf, values in stored["items"].items()}
        stored["parts"] = {metric: [str(part) for part in parts] for metric, parts in stored["parts"].items()}
        found = Measurement(**{**stored, "shown": ()})
    except (TypeError, ValueError, AttributeError) as why:
        raise BadInput(f"is no measurement that this version knows ({why}); delete it and run its stage again") from None
    return replace(found, shown=_shown(stored.get("shown"), lambda why: leave_out(file, why)))


def _shown(stored: Any, leave_out: Callable[[str], None]) -> tuple[Shown, ...]:
    found = []
    for one in stored if isinstance(stored, list) else []:
        try:
            found.append(pictures.shown(one))
        except BadInput as why:
            leave_out(str(why))
    return tuple(found)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """JSON has no NaN: what was none reads as null."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
