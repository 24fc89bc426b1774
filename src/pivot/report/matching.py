"""Whether the arms of a comparison read the same examples in the same order, and where else they differ, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pivot.report import words

Facts = dict[str, Any]
Group = Mapping[str, Facts]  # the ledgers of one seed, by arm
MUST = {  # what arms of a comparison must have in common
    "ids_sha256": "examples or their order",
    "examples": "number of examples",
    "epochs": "epochs",
    "batch": "batch size",
    "steps": "steps",  # once through the rows of a batch: objectives may learn from them several times
}
COSTS = {"text_tokens": "Text tokens", "flops": "FLOPs", "seconds": "Time"}
NEAR = 0.01  # relative difference below which two costs are called equal


def matching(ledgers: Sequence[Facts], tried: Mapping[str, Sequence[float] | None] | None = None) -> Facts:
    """Judge the ledgers of trained arms: `matched` (None if there are not two to compare), sentences on what is equal, what differs,
    and what is to be said of how learning rates were found. `tried`: those among which each arm's own was chosen, None where the
    recipe does not say.
    """
    by_seed: dict[Any, dict[str, Facts]] = {}
    for ledger in ledgers:
        by_seed.setdefault(ledger.get("seed"), {})[str(ledger["arm"])] = ledger
    groups = {seed: group for seed, group in by_seed.items() if len(group) > 1}
    faults = [fault for seed, group in groups.items() for fault in _faults(seed, group)]
    matched = not faults if groups else None
    first = next(iter(groups.values()), {})
    return {
        "matched": matched,
        "same": [_same(groups)] if matched else [],
        "faults": faults,
        "differ": [*(_differ(first) if first else []), *_elsewhere(groups), *_seeds(by_seed)],
        "searches": _searches(tried or {}, first),
        "edges": _edges(tried or {}, first),
    }


def _faults(seed: Any, group: Group) -> list[str]:
    """What should be equal and is not, or cannot be seen."""
    found = []
    for key, what in MUST.items():
        values = {arm: (steps(ledger) if key == "steps" else ledger.get(key)) for arm, ledger in group.items()}
        lacking = [arm for arm, value in values.items() if value is None]
        if lacking:
            found.append(f"The ledger of {words.listed(lacking)} does not say its {what} (seed {seed}).")
        elif not _equal(values):
            show = words.short if key == "ids_sha256" else words.count
            found.append(f"The arms differ in {what}: {_each(values, show)} (seed {seed}).")
    return found


def passes(ledger: Facts) -> int:
    """How often the rows of a batch were learned from before the next ones came."""
    given = ledger.get("passes")
    return given if isinstance(given, int) and given > 0 else 1


def steps(ledger: Facts) -> Any:
    """Updates once through the rows: what arms have in common, however often each goes through a batch."""
    return ledger["steps"] / passes(ledger) if words.is_number(ledger.get("steps")) else None


def _equal(values: Mapping[str, Any]) -> bool:
    first, *others = values.values()
    return all(other == first for other in others)


def _each(values: Mapping[str, Any], show: Any = str) -> str:
    return words.listed([f"{arm} {show(value)}" for arm, value in values.items()])


def _same(groups: Mapping[Any, Group]) -> str:
    group = next(iter(groups.values()))
    first = next(iter(group.values()))
    seeds = f" Seeds {words.listed([str(seed) for seed in groups])} are matched one by one." if len(groups) > 1 else ""
    examples, epochs, updates, batch = map(words.count, (first["examples"], first["epochs"], steps(first), first["batch"]))
    read = f"{words.listed(list(group))} read the same {examples} examples in the same order (ids {words.short(first['ids_sha256'])})"
    return f"{read}, {'once' if epochs == '1' else f'{epochs} times'}, in {updates} steps of {batch}.{seeds}"


def _differ(group: Group) -> list[str]:
    """Where arms differ by design or in cost."""
    costs = [*(_cost(group, key) for key in COSTS), _written(group), _reference(group)]
    sentences = [_rates(group), _sides(group), _passes(group), *costs, _settings(group), _kept(group), *_machines(group)]
    return [sentence for sentence in sentences if sentence]


def _machines(group: Group) -> Iterator[str]:
    for key in ("device", "processes"):
        values = {arm: ledger.get(key) for arm, ledger in group.items()}
        yield "" if _equal(values) else f"They differ in {key}: {_each(values)}."


def _elsewhere(groups: Mapping[Any, Group]) -> list[str]:
    """What differs in later seeds and not in the first: runs may share a folder over several machines. Costs differ with every seed."""
    found = list[str]()
    for number, (seed, group) in enumerate(groups.items()):
        own = [sentence for sentence in (_rates(group), _settings(group), *_machines(group)) if sentence]
        if number == 0:
            known = set(own)
        found += [f"With seed {seed}: {sentence}" for sentence in own if sentence not in known]
    return found


def _seeds(by_seed: Mapping[Any, Group]) -> list[str]:
    """Seeds that some arms have and others lack."""
    arms = list(dict.fromkeys(arm for group in by_seed.values() for arm in group))
    lacking = {arm: [seed for seed, group in by_seed.items() if arm not in group] for arm in arms}
    each = [f"{arm} {words.listed([str(seed) for seed in seeds])}" for arm, seeds in lacking.items() if seeds]
    return [f"Not all arms have all seeds; missing: {'; '.join(each)}."] if each else []


def _rates(group: Group) -> str:
    rates = {arm: ledger.get("rates") for arm, ledger in group.items()}
    if _equal(rates):
        return ""
    return f"Learning rates differ: {'; '.join(f'{arm} {words.rates(of)}' for arm, of in rates.items())}."


def _sides(group: Group) -> str:
    """What each arm learns from, in its objective's own words."""
    sides: dict[str, list[str]] = {}
    for arm, ledger in group.items():
        sides.setdefault(str(ledger.get("learns") or ""), []).append(arm)
    if "" in sides or len(sides) < 2:
        return ""
    each = [f"{words.listed(arms)} learn{'s' if len(arms) == 1 else ''} from {what}" for what, arms in sides.items()]
    return f"Of each example {'; '.join(each)}."


def _passes(group: Group) -> str:
    often = {arm: passes(ledger) for arm, ledger in group.items()}
    if _equal(often):
        return ""
    several = [f"{arm} takes {number} updates from each batch" for arm, number in often.items() if number > 1]
    return f"By design {words.listed(several)}, the others one: steps are counted once through the rows."


def _written(group: Group) -> str:
    wrote = {arm: ledger["written_tokens"] for arm, ledger in group.items() if _positive(ledger.get("written_tokens"))}
    what = "Tokens of replies that the model wrote itself, which FLOPs and time include"
    return f"{what}: {_each(wrote, words.count)}." if wrote else ""


def _positive(value: Any) -> bool:
    return words.is_number(value) and value > 0


def _cost(group: Group, key: str) -> str:
    costs = {arm: float(ledger[key]) for arm, ledger in group.items() if _positive(ledger.get(key))}
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


# ---- how learning rates were found


def _searches(tried: Mapping[str, Sequence[float] | None], group: Group) -> list[str]:
    """Whether each arm's learning rate was looked for as hard as the others', and in the same places."""
    told = {arm: len(set(rates)) for arm, rates in tried.items() if rates}
    silent = [arm for arm in tried if arm not in told]
    if len(tried) < 2 or not (told or (group and _rates(group))):
        return []
    if not told:
        return ["Learning rates differ, and the recipe says of no arm among which its own was chosen (tried)."]
    if not silent and _equal({arm: sorted(set(rates or ())) for arm, rates in tried.items()}):
        return []
    chosen = f"Learning rates were chosen among {words.listed([f'{number} for {arm}' for arm, number in told.items()])}"
    if silent:
        return [f"{chosen}; of {words.listed(silent)} the recipe does not say: whether the arms were searched alike is not known."]
    if _equal(told):
        return [f"{chosen}, not the same ones: the arms were searched as long, but not in the same places."]
    return [f"{chosen}: the arms were not searched alike."]


def _edges(tried: Mapping[str, Sequence[float] | None], group: Group) -> list[str]:
    """Where the best rate was the last one tried, so that a better one may lie beyond."""
    found = []
    for arm, ledger in group.items():
        own, rates = ledger.get("rates"), sorted(set(tried.get(arm) or ()))
        chosen = [rate for rate in rates if isinstance(own, Mapping) and rate in own.values()]
        if len(rates) > 1 and chosen and {rates[0], rates[-1]} & set(chosen):
            which = "largest" if rates[-1] in chosen else "smallest"
            grid = ", ".join(map(words.plain, rates))
            found.append(f"The rate of {arm} is the {which} of those tried ({grid}): a better one may lie beyond.")
    return found
