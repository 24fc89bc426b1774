"""No arm of the demo may be a no-op. Held against a finished run, which PIVOT_DEMO names: .ci/run sets it to the wheel's own.

PIVOT_DEMO=runs/demo .venv/bin/python -m pytest tests/demo_floors.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pivot.files import read_jsonl

RUN = Path(os.environ["PIVOT_DEMO"])


def validations(arm: str) -> list[dict]:
    """Before the first update, and after the last."""
    found = [line for line in read_jsonl(RUN / f"post-{arm}" / "seed-0" / "metrics.jsonl") if line["kind"] == "eval"]
    return [found[0], found[-1]]


def replies(arm: str) -> dict[str, str]:
    return {row["id"]: row["reply"] for row in read_jsonl(RUN / "answers" / f"{arm}-seed-0-world.jsonl")}


def test_sft_lowers_the_loss_on_held_out_rows() -> None:
    before, after = validations("sft")
    assert after["step"] > before["step"] == 0 and after["loss"] < before["loss"]


def test_dpo_prefers_what_is_right_on_held_out_pairs() -> None:
    assert validations("dpo")[1]["rewards/accuracies"] >= 0.65


@pytest.mark.parametrize("arm", ["sft", "dpo"])
def test_replies_differ_from_the_bases(arm: str) -> None:
    base, own = replies("original"), replies(arm)
    assert base.keys() == own.keys() and len(base) >= 500
    assert sum(base[item] != own[item] for item in base) >= 0.05 * len(base)
