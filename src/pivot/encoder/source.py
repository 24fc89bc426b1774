"""Open a vision model by string: `hf:ID`, `timm:NAME`, `open_clip:MODEL/TAG`, or a folder in any of their layouts.

What cannot be opened is one line that says why and what to do. Dotted names (`my_lab.tower:x`) never come here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pivot.encoder import formats
from pivot.encoder.formats.preprocess import processor_class
from pivot.encoder.hub import PIXELS, quiet, reach
from pivot.records import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

    Parts = tuple[PreTrainedConfig, PreTrainedModel, BaseImageProcessor]

__all__ = ["PIXELS", "described", "load", "quiet", "reach", "square_processor"]


def load(name: str, dtype: str) -> Parts:
    """Config, vision model in eval mode, and image processor of a source."""
    prefix, colon, rest = name.partition(":")
    if Path(name).is_dir():
        return formats.of_folder(Path(name)).opened(Path(name), dtype)
    if colon and "/" not in prefix:
        return formats.prefixed(prefix, name).opened(rest, dtype)
    raise BadInput(f"encoder '{name}': no such folder; check the path, or write hf:{name} for a model of the Hub")


def described(name: str) -> Parts:
    """The same, without weights where settings are enough."""
    prefix, _, rest = name.partition(":")
    if Path(name).is_dir():
        form = formats.of_folder(Path(name))
        return formats.hf.described(Path(name)) if form is formats.hf else load(name, "float32")
    return formats.FORMATS[prefix].described(rest) if prefix in formats.FORMATS else load(name, "float32")


def square_processor(config: PreTrainedConfig, pixels: int) -> BaseImageProcessor:
    """A family's image processor set to take images straight to one square size."""
    size = {"height": pixels, "width": pixels}
    with quiet():
        return processor_class(config)(size=size, do_center_crop=False)
