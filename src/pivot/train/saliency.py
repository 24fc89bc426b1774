"""Files of gradients: of each of some examples, what an objective's loss depends on in the picture. To read them takes no model.

A folder holds `saliency.json`, which says what they are of, and `items-NUMBER.safetensors`, each with some items from that number on:
by number `N/l2`, `N/l1` and `N/cam` (h, w), the norms of the gradient per token and its Grad-CAM map; `N/region` (h, w), the share of
each patch that the question's region covers, where that is known; with `keep` all also `N/gradient` and `N/activation` (P, D). What is
of the global question lies under `N/global/`. The metadata's `items` are a list: id, question, losses, picture.

The global question is the negative control: about the whole of the same picture, with its caption as chosen and another example's as
rejected response. Its map has no reason to keep to the region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import save_file

from pivot.data.collate import Row
from pivot.data.lazy import fingerprint
from pivot.data.talk import turns_of
from pivot.files import OURS, hash_json, read_json, sweep, to_json, whole_file, write_json
from pivot.markup import thumbnail
from pivot.model import MLLM
from pivot.objective._contract import Objective
from pivot.pictures import once, picture
from pivot.plain import differences
from pivot.records import BadInput, Example, Response
from pivot.train.feed import read
from pivot.train.glance import At, Glance
from pivot.train.ledger import objective_facts
from pivot.train.reference import identity
from pivot.train.settings import Settings
from pivot.train.single import Single
from pivot.world.item import DESCRIBE

FACTS = "saliency.json"
CHUNK = 16  # items a file: with all that is kept of 576 tokens of 1,152 and of the global question 170 MB
SIDE, EXACT = 192, 96  # pixels of a picture's longer side: what is kept of it, and what is kept without loss
GLOBAL = "global/"
# Of the settings of training: what makes rows of examples, and what an update is made of. Pace and order are not of one row.
HEEDED = {"label_mask", "limit", "template", "too_long", "backend", "clip", "weight_decay"}


@dataclass(frozen=True)
class How:
    """`steps` updates at a constant `rate` come before the look: 0 looks with the given weights, at `batch` rows at once.

    `seed` draws `size` examples where there are more, those with a region first. `control`: the global question, too, where examples
    have captions.
    """

    at: At = "encoder"
    steps: int = 20
    rate: float = 1e-6
    size: int = 500
    control: bool = True
    keep: Literal["norms", "all"] = "norms"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch: int = 8
    seed: int = 0


def write(
    mllm: MLLM,
    objective: Objective,
    examples: Sequence[Example],
    folder: Path | str,
    how: How,
    *,
    arm: str = "",
    settings: Settings | None = None,
) -> Iterator[tuple[int, int]]:
    """Write a folder; yields how many items are done, and how many there are. One that was begun goes on, if it is of the same.

    `settings` are those of the training that is looked at. The MLLM is left as it was, except that half precision becomes fp32.
    """
    called = objective_facts(objective)
    if not objective.alone:
        learns = "from replies that the model writes itself" if objective.online else f"from {objective.learns}"
        learns += ", by way of a head" if objective.head != "none" else ""
        raise BadInput(f"objective {called['name']} gives a row of data no loss of its own (it learns {learns}); take sft or dpo")
    settings = (settings or Settings()).model_copy(update={"precision": how.precision})
    if mllm.model.dtype in (torch.float16, torch.bfloat16):
        mllm.to(dtype="float32")
    told = identity(mllm, settings, mllm.model.device)
    subjects = Subjects(examples, objective, how)
    facts = {
        "arm": arm,
        "objective": called,
        "model": {key: hash_json(value) for key, value in told.items() if key not in ("device", "versions")},
        "settings": settings.model_dump(mode="json", include=HEEDED),
        "data": fingerprint(examples),
        "items": len(subjects.numbers),
        **{name: value for name, value in asdict(how).items() if name != "batch"},
    }
    _begin(Path(folder), facts, {"device": told["device"], "versions": told["versions"]})
    single = Single(mllm, objective, how.at, how.steps, how.rate, settings)
    with single.begun():
        for start in range(0, len(subjects.numbers), CHUNK):
            file = Path(folder) / f"items-{start:06d}.safetensors"
            if not file.exists():
                yield from _write(file, subjects, start, single)
            yield min(start + CHUNK, len(subjects.numbers)), len(subjects.numbers)


def _begin(folder: Path, facts: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    """Say in the folder what it is of. One of something else is a `BadInput` and stays as it is."""
    if (folder / FACTS).exists():
        before = read_json(folder / FACTS)
        changed = differences({key: before.get(key) for key in facts}, facts)
        if changed:
            raise BadInput(f"{folder} holds gradients of something else (changed: {', '.join(changed)}); give this one another folder")
    elif folder.exists() and not (folder.is_dir() and all(OURS.fullmatch(path.name) for path in folder.iterdir())):
        raise BadInput(f"{folder} exists and holds no gradients; give another folder")
    else:
        write_json(folder / FACTS, {**facts, **beside})
    sweep(folder)


def _write(file: Path, subjects: Subjects, start: int, single: Single) -> Iterator[tuple[int, int]]:
    """Write one file; yields how far all of them are."""
    stop = min(start + CHUNK, len(subjects.numbers))
    asked = [one for number in range(start, stop) for one in subjects.questions(number)]
    tensors: dict[str, np.ndarray] = {}
    items: dict[int, dict[str, Any]] = {}
    at_once = 1 if subjects.how.steps else subjects.how.batch
    for first in range(0, len(asked), at_once):
        some = asked[first : first + at_once]
        for (number, of, example), glance in zip(some, single.look([_row(example, single) for _, _, example in some]), strict=True):
            tensors |= {f"{number}/{of}{name}": values for name, values in _maps(glance, subjects.how.keep).items()}
            if of == GLOBAL:
                items[number]["global_losses"] = glance.losses
                continue
            items[number] = _told(example, glance)
            if example.truth is not None:
                tensors[f"{number}/region"] = glance.geometry.coverage(example.truth.region).astype(np.float32)
        yield some[-1][0], len(subjects.numbers)
    with whole_file(file) as unfinished:
        save_file(tensors, unfinished, metadata={"items": to_json([items[number] for number in range(start, stop)])})


def _row(example: Example, single: Single) -> Row:
    """As training makes it."""
    settings, shown = single.settings, once(example.images)
    row = single.mllm.encode(replace(example, images=shown), settings.label_mask, settings.limit, settings.template, settings.too_long)
    if not row.image_tokens:
        raise BadInput(f"row {example.id} has no picture in which to look; give data whose rows have one")
    return row


def _maps(glance: Glance, keep: str) -> dict[str, np.ndarray]:
    """What is kept of a glance."""
    maps = {"l2": glance.l2(), "l1": glance.l1(), "cam": glance.cam()}
    if keep == "all":
        maps |= {"gradient": glance.gradient, "activation": glance.activation}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in maps.items()}


def _told(example: Example, glance: Glance) -> dict[str, Any]:
    """An item in words and as a picture: the part that the tower sees."""
    seen = glance.geometry.under(picture(example.images[0]))
    asked = [turn["content"] for turn in turns_of(example.prompt, "user") if turn["role"] == "user"][-1]
    return {
        "id": example.id,
        "question": asked.replace("<image>", "").strip(),
        "losses": glance.losses,
        "picture": thumbnail(seen, SIDE, EXACT)["uri"],
    }


def _drawn(examples: Sequence[Example], how: How) -> list[int]:
    """The numbers of `size` examples: those with a region and something beside it, on which maps can be judged, then any others.

    Where the first `size` of the draw have none, no more are looked at: most data know of no region in any row.
    """
    order = np.random.default_rng(how.seed).permutation(len(examples)).tolist()
    judged: list[int] = []
    for place, number in enumerate(order if len(order) > how.size else []):
        if len(judged) == how.size or (place == how.size and not judged):
            break
        truth = examples[number].truth
        if truth is not None and truth.region.any() and not truth.region.all():
            judged.append(number)
    known = set(judged)
    return [*judged, *islice((number for number in order if number not in known), how.size - len(judged))]


class Subjects:
    """The examples that are looked at, by item number, and what is asked of each."""

    def __init__(self, examples: Sequence[Example], objective: Objective, how: How) -> None:
        self.how, self.objective = how, objective
        self.rows = objective.source(examples)
        self.numbers = sorted(_drawn(examples, how))

    def questions(self, number: int) -> list[tuple[int, str, Example]]:
        """An item's own question, and the global one if it is wanted and there are captions."""
        example = self._example(number)
        overall = self._overall(number, example) if self.how.control else None
        return [(number, "", example), *([(number, GLOBAL, overall)] if overall else [])]

    def _example(self, number: int) -> Example:
        return read(self.rows, self.numbers[number])

    def _overall(self, number: int, example: Example) -> Example | None:
        """The whole picture as the question: its own caption against that of the next item which has another."""
        own = example.truth.caption if example.truth else ""
        if not own:
            return None
        others = (self._example((number + step) % len(self.numbers)).truth for step in range(1, len(self.numbers)))
        other = next((truth.caption for truth in others if truth and truth.caption not in ("", own)), None)
        if other is None:
            return None
        asked = Example(f"{example.id} as a whole", example.images, DESCRIBE, (Response(own), Response(other, "rejected")))
        return self.objective.source([asked])[0]
