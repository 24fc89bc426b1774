"""Plain values: YAML as people mean it, overrides such as `key.sub=value`, and where two of them differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from pivot.records import BadInput


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-5` is a number, `no` and `12:30` are text. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"key '{twice}' is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_SCALARS = {
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "float": (r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$", "-+.0123456789"),
}
Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rsplit(":", 1)[1] not in (*_SCALARS, "timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_rule, _first) in _SCALARS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_rule), list(_first))


def parse(text: str, where: str) -> Any:
    """YAML text as plain values. What is broken is a `BadInput` that names the line."""
    try:
        return yaml.load(text, Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"not YAML: {getattr(broken, 'problem', None) or broken} ({where}{line}); correct it there") from None


def override(plain: Mapping[str, Any], change: str) -> dict[str, Any]:
    """A copy of plain values with one `key.sub=value` applied; the value is read as YAML."""
    path, sign, text = change.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise BadInput(f"not an override: '{change}'; write key.sub=value, as in post.batch=16")
    changed = here = dict(plain)
    for depth, key in enumerate(keys[:-1]):
        inside = here.get(key)
        if inside is not None and not isinstance(inside, Mapping):
            raise BadInput(f"override '{change}': {'.'.join(keys[: depth + 1])} is {inside!r} and holds no keys; write {key}=value")
        here[key] = here = dict(inside or {})
    here[keys[-1]] = parse(text, f"override '{change}'")
    return changed


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Dotted keys at which two plain values differ."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return [] if before == after else [at]
    keys = [*before, *(key for key in after if key not in before)]
    return [place for key in keys for place in differences(before.get(key), after.get(key), f"{at}.{key}" if at else str(key))]
