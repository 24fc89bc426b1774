"""The projector that stays with a detached encoder: two linear maps with an activation between, names as in stock LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2CLS, ACT2FN

from pivot.records import BadInput


class Projector(nn.Module):
    """From the encoder's width to the LLM's. Its state dict is that of stock LLaVA's projector."""

    def __init__(self, widths: tuple[int, int, int], act: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(widths[0], widths[1], bias=bias)
        self.act = ACT2FN[act]
        self.linear_2 = nn.Linear(widths[1], widths[2], bias=bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, P, D) of the encoder to (B, P, D) of the LLM."""
        return self.linear_2(self.act(self.linear_1(tokens)))


def describe(module: nn.Module) -> dict[str, Any]:
    """What `build` needs to make an empty copy of a projector."""
    first, act, last = (getattr(module, name, None) for name in ("linear_1", "act", "linear_2"))
    if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear) and act is not None):
        raise BadInput(f"projector {type(module).__name__} cannot be kept: only two linear layers with an activation between are known")
    # Rows that need arguments are skipped: their class alone does not say which one it is.
    named = [name for name, made_of in ACT2CLS.items() if made_of is type(act)]
    if not named:
        raise BadInput(f"projector activation {type(act).__name__} cannot be kept: transformers has no plain name for it")
    return {"widths": [first.in_features, first.out_features, last.out_features], "act": named[0], "bias": first.bias is not None}


def build(description: Mapping[str, Any]) -> nn.Module:
    """An empty projector as `describe` described it."""
    return Projector(tuple(description["widths"]), description["act"], description["bias"])
