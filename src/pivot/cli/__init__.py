"""The verbs. A verb imports its stage when it runs, so that `--help` is quick.

Exit codes: 0 done, 1 a check failed, 2 wrong use, bad input or Ctrl-C: one line on stderr that says what, where and what to do.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from pivot.cli.app import KEPT, RESUME, app
from pivot.files import is_disk_full
from pivot.records import BadInput, CheckFailed
from pivot.screen import visible

UsageError: Any = typer.BadParameter.__base__  # click's, whichever click this typer carries
INTERRUPTED = 130  # what typer makes of Ctrl-C
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
TRACEBACK = "PIVOT_TRACEBACK"  # environment variable: show where an expected error came from

for _verbs in ("runs", "models", "encoders", "probes", "saliency", "data", "doctor", "prefer", "env"):  # as --help lists them
    import_module(f"{__name__}.{_verbs}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its code."""
    raise SystemExit(call(arguments))


def call(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. What is expected to go wrong takes one line on stderr."""
    # Libraries that print on their own would drown the one line; who sets these variables is left alone.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    try:
        code = app(args=arguments, prog_name="pivot", standalone_mode=False)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click's: a verb was left out, its message is the help
            typer.echo(str(error))
            return 0
        expected = _expected(error)
        if expected is None or os.environ.get(TRACEBACK):
            raise
        line, code = expected
        typer.echo(visible(f"pivot: {' '.join(line.split())}"), err=True)
        return code
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        given = tuple(sys.argv[1:] if arguments is None else arguments)
        resumes = any(given[: len(verb)] == verb for verb in RESUME)
        typer.echo(f"pivot: stopped by Ctrl-C; {KEPT if resumes else 'no half-written file is left'}", err=True)
        return 2
    return code if isinstance(code, int) else 0


def _expected(error: Exception) -> tuple[str, int] | None:
    """The line and exit code of an error that is no bug of ours, else None."""
    if isinstance(error, CheckFailed):
        return str(error), 1
    if isinstance(error, BadInput):
        return str(error), 2
    if isinstance(error, UsageError):
        context = error.ctx
        return f"{error.format_message()}" + (f" See `{context.command_path} --help`." if context else ""), 2
    if is_disk_full(error):
        return f"disk full ({error}); free some space and run the same command again", 2
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):  # that one would be ours
        return f"{error.strerror}: {error.filename}; check the path and its permissions", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = "lower post.micro (or that of align or instruct) and run again, or shut what else holds memory"
        return f"out of memory ({str(error).partition('. ')[0]}); {advice}", 2
    return None
