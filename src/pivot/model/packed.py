"""Rows with one response each, laid end to end in one row: nothing is padded, and no row sees another.

That needs an attention that knows where rows end. It is registered with transformers under a name of its own and told the rows'
lengths by keyword, which every layer hands down to it, also when checkpointing computes a layer again. Where it is told none it is
plain sdpa, so that a model can keep it for life.

Letters: R rows, T tokens of the longest row, N tokens of all rows, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pivot.model.branches import PADDING, Placement

PACKED = "pivot_packed"  # the attention's name in transformers
HALF = (torch.float16, torch.bfloat16)  # what kernels of many rows at once take
WIDEST = 256  # and the widest head
_sdpa: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
_varlen: Callable[..., Any] = varlen_attn


def pack(placement: Placement) -> Placement:
    """The same rows (R, T) as one (1, N). Only rows with a single branch can be packed."""
    kept = placement.segment != PADDING  # (R, T)
    where = kept.flatten().cumsum(0) - 1  # of a place among padded rows: the place without padding
    return replace(
        placement,
        take=placement.take[kept][None],
        segment=placement.segment[kept][None],
        positions=placement.positions[..., kept][..., None, :],
        read=where[placement.read],
        last=where[placement.last],
        lengths=tuple(kept.sum(-1).tolist()),
    )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_lengths: tuple[int, ...] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """Queries, keys and values (1, H, N, D) -> (1, N, H, D): causal within each of the rows whose lengths are given."""
    if not row_lengths:
        return _sdpa(module, query, key, value, attention_mask, **options)
    dtype = torch.get_autocast_dtype("cuda") if query.is_cuda and torch.is_autocast_enabled("cuda") else query.dtype
    if query.is_cuda and dtype in HALF and query.shape[-1] <= WIDEST and torch.cuda.get_device_capability(query.device) >= (8, 0):
        return _at_once(query.to(dtype), key.to(dtype), value.to(dtype), row_lengths, options.get("scaling")), None
    rows = zip(*(states.split(row_lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([_sdpa(module, *row, None, **options)[0] for row in rows], dim=1), None


def _at_once(query: Tensor, key: Tensor, value: Tensor, row_lengths: tuple[int, ...], scaling: float | None) -> Tensor:
    """All rows in one kernel."""
    ends = torch.tensor([0, *accumulate(row_lengths)], dtype=torch.int32, device=query.device)
    groups, longest = query.shape[1] // key.shape[1], max(row_lengths)
    key, value = (states.repeat_interleave(groups, dim=1) if groups > 1 else states for states in (key, value))
    flat = [states[0].transpose(0, 1).contiguous() for states in (query, key, value)]  # (N, H, D)
    found = _varlen(*flat, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0))  # -1, 0: all before, none behind
    return found[None]


def switch_on(llm: PreTrainedModel) -> None:
    """Give an LLM this attention. Its masks are those of sdpa."""
    llm.set_attn_implementation(PACKED)


AttentionInterface.register(PACKED, attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
