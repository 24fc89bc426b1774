"""What training asks of a reward, and how a recipe's `{name: ..., **options}` becomes one.

    reward(reply, example, *, ...options) -> float

A reward is a function of text. What is wrong with a reply earns nothing; what keeps a reply from being judged (a judge that does not
answer, a gold answer that cannot be read, a time limit) earns nothing as well, and says so in `Score.failed`, because it is no one's
fault that the model could learn from. No reply may end training.

A module may name a package beyond the core as PACKAGE; a recipe that asks for it is refused where that is missing.

Two options are no knobs, because they need a model: `ask` (prompt -> reply of a language model) and `score` (reply and example -> a
learned reward). A reward that has a parameter of such a name is handed the callable by whoever makes it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from pivot import lookup
from pivot.knobs import Wrong, fill
from pivot.records import BadInput, Example

Ask: TypeAlias = Callable[[str], str]
Scorer: TypeAlias = Callable[[str, Example], float]
Judge: TypeAlias = "Callable[[str, Example], Score]"

HANDED = ("ask", "score")


class Reply(str):
    """A reply of which more is known than its text: its share of the allowed length, and whether it ended by itself.

    Rewards take any `str`. Those of length and of ends need these two, which only the sampler knows.
    """

    share: float | None
    finished: bool | None

    def __new__(cls, text: str, share: float | None = None, finished: bool | None = None) -> Reply:
        made = super().__new__(cls, text)
        made.share, made.finished = share, finished
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # for pickle: loggers and worker processes
        return (str(self), self.share, self.finished)


class Score(float):
    """A reward, and what training logs of it.

    `parts`: what each term added, so that they sum to the reward. `gated`: no answer stood where it must stand.
    `failed`: why it could not be judged.
    """

    parts: Mapping[str, float]
    gated: bool
    failed: str | None

    def __new__(cls, value: float, parts: Mapping[str, float] | None = None, gated: bool = False, failed: str | None = None) -> Score:
        made = super().__new__(cls, value)
        made.parts, made.gated, made.failed = dict(parts or {}), gated, failed
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (float(self), self.parts, self.gated, self.failed)


def unjudged(why: str) -> Score:
    """Nothing earned, because the reply could not be judged."""
    return Score(0.0, failed=why)


# ---- from a recipe


def check(spec: Any) -> dict[str, Any]:
    """The spec with options checked and filled in, also of rewards inside rewards. A name alone stands for its defaults."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise Wrong((), f"must be a reward's name or a mapping with 'name', one of: {', '.join(lookup.names('reward'))}, not {spec!r}")
    filled = fill(_options(spec["name"]), spec, own={"name": ...})
    package = getattr(sys.modules[lookup.find("reward", spec["name"]).__module__], "PACKAGE", None)
    if package and not find_spec(package.replace("-", "_")):
        raise Wrong((), f"reward '{spec['name']}' needs {package}, which is not installed; pip install 'pivot-vision[rewards]'")
    return filled


Spec: TypeAlias = Annotated[dict[str, Any], BeforeValidator(check)]  # an option that is a reward itself


def needs(spec: Any) -> set[str]:
    """Which callables a checked spec must be handed: `ask`, `score`, both or none. Rewards inside rewards count."""
    if isinstance(spec, Mapping):
        inside = set[str]().union(*map(needs, spec.values()))
        if isinstance(spec.get("name"), str) and not _nests(spec["name"]):
            inside |= {name for name in HANDED if name in _parameters(spec["name"])}
        return inside
    return set()


def made(spec: Any, **handed: Any) -> Judge:
    """The reward of a spec as a function of reply and example. `handed`: `ask` and `score`, where it needs them."""
    try:
        spec = check(spec)
    except Wrong as wrong:
        raise BadInput(f"reward {'.'.join(map(str, wrong.place))}: {wrong.message}".replace(" : ", ": ")) from None
    missing = needs(spec) - {name for name, given in handed.items() if given is not None}
    if missing:
        raise BadInput(f"reward '{spec['name']}' needs a model to judge with ({', '.join(sorted(missing))}), and none is there; give one")
    return lambda reply, example: judged(spec, reply, example, handed)


def scored(spec: Mapping[str, Any], pairs: Iterable[tuple[str, Example]]) -> list[tuple[str, Example]]:
    """What `score` will be asked under a checked spec, each once: so that a model can score all of it as a batch before.

    It need not be the replies themselves: behind a gate it is their answers, and `open` asks about the example's own answer.
    """
    asked: dict[tuple[str, str, str], tuple[str, Example]] = {}

    def note(reply: str, example: Example) -> float:
        asked[example.id, str(example.prompt), reply] = (reply, example)  # ids alone may come twice
        return 0.0

    if "score" in needs(spec):
        for reply, example in pairs:
            judged(spec, reply, example, {"score": note, "ask": lambda prompt: ""})
    return list(asked.values())


def judged(spec: Mapping[str, Any], reply: str, example: Example, handed: Mapping[str, Any]) -> Score:
    """What a reply earns under a checked spec. A reward that returns a plain number is one part of that name."""
    name = spec["name"]
    options = {key: value for key, value in spec.items() if key != "name"}
    options |= {key: handed[key] for key in HANDED if key in _parameters(name) and key in handed}
    found = lookup.find("reward", name)(reply, example, **options)
    if not isinstance(found, Score):
        return Score(found, {name: float(found)})
    return found if found.parts else Score(found, {name: float(found)}, found.gated, found.failed)


@lru_cache
def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """What a reward takes by keyword."""
    found = inspect.signature(lookup.find("reward", name)).parameters
    return {key: value for key, value in found.items() if value.kind is value.KEYWORD_ONLY}


def _nests(name: str) -> bool:
    """Whether a reward has others inside: then it hands `ask` and `score` on, and needs only what they need."""
    return any("Spec" in str(parameter.annotation) for parameter in _parameters(name).values())


@lru_cache
def _options(name: str) -> Callable[..., None]:
    """A function that declares a reward's knobs and nothing else, for `knobs.fill`."""
    reward = lookup.find("reward", name)

    def options() -> None: ...

    knobs = [parameter for key, parameter in _parameters(name).items() if key not in HANDED]
    options.__signature__ = inspect.Signature(knobs)  # type: ignore[attr-defined]
    options.__module__, options.__name__ = reward.__module__, name
    return options
