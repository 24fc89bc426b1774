"""The embedded world as data: made on the fly, nothing on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import get_args

from pivot.data.lazy import Lazy
from pivot.files import hash_json
from pivot.records import BadInput, Example
from pivot.world.item import TASKS, Form, item
from pivot.world.scene import CLASSES


@dataclass(frozen=True)
class World(Lazy[Example]):
    """Items 0 .. size-1 of one split and seed. A longer one starts with the shorter one."""

    split: str
    size: int
    seed: int
    pixels: int
    tasks: tuple[str, ...]
    form: Form

    def __len__(self) -> int:
        return self.size

    @property
    def class_names(self) -> Mapping[int, str]:
        """Class number -> its name."""
        return dict(enumerate(CLASSES))

    def one(self, index: int) -> Example:
        return item(self.split, self.seed, index, pixels=self.pixels, tasks=self.tasks, form=self.form)

    def fingerprint(self) -> str:
        """Its arguments decide every item."""
        return hash_json(asdict(self))


def read(
    path: str | None = None,
    *,
    split: str = "train",
    size: int = 2000,
    seed: int = 0,
    pixels: int = 48,
    tasks: str | Sequence[str] | None = None,
    form: Form = "pair",
) -> World:
    """Open the world. `path` is not used: there is no file. `tasks` restricts it to one or some of the sixteen families."""
    tasks = (tasks,) if isinstance(tasks, str) else tasks
    if tasks is not None and not tasks:
        raise BadInput("world: tasks names none; name one, or leave it out for all")
    for task in tasks or ():
        if task not in TASKS:
            near = get_close_matches(task, TASKS, n=1) or [", ".join(TASKS)]
            raise BadInput(f"no task '{task}' in the world; did you mean {near[0]}?")
    if size < 1 or not 48 <= pixels <= 384:
        raise BadInput(f"world: size {size}, pixels {pixels}; give at least one item and 48 to 384 pixels")
    if form not in get_args(Form):
        raise BadInput(f"world: no form '{form}'; known: {', '.join(get_args(Form))}")
    return World(split, size, seed, pixels, tuple(tasks) if tasks else TASKS, form)
