"""Where long work that nobody asked for by name, such as an index, says how far it is. Whoever has a screen shows it; else it is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Tell = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is

_listener: ContextVar[Tell | None] = ContextVar("listener", default=None)


def tell(what: str, done: int, total: int) -> None:
    """Say how far some work is."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def heard(listener: Tell) -> Iterator[None]:
    """Within the block, `listener` is told."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)
