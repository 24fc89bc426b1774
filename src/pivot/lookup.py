"""Find one thing by name: the module is its own registry entry."""

from __future__ import annotations

import importlib
import pkgutil
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pivot.records import BadInput

# What each folder's modules agree to export.
EXPORTS = {
    "encoder": "Tower",  # always dotted: the package's own are rows of a table
    "data": "read",
    "objective": "Objective",
    "reward": "reward",
    "pretrain": "Pretraining",
    "probe": "Probe",
    "bench": "Benchmark",
}


def names(folder: str) -> list[str]:
    """Names that `find(folder, ...)` takes: modules that define the export. Read as text, so that a list costs no import of torch."""
    package = importlib.import_module(f"pivot.{folder}")
    defines = re.compile(rf"^(?:class|def) {EXPORTS[folder]}\b(?!\(Protocol\))", re.MULTILINE)
    modules = [Path(place) / f"{m.name}.py" for place in package.__path__ for m in pkgutil.iter_modules([place]) if not m.ispkg]
    return sorted(file.stem for file in modules if defines.search(file.read_text(encoding="utf-8")))


def find(folder: str, name: str) -> Any:
    """Import `pivot.<folder>.<name>` (or any dotted module) and return its one agreed export."""
    export = EXPORTS[folder]
    module_name = name if "." in name else f"pivot.{folder}.{name}"
    try:
        if not all(part.isidentifier() for part in module_name.split(".")):
            raise ModuleNotFoundError(name=module_name)  # import_module would take ".." for a relative name
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not module_name.startswith(missing.name):
            raise  # the module is there, one of its own imports is not
        known = names(folder)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}" if known else "check that it can be imported"
        raise BadInput(f"no {folder} named '{name}'; {hint}") from None
    if getattr(getattr(module, export, None), "_is_protocol", False) or not hasattr(module, export):  # a protocol says what others are
        raise BadInput(f"{module_name} has no '{export}'; a module of {folder}/ must export it")
    return getattr(module, export)
