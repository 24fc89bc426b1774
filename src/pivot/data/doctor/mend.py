"""What can be mended about a row by a rule that its format's own publishers state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pivot.data.talk import turns_of
from pivot.records import Example

IMAGE = "<image>"  # as in `turns.py`, which loads torch


def retagged(example: Example) -> Example:
    """As many <image> in the prompt as pictures: what is missing goes in front of what the user says first, what is left over is dropped.

    LLaVA-OneVision's converter does so (none: put in front; several: one is kept).
    """
    turns, left, out = turns_of(example.prompt, "user"), len(example.images), []
    lacking = left - sum(turn["content"].count(IMAGE) for turn in turns)
    for turn in turns:
        said = turn["content"]
        if turn["role"] == "user" and lacking > 0:
            said, lacking = f"{IMAGE}\n" * lacking + said, 0
        first, *pieces = said.split(IMAGE)
        kept = pieces[:left]
        dropped = (piece.removeprefix("\n") for piece in pieces[len(kept) :])
        out.append({**turn, "content": IMAGE.join([first, *kept]) + "".join(dropped)})
        left -= len(kept)
    return replace(example, prompt=out[0]["content"] if isinstance(example.prompt, str) else tuple(out))


def renamed(path: Path) -> Path:
    """MMPR names some pictures .gif that lie on disk as .jpg."""
    other = path.with_suffix(".jpg")
    return other if path.suffix.lower() == ".gif" and not path.exists() and other.exists() else path
