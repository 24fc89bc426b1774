"""Kills at planted moments, for processes that fork and end their forks by SIGKILL. No torch."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


def writes(root: Path, act: Callable[[int], None]) -> None:
    """Call `act` with a running number before everything that this process does to files under `root`."""
    number, inside = 0, str(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event not in WRITES or (event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return
        if str(arguments[0]).startswith(inside):
            number += 1
            act(number)

    sys.addaudithook(hook)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(task: Callable[[], None]) -> int:
    """Run a task in a fork; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            task()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
