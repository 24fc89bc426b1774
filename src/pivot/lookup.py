"""Find one thing by name: the module is its own registry entry."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from typing import Any

from pivot.records import BadInput

# What each folder's modules agree to export.
EXPORTS = {
    "data": "read",
    "objective": "Objective",
    "reward": "reward",
    "pretrain": "Pretraining",
    "probe": "Probe",
    "bench": "Benchmark",
}


def names(folder: str) -> list[str]:
    """Names that `find(folder, ...)` takes. Imports nothing of the folder's modules."""
    package = importlib.import_module(f"pivot.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, name: str) -> Any:
    """Import `pivot.<folder>.<name>` (or any dotted module) and return its one agreed export."""
    export = EXPORTS[folder]
    module_name = name if "." in name else f"pivot.{folder}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not module_name.startswith(missing.name):
            raise  # the module is there, one of its own imports is not
        known = names(folder)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise BadInput(f"no {folder} named '{name}'; {hint}") from None
    if not hasattr(module, export):
        raise BadInput(f"{module_name} has no '{export}'; a module of {folder}/ must export it")
    return getattr(module, export)
