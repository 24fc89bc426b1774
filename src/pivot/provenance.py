"""Where a detached encoder comes from, read off the recipe of its run: what its model card says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pivot import recipe as recipes
from pivot.plain import parse
from pivot.recipe import Recipe
from pivot.records import BadInput
from pivot.runfolder import ORIGINAL, RunFolder

if TYPE_CHECKING:
    from pivot.encoder.card import Provenance


def of_arm(recipe: Recipe, arm: str, seed: int, dequantised: str | None = None) -> Provenance:
    """Of the encoder that an arm of a recipe ends with. `dequantised`: what its LLM's config says of a GGUF file."""
    from pivot.encoder.card import Provenance

    trained, read = [], set()
    joined = arm != ORIGINAL or recipe.init
    for stage in ("align", "instruct") if joined else ():
        section = getattr(recipe, stage)
        if section:
            read.add(section.data)
            trained.append(_sentence(stage, "sft", {}, section, section.rates.model_dump()))
    choice = recipe.arms.get(arm)
    if choice and choice.objective and choice.rates and recipe.post:
        read.add(recipe.post.data)
        knobs = {key: value for key, value in choice.objective.items() if key != "name"}
        trained.append(_sentence("post", choice.objective["name"], knobs, recipe.post, choice.rates.model_dump()) + f"; seed {seed}")
    return Provenance(
        title=f"{recipe.name}: {arm}" + (f", seed {seed}" if choice and choice.objective else ""),
        encoder=recipe.encoder,
        llm=recipe.llm if joined else None,
        mllm=recipe.init,
        dequantised=dequantised if joined else None,
        data={name: ", ".join(f"{key} {value}" for key, value in recipe.data[name].items() if value is not None) for name in sorted(read)},
        training=trained,
        recipe=yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True, width=120),
    )


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
            return of_arm(recipe, arm, int(seed) if seed.isdigit() else 0, dequantised)
    return Provenance(mllm=source, dequantised=dequantised)


def _sentence(stage: str, objective: str, knobs: Mapping[str, Any], section: recipes.Post, rates: Mapping[str, float]) -> str:
    """One stage of training in words."""
    pace = ", ".join(f"{part} {rate:g}" if rate else f"{part} frozen" for part, rate in rates.items())
    turned = f" ({', '.join(f'{key} {value}' for key, value in knobs.items() if value is not None)})" if knobs else ""
    epochs, batch = section.settings["epochs"], section.settings["batch"]
    return f"{stage}: {objective}{turned} on `{section.data}`, {epochs} epoch{'s' * (epochs > 1)} of batches of {batch}; rates: {pace}"
