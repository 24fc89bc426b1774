"""Whether the arms of a comparison read the same examples in the same order, and where else they differ, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pivot.report import words

Facts = dict[str, Any]
MUST = {  # what arms of a comparison must have in common
    "ids_sha256": "examples or their order",
    "examples": "number of examples",
    "epochs": "epochs",
    "batch": "batch size",
    "steps": "steps",
}
SIDES = {"sft": 1, "dpo": 2, "mpo": 2}  # responses an objective learns from, where the ledger does not say
NEAR = 0.01  # relative difference below which two costs are called equal


def matching(ledgers: Sequence[Facts]) -> Facts:
    """Judge the ledgers of trained arms: `matched` (None if there are not two to compare), sentences on what is equal and what differs."""
    by_seed: dict[Any, list[Facts]] = {}
    for ledger in ledgers:
        by_seed.setdefault(ledger.get("seed"), []).append(ledger)
    groups = [group for group in by_seed.values() if len(group) > 1]
    faults = [fault for group in groups for fault in _faults(group)]
    matched = not faults if groups else None
    return {"matched": matched, "same": _same(groups) if matched else [], "faults": faults, "differ": _differ(groups)}


def _names(group: Sequence[Facts]) -> list[str]:
    return [str(ledger["arm"]) for ledger in group]


def _faults(group: Sequence[Facts]) -> list[str]:
    """What should be equal within a seed and is not, or cannot be seen."""
    found = []
    for key, what in MUST.items():
        values = [ledger.get(key) for ledger in group]
        seed = f" (seed {group[0].get('seed')})"
        if any(value is None for value in values):
            lacking = [name for name, value in zip(_names(group), values, strict=True) if value is None]
            found.append(f"The ledger of {words.listed(lacking)} does not say its {what}{seed}.")
        elif any(value != values[0] for value in values):
            told = [words.short(value) if key == "ids_sha256" else words.count(value) for value in values]
            each = [f"{name} {value}" for name, value in zip(_names(group), told, strict=True)]
            found.append(f"The arms differ in {what}: {words.listed(each)}{seed}.")
    return found


def _same(groups: Sequence[Sequence[Facts]]) -> list[str]:
    first = groups[0][0]
    seeds = "" if len(groups) == 1 else f" Seeds {words.listed([str(group[0].get('seed')) for group in groups])} are matched one by one."
    arms, epochs = words.listed(_names(groups[0])), first["epochs"]
    often = "once" if epochs == 1 else f"{words.count(epochs)} times"
    return [
        f"{arms} read the same {words.count(first['examples'])} examples in the same order (ids {words.short(first['ids_sha256'])}), "
        f"{often}, in {words.count(first['steps'])} steps of {words.count(first['batch'])}.{seeds}"
    ]


def _differ(groups: Sequence[Sequence[Facts]]) -> list[str]:
    """Where arms differ by design or in cost, from the first seed that has several."""
    if not groups:
        return []
    group = groups[0]
    sentences = [_rates(group), _sides(group)]
    sentences += [_cost(group, key, what) for key, what in {"text_tokens": "text tokens", "flops": "FLOPs", "seconds": "time"}.items()]
    sentences += [_reference(group), _plain(group, "precision"), _plain(group, "device")]
    return [sentence for sentence in sentences if sentence]


def _rates(group: Sequence[Facts]) -> str:
    rates = [ledger.get("rates") for ledger in group]
    if all(rate == rates[0] for rate in rates) or not all(isinstance(rate, Mapping) for rate in rates):
        return ""
    each = [f"{name} {words.rates(rate)}" for name, rate in zip(_names(group), rates, strict=True)]
    return f"Learning rates differ: {'; '.join(each)}."


def _sides(group: Sequence[Facts]) -> str:
    sides = [int(ledger.get("responses") or SIDES.get(_objective(ledger), 0)) for ledger in group]
    if 0 in sides or len(set(sides)) == 1:
        return ""
    each = [f"{name} learns from {words.sides(side)}" for name, side in zip(_names(group), sides, strict=True)]
    return f"Of each example {words.listed(each)}."


def _objective(ledger: Facts) -> str:
    objective = ledger.get("objective")
    return str(objective.get("name", "")) if isinstance(objective, Mapping) else ""


def _cost(group: Sequence[Facts], key: str, what: str) -> str:
    known = [(name, ledger.get(key)) for name, ledger in zip(_names(group), group, strict=True)]
    costs = {name: float(cost) for name, cost in known if isinstance(cost, int | float) and cost > 0}
    if len(costs) < 2 or max(costs.values()) / min(costs.values()) <= 1 + NEAR:
        return ""
    least = min(costs, key=lambda name: costs[name])
    each = [f"{name} {cost / costs[least]:.2f} times" for name, cost in costs.items() if cost > costs[least] * (1 + NEAR)]
    return f"{what[0].upper()}{what[1:]}: {words.listed(each)} what {least} took."


def _reference(group: Sequence[Facts]) -> str:
    each = []
    for name, ledger in zip(_names(group), group, strict=True):
        reference = ledger.get("reference")
        if isinstance(reference, Mapping):
            cost = f"{words.flops(reference.get('flops'))}, {words.duration(reference.get('seconds'))}"
            each.append(f"{name} ({'taken from the cache' if reference.get('cached') else cost})")
    what = "Reference log-probabilities, computed once before the first step and not in the figures above"
    return f"{what}: {words.listed(each)}." if each else ""


def _plain(group: Sequence[Facts], key: str) -> str:
    values = [ledger.get(key) for ledger in group]
    if all(value == values[0] for value in values):
        return ""
    return f"They differ in {key}: {words.listed([f'{name} {value}' for name, value in zip(_names(group), values, strict=True)])}."
