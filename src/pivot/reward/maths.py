"""Mathematical equivalence, by math-verify: "0.5", "1/2" and "\\frac{1}{2}" are one.

A reply can be a tower of powers that no computer finishes, so formulas are compared in a process of their own (`_equal.py`), which
is ended when a comparison takes too long and started anew. That limit holds in any thread, which math-verify's own does not. One
process serves all calls of this one. No formula is evaluated as code: it is parsed as LaTeX, and `_equal.py` forbids compiling.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pivot import answers
from pivot.records import Example
from pivot.reward._contract import unjudged

PACKAGE = "math-verify"  # where a mixed reward meets mathematics without it, the example is unjudged
UNSTARTED = f"{PACKAGE} does not start"
START = 60.0  # seconds for the process to load sympy: 1 on an idle machine
PATIENCE = 10  # by the clock, in times of `seconds`: how long to wait where the machine is busy and the process gets no time
LONGEST = 400  # characters of a formula: longer ones are no answers, and take the parser seconds
SIDES = 8  # of one equation
LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
DEEPEST = 6  # brackets inside brackets: 6 take the parser up to 0.6 seconds, 10 take it 3, 12 take it 8


def reward(reply: str, example: Example, *, seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0) -> float:
    """1 if the formula that the reply ends in equals the example's answer. `seconds`: of computing, for one comparison."""
    truth = answers.formula(example.answer or "")
    if truth is None or _too_much(truth):
        return unjudged(f"the answer of {example.id} is no formula")
    said = answers.formula(reply)
    if said is None or _too_much(said):
        return 0.0
    try:
        holds = "=" in truth or _holds(latex(said), seconds)
        found = _compared(latex(truth), latex(said), seconds) if holds is True else holds
    except Unstarted:
        return unjudged(UNSTARTED)
    return unjudged(found) if isinstance(found, str) else float(found)


class Unstarted(Exception):
    """There is no process to compare in. Raised past the cache, so that the same question is asked again."""


def _holds(said: str, seconds: float) -> bool | str:
    """False for an equation between different values ("4 = 3"), which is no answer; a string where that is not known.

    A side with a letter in it has no value yet, so that "x = 3" holds.
    """
    sides = [side.strip() for side in said.split("=")]
    if len(sides) > SIDES:
        return False
    for left, right in pairwise(sides):
        if left and right and not LETTER.search(left) and not LETTER.search(right):
            found = _compared(left, right, seconds)
            if found is not True:
                return found
    return True


def _too_much(formula: str) -> bool:
    """Whether it is longer or deeper than answers are."""
    depth = deepest = 0
    for sign in formula[: LONGEST + 1]:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return len(formula) > LONGEST or deepest > DEEPEST


@lru_cache(maxsize=4096)
def _compared(gold: str, said: str, seconds: float) -> bool | str:
    """Whether they are equal, or why that is not known. Samples of one prompt often say the same."""
    if "".join(gold.split()) == "".join(said.split()):
        return True
    if PLAIN.fullmatch(gold) and PLAIN.fullmatch(said):
        return Decimal(gold) == Decimal(said)
    found = _comparer.ask(gold, said, seconds)
    if found.get("failed") == UNSTARTED:
        raise Unstarted
    return found["failed"] if "failed" in found else found["equal"]


# ---- what people type, as LaTeX

PLAIN = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
SIGNS = {
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "−": "-",
    "–": "-",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
}
SIGNS |= {"°": r"^{\circ}", "±": r"\pm ", "∪": r"\cup ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta "}
SIGNS |= {power: f"^{{{digit}}}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
NAMES = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|pi|infty|alpha|beta|theta)(?![A-Za-z])")
ROOT = re.compile(r"(?:(?<![\\A-Za-z])sqrt\s*|√\s*)(\(|\d+|[A-Za-z])|\^\s*(\()")


def latex(formula: str) -> str:
    """The formula in LaTeX, whichever way it was typed: "2*sqrt(3)", "√3", "x**2", "x²", "٣"."""
    formula = "".join(str(unicodedata.decimal(sign, sign)) for sign in formula.replace("**", "^")).strip(" \t\r\n$*.")
    for _ in range(8):  # nested deeper, they stay as they are
        found = ROOT.search(formula)
        if not found:
            break
        group = 1 if found[1] else 2
        end = _closing(formula, found.end()) if found[group] == "(" else found.end()
        if not end:
            break
        inside = formula[found.end() : end - 1] if found[group] == "(" else found[group]
        formula = f"{formula[: found.start()]}{chr(92) + 'sqrt' if group == 1 else '^'}{{{inside}}}{formula[end:]}"
    formula = NAMES.sub(r"\\\1 ", formula)
    return "".join(SIGNS.get(sign, sign) for sign in formula)


def _closing(formula: str, start: int) -> int:
    """The place after the bracket that closes one opened right before `start`; 0 if none does."""
    depth = 1
    for at in range(start, len(formula)):
        depth += {"(": 1, ")": -1}.get(formula[at], 0)
        if not depth:
            return at + 1
    return 0


# ---- the other process


class Comparer:
    """The process that compares, started with the first question. Of any number of threads one asks at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.line: socket.socket | None = None
        self.ready = False

    def ask(self, gold: str, said: str, seconds: float) -> dict[str, Any]:
        """`{"equal": ...}`, or `{"failed": why}` once the time is over or the process has died of the question."""
        with self.lock:
            if not self._stands():
                self._end()
                return {"failed": UNSTARTED}
            assert self.line
            wait, slow = PATIENCE * seconds, f"the comparison took longer than {seconds:g} seconds"
            question = json.dumps({"gold": gold, "said": said, "seconds": seconds, "wait": wait}) + "\n"
            try:
                self.line.sendall(question.encode())
                return dict(json.loads(self._read(wait)))
            except TimeoutError:
                why = slow
            except (OSError, ValueError):
                why = slow if self._ended() == -signal.SIGPROF else "the comparison ended its process"
            self._end()
            with suppress(OSError):  # the next question starts it then
                self._start()  # loads while the caller goes on
            return {"failed": why}

    def _stands(self) -> bool:
        """Whether the process can be asked; starts it where there is none. False where it does not start, or not in time."""
        try:
            if self.line is None:
                self._start()
            self.ready = self.ready or self._read(START) == "ready"
        except OSError:  # a timeout is one
            return False
        return self.ready

    def _start(self) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", str(Path(__file__).with_name("_equal.py")), str(theirs.fileno())]
            quiet = subprocess.DEVNULL
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=quiet, stdout=quiet, stderr=quiet)
        self.ready = False

    def _read(self, seconds: float) -> str:
        """One line, or "" if the process is gone."""
        assert self.line
        end, got = time.monotonic() + seconds, b""
        while not got.endswith(b"\n"):
            self.line.settimeout(max(0.001, end - time.monotonic()))
            part = self.line.recv(4096)
            if not part:
                return ""
            got += part
        return got.decode().strip()

    def _ended(self) -> int | None:
        """How the process ended by itself, if it did: its line closes a little earlier."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(1.0) if self.process else None
        return None

    def _end(self) -> None:
        if self.line:
            self.line.close()
        if self.process:
            self.process.kill()
            self.process.wait()
        self.line = self.process = None
        self.ready = False

    def forget(self) -> None:
        """In a forked copy of this process: the comparer is the parent's, and its lock may never open."""
        if self.line:
            self.line.close()
        self.__init__()  # type: ignore[misc]


_comparer = Comparer()
os.register_at_fork(after_in_child=_comparer.forget)
