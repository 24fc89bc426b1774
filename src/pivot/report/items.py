"""Example items with the replies of all arms, and how often replies changed at all.

The gallery is no sample: items on which arms disagree come first, task by task. Hence the counts over all replies beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pivot.markup import thumbnail
from pivot.report.reading import Run

Facts = dict[str, Any]
Asked = tuple[str, int | None]  # an item's id, and which draw if there are several
SHOWN = 12
LARGEST = 320  # pixels of the longer side; a page must stay small enough to send
LONGEST = 600  # characters of a reply


def gallery(run: Run, bench: str, arms: Sequence[str]) -> list[Facts]:
    """Up to `SHOWN` items with a picture that all of `arms` answered, each arm at its first seed."""
    rows = {arm: _by_id(run, arm, bench) for arm in arms}
    found = []
    for item in _order(rows):
        if item[1]:  # one draw of an item is enough to see
            continue
        image = next((uri for arm in arms if (uri := _picture(run, rows[arm][item].get("image")))), None)
        if image:
            found.append(_item(bench, {arm: rows[arm][item] for arm in arms}, image))
        if len(found) == SHOWN:
            break
    return found


def changes(run: Run, bench: str, a: str, b: str) -> Facts | None:
    """Over all items that both arms answered: how many replies of `a` differ from those of `b`, draw by draw, and how grades
    moved."""
    of_a, of_b = _by_id(run, a, bench), _by_id(run, b, bench)
    common = [item for item in of_a if item in of_b]
    if not common:
        return None
    moved = [of_a[item]["grade"] - of_b[item]["grade"] for item in common]
    return {
        "a": a,
        "b": b,
        "bench": bench,
        "n": len(common),
        "differ": sum(of_a[item].get("reply") != of_b[item].get("reply") for item in common),
        "gained": sum(move > 0 for move in moved),
        "lost": sum(move < 0 for move in moved),
    }


def _by_id(run: Run, arm: str, bench: str) -> dict[Asked, Facts]:
    """An arm's answers at its first seed."""
    seeds = sorted(seed for name, seed, of in run.answers if (name, of) == (arm, bench))
    return {(row["id"], row.get("draw")): row for row in run.answers[arm, seeds[0], bench]} if seeds else {}


def _order(rows: Mapping[str, Mapping[Asked, Facts]]) -> list[Asked]:
    """Items that all arms answered: grades differ, then replies differ, then the rest; within each, the tasks take turns."""
    arms = list(rows.values())
    common = [item for item in arms[0] if all(item in arm for arm in arms)] if arms else []
    turns: Counter[tuple[int, str]] = Counter()
    keys = {}
    for item in common:
        answered = [arm[item] for arm in arms]
        rank = 0 if len({one["grade"] for one in answered}) > 1 else 1 if len({str(one.get("reply")) for one in answered}) > 1 else 2
        task = str(answered[0].get("task"))
        keys[item] = (rank, turns[rank, task])
        turns[rank, task] += 1
    return sorted(common, key=lambda item: keys[item])


def _item(bench: str, answered: Mapping[str, Facts], image: Facts) -> Facts:
    first = next(iter(answered.values()))
    return {
        "bench": bench,
        "id": first["id"],
        "task": str(first.get("task") or bench),
        "domain": str(first.get("domain") or ""),
        "twin": bool(first.get("pair")),
        "prompt": clipped(first.get("prompt")),
        "answer": clipped(first.get("answer")),
        "image": image,
        "replies": [
            {"arm": arm, "reply": clipped(row.get("reply")), "parsed": clipped(row.get("parsed")), "grade": float(row["grade"])}
            for arm, row in answered.items()
        ],
    }


def clipped(said: Any) -> str:
    """A prompt, reply or answer as text: chat turns one a line, and no longer than a page can bear."""
    if isinstance(said, list):
        said = "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" if isinstance(turn, dict) else str(turn) for turn in said)
    text = "" if said is None else str(said).replace("<image>", "").strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more characters)"


def _picture(run: Run, place: Any) -> Facts | None:
    """A kept picture as a data URI. A path that leads out of `answers/` is not followed: answers may come from elsewhere."""
    home = (run.folder.path / "answers").resolve()
    file = (home / str(place)).resolve()
    if not isinstance(place, str) or not file.is_relative_to(home) or not file.is_file():
        return None
    return run.take(run.folder.path / "answers" / place, lambda kept: thumbnail(kept, LARGEST))
