"""What a run would take, said before it runs: stages, examples, steps, parameters, FLOPs. Weights are not loaded where configs suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pivot import lookup
from pivot.chain import FRESH, initial
from pivot.recipe import Post, Recipe
from pivot.runfolder import RunFolder
from pivot.stages import Stage, stages

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin

    from pivot.records import Example
    from pivot.train import Settings

SAMPLED = 32  # examples that are tokenised to estimate FLOPs


def plan(recipe: Recipe, folder: RunFolder) -> list[dict[str, Any]]:
    """A row for each stage, in order: its name, whether it is finished, and what is known of its size (None where it is not)."""
    model = _Model(recipe)
    return [
        {"stage": stage.name, "state": "finished" if folder.done(stage.name) else "to do", **_size(recipe, stage, model)}
        for stage in stages(recipe)
    ]


def _size(recipe: Recipe, stage: Stage, model: _Model) -> dict[str, Any]:
    if stage.kind in ("align", "instruct"):
        section = getattr(recipe, stage.kind)
        return _training(recipe, section, {"name": "sft"}, section.rates.model_dump(), model)
    if stage.kind == "post":
        arm = recipe.arms[stage.arm]
        assert recipe.post and arm.objective and arm.rates
        return _training(recipe, recipe.post, arm.objective, arm.rates.model_dump(), model)
    if stage.kind == "pretrain" and recipe.pretrain:
        examples = len(recipe.examples(recipe.pretrain["data"]))
        return _row(examples, examples // recipe.pretrain["batch"], model.parameters["tower"])
    use = {"probe": recipe.probes, "bench": recipe.bench}.get(stage.kind, {}).get(stage.entry, {})
    if use.get("data"):
        return _row(len(recipe.examples(use["data"])))
    if stage.kind != "bench":
        return _row(None)
    knobs = {key: value for key, value in use.items() if key not in ("use", "data")}
    return _row(len(lookup.find("bench", use["use"])(**knobs).examples()))  # its own items


def _row(examples: int | None, steps: int | None = None, parameters: int | None = None, flops: float | None = None) -> dict[str, Any]:
    return {"examples": examples, "steps": steps, "parameters": parameters, "flops": flops}


def _training(recipe: Recipe, section: Post, objective: Mapping[str, Any], rates: Mapping[str, float], model: _Model) -> dict[str, Any]:
    """`parameters` are those that train. FLOPs: of the policy, and of the reference where nothing of it is in the cache yet."""
    from pivot.train import Settings

    settings = Settings(**section.settings)
    chosen = lookup.find("objective", objective["name"])(**{key: value for key, value in objective.items() if key != "name"})
    examples = chosen.source(recipe.examples(section.data))
    trained = [part for part, rate in rates.items() if rate]
    flops = settings.epochs * model.flops(examples, settings, trained)
    if chosen.needs_reference:
        flops += model.flops(examples, settings, ())
    return _row(len(examples), settings.steps(len(examples)), sum(model.parameters[part] for part in trained), flops)


class _Model:
    """Config, processor and sizes of the recipe's MLLM."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @cached_property
    def parts(self) -> tuple[PreTrainedConfig, ProcessorMixin]:
        """From files without weights for a saved MLLM; one that is still to be built from parts has to be built."""
        if self.recipe.init and self.recipe.init not in FRESH:
            from pivot.model.mllm import describe

            return describe(self.recipe.init)
        mllm = initial(self.recipe)
        return mllm.model.config, mllm.processor

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Of each part; a model without storage is enough to count."""
        import torch
        from transformers import AutoModelForImageTextToText

        from pivot.model import MLLM
        from pivot.records import Tap

        config, processor = self.parts
        with torch.device("meta"):
            shell = MLLM(AutoModelForImageTextToText.from_config(config), processor, Tap())
        return {name: sum(p.numel() for p in part.parameters()) for name, part in shell.parts().items()}

    def flops(self, examples: Sequence[Example], settings: Settings, trained: Sequence[str]) -> float:
        """Of one pass over the examples, from a sample of them; with gradients if anything trains."""
        from pivot.data.collate import encode
        from pivot.model.families import context
        from pivot.model.flops import row_flops
        from pivot.model.languages import backend

        config, processor = self.parts
        sampled = [examples[i * len(examples) // SAMPLED] for i in range(SAMPLED)] if len(examples) > SAMPLED else list(examples)
        options: dict[str, Any] = {"trained": trained, "backward": bool(trained), "checkpointing": settings.checkpointing}
        rows = [encode(example, processor, settings.label_mask, settings.limit, context(config)) for example in sampled]
        used, _ = backend(config.get_text_config(), settings.backend)
        return sum(row_flops(config, row, used, **options) for row in rows) / len(rows) * len(examples)
