"""The processes of one launch: which is the main one, and what it finds told to all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, cast

from pivot.records import BadInput

Told = TypeVar("Told")


class Crew:
    """The processes of a launch. Alone, it is free: accelerate is not asked."""

    def __init__(self) -> None:
        if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= set(os.environ) and "WORLD_SIZE" not in os.environ:
            raise BadInput("accelerate launch starts one process alone on a machine without GPUs; add --multi_gpu, which serves CPUs too")
        self.alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self.main = self.alone or os.environ.get("RANK", "0") == "0"

    def told(self, ask: Callable[[], Told]) -> Told:
        """What the main process finds, in all of them: the others would look at files that it is changing."""
        if self.alone:
            return ask()
        from accelerate.utils import broadcast_object_list

        from pivot.train.launch import processes

        processes()
        return cast(Told, broadcast_object_list([ask() if self.main else None])[0])

    def wait(self) -> None:
        """Until all processes have come here."""
        if not self.alone:
            from pivot.train.launch import processes

            processes().wait_for_everyone()
