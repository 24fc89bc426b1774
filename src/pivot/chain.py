"""From a recipe to its stages, in order: finished ones are skipped, a killed one resumes, any one can be run again alone.

Several runs may work in one folder, each at stages that no other one is at: as many commands as there are cores, GPUs or machines.
All that trains comes first and runs in every process of a launch; what follows runs in the main process alone, so that the
others can leave.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pivot import recipe as recipes
from pivot.beginning import BASE
from pivot.crew import Crew
from pivot.files import hash_file
from pivot.runfolder import RunFolder
from pivot.sections import Recipe
from pivot.stages import TRAINING, Stage, chosen, stages
from pivot.work import Event, Tell, Work

LOOK = 2.0  # seconds until a run that waits for others looks again


def run(recipe: Recipe, folder: RunFolder, tell: Tell, only: str | None = None, again: bool = False) -> None:
    """Run what is not finished, of the stages that fit `only` if that is given; `again` runs finished ones, too, from their beginning."""
    crew, plan = Crew(), stages(recipe)
    asked = chosen(plan, only) if only else plan
    with ExitStack() as held:
        if crew.main:
            _rehearse(recipe, folder, asked, again)
            held.enter_context(folder.joined(partial(_begin, recipe, folder)))
        work, waited = Work(recipe, folder, tell, crew), ""
        left = [stage for stage in asked if crew.main or stage.kind in TRAINING]
        while left:
            rest = work.go_through(left, again)
            if crew.main and len(rest) == len(left):
                if rest[0].name != waited:
                    waited = rest[0].name
                    tell(Event("wait", waited))
                time.sleep(LOOK)
            left = rest


def _rehearse(recipe: Recipe, folder: RunFolder, asked: Sequence[Stage], again: bool) -> None:
    """Read what the stages that are to run will read. By marks alone: to look at what finished ones made can take minutes."""
    from pivot.rehearsal import Rehearsal

    marked = folder.manifest().get("stages", {})
    Rehearsal(recipe).try_all(stage for stage in asked if again or stage.name not in marked)


def _begin(recipe: Recipe, folder: RunFolder, shared: bool) -> None:
    """Say in the folder what made it, and refuse to go on by another recipe, or from other weights or rows, than it began with."""
    recipes.freeze(recipe, folder, shared)
    packages = ("pivot-vision", "torch", "transformers", "accelerate", "numpy")
    if not (shared or folder.started()):  # what an attempt pinned that came to nothing binds nobody
        folder.note(name=recipe.name, versions={name: version(name) for name in packages}, stages={}, pinned={})
    for key in ("init", "encoder", "llm"):
        source = getattr(recipe, key)
        place = BASE if source == "base" else Path(source or "")
        if source and place.exists():
            notes = [place / name for name in ("pivot.json", "tap.json") if (place / name).is_file()]  # these hold hashes of the weights
            folder.pin(key, hash_file(notes[0] if notes else place), f"the weights of {key} '{source}'")
    on_disk = [name for name in sorted(recipe.uses()) if recipe.data[name].get("path") or recipe.data[name].get("of")]
    if on_disk:
        from pivot.data.lazy import fingerprint
    for name in on_disk:
        path = recipe.data[name].get("path")
        if path is None or Path(path).exists():  # a stage that needs what is gone says so itself
            folder.pin(f"data {name}", fingerprint(recipe.examples(name)), f"the rows of data.{name}{f' in {path}' if path else ''}")
