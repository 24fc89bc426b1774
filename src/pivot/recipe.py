"""Recipes: load by name or path, override as `key.sub=value`, validate, freeze.

What it may hold is in sections.py. `freeze` writes the recipe with every default filled in: the same file is the record of the run,
and a run folder takes no other recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pivot import lookup
from pivot.files import write_text
from pivot.knobs import Wrong, common, fill, first_error, nearest
from pivot.oneline import described
from pivot.plain import differences, override, parse
from pivot.records import BadInput, Example
from pivot.runfolder import RunFolder
from pivot.sections import Data, Recipe, opened

SHIPPED = Path(__file__).parent / "recipes"
# Keys of a recipe that a rerun may change: how it is computed and watched, not what comes out.
FREE = {f"{stage}.{key}" for stage in ("align", "instruct", "post") for key in ("micro", "save_every", "report_to", "workers")}
PARTS = {"init": ("encoder", "llm"), "encoder": ("init",), "llm": ("init",)}  # what a recipe begins with, and what can stand for it
OBJECTIVE = re.compile(r"arms\.(?P<arm>[^.]+)\.objective(\.(?P<knob>.+))?")  # the key of an override
RECORD = re.compile(r"arms\.(.+)\.tried")  # and what it only says: this may be told afterwards
MORE = ("data", "arms", "probes", "bench")  # sections to which a rerun may add: what was done stays as it was
_RECIPE, _DATA = TypeAdapter(Recipe), TypeAdapter(Data)


def read(source: str) -> Sequence[Example]:
    """Examples named in one line, as on a command line."""
    return opened(_checked(_DATA, described(source), f"data '{source}'"), f"data '{source}'")


def instrument(folder: str, name: str, **knobs: Any) -> Any:
    """A probe or bench with knobs given on a command line; what is wrong with one is a `BadInput` that names it."""
    module = lookup.find(folder, name)
    try:
        return module(**fill(module, knobs))
    except Wrong as wrong:
        place = ".".join(map(str, wrong.place))
        raise BadInput(f"{place + ': ' if place else ''}{wrong.message} ({folder} {name})") from None


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.rglob("*.yaml"))


def find(source: str) -> Path:
    """The file of a recipe given by path or by the name of a shipped one."""
    if Path(source).is_file():
        return Path(source)
    if source in shipped():
        return SHIPPED / f"{source}.yaml"
    if source.endswith((".yaml", ".yml")):
        raise BadInput(f"recipe not found: {source}; check the path, or take a shipped one: {', '.join(shipped())}")
    raise BadInput(f"no recipe named '{source}'; {nearest(source, shipped())} (or give the path of a YAML file)")


def validate(plain: Any, where: str) -> Recipe:
    """Plain values as a recipe; what is wrong is a `BadInput` with its place."""
    return _checked(_RECIPE, plain, f"recipe {where}")


def _checked(adapter: TypeAdapter[Any], plain: Any, where: str) -> Any:
    try:
        return adapter.validate_python(plain)
    except ValidationError as wrong:
        place, message = first_error(wrong)
        keys = ".".join(str(key) for key in place if key != "[key]")
        raise BadInput(f"{keys + ': ' if keys else ''}{message} ({where})") from None


def load(source: str, changes: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or path, with `key.sub=value` overrides."""
    file = find(source)
    try:
        plain = parse(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as broken:
        raise BadInput(f"{file} is no text in UTF-8 (byte {broken.start}); save it as UTF-8, or give a YAML file") from None
    if not isinstance(plain, Mapping):
        raise BadInput(f"{file} is no recipe: it holds no keys; see a shipped one, such as {SHIPPED / 'demo.yaml'}")
    blank = [*(key for key in PARTS if key in plain and plain[key] is None), *_blank(plain)]
    for change in sorted(changes, key=_is_knob):  # an objective before its knobs, in whatever order they were given
        plain = _changed(plain, change)
    left = [key for key in blank if key in _blank(plain) or (key in PARTS and not plain.get(key) and not all(map(plain.get, PARTS[key])))]
    if left:
        raise BadInput(f"recipe {source} leaves {', '.join(left)} to you: add {' '.join(f'{key}=...' for key in left)}{_example(file)}")
    return validate({**plain, **_resolved(plain)}, source)


def _is_knob(change: str) -> bool:
    """Whether an override is of an objective's knob."""
    found = OBJECTIVE.fullmatch(change.partition("=")[0].strip())
    return bool(found) and found["knob"] not in (None, "name")  # type: ignore[index]


def _changed(plain: Mapping[str, Any], change: str) -> dict[str, Any]:
    """One change applied: `key.sub=value`, or `NAME=ROWS` for a data set of the recipe by its name alone."""
    key, _, text = (part.strip() for part in change.partition("="))
    if (swap := OBJECTIVE.fullmatch(key)) and swap["knob"] in (None, "name"):
        return _swapped(plain, change, swap["arm"])
    data = plain.get("data")
    if key in Recipe.model_fields or not isinstance(data, Mapping) or key not in data:
        return override(plain, change)
    rows = override({}, change)[key] if not text or text.startswith("{") else text
    return {**plain, "data": {**data, key: rows}}


def _swapped(plain: Mapping[str, Any], change: str, arm: str) -> dict[str, Any]:
    """An arm's objective exchanged for another by its name alone. Knobs that mean the same in both stay as they are, the others go."""
    changed, known = override(plain, change), lookup.names("objective")
    now, before = changed["arms"][arm], ((plain.get("arms") or {}).get(arm) or {}).get("objective")
    given = now["objective"]
    name = given.get("name") if isinstance(given, Mapping) and change.partition("=")[0].strip().endswith(".name") else given
    if name not in known or not isinstance(before, Mapping) or before.get("name") not in known:
        return changed  # a mapping that says all; or a mistake, which validation will name
    same = common(*(lookup.find("objective", one) for one in (before["name"], name)))
    now["objective"] = {"name": name, **{knob: value for knob, value in before.items() if knob in same}}
    return changed


def _blank(plain: Mapping[str, Any]) -> list[str]:
    """Data sets that a recipe names but does not give."""
    data = plain.get("data")
    return [name for name, rows in data.items() if rows is None] if isinstance(data, Mapping) else []


def _resolved(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The data, with what is given as text looked up: another data set's name (the same rows as that), or one line that names rows.

    A data set given by its own name is the folder or file that is called so.
    """
    data = plain.get("data")
    if not isinstance(data, Mapping):
        return {}
    found = {}
    for name, rows in data.items():
        seen = [name]
        while isinstance(rows, str) and rows in data and not (rows == seen[-1] and Path(rows).exists()):
            if rows in seen:
                raise BadInput(f"data.{name} is the same rows as {' as '.join(seen[1:] or seen)} as itself; name rows for one of them")
            seen.append(rows)
            rows = data[rows]
        found[name] = described(rows, data) if isinstance(rows, str) else rows
    return {"data": found}


def _example(file: Path) -> str:
    """The command in the first line of a recipe, if there is one."""
    first = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
    return f", as in: {first}" if first.startswith("pivot ") else ""


def freeze(recipe: Recipe, folder: RunFolder, shared: bool = False) -> None:
    """Write the full recipe into a run folder. If work was done there by another recipe, a `BadInput` names the changed keys.

    `shared`: another run is at work there, though nothing may have come of it yet.
    """
    text = yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True, width=140)
    before = folder.recipe_file.read_text(encoding="utf-8") if folder.recipe_file.exists() else None
    if before is not None and (shared or folder.started()):
        frozen = validate(parse(before, str(folder.recipe_file)), str(folder.recipe_file))
        was, now = frozen.plain(), recipe.plain()
        changed = [key for key in differences(was, now) if key not in FREE and not RECORD.fullmatch(key) and not _added(key, was, now)]
        if changed:
            raise BadInput(
                f"{folder.path} was made with another recipe (changed: {', '.join(changed)}); give this one another out= or name="
            )
    if text != before:
        write_text(folder.recipe_file, text)


def _added(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether what differs was only added: an entry of a section that takes more, or seeds behind those that there were."""
    if key == "seeds":
        return bool(now[key][: len(was[key])] == was[key])
    section, _, name = key.partition(".")
    return section in MORE and name in now.get(section, {}) and name not in was.get(section, {})
