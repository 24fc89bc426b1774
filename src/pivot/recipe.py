"""Recipes: load by name or path, override as `key.sub=value`, validate, freeze.

What a recipe says about one objective, reader, probe or bench is checked against that module's own declaration, so a knob
is declared once, beside what it turns. `freeze` writes the recipe with every default filled in: the same file is the record
of the run, and a run folder takes no other recipe.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_serializer, model_validator

from pivot import lookup
from pivot.files import write_text
from pivot.knobs import Wrong, check_keys, common, fill, first_error, nearest
from pivot.oneline import described
from pivot.plain import differences, override, parse
from pivot.records import BadInput, Example
from pivot.runfolder import ORIGINAL, RunFolder

SHIPPED = Path(__file__).parent / "recipes"
OF_DATA = {"probe": ("data", "on"), "bench": ("data",)}  # what of these may name data of the recipe; `on`: measured on those, others train
# Keys of a recipe that a rerun may change: how it is computed and watched, not what comes out.
FREE = {f"{stage}.{key}" for stage in ("align", "instruct", "post") for key in ("micro", "save_every", "report_to", "workers")}
PARTS = {"init": ("encoder", "llm"), "encoder": ("init",), "llm": ("init",)}  # what a recipe begins with, and what can stand for it
OBJECTIVE = re.compile(r"arms\.(?P<arm>[^.]+)\.objective(\.(?P<knob>.+))?")  # the key of an override
RECORD = re.compile(r"arms\.(.+)\.tried")  # and what it only says: this may be told afterwards
MORE = ("data", "arms", "probes", "bench")  # sections to which a rerun may add: what was done stays as it was
# Training's knobs live in train/, which nothing here may import: they are looked up by name, as objectives are.
SETTINGS = "pivot.train.settings"
NAME = r"^[A-Za-z0-9][\w.+-]*$"  # of a run, an arm, a measurement: files and folders are called so


# ---- what a recipe holds


def _module(folder: str, key: str, own: Mapping[str, Any] | None = None) -> BeforeValidator:
    """Check `{key: module, **knobs}`, or the module's name alone, against that module; `own` are keys of the recipe's among the knobs."""

    def check(given: Any) -> Any:
        given = {key: given} if isinstance(given, str) else given
        if not isinstance(given, Mapping) or not isinstance(given.get(key), str):
            raise Wrong((), f"must be a name or a mapping with '{key}', one of: {', '.join(lookup.names(folder))}, not {given!r}")
        return fill(lookup.find(folder, given[key]), given, own={key: ..., **(own or {})})

    return BeforeValidator(check)


def _modules(folder: str) -> BeforeValidator:
    """Check `{NAME: {use: module, data: NAME, **knobs}, ...}`; what has no `use` is named as its module."""

    def check(given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise Wrong((), f"must be a mapping with keys of: {', '.join(lookup.names(folder))}, not {given!r}")
        filled = {}
        for name, inside in given.items():
            if not isinstance(name, str) or not re.match(NAME, name):
                raise Wrong((), f"'{name}' is no name: files are called so; give it letters, digits and _ . + -")
            filled[name] = _used(folder, name, inside)
        return filled

    return BeforeValidator(check)


def _used(folder: str, name: str, inside: Any) -> dict[str, Any]:
    """One entry of `probes` or `bench` with its module's knobs checked."""
    named = isinstance(inside, Mapping) and "use" in inside
    module = inside["use"] if named else name
    if not isinstance(module, str):
        raise Wrong((name, "use"), f"must be one of: {', '.join(lookup.names(folder))}, not {module!r}")
    try:
        what = lookup.find(folder, module)
    except BadInput as unknown:
        raise Wrong(
            (name, "use") if named else (), f"{unknown}" if named else f"{unknown} (a name of your own needs use: MODULE)"
        ) from None
    try:
        return fill(what, inside, own={"use": module, **dict.fromkeys(OF_DATA[folder])})
    except Wrong as wrong:
        raise Wrong((name, *wrong.place), wrong.message) from None


class Section(BaseModel):
    """A part of a recipe: takes no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        check_keys(given, cls.model_fields)
        return given


class Rates(Section):
    """Learning rate of each part of an MLLM; 0 = frozen."""

    tower: float = Field(ge=0, allow_inf_nan=False)
    projector: float = Field(ge=0, allow_inf_nan=False)
    llm: float = Field(ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _some(self) -> Rates:
        if not any((self.tower, self.projector, self.llm)):
            raise Wrong((), "are all 0, so that nothing trains; give a part a learning rate")
        return self


class Arm(Section):
    """One post-training choice. Without an objective the arm is measured as it enters stage post."""

    objective: Annotated[dict[str, Any], _module("objective", "name")] | None = None
    rates: Rates | None = None
    tried: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(
        default=None, min_length=1, description="the learning rates among which the arm's own was chosen: for the report alone"
    )

    @model_validator(mode="after")
    def _both(self) -> Arm:
        if bool(self.objective) != bool(self.rates):
            raise Wrong(("rates" if self.objective else "objective",), "is missing; give both objective and rates, or neither")
        if self.tried and not set(self.tried) & set(self.rates.model_dump().values() if self.rates else ()):
            raise Wrong(("tried",), "holds none of the arm's rates; list all that were tried, the chosen one among them")
        return self


class Post(BaseModel):
    """Stage post: which data, and beside them in one flat section the settings of training."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: str = "pairs"
    validation: str | None = None
    settings: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        declared = importlib.import_module(SETTINGS).Settings
        own = [key for key in cls.model_fields if key != "settings"]
        check_keys(given, [*own, *(key for key in declared.model_fields if key != "seed")])  # a run's seeds stand in `seeds`
        settings = fill(declared, {key: value for key, value in given.items() if key not in own})
        settings.pop("seed", None)
        return {**{key: given[key] for key in own if key in given}, "settings": settings}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {**{key: getattr(self, key) for key in type(self).model_fields if key != "settings"}, **self.settings}


class Chat(Post):
    """Stages align and instruct: as post, by plain sft, with rates of their own."""

    rates: Rates


class Build(Section):
    """How an encoder and an LLM are joined. What is not given is the encoder's and the tokenizer's own."""

    layer: int | None = None  # the tap: -2 the penultimate block, -1 the last
    pixels: int | None = Field(default=None, ge=1)  # side of the pictures, where it is not the encoder's native one
    template: str | None = None  # the chat template: Jinja, or the path of a file with it


Data = Annotated[dict[str, Any], _module("data", "read")]


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field(pattern=NAME)
    init: str | None = None
    encoder: str | None = None
    llm: str | None = None
    build: Build | None = None
    data: dict[str, Data] = {}
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    pretrain: Annotated[dict[str, Any], _module("pretrain", "name", own={"data": ...})] | None = None
    align: Chat | None = None
    instruct: Chat | None = None
    arms: dict[Annotated[str, Field(pattern=NAME)], Arm] = {}
    post: Post | None = None
    probes: Annotated[dict[str, Any], _modules("probe")] = {}
    bench: Annotated[dict[str, Any], _modules("bench")] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.init is None) == (self.encoder is None) or (self.encoder is None) != (self.llm is None):
            raise Wrong((), "give either init (an MLLM) or both encoder and llm")
        if self.build and self.init:
            raise Wrong(("build",), f"says how parts are joined, but init '{self.init}' is joined already; leave one of them away")
        if len(set(self.seeds)) < len(self.seeds):
            raise Wrong(("seeds",), f"must differ, not {list(self.seeds)}")
        trained = [arm for arm, choice in self.arms.items() if choice.objective]
        if ORIGINAL in trained:
            raise Wrong(("arms", ORIGINAL), "is the encoder as it was; give it no objective, or another name")
        if trained and not self.post:
            raise Wrong(("post",), f"is missing; arms {', '.join(trained)} need its settings")
        for name, use in self.probes.items():  # a bench has items of its own
            if use["data"] is None:
                raise Wrong(("probes", name, "data"), f"is missing; name one of the recipe's data: {', '.join(self.data) or 'none'}")
            if use["on"] is not None and not lookup.find("probe", use["use"]).TESTS:
                raise Wrong(("probes", name, "on"), f"probe {use['use']} has no items of its own to measure on; leave it out")
        for place, name in self._references():
            if name not in self.data:
                raise Wrong(place, f"no data named '{name}'; {nearest(name, self.data)}")
        return self

    def _references(self) -> list[tuple[tuple[str, ...], str]]:
        """Where the recipe names data of its own, and which."""
        found = [(("pretrain", "data"), self.pretrain["data"])] if self.pretrain else []
        trains = bool([arm for arm in self.arms.values() if arm.objective])
        for stage in ("align", "instruct", *(["post"] if trains else [])):
            section: Post | None = getattr(self, stage)
            found += [((stage, key), getattr(section, key)) for key in ("data", "validation") if section and getattr(section, key)]
        uses = {"probes": self.probes, "bench": self.bench}
        named = [
            ((kind, name, key), use.get(key)) for kind, section in uses.items() for name, use in section.items() for key in OF_DATA["probe"]
        ]
        return found + [(place, data) for place, data in named if data is not None]

    def uses(self) -> set[str]:
        """Names of the data that its stages read."""
        return {name for _, name in self._references() if name in self.data}

    def used(self, kind: str, entry: str) -> Mapping[str, Any]:
        """The entry of `probes` or `bench` that a stage of that kind is about; nothing for other kinds."""
        return {"probe": self.probes, "saliency": self.probes, "bench": self.bench}.get(kind, {}).get(entry, {})

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, every default filled in."""
        return self.model_dump(mode="json", exclude_none=True)

    def examples(self, name: str) -> Sequence[Example]:
        """Read one of the recipe's data. None at all is a `BadInput`."""
        return _read(self.data[name], f"data.{name} of recipe '{self.name}'")


def knobs(use: Mapping[str, Any]) -> dict[str, Any]:
    """Of an entry of `probes` or `bench`, what its module takes."""
    return {key: value for key, value in use.items() if key not in ("use", *OF_DATA["probe"])}


_RECIPE, _DATA = TypeAdapter(Recipe), TypeAdapter(Data)


def read(source: str) -> Sequence[Example]:
    """Examples named in one line, as on a command line."""
    return _read(_checked(_DATA, described(source), f"data '{source}'"), f"data '{source}'")


def instrument(folder: str, name: str, **knobs: Any) -> Any:
    """A probe or bench with knobs given on a command line; what is wrong with one is a `BadInput` that names it."""
    module = lookup.find(folder, name)
    try:
        return module(**fill(module, knobs))
    except Wrong as wrong:
        place = ".".join(map(str, wrong.place))
        raise BadInput(f"{place + ': ' if place else ''}{wrong.message} ({folder} {name})") from None


def _read(plain: Mapping[str, Any], where: str) -> Sequence[Example]:
    options = {key: value for key, value in plain.items() if key != "read"}
    if isinstance(options.get("path"), str):
        options["path"] = os.path.expanduser(options["path"])
    examples = lookup.find("data", plain["read"])(**options)
    if not len(examples):
        raise BadInput(f"{where} has no examples; check its path and its filters")
    return examples


# ---- load, override, freeze


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
