"""How far a folder's features are from those of the model that it came out of: what `parity.json` says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PARITY_FILE = "parity.json"
ROUNDING = 1e-5


@dataclass(frozen=True)
class Parity:
    """How far a folder's features are from those of the model it came out of, and what in it is stale."""

    difference: float  # largest absolute difference of a token, through the library alone
    tolerance: float  # what it may be: nothing through transformers, rounding through the others
    pixel_difference: float  # of what the library's own transform gives; unless it is 0, features are compared on the same pixels
    projector_difference: float | None  # the same behind the projector, through this package
    against: str  # "mllm": what the MLLM feeds its projector; "encoder": the encoder in memory
    read: str  # the expression that gives the features
    images: int
    shape: tuple[int, ...]  # of the compared tokens (B, P, D)
    dtype: str
    device: str
    layout: str
    through: str
    truncated: bool
    stale: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether not one bit of a feature changed."""
        return self.difference == 0 and self.pixel_difference == 0 and self.projector_difference in (None, 0)

    @property
    def holds(self) -> bool:
        """Whether the folder is that encoder: features differ by rounding at most."""
        return self.difference <= self.tolerance and (self.projector_difference or 0) <= self.tolerance


def tolerance(tokens: torch.Tensor, dtype: torch.dtype) -> float:
    """What another library may differ by from `tokens`.

    transformers computes what it computed in the MLLM, bit for bit. Others add and multiply in another order; this share of the
    largest feature is ten times what float32 was seen to lose by that, and half precision loses a few of its last bits.
    """
    share = max(ROUNDING, 4 * torch.finfo(dtype).eps)
    return share * max(1.0, tokens.abs().max().item())
