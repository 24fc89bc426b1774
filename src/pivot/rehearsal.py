"""A recipe read as its stages will read it, before the first one begins: its model from settings alone, its data row by row.

So a wrong path or field is found in seconds, also where the stage that trips over it would begin days later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pivot import lookup
from pivot.knobs import Wrong, fill
from pivot.records import BadInput, Example
from pivot.sections import OF_DATA, Arm, Post, Recipe
from pivot.stages import TRAINING, Stage

if TYPE_CHECKING:
    from pivot.data.collate import Row
    from pivot.data.vision import Sight
    from pivot.model import MLLM
    from pivot.train import Settings

LOOKED_AT = 16  # rows of each data set whose pictures are opened
READ = 256  # rows of each data set of which at least the text is tokenised, if a plan is to be made


@dataclass(frozen=True)
class Reading:
    """What a training stage reads, as far as it was looked at: how many rows there are, and some of them spread evenly."""

    examples: int
    rows: Sequence[Row]


@dataclass(frozen=True)
class Teaching:
    """What one training stage does: a section of the recipe, an objective, and who learns."""

    section: Post
    objective: Mapping[str, Any]
    rates: Mapping[str, float]

    @classmethod
    def of(cls, recipe: Recipe, stage: Stage) -> Teaching:
        """Of a stage align, instruct or post."""
        if stage.kind != "post":
            section = getattr(recipe, stage.kind)
            return cls(section, {"name": "sft"}, section.rates.model_dump())
        arm: Arm = recipe.arms[stage.arm]
        assert recipe.post and arm.objective and arm.rates
        return cls(recipe.post, arm.objective, arm.rates.model_dump())

    @property
    def made(self) -> Any:
        """The objective itself."""
        knobs = {key: value for key, value in self.objective.items() if key != "name"}
        return lookup.find("objective", self.objective["name"])(**knobs)

    @property
    def settings(self) -> Settings:
        from pivot.train import Settings

        return Settings(**self.section.settings)


class Rehearsal:
    """A recipe's model, and what was read of its data; each once. `most`: rows that are read of what a stage trains on."""

    def __init__(self, recipe: Recipe, most: int = LOOKED_AT) -> None:
        self.recipe, self.most = recipe, most
        self._sampled: dict[tuple[str, int], tuple[int, list[Example]]] = {}
        self._encoded: dict[str, Reading] = {}

    @cached_property
    def mllm(self) -> MLLM:
        """The MLLM that the recipe begins with: its model has no storage, but for what is made on the spot."""
        from pivot.beginning import FRESH, given, initial
        from pivot.model.mllm import describe, describe_parts

        if self.recipe.init in FRESH:
            return initial(self.recipe)
        if self.recipe.init:
            return describe(self.recipe.init)
        assert self.recipe.llm
        template = self.recipe.build.template if self.recipe.build else None
        return describe_parts(given(self.recipe, weights=False), self.recipe.llm, template)

    def examples(self, name: str, most: int = LOOKED_AT) -> tuple[int, list[Example]]:
        """How many rows a data set has, and some of them, of which a few have had their pictures opened."""
        if (name, most) not in self._sampled:
            from pivot.pictures import picture

            found = self.recipe.examples(name)
            some = [replace(found[number], truth=None) for number in spread(len(found), most)]
            for number in spread(len(some), LOOKED_AT):
                for one in some[number].images:
                    picture(one)
            self._sampled[name, most] = len(found), some
        return self._sampled[name, most]

    def reading(self, teaching: Teaching, data: str | None = None) -> Reading:
        """What a training stage reads, as it reads it. `data`: instead of the rows that it trains on."""
        name, settings = data or teaching.section.data, teaching.settings
        if teaching.made.online:
            check_online(teaching)
        key = f"{name} {data is None} {teaching.objective} {asked(settings)}"
        if key not in self._encoded:
            count, some = self.examples(name, self.most if data is None else LOOKED_AT)
            examples = teaching.made.source(some)
            whole, mllm = spread(len(examples), LOOKED_AT), self.mllm
            rows = {number: mllm.encode(examples[number], **asked(settings)) for number in whole}
            sight = next((image for row in rows.values() for trunk in row.trunks for image in trunk.images), None)
            if mllm.family.view == "picture":  # else a picture's shape decides how many tokens it becomes
                rest = set(range(len(examples))) - set(whole)
                rows |= {number: unseen(examples[number], mllm, settings, sight) for number in rest}
            self._encoded[key] = Reading(count, [replied(rows[number], teaching.made) for number in sorted(rows)])
        return self._encoded[key]

    def try_all(self, stages: Iterable[Stage]) -> None:
        """Read what these stages will read. What is wrong is a `BadInput`."""
        for stage in stages:
            if stage.kind in TRAINING and stage.kind != "pretrain":
                teaching = Teaching.of(self.recipe, stage)
                self.reading(teaching)
                if knobs := getattr(teaching.made, "chat", None):
                    from pivot.chat import Chat

                    Chat(**knobs)  # a plan is made where the key need not be; a run needs it
                for knob in ("reward_model", "critic_from"):  # and before the model that judges is trained
                    if folder := getattr(teaching.made, knob, None):
                        _check_judge(Path(folder), f"objective {teaching.objective['name']}, {knob}")
                if teaching.settings.lora:
                    from pivot.train import Rates
                    from pivot.train.parts import asked as adapters_asked

                    adapters_asked(self.mllm, Rates(**teaching.rates), teaching.settings)
                if teaching.section.validation:
                    self.reading(teaching, teaching.section.validation)
            elif stage.kind == "pretrain" and self.recipe.pretrain:
                self.examples(self.recipe.pretrain["data"])
            use = self.recipe.used(stage.kind, stage.entry)
            for name in filter(None, map(use.get, OF_DATA["probe"])):
                self.examples(name)


def check_online(teaching: Teaching) -> None:
    """Refuse judges that nobody asks, and settings that replies cannot have."""
    from pivot.reward._contract import needs
    from pivot.train.setup import check_style

    objective, called = teaching.made, f"objective {teaching.objective['name']}"
    check_style(objective, teaching.settings)
    for knob, handed in (("reward_model", "score"), ("chat", "ask")):
        if getattr(objective, knob) is not None and handed not in needs(objective.reward):
            raise BadInput(f"{called}: reward '{objective.reward['name']}' asks no {knob}; leave it out, or take a reward that does")
    if objective.chat is not None:
        _check_chat(objective.chat, f"{called}, chat")


def _check_judge(folder: Path, where: str) -> None:
    from pivot.model.critic import FILE

    if not folder.is_dir():
        raise BadInput(f"{where}: no such folder: {folder}; give the folder of a model that objective reward_model trained")
    if not (folder / FILE).is_file():
        raise BadInput(f"{where}: {folder} is no reward model, it has no {FILE}; give one that objective reward_model trained")


def _check_chat(knobs: Mapping[str, Any], where: str) -> None:
    """The variable that holds the key may be missing where a recipe is only read."""
    from pivot.chat import Chat

    try:
        fill(Chat, {**knobs, "key": None})
    except Wrong as wrong:
        raise BadInput(".".join(map(str, (where, *wrong.place))) + f": {wrong.message}") from None


def spread(size: int, most: int) -> list[int]:
    """At most so many numbers below `size`, as far apart as they can be."""
    return list(range(size)) if size <= most else [number * size // most for number in range(most)]


def replied(row: Row, objective: Any) -> Row:
    """A row as it will be learned from. What the model will write is taken to be as long as it may be."""
    if not objective.online:
        return row
    from pivot.model.rollout import answered

    return answered(row, [[0] * objective.max_new] * objective.k)


def asked(settings: Settings) -> dict[str, Any]:
    """What of some settings decides how examples become rows."""
    return {name: getattr(settings, name) for name in ("label_mask", "limit", "template", "too_long")}


def unseen(example: Example, mllm: MLLM, settings: Settings, sight: Sight | None) -> Row:
    """A row whose pictures stay closed: each makes as much room as one that was seen. None is refused for its length, unless it can
    only be cut and its trunk leaves nothing of a response.
    """
    from pivot.data.collate import Row, Trunk, shortened
    from pivot.data.speech import Span, spoken
    from pivot.model.families import context

    bare, branches = spoken(example, mllm.processor, settings.label_mask, settings.template)
    if sight is None and any(one.images for one in bare):
        return mllm.encode(example, **asked(settings))
    trunks = []
    for one in bare:
        room = sum(sight.tokens - 1 for _ in one.images) if sight else 0
        span = Span([*one.span.ids, *[0] * room], [*one.span.supervised, *[False] * room])
        span.supervised[0] = False
        trunks.append(Trunk(span, (sight,) * len(one.images) if sight else (), (), one.responses))
    row = Row(example.id, tuple(trunks), branches)
    bounds = [bound for bound in (settings.limit, context(mllm.model.config)) if bound is not None]
    return shortened(row, min(bounds)) if bounds and settings.too_long == "cut" else row
