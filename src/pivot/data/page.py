"""A page of examples to look at: pictures, turns, and where chosen and rejected differ. Broken rows and pictures are shown as such."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template

from pivot import markup
from pivot.data.differ import Run, difference
from pivot.data.talk import turns_of
from pivot.data.writing.convert import place
from pivot.files import to_json, write_bytes
from pivot.records import BadInput, Example, Response
from pivot.world.dice import Dice

if TYPE_CHECKING:
    from pivot.records import Picture, Turn

LARGEST, EXACT = 480, 160  # pixels of a thumbnail's longer side; up to which it has every pixel
PICTURES = 6  # of one row; more are counted
LONGEST = 4000  # characters of a turn
Facts = dict[str, Any]


def chosen_rows(count: int, items: int, start: int = 0, seed: int | None = None) -> list[int]:
    """Which rows are shown: so many from `start` on, or, with a seed, any."""
    if start >= count:
        raise BadInput(f"no row {start}: there are {count}; give --start below that")
    if seed is not None:
        return sorted(Dice("show", seed).some(range(start, count), min(items, count - start)))
    return list(range(start, min(start + items, count)))


def write(examples: Sequence[Example], rows: Sequence[int], title: str, out: Path) -> None:
    """Write the page of these rows, whole or not at all."""
    write_bytes(out, render(examples, rows, title).encode())


def render(examples: Sequence[Example], rows: Sequence[int], title: str) -> str:
    """The page of these rows."""
    items = [_item(examples, number) for number in rows]
    facts = {"title": title, "items": items, "count": len(examples), "broken": sum("broken" in item for item in items)}
    return markup.rendered(_template(), facts)


@cache
def _template() -> Template:
    return markup.template(Path(__file__).with_name("page.html"))


def _item(examples: Sequence[Example], number: int) -> Facts:
    about = {"number": number, "place": place(examples, number)}
    try:
        example = examples[number]
    except BadInput as wrong:
        return {**about, "broken": str(wrong)}
    shown = [_picture(source) for source in example.images[:PICTURES]]
    return {
        **about,
        "id": example.id,
        "pictures": shown,
        "more": len(example.images) - len(shown),
        "prompt": _turns(example.prompt, "user"),
        "responses": _responses(example.responses),
        "tags": [str(tag) for tag in (example.task, example.domain) if tag],
        "answer": example.answer,
        "kind": example.answer_kind,
        "truth": _truth(example),
        "meta": _meta(example),
    }


def _picture(source: Picture) -> Facts:
    try:
        return markup.thumbnail(source, LARGEST, EXACT)
    except BadInput as wrong:
        return {"wrong": str(wrong)}


def _turns(said: str | Sequence[Turn], speaker: str) -> list[Facts]:
    return [{"role": turn["role"], "runs": [Run(clipped(turn["content"]), True)]} for turn in turns_of(said, speaker)]


def _responses(responses: Sequence[Response]) -> list[Facts]:
    """Each response; of the first chosen and the first rejected one, what differs is marked, answer by answer."""
    found: list[Facts] = [
        {
            "role": one.role,
            "turns": _turns(one.text, "assistant"),
            "rating": one.rating,
            "error": one.error,
            "pictures": [_picture(source) for source in (one.images or ())[:PICTURES]],
        }
        for one in responses
    ]
    pair = [next((one for one in found if one["role"] == role), None) for role in ("chosen", "rejected")]
    if pair[0] and pair[1]:
        answers = [[turn for turn in one["turns"] if turn["role"] == "assistant"] for one in pair if one]
        for mine, theirs in zip(*answers, strict=False):
            mine["runs"], theirs["runs"] = difference(mine["runs"][0].text, theirs["runs"][0].text)
    return found


def clipped(text: str) -> str:
    """No longer than a page can bear."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more characters)"


def _truth(example: Example) -> str | None:
    if example.truth is None:
        return None
    classes = sorted({int(one) for one in example.truth.classes.ravel()} - {0})
    parts = [f"{len(example.truth.objects)} objects"] if example.truth.objects else []
    return ", ".join([*parts, f"classes {', '.join(map(str, classes[:40])) or 'none'}{' ...' if len(classes) > 40 else ''}"])


def _meta(example: Example) -> str:
    try:
        return clipped(to_json(example.meta, indent=1)) if example.meta else ""
    except TypeError:
        return clipped(str(dict(example.meta)))
