"""Folders of gradients, read: what `pivot saliency` wrote, as train/saliency.py describes it. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from pivot.files import read_json
from pivot.records import BadInput

FACTS, WRITES = "saliency.json", "pivot saliency"
# Of the facts: whose a folder is, what `examples` has, and what changes no number by more than rounding.
OWN = {"arm", "objective", "data", "items", "size", "seed", "keep", "device", "versions"}


@dataclass(frozen=True)
class Item:
    """One item of a folder: what was asked, the maps of its own question, those of the global one, and the region's share of each patch."""

    id: str
    told: Mapping[str, Any]
    own: Mapping[str, np.ndarray]
    overall: Mapping[str, np.ndarray]
    cover: np.ndarray | None

    @property
    def region(self) -> np.ndarray | None:
        """The region's share of each patch, if there is a region and something beside it."""
        return self.cover if self.cover is not None and 0 < self.cover.mean() < 1 else None


@dataclass(frozen=True)
class Gradients:
    """A folder of gradients, read."""

    facts: Mapping[str, Any]
    items: Sequence[Item]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a whole one. One that is not there, or not finished, is a `BadInput`."""
        facts = known(folder)
        items = [item for file in sorted(folder.glob("items-*.safetensors")) for item in _items(file)]
        if len(items) != facts["items"]:
            raise BadInput(f"{folder} has {len(items)} of {facts['items']} items; run the same `{WRITES}` again, it goes on from there")
        return cls(facts, _named_apart(items))

    @property
    def examples(self) -> list[Any]:
        """What arms must have in common to be held against each other item by item."""
        return [self.facts["data"], [item.id for item in self.items]]

    @property
    def conditions(self) -> dict[str, Any]:
        """What else, so that nothing but the objective is between them: the given weights, and how was looked."""
        return {name: value for name, value in self.facts.items() if name not in OWN}


def known(folder: Path) -> dict[str, Any]:
    """What a folder says that its gradients are of. One without any is a `BadInput`."""
    if not (folder / FACTS).is_file():
        raise BadInput(f"{folder} holds no gradients; give a folder that `{WRITES}` wrote")
    return dict(read_json(folder / FACTS))


def _items(file: Path) -> Iterator[Item]:
    """The items of one file of a folder."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            tensors: dict[str, dict[str, np.ndarray]] = {}
            for key in opened.keys():  # noqa: SIM118
                number, _, name = key.partition("/")
                if not name.endswith(("gradient", "activation")):
                    tensors.setdefault(number, {})[name] = opened.get_tensor(key).astype(np.float64)
            told = json.loads(opened.metadata()["items"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as broken:
        raise BadInput(f"{file} is damaged ({broken}); delete it and run the same `{WRITES}` again") from None
    for number, one in zip(sorted(tensors, key=int), told, strict=True):
        maps = tensors[number]
        own, overall = {}, {}
        for name, values in maps.items():
            if name.startswith("global/"):
                overall[name.removeprefix("global/")] = values
            elif name != "region":
                own[name] = values
        yield Item(one["id"], one, own, overall, maps.get("region"))


def _named_apart(items: Sequence[Item]) -> list[Item]:
    """The same, those that share an id with one before told apart by their number."""
    seen, found = set[str](), []
    for number, item in enumerate(items):
        found.append(item if item.id not in seen else replace(item, id=f"{item.id} #{number}"))
        seen.add(item.id)
    return found
