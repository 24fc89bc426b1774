"""What is measured block by block, drawn along the depth of the encoder: a panel a quantity, a curve an arm.

A metric belongs here by its name: QUANTITY/block-NN, QUANTITY/embeddings and QUANTITY/projector, with a part of the block behind it
(weights/block-03/attention), or the member of a joined encoder before it (weights/0/block-03). Whatever is named so is drawn,
whichever probe it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pivot.report import figures, words
from pivot.report.figures import Series

Facts = dict[str, Any]
PLACE = re.compile(r"(?P<quantity>[^/]+(?:/[^/]+)*?)/(?:(?P<end>embeddings|projector)|block-(?P<block>\d{1,4}))(?:/(?P<part>[^/]+))?")
ENDS = {"embeddings": "emb.", "projector": "proj."}
AT_MOST_ONE = frozenset({"cka", "cosine"})  # 1 is where nothing moved


@dataclass(frozen=True)
class Quantity:
    """One panel: the metric at each place, from the embeddings (-1) through the blocks to the projector (behind the last block)."""

    name: str
    part: str  # of each block, '' for the whole
    metrics: Mapping[int, str]
    places: Mapping[int, str]

    @property
    def caption(self) -> str:
        quantity, _, member = self.name.partition("/")
        return " ".join(said for said in (words.heading(words.metric(quantity)), member) if said)

    @property
    def at_most_one(self) -> bool:
        return self.name.partition("/")[0] in AT_MOST_ONE


def quantities(metrics: Sequence[str]) -> list[Quantity]:
    """Those that are told of at least one block: wholes first, then parts."""
    matches = {metric: match for metric in metrics if (match := PLACE.fullmatch(metric))}
    numbers = [int(match["block"]) for match in matches.values() if match["block"]]
    if not numbers:
        return []
    ends = {"embeddings": -1, "projector": max(numbers) + 1}
    found: dict[tuple[bool, str, str], dict[int, str]] = {}
    for metric, match in matches.items():
        place = int(match["block"]) if match["block"] else ends[match["end"]]
        found.setdefault((bool(match["part"]), match["quantity"], match["part"] or ""), {})[place] = metric
    places = {**{number: str(number) for number in range(max(numbers) + 1)}, **{ends[end]: short for end, short in ENDS.items()}}
    return [
        Quantity(name, part, dict(sorted(at.items())), {number: places[number] for number in sorted(at)})
        for (_, name, part), at in sorted(found.items(), key=lambda one: one[0][0])
        if not at.keys() <= set(ends.values())
    ]


def section(found: Sequence[Quantity], rows: Sequence[Facts], tones: Mapping[str, int]) -> Facts | None:
    """Figures, and a table of every number; None where nothing is measured block by block."""
    if not found:
        return None
    heads = [" ".join(said for said in (one.caption, one.part) if said) for one in found]
    return {"figures": panels(found, rows, tones), "heads": heads, "arms": list(tones), "lines": table(found, rows, list(tones))}


def figure(quantity: Quantity, rows: Sequence[Facts], tones: Mapping[str, int], top: float | None) -> Facts | None:
    """The panel of a quantity: each arm's mean over seeds, and thin lines behind it for the seeds. None without a value."""
    series = [one for arm, tone in tones.items() for one in _series(quantity, rows, arm, tone)]
    if not series:
        return None
    low = None if quantity.at_most_one else min(0.0, *(value for one in series for _, value in one.points))
    means = f"of {quantity.part} alone" if quantity.part else ""
    label = " ".join(f"{quantity.caption} {means} from block to block".split())
    svg = figures.curves(series, label, x_label="block", low=low, high=top, names=quantity.places)
    return {"caption": quantity.caption, "means": means, "svg": svg}


def panels(found: Sequence[Quantity], rows: Sequence[Facts], tones: Mapping[str, int]) -> list[Facts]:
    """All of them. Parts of a block share one axis, so that one can be held against the other."""
    tops: dict[tuple[str, bool], float] = {}
    for one in found:
        inside = set(one.metrics.values())
        values = [row["value"] for row in rows if row["metric"] in inside and words.is_number(row["value"])]
        if one.at_most_one and all(value <= 1 for value in values):
            tops[one.name, bool(one.part)] = 1.0
        elif one.part and values:
            tops[one.name, True] = max(1.05 * max(values), tops.get((one.name, True), 0.0))
    drawn = [figure(one, rows, tones, tops.get((one.name, bool(one.part))) or None) for one in found]
    return [one for one in drawn if one]


def table(found: Sequence[Quantity], rows: Sequence[Facts], arms: Sequence[str]) -> list[Facts]:
    """Every number: a line a place, for each quantity its value of each arm."""
    values = {(row["arm"], row["metric"]): row["value"] for row in sorted(rows, key=lambda row: row["seed"] is None)}
    places = sorted({place for one in found for place in one.metrics})
    named = {place: name for one in found for place, name in one.places.items()}
    return [
        {
            "label": next((end for end, short in ENDS.items() if short == named[place]), f"block {named[place]}"),
            "values": [_told(one, values.get((arm, one.metrics.get(place, "")))) for one in found for arm in arms],
        }
        for place in places
    ]


def _told(quantity: Quantity, value: Any) -> str:
    """Of what ends at 1 more digits: what tells blocks apart is how much is missing."""
    return words.plain(value, 6 if quantity.at_most_one else 3)


def _series(quantity: Quantity, rows: Sequence[Facts], arm: str, tone: int) -> Iterator[Series]:
    """An arm's curve, behind it those of its seeds if there are several."""
    place = {metric: number for number, metric in quantity.metrics.items()}
    points: dict[int | None, list[tuple[float, float]]] = {}
    for row in rows:
        if row["arm"] == arm and row["metric"] in place and words.is_number(row["value"]):
            points.setdefault(row["seed"], []).append((float(place[row["metric"]]), row["value"]))
    whole = None if None in points else min(points, default=None, key=lambda seed: seed or 0)
    for seed, of in points.items():
        main = seed == whole
        yield Series(arm if main else "", sorted(of), tone, sparse=main, faint=not main, end=arm if main else "")
