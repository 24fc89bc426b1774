"""How a run looks: a bar with rate and time left on a terminal, a line now and then elsewhere, JSON lines for machines.

Nothing is shown of work under two seconds. This module composes; where text goes is given by the CLI.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from pivot.files import to_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pivot.records import Measurement
    from pivot.study.statistics import Estimate
    from pivot.work import Event

Table = tuple[list[str], list[list[Any]]]  # its head and its rows
Pairs = Sequence[tuple["Measurement", "Measurement", Mapping[str, "Estimate"]]]  # two measurements, and by how much the first is higher
QUICK = 2.0  # seconds of work that need no bar
PAUSE = 10.0  # seconds between lines where there is no terminal
# Metrics worth a place beside the bar. Where the model writes its own responses, those from "reward" on; the loss says nothing there.
SHOWN = ("loss", "rewards/accuracies", "reward", "frac_reward_zero_std", "sampler/difference")


class Screen:
    """Shows events. `say` writes a line to stdout; `terminal` is where bars are drawn, None for none."""

    def __init__(self, say: Callable[[str], None], terminal: IO[str] | None, json: bool) -> None:
        self.say, self.json, self.terminal = say, json, terminal
        self.begun = self.said = time.monotonic()
        self.first: tuple[int, float] | None = None  # how far the first event was, and when: a resumed stage does not begin at 0
        self.stage, self.total = "", 0
        self.shown: dict[str, float] = {}  # the newest of each metric: not every update has all
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_bar()

    def tell(self, event: Event) -> None:
        """Show one event."""
        if self.json:
            self.say(to_json({"event": event.kind, "stage": event.stage, **event.facts}))
        elif event.kind == "progress":
            self._progress(event.stage, event.facts)
        elif event.kind == "begin":
            self.begun = self.said = time.monotonic()
            self.first, self.stage, self.shown = None, event.stage, {}
        elif event.kind == "wait":
            self.say(f"{event.stage:<32} another run is at it; waiting")
        else:
            self._end_bar()
            seconds = time.monotonic() - self.begun
            self.say(f"{event.stage:<32} {'finished before' if event.kind == 'skip' else duration(seconds)}")

    def progress(self, stage: str) -> Callable[[int, int], None]:
        """A callback that shows how far one piece of work is."""
        return lambda done, total: self._progress(stage, {"done": done, "total": total}) if not self.json else None

    def work(self, what: str, done: int, total: int) -> None:
        """Show how far some work is that no event began; what is done leaves no line."""
        if what != self.stage:
            self._end_bar()
            self.begun = self.said = time.monotonic()
            self.first, self.stage, self.shown = None, what, {}
        self._progress(what, {"done": done, "total": total})
        if done >= total:
            self._end_bar()

    def _progress(self, stage: str, facts: Mapping[str, Any]) -> None:
        done, total = facts["done"], facts["total"]
        self.shown |= {name: facts[name] for name in SHOWN if name in facts}
        now = time.monotonic()
        if "message" in facts:
            self.say(f"{stage}: {facts['message']}")
        if self.first is None or total != self.total:  # other work within the stage, counted in something else
            self.first, self.total = (done, now), total
        if now - self.begun < QUICK:
            return
        told = [name for name in SHOWN if name in self.shown and not (name == "loss" and "reward" in self.shown)]
        beside = "  ".join(f"{name} {self.shown[name]:.3g}" for name in told)
        rate = (done - self.first[0]) / (now - self.first[1]) if now > self.first[1] else 0.0
        pace = f"{rate:.3g}/s, {duration((total - done) / rate)} left" if rate else ""
        if self.terminal is not None:
            self._draw(f"{visible(stage)}  {pace}  {beside}", done, total)
        elif now - self.said >= PAUSE:
            self.said = now
            self.say(f"{stage:<32} {done}/{total}  {pace}  {beside}".rstrip())

    def _draw(self, text: str, done: int, total: int) -> None:
        if self.bar is None or self.task is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            console = Console(file=self.terminal, force_terminal=True)
            self.bar = Progress(
                BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True
            )
            self.bar.start()
            self.task = self.bar.add_task(text, total=total)
        self.bar.update(self.task, description=text, completed=done, total=total)

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.task = None


def visible(text: str) -> str:
    """A line without what moves a terminal's cursor or colours it: names and texts come from anyone."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def duration(seconds: float) -> str:
    """Seconds as people read them: 1.4 s, 2:05, 1:00:09."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right; numbers of one column alike."""
    cells = [
        [cell if isinstance(cell, str) else "" if cell is None else f"{cell:,}" if isinstance(cell, int) else f"{cell:.3g}" for cell in row]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [list(head), *cells]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.ljust(w) if not n else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )


def scores(found: Sequence[Measurement]) -> list[Table]:
    """A table for each probe and bench: a row for each arm and seed, a column for each headline metric; shares in percent."""
    tables = []
    for kind, name in dict.fromkeys((one.kind, one.name) for one in found):
        those = [one for one in found if (one.kind, one.name) == (kind, name)]
        columns = headline(those[0])
        head = [f"{kind} {name}", *(column.removeprefix("domains/") for column in columns)]
        many = len({one.seed for one in those}) > 1
        names = [f"{one.arm} seed {one.seed}" if many else one.arm for one in those]
        scale = {column: _scale(one.metrics.get(column) for one in those) for column in columns}
        rows = [[arm, *(score(one.metrics.get(key), scale[key]) for key in columns)] for arm, one in zip(names, those, strict=True)]
        tables.append((head, rows))
    return tables


def compared(pairs: Pairs) -> list[Table]:
    """A table for each pair of measurements: a row for each headline metric, with the difference and its interval."""
    tables = []
    for a, b, of in pairs:
        rows = []
        for metric in (metric for metric in headline(a) if metric in of):
            scale, one = _scale((a.metrics.get(metric), b.metrics.get(metric))), of[metric]
            sure = None if one.low is None else f"[{score(one.low, scale, '+')}, {score(one.high, scale, '+')}]"
            rows.append([metric, score(one.value, scale, "+"), sure])
        if rows:
            tables.append(([f"{a.kind} {a.name}: {a.arm} less {b.arm}", "difference", "95 % interval"], rows))
    return tables


def headline(one: Measurement) -> list[str]:
    """The metrics worth a column: means of others if there are any, else those without a path."""
    return list(one.parts) or [metric for metric in one.metrics if "/" not in metric]


def score(value: float | None, scale: int = 100, sign: str = "") -> str:
    """A number as people read it: a share in percent, two digits of one that is next to nothing, and a dash where there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "-"
    shown = scale * value
    return f"{shown:{sign}.3g}" if scale == 1 else f"{shown:{sign}.1f}" if not 0 < abs(shown) < 1 else f"{shown:{sign}.2g}"


def _scale(values: Iterable[float | None]) -> int:
    """100 where all are shares."""
    return 100 if all(value is None or math.isnan(value) or 0 <= value <= 1 for value in values) else 1
