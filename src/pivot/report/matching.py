"""Whether the arms of a comparison read the same examples in the same order, and where else they differ, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pivot.report import words

Facts = dict[str, Any]
Group = Mapping[str, Facts]  # the ledgers of one seed, by arm
MUST = {  # what arms of a comparison must have in common
    "ids_sha256": "examples or their order",
    "examples": "number of examples",
    "epochs": "epochs",
    "batch": "batch size",
    "steps": "steps",
}
COSTS = {"text_tokens": "Text tokens", "flops": "FLOPs", "seconds": "Time"}
SIDES = {"sft": 1, "dpo": 2, "mpo": 2}  # responses that an objective learns from
NEAR = 0.01  # relative difference below which two costs are called equal


def matching(ledgers: Sequence[Facts]) -> Facts:
    """Judge the ledgers of trained arms: `matched` (None if there are not two to compare), sentences on what is equal and what differs."""
    by_seed: dict[Any, dict[str, Facts]] = {}
    for ledger in ledgers:
        by_seed.setdefault(ledger.get("seed"), {})[str(ledger["arm"])] = ledger
    groups = {seed: group for seed, group in by_seed.items() if len(group) > 1}
    faults = [fault for seed, group in groups.items() for fault in _faults(seed, group)]
    matched = not faults if groups else None
    first = next(iter(groups.values()), {})
    return {"matched": matched, "same": [_same(groups)] if matched else [], "faults": faults, "differ": _differ(first) if first else []}


def _faults(seed: Any, group: Group) -> list[str]:
    """What should be equal and is not, or cannot be seen."""
    found = []
    for key, what in MUST.items():
        values = {arm: ledger.get(key) for arm, ledger in group.items()}
        lacking = [arm for arm, value in values.items() if value is None]
        if lacking:
            found.append(f"The ledger of {words.listed(lacking)} does not say its {what} (seed {seed}).")
        elif not _equal(values):
            show = words.short if key == "ids_sha256" else words.count
            found.append(f"The arms differ in {what}: {_each(values, show)} (seed {seed}).")
    return found


def _equal(values: Mapping[str, Any]) -> bool:
    first, *others = values.values()
    return all(other == first for other in others)


def _each(values: Mapping[str, Any], show: Any = str) -> str:
    return words.listed([f"{arm} {show(value)}" for arm, value in values.items()])


def _same(groups: Mapping[Any, Group]) -> str:
    group = next(iter(groups.values()))
    first = next(iter(group.values()))
    seeds = f" Seeds {words.listed([str(seed) for seed in groups])} are matched one by one." if len(groups) > 1 else ""
    examples, epochs, steps, batch = (words.count(first[key]) for key in ("examples", "epochs", "steps", "batch"))
    read = f"{words.listed(list(group))} read the same {examples} examples in the same order (ids {words.short(first['ids_sha256'])})"
    return f"{read}, {'once' if epochs == '1' else f'{epochs} times'}, in {steps} steps of {batch}.{seeds}"


def _differ(group: Group) -> list[str]:
    """Where arms differ by design or in cost."""
    sentences = [_rates(group), _sides(group), *(_cost(group, key) for key in COSTS), _reference(group), _settings(group), _kept(group)]
    for key in ("device", "processes"):
        values = {arm: ledger.get(key) for arm, ledger in group.items()}
        sentences.append("" if _equal(values) else f"They differ in {key}: {_each(values)}.")
    return [sentence for sentence in sentences if sentence]


def _rates(group: Group) -> str:
    rates = {arm: ledger.get("rates") for arm, ledger in group.items()}
    if _equal(rates):
        return ""
    return f"Learning rates differ: {'; '.join(f'{arm} {words.rates(of)}' for arm, of in rates.items())}."


def _sides(group: Group) -> str:
    sides = {arm: SIDES.get(objective(ledger), 0) for arm, ledger in group.items()}
    if 0 in sides.values() or _equal(sides):
        return ""
    said = {1: "the chosen response alone", 2: "the chosen and the rejected response"}
    return f"Of each example {words.listed([f'{arm} learns from {said[number]}' for arm, number in sides.items()])}."


def objective(ledger: Facts) -> str:
    """The name of the objective that a ledger tells of."""
    of = ledger.get("objective")
    return str(of.get("name", "")) if isinstance(of, Mapping) else ""


def _cost(group: Group, key: str) -> str:
    costs = {arm: float(ledger[key]) for arm, ledger in group.items() if words.is_number(ledger.get(key)) and ledger[key] > 0}
    if len(costs) < 2 or max(costs.values()) / min(costs.values()) <= 1 + NEAR:
        return ""
    least = min(costs, key=lambda arm: costs[arm])
    more = [f"{arm} {cost / costs[least]:.2f} times" for arm, cost in costs.items() if cost > costs[least] * (1 + NEAR)]
    return f"{COSTS[key]}: {words.listed(more)} what {least} took."


def _reference(group: Group) -> str:
    each = []
    for arm, ledger in group.items():
        of = ledger.get("reference")
        if isinstance(of, Mapping):
            cost = "taken from the cache" if of.get("cached") else f"{words.flops(of.get('flops'))}, {words.duration(of.get('seconds'))}"
            each.append(f"{arm} ({cost})")
    what = "Reference log-probabilities, computed once before the first step and not in the figures above"
    return f"{what}: {words.listed(each)}." if each else ""


def _settings(group: Group) -> str:
    """Settings of training that are not the same: the schedule, the label mask and what else there is."""
    each = []
    for key in dict.fromkeys(key for ledger in group.values() for key in ledger.get("settings") or {}):
        values = {arm: (ledger.get("settings") or {}).get(key) for arm, ledger in group.items()}
        if not _equal(values):
            each.append(f"{key.replace('_', ' ')} ({_each(values)})")
    return f"Settings differ: {words.listed(each)}." if each else ""


def _kept(group: Group) -> str:
    """Where the weights are not the last ones."""
    best = {arm: ledger.get("best") for arm, ledger in group.items() if (ledger.get("settings") or {}).get("keep") == "best"}
    steps = {arm: of[0] for arm, of in best.items() if isinstance(of, list) and of}
    return f"The weights are those with the lowest held-out loss: {_each(steps, lambda step: f'from step {step}')}." if steps else ""
