"""Where the loss looks: gradient maps of preference training against the region that the question is about.

It reads folders that `pivot saliency` wrote, each of one objective, and needs neither model nor torch. A map has a value for each patch:
the norm of the loss's gradient at its token, or true Grad-CAM. Four numbers hold it against the region: `energy` (the map's share inside,
over the region's share of the picture), `pointing` (the share of its largest patch that does), `auc` and `ap` (of patches sorted by it; see
`_maps.py`). `entropy` says how scattered it is, region or not.

Three things to hold them against. `chance/`: what random maps have in the mean, where that is neither 1 (`energy`) nor a half (`auc`).
`elsewhere/`: the same maps against regions of other items, which is what looking at usual places is worth. `global/`: maps of a question
about the whole picture, against the same regions. Items whose region is empty or everything, those without any gradient and those
without a global question are counted under `left_out/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pivot.files import hash_json
from pivot.plain import differences
from pivot.probe import _maps
from pivot.probe._contract import Instrument
from pivot.probe._gradients import Gradients, Item, known
from pivot.records import BadInput, Measurement, Shown

WRITING = ("at", "steps", "rate", "size", "control", "keep", "precision", "batch", "seed")
PICTURES = 6
AGAINST = {"energy": _maps.energy, "pointing": _maps.pointing, "auc": _maps.auc, "ap": _maps.average_precision}
Items = dict[str, dict[str, float]]  # metric -> item -> value
Map = Literal["norm", "cam"]


@dataclass(frozen=True)
class Probe(Instrument):
    """The probe's knobs, and those of writing what it reads: see `How` in train/saliency.py.

    `map`: whose numbers come first; those of the other stand under its name. `order`: of the norm, L2 or what the paper's authors show, L1.
    """

    MAIN: ClassVar = (*AGAINST, "entropy")
    READS: ClassVar = "gradients"

    map: Map = "norm"
    order: Literal["l2", "l1"] = "l2"
    steps: Annotated[int, Field(ge=0)] = 20
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6  # the paper's of DPO, here of all arms
    size: Annotated[int, Field(ge=1)] = 500
    control: bool = True
    keep: Literal["norms", "all"] = "norms"
    batch: Annotated[int, Field(ge=1)] = field(default=8, kw_only=True)  # examples at a time, where steps is 0

    @property
    def gradients(self) -> dict[str, Any]:
        """What writing takes."""
        return {name: getattr(self, name) for name in WRITING}

    @staticmethod
    def arm(folder: Path) -> str:
        """What a folder's gradients were called when they were written."""
        return str(known(folder)["arm"]) or folder.name

    def measured(self, folders: Mapping[str, Path | str]) -> Iterator[Measurement]:
        """One measurement a folder, named by its key. Folders of different examples, weights or ways to look are a `BadInput`: nothing
        but the objective may be between two that are compared.
        """
        read = {arm: Gradients.read(Path(folder)) for arm, folder in folders.items()}
        first = next(iter(read))
        unlike = next((arm for arm in read if read[arm].examples != read[first].examples), None)
        if unlike:
            raise BadInput(f"{folders[first]} and {folders[unlike]} are of different examples; write both of the same data, size and seed")
        for arm, gradients in read.items():
            if changed := differences(read[first].conditions, gradients.conditions):
                raise BadInput(
                    f"{folders[first]} and {folders[arm]} differ in more than the objective ({', '.join(changed)}); write both in one way"
                )
        for arm, gradients in read.items():
            yield self._measure(arm, gradients)

    def _measure(self, arm: str, gradients: Gradients) -> Measurement:
        found = self._judged(gradients.items)
        if not found.get("entropy"):
            raise BadInput(f"gradients of {arm}: none of {len(gradients.items)} items has any; write them with fewer steps or a lower rate")
        metrics = {metric: fmean(found[metric].values()) for metric in sorted(found, key=_place)}
        regions = [item for item in gradients.items if item.region is not None]
        left_out = {
            "region": len(gradients.items) - len(regions),
            "gradient": sum(self._map(item.own, self.map) is None for item in gradients.items),
        }
        if gradients.facts["control"]:
            left_out["global"] = sum(self._map(item.overall, self.map) is None for item in gradients.items)
        of = hash_json([gradients.examples, gradients.conditions, self.map, self.order])
        return Measurement(
            kind="probe",
            name="gradcam" if gradients.facts["at"] == "encoder" else f"gradcam-{gradients.facts['at']}",
            metrics={**metrics, **{f"left_out/{why}": float(count) for why, count in left_out.items()}},
            n=len(found.get("energy", found["entropy"])),
            arm=arm,
            fingerprint=hash_json([gradients.facts.get("objective"), of]),
            of=of,
            items=found,
            shown=self._shown(regions or gradients.items),
        )

    def _judged(self, items: Sequence[Item]) -> Items:
        """Every number of every item that has it."""
        regions = {item.id: item.region for item in items if item.region is not None}
        order = list(regions.values())
        # Half the items away, not the next one: in the world that may be its twin.
        away = {name: order[(number + len(order) // 2) % len(order)] for number, name in enumerate(regions)}
        found: Items = {}
        for item in items:
            for metric, value in self._numbers(item, away.get(item.id)):
                found.setdefault(metric, {})[item.id] = value
        return found

    def _numbers(self, item: Item, away: np.ndarray | None) -> Iterator[tuple[str, float]]:
        """The numbers of one item. `away`: another item's region."""
        own, cover = self._map(item.own, self.map), item.region
        other: Map = "cam" if self.map == "norm" else "norm"
        maps = {"": own, f"{other}/": self._map(item.own, other), "global/": self._map(item.overall, self.map)}
        for prefix, found in maps.items():
            if found is not None:
                yield f"{prefix}entropy", _maps.entropy(found)
        pairs = [(prefix, found, cover) for prefix, found in maps.items()]
        if away is not None and away is not cover and cover is not None and away.shape == cover.shape:
            pairs.append(("elsewhere/", own, away))
        for prefix, found, region in pairs:
            if found is not None and region is not None:
                yield from ((f"{prefix}{metric}", measure(found, region)) for metric, measure in AGAINST.items())
        if own is not None and cover is not None:
            yield "chance/pointing", float(cover.mean())
            yield "chance/ap", _maps.chance(cover)

    def _map(self, maps: Mapping[str, np.ndarray], which: Map) -> np.ndarray | None:
        """A map of that kind; None where there is none, or nothing on it."""
        found = maps.get("cam" if which == "cam" else self.order)
        return None if found is None or not found.any() else found

    def _shown(self, items: Sequence[Item]) -> list[Shown]:
        """Items spread evenly, the same ones for every arm."""
        shown, count = [], min(PICTURES, len(items))
        for item in (items[number * len(items) // count] for number in range(count)):
            found, nothing = self._map(item.own, self.map), np.zeros_like(item.own["cam"])
            before, now = item.told["losses"]
            shown.append(
                Shown(
                    id=item.id,
                    picture=item.told["picture"],
                    found=(nothing if found is None else found / found.max()).round(4).tolist(),
                    truth=(nothing if item.cover is None else item.cover).round(4).tolist(),
                    says=f"{item.told['question']}\nloss {before:.3g}{'' if before == now else f', then {now:.3g}'}",
                )
            )
        return shown


def _place(metric: str) -> tuple[int, int]:
    """Where a metric stands: what comes first has no path."""
    path, _, name = metric.rpartition("/")
    prefixes = ("", "elsewhere", "global", "norm", "cam", "chance")
    return prefixes.index(path), Probe.MAIN.index(name)
