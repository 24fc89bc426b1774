"""The process in which formulas are compared: it may be slow, run out of memory or hang, and is ended then. `maths` starts and ends it.

Run as a script with the number of an inherited socket: a JSON object with `gold`, `said`, `seconds` and `wait` a line in, one with `equal`
or `failed` a line out. `seconds` are of computing, so that a busy machine judges as an idle one does; `wait` is by the clock. It imports
nothing of this package, so that it starts as fast as sympy does.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 3 << 30  # bytes of addresses; sympy itself takes under one
WARM = [(r"\frac{1}{2}", "0.5"), ("x^2+2x+1", "(x+1)^2"), (r"\{1,2\}", "1,2"), ("(1,2)", "[1,2]"), ("x=3", r"50\%"), (r"\sqrt{2}", r"\pi")]
# Text that becomes code, and what code of a reply would be after. sympy's own parser evaluates; the one for LaTeX, used here, does not.
FORBIDDEN = {"compile", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.rmdir"}
FORBIDDEN |= {"subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen", "shutil.rmtree", "os.mkdir", "os.kill"}


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: whatever library it comes from, no text is compiled and no file is written."""
    written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in FORBIDDEN or written:
        raise PermissionError(f"{event} is forbidden where replies are read")


def checker() -> Callable[[str, str], dict[str, Any]]:
    """Whether what was said equals the gold answer, by math-verify. Its own time limits work in main threads only and are left out."""
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Float, Integer, Number

    def number(cls: type, *given: Any) -> Any:
        """sympy makes a number of text by `eval`; the parser for LaTeX hands it digits and a point."""
        if cls is Number and len(given) == 1 and isinstance(given[0], str):
            return Integer(int(given[0])) if given[0].isdecimal() else Float(given[0])
        return made(cls, *given)

    made, Number.__new__ = Number.__new__, staticmethod(number)
    logging.disable(logging.CRITICAL)  # it warns of the time limits that are off

    def read(formula: str) -> list[Any]:
        return parse(f"${formula}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    def check(gold: str, said: str) -> dict[str, Any]:
        truth = read(gold)
        if not truth:
            return {"failed": "the answer cannot be read as mathematics"}
        found = read(said)
        return {"equal": bool(found) and bool(verify(truth, found, timeout_seconds=None))}

    return check


def serve(line: socket.socket) -> None:
    """Answer until the other side is gone. A question that outlives its time ends the process, even inside C code."""
    check = checker()
    for gold, said in WARM:
        check(gold, said)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(forbid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    with line, line.makefile("rw", encoding="utf-8") as words:
        words.write("ready\n")
        words.flush()
        for asked in words:
            question = json.loads(asked)
            signal.setitimer(signal.ITIMER_PROF, question["seconds"])
            signal.setitimer(signal.ITIMER_REAL, question["wait"] + 1.0)  # where who asked is gone, and nobody ends this
            try:
                found = check(question["gold"], question["said"])
            except (RecursionError, MemoryError) as error:
                found = {"failed": type(error).__name__}
            except Exception:  # of a parser that met a reply: no formula, hence not the answer
                found = {"equal": False}
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            words.write(json.dumps(found) + "\n")
            words.flush()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
