"""What docs/method.md and docs/related.md say is here, is here."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import pivot
from pivot import lookup
from pivot.knobs import fill
from pivot.objective._online import Online

ROOT = Path(__file__).parents[1]
METHOD, RELATED = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("method.md", "related.md"))
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", METHOD, re.MULTILINE | re.DOTALL))
COMMON = {field.name for field in fields(Online)}
JUDGED: dict[str, Any] = {"reward": "digit"}


@pytest.mark.parametrize("name", lookup.names("objective"))
def test_every_objective_is_derived_with_all_its_knobs(name: str) -> None:
    section, objective = SECTIONS[name], lookup.find("objective", name)
    assert section.startswith(f"\n`objective/{name}.py`")
    own = {field.name for field in fields(objective)} - (COMMON if issubclass(objective, Online) else set())
    assert own and not [knob for knob in own if not re.search(rf"\b{knob}\b", section)]


def test_what_replies_are_made_with_is_told_once_for_all() -> None:
    told = SECTIONS["Rollouts"] + SECTIONS["reward_model"]
    others = {"temperature": "temperature T", "k": "k replies", "chat": "reward/"}  # in words
    assert not [knob for knob in COMMON if others.get(knob, knob) not in told]


@pytest.mark.parametrize("text", [METHOD, RELATED])
def test_files_that_are_named_exist(text: str) -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)*[\w*]+\.(?:py|md))`", text))
    places = (ROOT, ROOT / "docs", Path(pivot.__file__).parent)
    assert named and not [name for name in named if not any(list(place.glob(name)) for place in places)]


def specs() -> list[tuple[str, str]]:
    return re.findall(rf"`({'|'.join(lookup.names('objective'))}) (\{{.*?\}})`", RELATED)


@pytest.mark.parametrize(("name", "knobs"), specs(), ids=str)
def test_options_that_are_named_are_options(name: str, knobs: str) -> None:
    objective = lookup.find("objective", name)
    given = yaml.safe_load(knobs)
    assert fill(objective, {**(JUDGED if issubclass(objective, Online) else {}), **given}).items() >= given.items()


def test_rewards_and_readers_that_are_named_exist() -> None:
    rewards = {"digit", "format", "maths", "iou", "judge", "mixed", "bonus", "length", "finished"}
    assert rewards <= set(lookup.names("reward")) and {"rlaif", "mmpr"} <= set(lookup.names("data"))
    assert not [name for name in rewards if f"`{name}`" not in RELATED]


def test_the_survey_is_whole() -> None:
    """Every row of the paper's two tables, and everything that is not built has a reason."""
    pairs = {"RLHF-V", "RLAIF-V", "LLaVA-Critic", "OPA-DPO", "HDPO", "CHiP", "mDPO", "LPOI", "V-DPO", "MPO", "LongPerceptualThoughts"}
    first, second = re.findall(r"^## Table [AB].*?\n(.*?)(?=^## )", RELATED, re.MULTILINE | re.DOTALL)
    names = [
        [line.split("|")[1].split("(")[0].strip() for line in table.splitlines() if line.startswith("| ")][1:] for table in (first, second)
    ]
    assert set(names[0]) == pairs | {"LLaVA-RLHF", "RL Generalizes", "SimpleVLA-RL"}
    assert set(names[1]) == {"R1-V", "EasyR1", "SimpleVLA-RL", "VLM-R1", "RL4VLM", "RL Generalize", "LLaVA-RLHF"}
    assert not re.findall(r"\| not built *\|", RELATED)
