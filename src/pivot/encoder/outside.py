"""A tower of the user's own: one file outside this package, opened by its dotted name.

The file exports `Tower`, an `nn.Module`:

    __init__(self, **options)                 # options are plain JSON values
    forward(self, pixels)                     # (B, 3, H, W) -> a sequence of maps (B, D, h, w), bottom layer first
    open(cls, name) -> (options, weights, image_processor)      # a classmethod: what to build, its state dict, a transformers processor

`Encoder.load("my_lab.tower:NAME")` calls `Tower.open("NAME")`. The dotted name is kept in config.json, and imported again when a
folder that holds the tower is opened. Buffers must be in the state dict, since a folder's model is built without storage first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pivot.lookup import find
from pivot.records import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


class OutsideConfig(PreTrainedConfig):
    """Where the tower's class is, and what it is built with."""

    model_type = "pivot_outside"

    def __init__(self, module: str = "", options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.module = module
        self.options = dict(options or {})
        super().__init__(**kwargs)


class Outside(PreTrainedModel):
    """The user's tower, seen as a stock model whose hidden states are its maps."""

    config_class = OutsideConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OutsideConfig) -> None:
        super().__init__(config)
        self.tower: nn.Module = find("encoder", config.module)(**config.options)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The tower begins as its own class makes it."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """(B, 3, H, W) -> maps (B, D, h, w)."""
        maps = tuple(self.tower(pixel_values))
        return BaseModelOutput(last_hidden_state=maps[-1], hidden_states=maps)


def is_dotted(name: str) -> bool:
    """Whether a name is of the form `package.module:NAME`."""
    module, colon, _ = name.partition(":")
    return bool(colon) and "." in module and all(part.isidentifier() for part in module.split("."))


def load(name: str, dtype: str) -> tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]:
    """Config, model in eval mode and image processor of `package.module:NAME`."""
    module, _, rest = name.partition(":")
    options, weights, processor = find("encoder", module).open(rest)
    config = OutsideConfig(module, options)
    model = Outside(config)
    try:
        model.tower.load_state_dict(weights)
    except RuntimeError as failed:
        raise BadInput(f"encoder {name}: its weights do not fit its Tower: {' '.join(str(failed).split())[:200]}") from None
    return config, model.to(getattr(torch, dtype)).eval(), processor


AutoConfig.register("pivot_outside", OutsideConfig, exist_ok=True)
AutoModel.register(OutsideConfig, Outside, exist_ok=True)
