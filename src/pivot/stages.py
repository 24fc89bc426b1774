"""The stages of a recipe, in the order in which they run, and what each waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Literal

from pivot import lookup
from pivot.knobs import nearest
from pivot.records import BadInput
from pivot.runfolder import ORIGINAL
from pivot.sections import Recipe

TRAINING = ("pretrain", "align", "instruct", "post")
Kind = Literal["pretrain", "align", "instruct", "post", "detach", "saliency", "probe", "bench", "report"]


@dataclass(frozen=True)
class Stage:
    """One step of a run: the unit that is finished or not."""

    name: str  # as in the manifest: post-dpo/seed-0
    kind: Kind
    needs: tuple[str, ...] = ()
    arm: str = ""
    seed: int = 0
    entry: str = ""  # which of the recipe's probes or benches


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in the order in which they run."""
    line = [kind for kind in ("pretrain", "align", "instruct") if getattr(recipe, kind)]
    before: tuple[str, ...] = ()
    found = []
    for kind in line:
        found.append(Stage(kind, kind, before, seed=recipe.seeds[0]))  # type: ignore[arg-type]
        before = (kind,)
    measured = []
    for arm, choice in recipe.arms.items():
        for seed in recipe.seeds if choice.objective else recipe.seeds[:1]:
            model = before
            if choice.objective:
                post = Stage(f"post-{arm}/seed-{seed}", "post", before, arm, seed)
                found.append(post)
                model = (post.name,)
            measured += _measuring(recipe, arm, seed, model)
    found += measured
    if measured:
        found.append(Stage("report", "report", tuple(stage.name for stage in measured if stage.kind in ("probe", "bench"))))
    return found


def _measuring(recipe: Recipe, arm: str, seed: int, model: tuple[str, ...]) -> list[Stage]:
    """What follows training for one arm and seed; `model` is the stage that its MLLM comes from."""
    place = _place(arm, seed)
    # Built from parts, the original encoder is the one that was given: it waits for no stage but pretrain.
    of_encoder = model if recipe.init or arm != ORIGINAL else tuple(kind for kind in ("pretrain",) if recipe.pretrain)
    detach = Stage(f"encoder-{place}", "detach", of_encoder, arm, seed)
    probes = [stage for name, use in recipe.probes.items() for stage in _probing(recipe, name, use["use"], detach)]
    benches = [Stage(f"bench-{name}-{place}", "bench", model, arm, seed, name) for name in recipe.bench]
    return [detach, *probes, *benches]


def _probing(recipe: Recipe, name: str, module: str, detach: Stage) -> list[Stage]:
    """One probe of one arm and seed, with what has to be made for it first."""
    arm, seed = detach.arm, detach.seed
    place = _place(arm, seed)
    probe = Stage(f"probe-{name}-{place}", "probe", (detach.name,), arm, seed, name)
    match lookup.find("probe", module).READS:
        case "encoder":
            return [probe]
        case "original":  # with which there is nothing to compare the original itself
            return [] if arm == ORIGINAL else [replace(probe, needs=(_first(recipe), detach.name))]
        case "gradients":  # of the arm's loss, at the weights that all arms begin with: the same for every seed
            objective = recipe.arms[arm].objective
            if not objective or not _alone(objective) or seed != recipe.seeds[0]:
                return []
            before = tuple(kind for kind in TRAINING[:-1] if getattr(recipe, kind))[-1:]
            made = Stage(f"saliency-{name}/{arm}", "saliency", before, arm, seed, name)
            return [made, replace(probe, needs=(made.name,))]
    raise AssertionError(module)


def _alone(objective: Mapping[str, Any]) -> bool:
    """Whether a row of data has a loss of its own under an arm's objective."""
    made = lookup.find("objective", objective["name"])(**{key: value for key, value in objective.items() if key != "name"})
    return bool(made.alone)


def _first(recipe: Recipe) -> str:
    """The stage that takes out the original encoder."""
    if ORIGINAL not in recipe.arms:
        raise BadInput(
            f"probe compares with the encoder as it was, and recipe '{recipe.name}' has no arm for that; add arms.{ORIGINAL}={{}}"
        )
    return f"encoder-{ORIGINAL}"


def _place(arm: str, seed: int) -> str:
    return arm if arm == ORIGINAL else f"{arm}/seed-{seed}"


def chosen(plan: Sequence[Stage], only: str) -> list[Stage]:
    """Stages whose name fits a pattern such as `bench-*`; none at all is a `BadInput`."""
    found = [stage for stage in plan if fnmatch(stage.name, only)]
    if not found:
        raise BadInput(f"no stage named '{only}' in this recipe; {nearest(only, [stage.name for stage in plan])}")
    return found
