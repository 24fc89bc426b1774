"""What a run found, as the Markdown that results/ keeps: every arm's score and every paired difference, with intervals and verdicts.

    python benchmarks/table.py runs/probes > results/probes/README.md

Rows are the metrics that have parts or no path (all of them with --all). Read from report/results.json, measurements, ledgers, logs and the
manifest: no number is computed here but means over items, seeds and updates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pivot.files import read_json, read_jsonl
from pivot.runfolder import ORIGINAL, RunFolder

Facts = Mapping[str, Any]
SIGNS = {"higher": " ▲", "lower": " ▼", "open": "", None: ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--all", action="store_true", help="metrics below a path as well")
    parser.add_argument("--against", nargs="+", metavar="ARM", help="differences from these arms alone, where there are many arms")
    options = parser.parse_args()
    folder = RunFolder.existing(options.run)
    found = read_json(folder.report / "results.json")
    if options.against:
        found["pairs"] = [pair for pair in found["pairs"] if pair["b"] in options.against]
    tables = (line for kind, name in measured(found) for line in section(found, kind, name, options.all))
    print("\n".join([*heading(folder), *by_item(folder), *tables]))


def heading(folder: RunFolder) -> Iterator[str]:
    """What was run, with what, and what it took."""
    manifest = folder.manifest()
    yield f"# {manifest['name']}\n"
    yield f"Versions: {', '.join(f'{name} {value}' for name, value in manifest['versions'].items())}.\n"
    yield "| arm | seeds | examples | updates | FLOPs | seconds a seed | rates | reward of its own replies, first and last fifth |"
    yield "|---|---|---|---|---|---|---|---|"
    posts = [file.parent for file in sorted(folder.path.glob("post-*/seed-*/ledger.json"))]
    for arm in dict.fromkeys(post.parent.name for post in posts):
        own = [post for post in posts if post.parent.name == arm]
        ledgers = [read_json(post / "ledger.json") for post in own]
        one, seconds = ledgers[0], fmean(ledger["seconds"] for ledger in ledgers)
        flops = fmean(ledger["flops"] + (ledger["reference"] or {"flops": 0})["flops"] for ledger in ledgers)
        rates = ", ".join(f"{part} {rate:g}" for part, rate in one["rates"].items())
        facts = (one["arm"], len(own), f"{one['examples']:,}", f"{one['steps']:,}", f"{flops:.3g}", f"{seconds:,.0f}", rates, earned(own))
        yield f"| {' | '.join(map(str, facts))} |"


def earned(posts: Sequence[Path]) -> str:
    """What replies earned as training began and as it ended, over all seeds; empty where none were written."""
    curves = [
        [line["reward"] for line in read_jsonl(post / "metrics.jsonl") if "reward" in line and line["kind"] == "train"] for post in posts
    ]
    if not all(curves):
        return ""
    fifths = ((curve[: math.ceil(len(curve) / 5)], curve[-math.ceil(len(curve) / 5) :]) for curve in curves)
    first, last = zip(*fifths, strict=True)
    return f"{fmean(map(fmean, first)):.3f}, {fmean(map(fmean, last)):.3f}"


def by_item(folder: RunFolder) -> Iterator[str]:
    """Benches with every item of the same weight, where the tables below weigh tasks and domains alike: means over items, then seeds."""
    means: dict[str, dict[str, list[float]]] = {}
    for one in folder.measurements():
        if one.kind == "bench":
            scores = [score for task, units in one.items.items() if task.startswith("tasks/") for score in units.values()]
            means.setdefault(one.name, {}).setdefault(one.arm, []).append(fmean(scores))
    if means:
        arms = sorted({arm for of in means.values() for arm in of}, key=lambda arm: (arm != ORIGINAL, arm))
        yield f"\n| bench, mean over items | {' | '.join(arms)} |"
        yield "|---" * (1 + len(arms)) + "|"
    for name, of in means.items():
        yield f"| {name} | {' | '.join(f'{fmean(of[arm]):.4f}' if arm in of else '' for arm in arms)} |"


def measured(found: Facts) -> list[tuple[str, str]]:
    """Kind and name of each measurement."""
    return list(dict.fromkeys((row["kind"], row["name"]) for row in found["rows"]))


def section(found: Facts, kind: str, name: str, everything: bool) -> Iterator[str]:
    """One measurement's table."""
    rows = [row for row in found["rows"] if (row["kind"], row["name"]) == (kind, name)]
    pairs = [pair for pair in found["pairs"] if (pair["kind"], pair["name"]) == (kind, name)]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    contrasts = list(dict.fromkeys((pair["a"], pair["b"]) for pair in pairs))
    yield f"\n## {kind} {name}\n"
    yield f"| metric | items | {' | '.join(arms)} | {' | '.join(f'{a} − {b}' for a, b in contrasts)} |"
    yield "|---" * (2 + len(arms) + len(contrasts)) + "|"
    for metric in dict.fromkeys(row["metric"] for row in rows):
        if not everything and "/" in metric and not metric.startswith("domains/"):
            continue
        scores = [_row(rows, arm, metric) for arm in arms]
        apart = [next((pair for pair in pairs if (pair["a"], pair["b"], pair["metric"]) == (a, b, metric)), None) for a, b in contrasts]
        n = max(row["n"] for row in scores if row)
        cells = [*(told(row, "value") for row in scores), *(told(pair, "difference") for pair in apart)]
        yield f"| {metric} | {n:,} | {' | '.join(cells)} |"


def _row(rows: Sequence[Facts], arm: str, metric: str) -> Facts | None:
    """An arm's value: over its seeds if there are several."""
    of = [row for row in rows if (row["arm"], row["metric"]) == (arm, metric)]
    return next((row for row in of if row["seed"] is None), of[0] if of else None)


def told(of: Facts | None, key: str) -> str:
    """A number with its interval; a triangle where several seeds agree on which side of 0 it is."""
    if of is None or of[key] is None:
        return ""
    sign = "+" if key == "difference" else ""
    interval = "" if of["low"] is None else f" [{of['low']:{sign}.4f}, {of['high']:{sign}.4f}]"
    return f"{of[key]:{sign}.4f}{interval}{SIGNS[of.get('verdict')]}"


if __name__ == "__main__":
    main()
