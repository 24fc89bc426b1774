"""The table of LLM families: which obey a branch mask, and what a small random one of each looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig

from pivot.model.branches import Backend
from pivot.model.packed import PACKED
from pivot.records import BadInput


@dataclass(frozen=True)
class Language:
    """One LLM family, or a variant of one that differs in what its layers see."""

    name: str
    model_type: str
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a small random one needs beyond the common sizes


def _row(name: str, model_type: str = "", **tiny: Any) -> Language:
    return Language(name, model_type or name, tiny)


# Their attention goes by the 4-D mask and the positions it is given, and by nothing else. Each row is held to parity with
# `repeat` in tests/test_score.py.
LANGUAGES = (
    _row("llama"),  # SmolLM and SmolLM2 too
    _row("mistral", sliding_window=None),
    _row("qwen2"),  # Qwen2.5 too
    _row("qwen3", head_dim=16),
    _row("smollm3", num_hidden_layers=4, no_rope_layer_interval=2),  # every second layer here has no positions at all
    _row("gemma", head_dim=16),
    _row("olmo2"),
    _row("phi"),
    _row("phi3", original_max_position_embeddings=4096),  # Phi-3, 3.5 and Phi-4
)

# LLMs that exist only inside an MLLM; they obey branches, too, and are held to it in tests/test_families.py.
INSIDE = ("qwen2_vl_text", "qwen2_5_vl_text")

# Their layers see by windows or carry a state along the row, so that branches in one row would see one another or lose their
# trunk. Scored through `repeat`, and held to plain calls in tests/test_languages.py.
ROW_BY_ROW = (
    _row("mistral-windowed", "mistral", sliding_window=8),
    _row("qwen2-windowed", "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    _row("phi3-windowed", "phi3", sliding_window=8),
    _row("gemma3_text", head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    _row("olmo3", sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    _row("jamba", num_experts=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4),
    _row("lfm2", layer_types=["conv", "full_attention"]),
)


def language(name: str) -> Language:
    """The row of a name. Unknown ones get the nearest."""
    rows = {row.name: row for row in (*LANGUAGES, *ROW_BY_ROW)}
    if name in rows:
        return rows[name]
    near = get_close_matches(name, rows, n=1) or list(rows)
    raise BadInput(f"LLM family '{name}' is not in the table; nearest: {', '.join(near)}; a new one is one row in {__name__}")


def backend(llm: PreTrainedConfig, asked: Backend) -> tuple[Backend, str | None]:
    """The scorer backend that this LLM allows, and if it is not the one asked for, why: a clause that begins with "its"."""
    reason = None if asked == "repeat" else _against_branches(llm)
    return ("repeat", reason) if reason else (asked, None)


def against_packing(llm: PreTrainedConfig) -> str | None:
    """Why rows cannot lie end to end in one, if they cannot: a clause that begins with "its"."""
    if llm._attn_implementation == "eager":
        return "its attention 'eager' cannot be told where rows end (sdpa can)"
    return _against_branches(llm)


def attention(llm: PreTrainedConfig, packing: bool) -> str:
    """What attends in rows of one response. An LLM that was packed before and now is not attends as sdpa does."""
    if packing and against_packing(llm) is None:
        return PACKED
    return "sdpa" if llm._attn_implementation == PACKED else llm._attn_implementation


def _against_branches(llm: PreTrainedConfig) -> str | None:
    """Why several branches cannot share a row.

    Windows are among the reasons because a branch sits further from its trunk in the row than its positions say.
    """
    known = sorted({*(row.model_type for row in LANGUAGES), *INSIDE})
    kinds, window = set(getattr(llm, "layer_types", None) or ()), getattr(llm, "sliding_window", None)
    carrying = sorted(kind for kind in kinds if kind.startswith("linear") or not kind.endswith("attention"))
    reached = window is not None and window < (getattr(llm, "max_position_embeddings", None) or float("inf"))
    if carrying:
        return f"its layers carry a state along the row ({', '.join(carrying)})"
    if window and reached and kinds != {"full_attention"}:  # Qwen2 notes one beside layers that do not use it
        return f"its attention has a window of {window} tokens"
    if llm.model_type not in known:
        return f"its family '{llm.model_type}' is not among the tested ({', '.join(known)})"
    if llm._attn_implementation not in ("sdpa", "eager", PACKED):
        return f"its attention '{llm._attn_implementation}' takes no 4-D mask (sdpa and eager do)"
    return None
