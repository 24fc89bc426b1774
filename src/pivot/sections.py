"""What a recipe holds, section by section.

What it says about one objective, reader, probe or bench is checked against that module's own declaration, so a knob is declared
once, where it is used.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from pivot import lookup
from pivot.knobs import Wrong, check_keys, fill, nearest
from pivot.records import BadInput, Example
from pivot.runfolder import ORIGINAL

OF_DATA = {"probe": ("data", "on"), "bench": ("data",)}  # what of these may name data of the recipe; `on`: measured on those, others train
# Training's knobs live in train/, which nothing here may import: they are looked up by name, as objectives are.
SETTINGS = "pivot.train.settings"
NAME = r"^[A-Za-z0-9][\w.+-]*$"  # of a run, an arm, a measurement: files and folders are called so


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
        return opened(self.data[name], f"data.{name} of recipe '{self.name}'")


def knobs(use: Mapping[str, Any]) -> dict[str, Any]:
    """Of an entry of `probes` or `bench`, what its module takes."""
    return {key: value for key, value in use.items() if key not in ("use", *OF_DATA["probe"])}


def opened(plain: Mapping[str, Any], where: str) -> Sequence[Example]:
    options = {key: value for key, value in plain.items() if key != "read"}
    if isinstance(options.get("path"), str):
        options["path"] = os.path.expanduser(options["path"])
    examples = lookup.find("data", plain["read"])(**options)
    if not len(examples):
        raise BadInput(f"{where} has no examples; check its path and its filters")
    return examples
