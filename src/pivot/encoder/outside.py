"""A tower of the user's own: one file outside this package, opened by its dotted name.

The file exports `Tower`, an `nn.Module`:

    __init__(self, **options)                 # options are plain JSON values
    forward(self, pixels)                     # (B, 3, H, W) -> a sequence of maps (B, D, h, w), bottom layer first
    open(cls, name) -> (options, weights, image_processor)      # a classmethod: what to build, its state dict, a transformers processor

`Encoder.load("my_lab.tower:NAME")` calls `Tower.open("NAME")`. The dotted name is kept in config.json, and imported again when a
folder that holds the tower is opened. Buffers must be in the state dict, since a folder's model is built without storage first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pivot.encoder.hub import reason
from pivot.files import hash_bytes
from pivot.lookup import find
from pivot.records import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


RETURNED = "(options, weights, image_processor)"
_read: WeakKeyDictionary[type, str] = WeakKeyDictionary()  # by class, since a file may change after it was imported


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
        top = config.module.partition(".")[0]
        kinds = {type(part) for part in self.tower.modules()}
        self.code = sorted({_source(kind) for kind in kinds if kind.__module__.partition(".")[0] == top} | {_source(type(self.tower))})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The tower begins as its own class makes it."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """(B, 3, H, W) -> maps (B, D, h, w)."""
        maps = tuple(self.tower(pixel_values))
        return BaseModelOutput(last_hidden_state=maps[-1], hidden_states=maps)


def _source(kind: type) -> str:
    """Hash of the file that a class was made in, as it was when the class was first seen."""
    if kind not in _read:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        _read[kind] = hash_bytes(Path(file).read_bytes()) if file and Path(file).is_file() else ""
    return _read[kind]


def code(model: nn.Module) -> list[str]:
    """Hashes of the files that users' towers in a model are written in: what it computes depends on them. Empty without such."""
    return sorted({found for part in model.modules() if isinstance(part, Outside) for found in part.code})


def is_dotted(name: str) -> bool:
    """Whether a name is of the form `package.module:NAME`."""
    module, colon, _ = name.partition(":")
    return bool(colon) and "." in module and all(part.isidentifier() for part in module.split("."))


@contextmanager
def _blamed(name: str, what: str) -> Iterator[None]:
    """Whatever the user's code raises, as one line that says where. The traceback stays behind it as the cause."""
    try:
        yield
    except BadInput:
        raise
    except Exception as failed:
        raise BadInput(f"encoder {name}: {what} ({reason(failed, 200)}); correct it in its file") from failed


def load(name: str, dtype: str) -> tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]:
    """Config, model in eval mode and image processor of `package.module:NAME`."""
    module, _, rest = name.partition(":")
    tower = find("encoder", module)
    if not hasattr(tower, "open"):
        raise BadInput(f"encoder {name}: its Tower has no classmethod open(name); give it one that returns {RETURNED}")
    with _blamed(name, f"Tower.open('{rest}') failed"):
        returned = tower.open(rest)
    with _blamed(name, f"Tower.open('{rest}') must return {RETURNED}"):
        options, weights, processor = returned
        config = OutsideConfig(module, options)
    with _blamed(name, f"its Tower cannot be built with options {config.options}"):
        model = Outside(config)
    with _blamed(name, "its weights do not fit its Tower"):
        model.tower.load_state_dict(weights)
    return config, model.to(getattr(torch, dtype)).eval(), processor


AutoConfig.register("pivot_outside", OutsideConfig, exist_ok=True)
AutoModel.register(OutsideConfig, Outside, exist_ok=True)
