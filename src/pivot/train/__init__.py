"""Training. Its knobs load without torch: recipes are checked against them before anything heavy is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pivot.train.loop import train
    from pivot.train.parts import Rates
    from pivot.train.settings import Settings

__all__ = ["Rates", "Settings", "train"]
_HOME = {"Rates": "parts", "Settings": "settings", "train": "loop"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
