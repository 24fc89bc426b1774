"""Which rows an update reads: each once an epoch, of like length where asked, and the same wherever and however it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from test_resume import left_after
from training import DPO, SFT, curve, fresh, run, same, weights

from pivot import progress
from pivot.data import lengths as measuring
from pivot.data.lengths import Lengths, lengths
from pivot.files import read_json
from pivot.model import MLLM
from pivot.records import BadInput, Example, Response
from pivot.train import Settings, order


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def planted(rows: int, seed: int = 0) -> Lengths:
    """Lengths as in instruction data: a third text alone, most rows short, a few very long."""
    noise = np.random.default_rng(seed)
    return Lengths((noise.random(rows) < 2 / 3).astype(int), noise.lognormal(4, 1, rows).astype(int))


def padding(batches: Sequence[Sequence[int]], found: Lengths) -> float:
    """Share of the tokens of padded batches that are padding; a picture has as many tokens as a long text."""
    tokens = found.text + 500 * found.pictures
    room = sum(max(tokens[n] for n in batch) * len(batch) for batch in batches)
    return 1 - sum(int(tokens[n]) for n in chain(*batches)) / room


# ---- grouped


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1003])
def test_a_grouped_epoch_reads_each_row_once(rows: int, apart: bool) -> None:
    found = list(order.batches(rows, 8, seed=3, epochs=2, lengths=planted(rows), apart=apart))
    steps = order.per_epoch(rows, 8)
    assert len(found) == 2 * steps and all(len(batch) == 8 for epoch in (0, 1) for batch in found[epoch * steps : (epoch + 1) * steps - 1])
    for epoch in (0, 1):
        assert sorted(chain(*found[epoch * steps : (epoch + 1) * steps])) == list(range(rows))


def test_batches_hold_like_lengths_and_one_modality() -> None:
    """Measured on 4003 rows in batches of 8: 42 % of the tokens are padding, grouped by length 4 %, and by modality 3 %."""
    shapes = planted(4003)
    plain, by_length, apart = (
        list(order.batches(4003, 8, lengths=given, apart=split)) for given, split in ((None, False), (shapes, False), (shapes, True))
    )
    assert padding(plain, shapes) > 0.4
    assert padding(by_length, shapes) < padding(plain, shapes) / 8 and padding(apart, shapes) < padding(plain, shapes) / 8

    def mixed(batches: Sequence[Sequence[int]]) -> int:
        return sum(0 < (shapes.pictures[batch] > 0).sum() < len(batch) for batch in batches)

    assert mixed(plain) > 300 and mixed(apart) <= 2
    firsts = [int(shapes.text[batch].mean()) for batch in apart[:100]]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True), "an epoch must not go from short to long"


def test_a_grouped_order_is_a_function_of_seed_and_epoch() -> None:
    shapes = planted(103)

    def every(**options: Any) -> list[list[int]]:
        return list(order.batches(103, 8, epochs=2, lengths=shapes, apart=True, **options))

    assert every() == every() and every(seed=1) != every()
    assert every()[:13] != every()[13:]
    for start in range(27):
        assert every(start=start) == every()[start:]
    small = Lengths(np.array([1, 0, 1, 0, 1, 1]), np.array([5, 9, 1, 2, 4, 3]))
    assert list(order.batches(6, 2, lengths=small, apart=True)) == [[2, 5], [4, 0], [3, 1]]


# ---- the last batch


@pytest.mark.parametrize("grouped", [False, True])
def test_a_last_batch_that_is_not_full_can_be_dropped(grouped: bool) -> None:
    shapes = planted(11) if grouped else None
    whole, dropped = (list(order.batches(11, 4, epochs=3, drop_last=drop, lengths=shapes)) for drop in (False, True))
    assert dropped == [batch for batch in whole if len(batch) == 4]
    assert len(dropped) == Settings(batch=4, epochs=3, drop_last=True).steps(11) == 6
    assert len(whole) == Settings(batch=4, epochs=3).steps(11) == 9
    for start in range(7):
        assert list(order.batches(11, 4, epochs=3, drop_last=True, lengths=shapes, start=start)) == dropped[start:]


def test_training_drops_it(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    run(fresh(shared_mllm), SFT(), pairs, tmp_path, batch=3, drop_last=True)
    assert len(curve(tmp_path)) == 2 == read_json(tmp_path / "ledger.json")["steps"]
    with pytest.raises(BadInput, match=r"drop_last leaves no update: 8 examples fill no batch of 9; make batch smaller"):
        run(fresh(shared_mllm), SFT(), pairs, tmp_path / "none", batch=9, drop_last=True)


# ---- in a training


def uneven(pairs: Sequence[Example]) -> list[Example]:
    """Some without a picture, of very different lengths."""
    return [
        replace(pair, images=pair.images if n % 3 else (), prompt=pair.prompt + " please" * (5 * n % 7), id=f"row-{n}")
        for n, pair in enumerate(pairs)
    ]


def test_the_order_is_one_for_any_workers_after_a_kill_and_for_every_objective(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path
) -> None:
    """Two processes: `test_distributed.py`. A kill at any write: `test_resume.py`."""
    rows, options, found = uneven(pairs), {"group_by": "modality", "batch": 3, "epochs": 2}, []
    for workers in (0, 1, 4):
        mllm = fresh(shared_mllm)
        run(mllm, SFT(), rows, tmp_path / str(workers), workers=workers, **options)
        found.append((weights(mllm), read_json(tmp_path / str(workers) / "ledger.json")["ids_sha256"]))
    left_after(5, shared_mllm, SFT(), rows, tmp_path / "left", save_every=1, **options)
    mllm = fresh(shared_mllm)
    run(mllm, SFT(), rows, tmp_path / "left", save_every=1, **options)
    found.append((weights(mllm), read_json(tmp_path / "left" / "ledger.json")["ids_sha256"]))
    assert all(same(found[0][0], tensors) and ids == found[0][1] for tensors, ids in found[1:])
    run(fresh(shared_mllm), DPO(), rows, tmp_path / "dpo", **options)
    assert read_json(tmp_path / "dpo" / "ledger.json")["ids_sha256"] == found[0][1]
    with pytest.raises(BadInput, match=r"another training \(changed: settings.group_by\)"):
        run(fresh(shared_mllm), SFT(), rows, tmp_path / "left", save_every=1, **{**options, "group_by": "length"})


# ---- lengths


def test_lengths_are_measured_once_and_open_no_picture(tmp_path: Path) -> None:
    talk = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "What is it?"})
    rows = [
        Example("a", ("nowhere.jpg",), "What?", (Response("A cat."), Response("No.", images=("nowhere.png", "else.png")))),
        Example("b", (), talk, (Response("\u4e00\u53ea\u732b"),)),
    ]
    told: list[tuple[str, int, int]] = []
    with progress.heard(lambda *said: told.append(said)):
        found = lengths(rows, "mark")
    assert found.pictures.tolist() == [3, 0] and found.text.tolist() == [5 + 6 + 3, 5 + 2 + 11 + 9]
    assert told == [("lengths of rows", 2, 2)]
    with mock.patch.object(measuring, "_measured", side_effect=AssertionError("measured again")):
        again = lengths(rows, "mark")
        with pytest.raises(AssertionError):
            lengths(rows, "another mark")
    assert again.pictures.tolist() == [3, 0] and again.text.tolist() == found.text.tolist()
    for file in (tmp_path / "cache" / "lengths").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    assert lengths(rows, "mark").text.tolist() == found.text.tolist(), "a damaged entry is measured again"
