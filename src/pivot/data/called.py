"""What classes are called: names in a file, for labels that are numbers or folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pivot.records import BadInput

Names = Mapping[str, str]  # label, as text -> name


def names_in(file: str) -> Names:
    """Names in a .json file (a list, by number, or {label: name}) or in lines LABEL NAME, as ImageNet's LOC_synset_mapping.txt has them."""
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as failed:
        raise BadInput(f"names of classes cannot be read: {file} ({failed}); check names=") from None
    if path.suffix.lower() != ".json":
        parts = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        if short := next((number for number, part in enumerate(parts, start=1) if len(part) < 2), None):
            raise BadInput(
                f"names of classes: line {short} of those in {file} is not LABEL NAME; correct it, or give a .json list of names"
            )
        return {label: name.strip() for label, name in parts}
    try:
        found = json.loads(text)
    except ValueError as broken:
        raise BadInput(f"names of classes: {file} is not JSON ({broken}); correct it") from None
    named = listed(found) if isinstance(found, list) else found
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise BadInput(f"names of classes: {file} holds neither a list of names nor {{label: name}}; correct it")
    return named


def listed(names: Sequence[Any]) -> dict[str, Any]:
    """Names by number."""
    return {str(number): name for number, name in enumerate(names)}
