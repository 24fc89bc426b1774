"""The embedded world as a benchmark: sixteen tasks in four domains, each item's answer in a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pivot import answers
from pivot.data import world
from pivot.records import BadInput, Example, Turn

SIZE = 640  # forty items a task; a share of right answers is then known to about 15 points a task, 4 in the mean


@dataclass(frozen=True)
class Benchmark:
    """Questions about drawn scenes. Prompts stand as the world wrote them: half ask for a short answer, half for an explained one.

    `temperature`: 0 for greedy replies; above it, `k` replies an item are drawn, as training by reinforcement draws them. An item's
    score is then the share of them that are right, of twins the share of draws in which both are.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    k: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.k > 1 and not self.temperature:
            raise BadInput(f"benchmark world: k {self.k} at temperature 0 is the same reply {self.k} times; give a temperature, or k 1")

    def examples(self) -> Sequence[Example]:
        """The items asked when a run names no data of its own."""
        return world.read(split="test", size=SIZE)

    def prompt(self, example: Example) -> str | Sequence[Turn]:
        return example.prompt

    def parse(self, reply: str, example: Example) -> str | None:
        return answers.parse(reply, example)

    def grade(self, reply: str, example: Example) -> float:
        return answers.grade(reply, example)
