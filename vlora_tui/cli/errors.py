"""The one table from what went wrong to what is said and which code the process ends with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer

from vlora_engine.errors import VLoRAError
from vlora_engine.utils.safetensors_file import write_error
from vlora_tui.cli.output import JSON_VERSION, Output, dumps, paint
from vlora_tui.utils.formatting import printable

OK = 0
FAILED = 1  # the work could not be done
USAGE = 2  # the command line or its input is at fault
FOUND = 3  # a check found something: validate, diff --fail-above
INTERRUPTED = 130

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # wherever typer keeps its click


class Verdict(NamedTuple):
    """What an exception comes to."""

    exit_code: int
    details: dict[str, Any]  # error, what, where, expected, found, remedy
    lines: list[str]


def verdict_on(error: BaseException) -> Verdict:
    """The exit code and the words for ``error``."""
    for kind, judge in _TABLE:
        if isinstance(error, kind):
            return judge(error)
    return _fault(error)


def report(error: BaseException, out: Output, *, verbose: int = 0) -> int:
    """Say on stderr what went wrong; return the exit code."""
    if isinstance(error, BrokenPipeError):
        return _reader_gone()
    verdict = verdict_on(error)
    if sys.stderr is None:  # closed by whoever started us: print would fall back on stdout
        return verdict.exit_code
    if out.as_json:
        row = {"schema": "vlora-tui/error", "version": JSON_VERSION, **verdict.details}
        row["exit_code"] = verdict.exit_code
        print(dumps(row, sys.stderr), file=sys.stderr)
    else:
        head, *rest = [printable(line) for line in verdict.lines]
        print(f"{paint('error:', 'error', sys.stderr)} {head}", file=sys.stderr)
        for line in rest:
            print(line, file=sys.stderr)
    if verbose > 1 and not isinstance(error, KeyboardInterrupt | UsageError):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    return verdict.exit_code


def _known(error: Any) -> Verdict:
    return Verdict(error.exit_code, error.as_dict(), error.lines())


def _usage(error: Any) -> Verdict:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vlora-tui"
    what = str(error.format_message())
    remedy = f"`{command} --help` shows what it takes"
    return Verdict(USAGE, _details("UsageError", what, remedy), [what, f"  to mend it: {remedy}"])


def _interrupted(error: Any) -> Verdict:
    what = "Interrupted; nothing half-written was left in place."
    return Verdict(INTERRUPTED, _details("Cancelled", what), [what])


def _memory(error: Any) -> Verdict:
    what = "The memory of this machine was not enough."
    remedy = "close other programs, or work on fewer adapters at a time"
    return Verdict(FAILED, _details("MemoryError", what, remedy), [what, f"  to mend it: {remedy}"])


def _system(error: OSError) -> Verdict:
    what = f"The operating system refused: {error.strerror or error}."
    place = error.filename if error.filename is not None else "the output"
    known = write_error(Path(os.fsdecode(place)), error)
    details = {**_details("StorageError", what, known.remedy), "where": known.where}
    return Verdict(FAILED, details, [what, *known.lines()[1:]])


def _missing(error: ImportError) -> Verdict:
    if (error.name or "").split(".")[0] in ("vlora_engine", "vlora_tui"):
        return _fault(error)
    what = f"A library is missing: {error.name or error}."
    remedy = "install vlora-tui again with what it needs (pip install vlora-tui)"
    return Verdict(FAILED, _details("ImportError", what, remedy), [what, f"  to mend it: {remedy}"])


def _fault(error: BaseException) -> Verdict:
    what = f"A fault of vlora-tui, not of your input: {type(error).__name__}: {error}"
    remedy = "run it again with -vv, which shows where it happened, and report it"
    return Verdict(FAILED, _details("Fault", what, remedy), [what, f"  to mend it: {remedy}"])


def _details(kind: str, what: str, remedy: str | None = None) -> dict[str, Any]:
    return {
        "error": kind,
        "what": what,
        "where": None,
        "expected": None,
        "found": None,
        "remedy": remedy,
    }


def _reader_gone() -> int:
    """Whoever read our output went away (`| head`): no fault, and nothing more to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


_TABLE: list[tuple[type[BaseException], Callable[[Any], Verdict]]] = [
    (VLoRAError, _known),
    (UsageError, _usage),
    (KeyboardInterrupt, _interrupted),
    (typer.Abort, _interrupted),
    (MemoryError, _memory),
    (ImportError, _missing),
    (OSError, _system),
    (Exception, _fault),
]
