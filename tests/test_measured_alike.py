"""What a measurement is of: the same for all encoders, another for other pictures, labels or knobs, whatever the items are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pivot.data import world
from pivot.encoder import Encoder
from pivot.lookup import find
from pivot.records import Example, Measurement
from pivot.study.statistics import differences

ROWS = list(world.read(split="test", size=48))
KNOBS: dict[str, dict[str, Any]] = {
    "linear": {"targets": ("kind",), "halvings": 0, "lowest": 0, "highest": 0},
    "segment": {"repeats": 1, "epochs": 1, "width": 4},
    "change": {},
}
ORIGINAL = Encoder.tiny("vit")


def turned(rows: Sequence[Example]) -> list[Example]:
    """The same names, each with what is shown and known of the one before."""
    return [replace(row, images=other.images, truth=other.truth) for row, other in zip(rows, [rows[-1], *rows], strict=False)]


def measured(name: str, rows: Sequence[Example] = ROWS, encoder: Encoder = ORIGINAL, **knobs: Any) -> Measurement:
    *_, found = find("probe", name)(**{**KNOBS[name], **knobs}).run({"original": ORIGINAL, "arm": encoder}, rows)
    return found


@pytest.mark.parametrize("name", list(KNOBS))
def test_other_data_and_knobs_are_something_else_and_other_encoders_are_not(name: str) -> None:
    found = measured(name)
    other = measured(name, encoder=Encoder.tiny("vit", seed=1), batch=7)
    assert found.of and found.of == other.of and found.fingerprint != other.fingerprint and differences([found], [other])
    # another grid: patches are the encoder's, and not of what is measured
    coarse = find("probe", name)(**KNOBS[name]).run({"arm": Encoder.tiny("resnet")}, ROWS) if name != "change" else [found]
    assert [one.of for one in coarse] == [found.of]
    elsewhere = measured(name, turned(ROWS))
    assert elsewhere.items.keys() == found.items.keys() and elsewhere.of != found.of
    assert differences([elsewhere], [found]) == {}
    assert measured(name, seed=1).of != found.of
