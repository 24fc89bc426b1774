"""Rows with an instruction that they do not have themselves: `of` names them as a part of `mix` is named.

A reward that reads tags can give something only to a model that was asked for tags, and sets are published with bare questions. `system`
is a turn in front of the prompt, in place of one that is there; `after` stands behind the last question, a line below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pivot.data.lazy import Lazy, fingerprint
from pivot.data.mix import part
from pivot.data.talk import bare, turns_of
from pivot.files import hash_json
from pivot.records import BadInput, Example, Turn


@dataclass(frozen=True)
class Instructed(Lazy[Example]):
    """Each row with its prompt told so."""

    rows: Sequence[Example]
    system: str | None
    after: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def one(self, index: int) -> Example:
        example = self.rows[index]
        turns: list[Turn] = turns_of(example.prompt, "user")
        if self.after:
            last = max((at for at, turn in enumerate(turns) if turn["role"] == "user"), default=None)
            if last is None:
                raise BadInput(f"row {example.id} asks nothing, so that an instruction has no question to stand behind; drop the row")
            turns[last] = {**turns[last], "content": f"{turns[last]['content']}\n{self.after}"}
        if self.system:
            turns = [{"role": "system", "content": self.system}, *(turn for turn in turns if turn["role"] != "system")]
        return replace(example, prompt=bare(turns, "user"))

    def fingerprint(self) -> str:
        """Of the rows, and of what they are told."""
        return hash_json(["instructed", fingerprint(self.rows), self.system, self.after])


def read(path: str | None = None, *, of: Any = None, system: str | None = None, after: str | None = None) -> Instructed:
    """Open a data set with an instruction. `path` is not used: `of` names the rows."""
    if of is None:
        raise BadInput("instructed: of names no rows; give the data that is told something, as in of=llava,chats.json")
    return Instructed(part("of", of, "instructed: of").rows, system, after)
