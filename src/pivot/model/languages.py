"""The table of LLM families that obey a branch mask: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig

from pivot.records import BadInput


@dataclass(frozen=True)
class Language:
    """One LLM family whose attention goes by the 4-D mask and the positions it is given, and by nothing else."""

    model_type: str
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a small random one needs beyond the common sizes


# Each row is held to parity with `repeat` in tests/test_score.py.
LANGUAGES = (
    Language("llama"),
    Language("mistral", tiny={"sliding_window": None}),
    Language("qwen2"),
    Language("qwen3", tiny={"head_dim": 16}),
)


def language(model_type: str) -> Language:
    """The row of an LLM's model type. Unknown ones get the nearest name."""
    for row in LANGUAGES:
        if row.model_type == model_type:
            return row
    known = [row.model_type for row in LANGUAGES]
    near = get_close_matches(model_type, known, n=1) or known
    raise BadInput(f"LLM family '{model_type}' is not in the table; nearest: {', '.join(near)}; a new one is one row in {__name__}")


def refuse_branches(llm: PreTrainedConfig) -> None:
    """Raise unless this LLM can hold several branches in one row: a `BadInput` that says why and names the way out.

    Windows are refused because a branch sits further from its trunk in the row than its positions say.
    """
    attention = llm._attn_implementation
    layers = set(getattr(llm, "layer_types", None) or ["full_attention"])
    if getattr(llm, "sliding_window", None) or layers != {"full_attention"}:
        reason = "it attends through windows"
    elif attention not in ("sdpa", "eager"):
        reason = f"its attention '{attention}' takes no 4-D mask (sdpa and eager do)"
    elif llm.model_type not in {row.model_type for row in LANGUAGES}:
        reason = f"its family is not among the tested ({', '.join(row.model_type for row in LANGUAGES)})"
    else:
        return
    raise BadInput(f"backend shared cannot score several responses with LLM '{llm.model_type}': {reason}; use backend: repeat")
