"""The weights that training started from, for objectives that write their responses anew: no reference of these can be cached.

Only what trains is kept, and only once more: to score under it, it changes places with the present weights. Swapped in place, so
that it does not matter how a launcher has spread them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Anchor:
    """A copy of some parameters as they are now. `model`: what they are called through."""

    def __init__(self, trained: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._trained = {name: _local(parameter) for name, parameter in trained.items()}
        self._kept = {name: tensor.clone() for name, tensor in self._trained.items()}

    @contextmanager
    @torch.no_grad()
    def weighed(self) -> Iterator[None]:
        """Within, the model has its first weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for module in self._sharded:
            module.reshard()  # without gradients, the outermost one stays gathered after a call, and would not see the others
        for name, present in self._trained.items():
            other = present.clone()
            present.copy_(self._kept[name])
            self._kept[name].copy_(other)


@torch.no_grad()
def _local(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter, sharing its memory."""
    tensor = parameter.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
