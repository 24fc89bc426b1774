"""LLaVA's rows: {id, image, conversations: [{from: human | gpt, value}]}, as JSON or JSON lines, and YAML mixtures of such files.

Also Cambrian's files, and the captions that align a projector. What a gpt says before any human is dropped, a `system` turn is kept.
What follows the first answer stays with it: the loss is on each of the assistant's turns. A last question that nobody answers is not
trained on; it is kept in `meta` and written again. Rows about videos are refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pivot.data.reading import Read, Row, first, root
from pivot.data.saying import missing, of_role, spread
from pivot.data.tables.table import Chosen, Table, joined, table
from pivot.data.talk import left_open, parted, placed, turns_of, unanswered
from pivot.data.turns import IMAGE
from pivot.plain import parse
from pivot.records import BadInput, Example, Turn
from pivot.seen import Seen
from pivot.world.dice import Dice

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
VIDEO = "<video>"
STRATEGY = re.compile(r"(first|end|random):(\d+(?:\.\d+)?)(%?)")


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None, seed: int = 0) -> Read:
    """Open a .json or .jsonl file, a folder of them, or a YAML mixture, whose `random:N` draws by `seed`.

    `images`: the folder of pictures, by default where the rows lie. `links`: links in it may lead out of it.
    """
    found = _mixture(Path(path), seed) if Path(path).suffix.lower() in (".yaml", ".yml") else table(path)
    return Read(first(found, size), example, root(path, images, links), tagged=True)


def knows(seen: Seen) -> bool:
    """Conversations without what makes them another format; or a list of data sets."""
    if seen.kind == "yaml":
        return isinstance(seen.first.get("datasets"), list)
    return seen.kind == "rows" and seen.has("conversations") and not (seen.has("chosen") or seen.has("responses"))


def example(row: Row) -> Example:
    """One row."""
    turns = conversation(row, row.get("conversations"))
    if row.plain.get("video") or any(_of_video(turn) for turn in turns):
        raise row.wrong(f"it is about a video ('video' or {VIDEO}), and only pictures are read")
    prompt, responses = parted(turns)
    beside = row.beside("image", "conversations")
    return Example(
        id=row.id,
        images=row.pictures("image"),
        prompt=prompt,
        responses=responses,
        **{**beside, "meta": unanswered(turns, beside["meta"])},
    )


def _of_video(turn: Turn) -> bool:
    """Whether a human speaks of a video that stands where LLaVA puts them, before or behind the text. Elsewhere it is a word of HTML."""
    said = turn["content"].replace(IMAGE, "").strip()
    return turn["role"] == "user" and (said.startswith(VIDEO) or said.endswith(VIDEO)) and "</video>" not in said


def conversation(row: Row, given: Any) -> list[Turn]:
    """Turns as chat has them, without answers that no human asked for."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise row.wrong("'conversations' is no list of turns")
    turns = list[Turn]()
    for number, turn in enumerate(given):
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise row.wrong(f"turn {number} is from {speaker!r}, not from human, gpt or system")
        said = row.said(turn.get("value"), f"the value of turn {number}")
        if ROLES[speaker] != "assistant" or any(turn["role"] == "user" for turn in turns):
            turns.append({"role": ROLES[speaker], "content": said})
    if not any(turn["role"] == "user" for turn in turns):
        raise row.wrong("no turn is a human's")
    return turns


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as a row: its chosen response, or its only one if that is not rejected, and `<image>` for each picture.

    A row without pictures has no `image`.
    """
    alone = example.responses[0] if len(example.responses) == 1 and example.responses[0].role != "rejected" else None
    which = of_role(example, "chosen") or alone
    said = turns_of(which.text, "assistant") if which else []
    asked = turns_of(placed(example.prompt, len(pictures)), "user")
    name, behind = left_open(example.meta) if said else ("", [])
    if behind:
        example = replace(example, meta={key: value for key, value in example.meta.items() if key != name})
    turns = [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in (*asked, *said, *behind)]
    image = {} if not pictures else {"image": pictures[0] if len(pictures) == 1 else list(pictures)}
    plain, lost = spread(example, {"id": example.id, **image, "conversations": turns}, taken=["image", "video"])
    lost += ["where the prompt ends"] if any(turn["role"] == "assistant" for turn in asked) else []  # it is read up to the first answer
    return plain, lost + missing(example, [which] if which else [])


# ---- mixtures


def _mixture(file: Path, seed: int) -> Table:
    """`datasets: [{json_path, sampling_strategy}, ...]`, one behind the other."""
    try:
        plain = parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as failed:
        raise BadInput(f"{file} cannot be read ({failed}); check the path") from None
    entries = plain.get("datasets") if isinstance(plain, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise BadInput(f"{file} is no mixture: it needs a list 'datasets' of json_path and sampling_strategy")
    parts = []
    for number, entry in enumerate(entries):
        name = entry.get("json_path") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise BadInput(f"{file}: entry {number} of datasets has no json_path; give the path of its rows")
        parts.append(_sampled(table(_located(name, file.parent)), str(entry.get("sampling_strategy", "all")), seed, f"{file}: {name}"))
    return joined(parts)


def _located(name: str, beside: Path) -> Path:
    """The file that a mixture names. Published ones hold paths of the machine that they come from: then the file lies beside them."""
    given = Path(os.path.expanduser(name))
    places = (beside / given, given, beside / given.name)
    return next((place for place in places if place.exists()), places[0])


def _sampled(whole: Table, strategy: str, seed: int, where: str) -> Table:
    """all, or first, end or random of so many rows or so much percent, rounded up."""
    if strategy == "all":
        return whole
    said = STRATEGY.fullmatch(strategy.strip())
    if not said:
        raise BadInput(f"{where}: sampling_strategy '{strategy}' is none of all, first:N, end:N, random:N (N may be 10% or the like)")
    kind, number, percent = said.groups()
    wanted = math.ceil(round(float(number) * len(whole) / 100, 9)) if percent else math.ceil(float(number))
    wanted = min(wanted, len(whole))
    if kind == "random":
        return Chosen(whole, np.array(Dice("mixture", seed, where).shuffled(range(len(whole)))[:wanted], np.int64))
    return Chosen(whole, range(wanted) if kind == "first" else range(len(whole) - wanted, len(whole)))
