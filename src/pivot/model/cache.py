"""The key-value cache of replies: transformers' own, but for layers that see all of the past.

Those of transformers copy what they hold with every token, which on a CPU took half the time of a reply.

Letters: R rows, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

AHEAD = 64  # tokens for which there is room when a layer has had to be copied


class _Roomy(DynamicLayer):
    """Keys and values (R, H, T, D) are the front of something longer. Not for gradients: what is held is written in place."""

    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add to what is held, and hand it all out."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < length:
            room = [new.new_empty(*new.shape[:2], length + AHEAD, new.shape[-1]) for new in (key_states, value_states)]
            if held and self.keys is not None and self.values is not None:
                room[0][:, :, :held], room[1][:, :, :held] = self.keys, self.values
            self.room = (room[0], room[1])
        for wider, new in zip(self.room, (key_states, value_states), strict=True):
            wider[:, :, held:length] = new
        self.keys, self.values = (wider[:, :, :length] for wider in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Go on with these rows, some of them perhaps more than once."""
        super().reorder_cache(beam_idx)
        self.room = None


def roomy(llm: PreTrainedConfig) -> Any:
    """An empty cache for an LLM. It takes no gradients."""
    cache = DynamicCache(config=llm)
    cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
