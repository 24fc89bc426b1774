"""Check plain values against the knobs that a class or function declares: nothing is declared twice to be checked.

What is wrong is said in one line with its place: an unknown key names the nearest known one, a wrong type what was given.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from pivot.records import BadInput

_OPTIONS = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())


class Wrong(ValueError):
    """A message about a place further inside than where its raiser stands: the keys that lead there."""

    def __init__(self, place: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.place, self.message = tuple(place), message


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean ...?', or what is known."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"


def check_keys(given: Any, known: Iterable[str]) -> None:
    """Refuse anything but a mapping whose keys are known."""
    known = list(known)
    if not isinstance(given, Mapping):
        raise Wrong((), f"must be a mapping of {', '.join(known) or 'nothing'}, not {given!r}")
    for key in given:
        if key not in known:
            raise Wrong((), f"unknown key '{key}'; {nearest(str(key), known)}")


def declared(what: Callable[..., Any]) -> type[BaseModel]:
    """What a dataclass or function takes, as a model. A pydantic model is one already."""
    if isinstance(what, type) and issubclass(what, BaseModel):
        return what
    if dataclasses.is_dataclass(what):
        knobs = {field.name: (field.type, _default(field), _home(what, field.name)) for field in dataclasses.fields(what) if field.init}
    else:
        parameters = inspect.signature(what).parameters.values()
        default = {knob.name: ... if knob.default is knob.empty else knob.default for knob in parameters}
        knobs = {knob.name: (knob.annotation, default[knob.name], what.__module__) for knob in parameters}
    fields: dict[str, Any] = {
        name: (_kind(annotation, vars(sys.modules[home])), default) for name, (annotation, default, home) in knobs.items()
    }
    return create_model(what.__name__, __config__=_OPTIONS, **fields)


def common(one: type, other: type) -> set[str]:
    """Knobs that mean the same in two dataclasses: those of a class that both are made from, and those of equal type and default.

    A name alone does not say so: `gamma` is a weight in dpo and a discount in ppo.
    """
    fields, others = ({field.name: field for field in dataclasses.fields(what)} for what in (one, other))
    above = [base for base in one.__mro__ if base in other.__mro__ and dataclasses.is_dataclass(base)]
    inherited = {field.name for base in above for field in dataclasses.fields(base)}
    alike = {name for name in fields.keys() & others.keys() if fields[name].type == others[name].type}
    return inherited | {name for name in alike if fields[name].default == others[name].default}


def _home(what: Any, name: str) -> str:
    """The module of the class that declares a field: names in its annotation are of there."""
    return next(base.__module__ for base in what.__mro__ if name in inspect.get_annotations(base))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return ... if field.default_factory is dataclasses.MISSING else Field(default_factory=field.default_factory)


def _kind(annotation: Any, names: dict[str, Any]) -> Any:
    """The type behind an annotation; anything goes where there is none, or where only the type checker imports it."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, names)  # as dataclasses and typing do it: the text comes from the module itself
    except NameError:
        return Any


def fill(what: Callable[..., Any], given: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`given` with types checked and defaults filled in.

    `own` are keys that the caller takes out of the same flat mapping, with their defaults (... = required); they come first.
    """
    own, model = own or {}, declared(what)
    check_keys(given, [*own, *model.model_fields])
    missing = next((name for name, default in own.items() if default is ... and name not in given), None)
    if missing:
        raise Wrong((missing,), "is missing; give it")
    ours = {name: given.get(name, default) for name, default in own.items()}
    try:
        filled = model.model_validate({k: v for k, v in given.items() if k not in own}).model_dump()
    except ValidationError as wrong:
        raise Wrong(*first_error(wrong)) from None
    try:
        if dataclasses.is_dataclass(what):
            what(**filled)  # what its knobs must be to one another, its __post_init__ says
    except BadInput as wrong:
        raise Wrong((), str(wrong)) from None
    return {**ours, **filled}


def first_error(wrong: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Where the first error of a validation lies, and what it says."""
    error = wrong.errors()[0]
    inner = error.get("ctx", {}).get("error")
    if isinstance(inner, Wrong):
        return (*error["loc"], *inner.place), inner.message
    if isinstance(inner, BadInput):
        return error["loc"], str(inner)
    if error["type"] == "missing":
        return error["loc"], "is missing; give it"
    message = error["msg"].removeprefix("Value error, ")
    return error["loc"], f"{message[0].lower()}{message[1:]}, not {error['input']!r}"
