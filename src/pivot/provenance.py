"""Where a detached encoder comes from, read off the recipe of its run: what its model card says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pivot import recipe as recipes
from pivot.plain import parse
from pivot.records import BadInput
from pivot.runfolder import ORIGINAL, RunFolder
from pivot.sections import Post, Recipe

if TYPE_CHECKING:
    from pivot.encoder.card import Provenance


LINE = ("align", "instruct")  # stages of supervised training that all arms share, in their order


def of_arm(recipe: Recipe, arm: str, seed: int, dequantised: str | None = None) -> Provenance:
    """Of the encoder that an arm of a recipe ends with. `dequantised`: what its LLM's config says of a GGUF file."""
    joined = arm != ORIGINAL or recipe.init is not None
    known = _after(recipe, LINE if joined else (), joined, dequantised)
    choice = recipe.arms.get(arm)
    if not choice or not choice.objective:
        return replace(known, title=f"{recipe.name}: {arm}")
    known = replace(known, title=f"{recipe.name}: {arm}, seed {seed}")
    if not choice.rates or not recipe.post:
        return known
    knobs = {key: value for key, value in choice.objective.items() if key != "name"}
    told = _sentence("post", choice.objective["name"], knobs, recipe.post, choice.rates.model_dump()) + f"; seed {seed}"
    return replace(known, data=_data(recipe, {*known.data, recipe.post.data}), training=[*known.training, told])


def of_stage(recipe: Recipe, stage: str, dequantised: str | None = None) -> Provenance:
    """Of the encoder in the MLLM that a stage in front of post leaves behind: no later stage has touched it."""
    trained = LINE[: LINE.index(stage) + 1] if stage in LINE else ()
    return replace(_after(recipe, trained, True, dequantised), title=f"{recipe.name}: {stage}")


def _after(recipe: Recipe, stages: Sequence[str], joined: bool, dequantised: str | None) -> Provenance:
    """What there is to say after some stages of supervised training. `joined`: whether there is an LLM behind the encoder."""
    from pivot.encoder.card import Provenance

    sections = {stage: section for stage in stages if (section := getattr(recipe, stage))}
    return Provenance(
        encoder=recipe.encoder,
        llm=recipe.llm if joined else None,
        mllm=recipe.init,
        dequantised=dequantised if joined else None,
        data=_data(recipe, {section.data for section in sections.values()}),
        training=[_sentence(stage, "sft", {}, section, section.rates.model_dump()) for stage, section in sections.items()],
        recipe=yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True, width=120),
    )


def _data(recipe: Recipe, read: Collection[str]) -> dict[str, str]:
    """How each of some data of a recipe was read."""
    return {name: ", ".join(f"{key} {value}" for key, value in recipe.data[name].items() if value is not None) for name in sorted(read)}


def of_model(source: str, dequantised: str | None = None) -> Provenance:
    """Of the encoder in an MLLM: by the run folder that it lies in, else by its name alone."""
    from pivot.encoder.card import Provenance

    place = Path(source).resolve()
    for folder in list(place.parents)[:3]:  # RUN/post-ARM/seed-N/model, RUN/instruct/model
        run = RunFolder(folder)
        if run.manifest_file.is_file() and run.recipe_file.is_file():
            stage, *rest = place.relative_to(folder).parts
            try:
                recipe = recipes.validate(parse(run.recipe_file.read_text(encoding="utf-8"), str(run.recipe_file)), str(run.recipe_file))
            except BadInput:  # of another version of this package: its name still says something
                break
            arm, seed = stage.removeprefix("post-"), rest[0].removeprefix("seed-") if rest else "0"
            if stage in ("pretrain", *LINE):
                return of_stage(recipe, stage, dequantised)
            if stage.startswith("post-") and arm in recipe.arms:
                return of_arm(recipe, arm, int(seed) if seed.isdigit() else 0, dequantised)
    return Provenance(mllm=source, dequantised=dequantised)


def _sentence(stage: str, objective: str, knobs: Mapping[str, Any], section: Post, rates: Mapping[str, float]) -> str:
    """One stage of training in words."""
    pace = ", ".join(f"{part} {rate:g}" if rate else f"{part} frozen" for part, rate in rates.items())
    turned = f" {_told(knobs)}" if knobs else ""
    epochs, batch = section.settings["epochs"], section.settings["batch"]
    return f"{stage}: {objective}{turned} on `{section.data}`, {epochs} epoch{'s' * (epochs > 1)} of batches of {batch}; rates: {pace}"


def _told(value: Any) -> str:
    """A knob's value; one with knobs of its own in brackets, its name first."""
    if not isinstance(value, Mapping):
        return str(value)
    inside = [f"{key} {_told(of)}" for key, of in value.items() if key != "name" and of is not None]
    return f"({', '.join([*([str(value['name'])] if 'name' in value else []), *inside])})"
