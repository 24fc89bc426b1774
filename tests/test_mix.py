"""Mixtures: exact shares, each part in an order of its own without repeats until it is used up, all of it decided by the seed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import asked, lines

from pivot import recipe
from pivot.data import mix
from pivot.records import BadInput
from pivot.world.dice import Dice


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """Three sets of LLaVA's rows, of 40, 25 and 10, whose ids are the same."""
    sizes = {"a": 40, "b": 25, "c": 10}
    made = {
        name: lines(tmp_path / f"{name}.jsonl", [{"id": n, "conversations": asked(name, str(n))} for n in range(size)])
        for name, size in sizes.items()
    }
    return {name: {"read": "llava", "path": str(file)} for name, file in made.items()}


def ids(mixed: mix.Mix) -> list[str]:
    return [row.id for row in mixed]


def test_rows_are_shared_out_by_weight_exactly(parts: dict[str, Any]) -> None:
    weighted = {name: {**part, "weight": weight} for (name, part), weight in zip(parts.items(), (2, 1, 0.5), strict=True)}
    for size in (1, 2, 7, 35, 70, 700):
        counts = Counter(name.split("/")[0] for name in ids(mix.read(of=weighted, size=size)))
        exact = {"a": size * 2 / 3.5, "b": size / 3.5, "c": size * 0.5 / 3.5}
        assert sum(counts.values()) == size and all(abs(counts[name] - share) < 1 for name, share in exact.items())
    assert mix.shares([1, 1, 1], 5) == [2, 2, 1] and mix.shares([0.1, 0.2, 0.7], 10) == [1, 2, 7]
    assert mix.shares([5, 3, 2], 4) == [2, 1, 1]  # of 2, 1.2 and 0.8


def test_a_row_of_a_part_comes_again_only_when_all_have_come(parts: dict[str, Any]) -> None:
    mixed = [name for name in ids(mix.read(of=parts, size=90)) if name.startswith("c/")]
    rounds = [mixed[start : start + 10] for start in range(0, 30, 10)]
    assert len(mixed) == 30 and all(len(set(one)) == 10 for one in rounds) and len(set(map(tuple, rounds))) == 3


def test_without_a_size_it_is_the_largest_without_repeats(parts: dict[str, Any]) -> None:
    for weights in ((1, 1, 1), (2, 1, 0.5), (4, 2.5, 1), (0.3, 0.7, 0.01), (5, 0.1, 0.1)):
        weighted = {name: {**part, "weight": weight} for (name, part), weight in zip(parts.items(), weights, strict=True)}
        size = len(mix.read(of=weighted))
        assert len(set(ids(mix.read(of=weighted)))) == size
        assert any(max(Counter(ids(mix.read(of=weighted, size=more))).values()) > 1 for more in range(size + 1, 2 * size + 3))
    assert (
        len(mix.read(of={name: {**part, "weight": weight} for (name, part), weight in zip(parts.items(), (40, 25, 10), strict=True)})) == 75
    )
    thirds = {name: {**part, "weight": weight} for (name, part), weight in zip(list(parts.items())[1:], (0.25, 0.1), strict=True)}
    assert len(mix.read(of=thirds)) == 35  # weights are decimals: nothing is lost to their rounding


def test_order_is_a_function_of_seed_parts_and_size(parts: dict[str, Any]) -> None:
    first = ids(mix.read(of=parts, size=60, seed=3))
    again = mix.read(of=parts, size=60, seed=3)
    assert [again[number].id for number in reversed(range(60))] == first[::-1]  # whoever asks first
    others = [ids(mix.read(of=parts, size=60, seed=seed)) for seed in (0, 1, 2)]
    assert all(other != first for other in others) and Counter(name[0] for name in others[0]) == Counter(name[0] for name in first)
    runs = sum(one[0] != two[0] for one, two in pairwise(first))
    assert runs > 20  # mixed, not one part behind the other


def test_shuffling_is_the_dice_as_arrays() -> None:
    """The stream that the world is drawn from, written for a million rows: it depends on no version of numpy."""
    dice = Dice("a", 7)
    drawn = [dice.below(1 << 64) for _ in range(200)]
    assert mix.shuffled(200, "a", 7).tolist() == sorted(range(200), key=drawn.__getitem__)
    assert mix.shuffled(0, "a").tolist() == [] and mix.rounds(3, 7, "a").shape == (7,)
    places = np.stack([np.argsort(mix.shuffled(8, "even", seed)) for seed in range(2000)])
    counts = np.stack([np.bincount(places[:, row], minlength=8) for row in range(8)])
    assert counts.min() > 250 - 75 and counts.max() < 250 + 75  # five standard deviations: every place is as likely for every row


def test_rows_are_those_of_their_part_and_say_where_they_lie(parts: dict[str, Any]) -> None:
    mixed = mix.read(of={**parts, "world": "world,size=5,split=test"})
    for number, row in enumerate(mixed):
        name, own = row.id.split("/")
        if name == "world":
            assert own.startswith("world-test") and mixed.where(number).endswith("of world")
        else:
            assert (
                row.prompt == name
                and row.responses[0].text == own
                and mixed.where(number) == f"line {int(own) + 1} of {parts[name]['path']}"
            )


def test_the_fingerprint_tells_what_changed(parts: dict[str, Any], tmp_path: Path) -> None:
    found = {
        mix.read(of=parts).fingerprint(),
        mix.read(of=parts, seed=1).fingerprint(),
        mix.read(of=parts, size=20).fingerprint(),
        mix.read(of={**parts, "a": {**parts["a"], "weight": 2}}, size=30).fingerprint(),
    }
    assert len(found) == 4 and mix.read(of=parts).fingerprint() in found
    lines(tmp_path / "a.jsonl", [{"conversations": asked("other", "row")}] * 40)
    assert mix.read(of=parts).fingerprint() not in found


def test_recipes_and_command_lines_name_mixtures(parts: dict[str, Any]) -> None:
    read = recipe.read(f"mix,of={json.dumps(parts)},size=12,seed=5")
    assert [row.id for row in read] == ids(mix.read(of=parts, size=12, seed=5))
    checked = recipe.validate(
        {"name": "x", "encoder": "a", "llm": "b", "data": {"all": {"read": "mix", "of": parts, "size": 12, "seed": 5}}}, "x"
    )
    assert [row.id for row in checked.examples("all")] == [row.id for row in read]


@pytest.mark.parametrize(
    ("of", "says"),
    [
        ({}, "mix: of names no data"),
        ({"a": 5}, "part 'a' must be one line that names data, or a mapping with 'read'"),
        ({"a": {"path": "x"}}, "part 'a' must be one line"),
        ({"a": {"read": "world", "weight": 0}}, "weight of 'a' is 0; give a number above 0"),
        ({"a": {"read": "world", "weight": "2"}}, "weight of 'a' is '2'"),
        ({"a": {"read": "world", "weight": float("nan")}}, "weight of 'a' is nan"),
        ({"a": {"read": "world", "sise": 3}}, "of.a: unknown key 'sise'; did you mean 'size'"),
        ({"a": {"read": "world", "size": "x"}}, "of.a.size: "),
        ({"a": {"read": "wold"}}, "did you mean 'world'"),
        ({"a": "wold,size=2"}, "did you mean 'world'"),
    ],
)
def test_what_is_wrong_with_a_mixture_is_one_line(of: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as wrong:
        mix.read(of=of)
    assert says in str(wrong.value) and "\n" not in str(wrong.value)


def test_a_size_below_one_and_an_empty_part_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="size 0; give at least one row"):
        mix.read(of=parts, size=0)
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(BadInput, match="part 'n' has no rows"):
        mix.read(of={**parts, "n": {"read": "llava", "path": str(tmp_path / "none.jsonl")}})
