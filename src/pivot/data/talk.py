"""Conversations as examples have them: a prompt and what answers it, each as text or as turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pivot.data.turns import IMAGE
from pivot.records import Response, Turn

OPEN = "unanswered"  # field of `meta`: turns behind the last answer, which are not trained on


def parted(turns: Sequence[Turn]) -> tuple[str | tuple[Turn, ...], tuple[Response, ...]]:
    """A conversation as a prompt, which ends before the first answer, and what follows it up to the last one (`unanswered`)."""
    start = next((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    prompt, said = turns[:start], turns[start:]
    end = max((at for at, turn in enumerate(said) if turn["role"] == "assistant"), default=-1) + 1
    return bare(prompt, "user"), ((Response(bare(said[:end], "assistant")),) if end else ())


def unanswered(turns: Sequence[Turn], meta: Mapping[str, Any]) -> dict[str, Any]:
    """A row's `meta` with what is said behind its last answer, if anything is, under a name that no field of its own has."""
    answered = max((at + 1 for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    name = OPEN
    while name in meta:
        name += "_"
    return {name: tuple(turns[answered:]), **meta} if turns[answered:] else dict(meta)


def left_open(meta: Mapping[str, Any]) -> tuple[str, list[Turn]]:
    """What `unanswered` put into a `meta`, and its name there; no turns if that holds something else."""
    name = OPEN
    while f"{name}_" in meta:
        name += "_"
    held = meta.get(name)
    turns = list(held) if isinstance(held, list | tuple) else []
    return name, turns if all(map(_asked, turns)) else []


def _asked(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("role") in ("user", "system") and isinstance(turn.get("content"), str)


def bare(turns: Sequence[Turn], speaker: str) -> str | tuple[Turn, ...]:
    """What was said, as text if it is one turn of that speaker's."""
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == speaker else tuple(turns)


def turns_of(said: str | Sequence[Turn], speaker: str) -> list[Turn]:
    """What was said, as turns."""
    return [{"role": speaker, "content": said}] if isinstance(said, str) else list(said)


def placed(prompt: str | Sequence[Turn], pictures: int, behind: str = "\n") -> str | tuple[Turn, ...]:
    """The prompt with an `<image>` for each picture: in front of the first user turn, where it has none at all."""
    turns = turns_of(prompt, "user")
    first = next((at for at, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is not None and not any(IMAGE in turn["content"] for turn in turns):
        turns[first] = {**turns[first], "content": (IMAGE + behind) * pictures + turns[first]["content"]}
    return turns[0]["content"] if isinstance(prompt, str) else tuple(turns)
