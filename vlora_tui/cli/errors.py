"""Maps every exception to its error message and exit code, in one table."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer

from vlora_engine.errors import VLoRAError
from vlora_tui.cli.output import JSON_VERSION, Output, dumps, paint
from vlora_tui.utils.formatting import printable

OK = 0
FAILED = 1  # the work could not be done
USAGE = 2  # the command line or its input is at fault
FOUND = 3  # a check found something: validate, diff --fail-above
INTERRUPTED = 130

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # wherever typer keeps its click


class ErrorReport(NamedTuple):
    """What an exception comes to."""

    exit_code: int
    details: dict[str, Any]  # error, what, where, expected, found, remedy
    lines: list[str]


def report_on(error: BaseException) -> ErrorReport:
    """The exit code and the words for ``error``."""
    for kind, judge in _TABLE:
        if isinstance(error, kind):
            return judge(error)
    return _fault(error)


def report(error: BaseException, out: Output, *, verbose: int = 0) -> int:
    """Say on stderr what went wrong; return the exit code."""
    if isinstance(error, BrokenPipeError):
        return _reader_gone()
    reported = report_on(error)
    if isinstance(error, OSError) and sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # at the end Python would try it again, and say so with a code of its own
            _drop_stdout()
    if sys.stderr is None:  # closed by whoever started us: print would fall back on stdout
        return reported.exit_code
    if out.as_json:
        row = {"schema": "vlora-tui/error", "version": JSON_VERSION, **reported.details}
        row["exit_code"] = reported.exit_code
        print(dumps(row, sys.stderr), file=sys.stderr)
    else:
        head, *rest = [printable(line) for line in reported.lines]
        print(f"{paint('error:', 'error', sys.stderr)} {head}", file=sys.stderr)
        for line in rest:
            print(line, file=sys.stderr)
    if verbose > 1 and not isinstance(error, KeyboardInterrupt | UsageError):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    return reported.exit_code


def _our_error(error: Any) -> ErrorReport:
    return ErrorReport(error.exit_code, error.as_dict(), error.lines())


def _usage(error: Any) -> ErrorReport:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vlora-tui"
    what = str(error.format_message())
    remedy = f"`{command} --help` shows what it takes"
    return _report(USAGE, "UsageError", what, remedy)


def _interrupted(error: Any) -> ErrorReport:
    what = "Interrupted; no partial output was left."
    return _report(INTERRUPTED, "Cancelled", what)


def _memory(error: Any) -> ErrorReport:
    what = "Out of memory."
    remedy = "close other programs, or work on fewer adapters at a time"
    return _report(FAILED, "MemoryError", what, remedy)


def _runtime(error: RuntimeError) -> ErrorReport:
    """torch says in words alone that there was not memory enough."""
    text = str(error)
    return _memory(error) if any(words in text for words in _NO_MEMORY) else _fault(error)


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def _system(error: OSError) -> ErrorReport:
    from vlora_engine.utils.safetensors_file import write_error

    what = f"The operating system refused: {error.strerror or error}."
    if error.errno in _NO_NAME:
        return _report(USAGE, "InputError", what, "give a shorter path, without NUL")
    if error.filename is None and _was_printing(error):
        what = f"Standard output takes no more: {error.strerror or error}."
        remedy = "send it elsewhere; what the command writes to files is not concerned"
        return _report(FAILED, "StorageError", what, remedy, where="standard output")
    if error.errno == errno.ENOENT and _is_here_gone():
        what = "The current directory is not there any more."
        return _report(FAILED, "StorageError", what, "change to a directory that is there")
    path = error.filename if error.filename is not None else "the output"
    write_failure = write_error(Path(os.fsdecode(path)), error)
    report = _report(FAILED, "StorageError", what, write_failure.remedy)
    details = {**report.details, "where": write_failure.where}
    return ErrorReport(FAILED, details, [what, *write_failure.lines()[1:]])


def _was_printing(error: OSError) -> bool:
    """Whether it is from a command's own line: commands print, and leave files to others."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return str(module).startswith("vlora_tui.cli.")


def _is_here_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


_NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ)  # of no file: the input names it


def _missing(error: ImportError) -> ErrorReport:
    if (error.name or "").split(".")[0] in ("vlora_engine", "vlora_tui"):
        return _fault(error)
    what = f"A library is missing: {error.name or error}."
    remedy = "install vlora-tui again with what it needs (pip install vlora-tui)"
    return _report(FAILED, "ImportError", what, remedy)


def _fault(error: BaseException) -> ErrorReport:
    what = f"A bug in vlora-tui, not in your input: {type(error).__name__}: {error}"
    remedy = "run it again with -vv, which shows where it happened, and report it"
    return _report(FAILED, "Fault", what, remedy)


def _report(
    code: int, kind: str, what: str, remedy: str | None = None, where: str | None = None
) -> ErrorReport:
    """The report on an error that is none of ours."""
    details = dict.fromkeys(("error", "what", "where", "expected", "found", "remedy"))
    told = {"error": kind, "what": what, "where": where, "remedy": remedy}
    lines = [what]
    lines += [f"  where: {where}"] if where is not None else []
    lines += [f"  fix: {remedy}"] if remedy is not None else []
    return ErrorReport(code, {**details, **told}, lines)


def _reader_gone() -> int:
    """Whoever read our output went away (`| head`): no fault, and nothing more to say."""
    _drop_stdout()
    return OK


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_TABLE: list[tuple[type[BaseException], Callable[[Any], ErrorReport]]] = [
    (VLoRAError, _our_error),
    (UsageError, _usage),
    (KeyboardInterrupt, _interrupted),
    (typer.Abort, _interrupted),
    (MemoryError, _memory),
    (RuntimeError, _runtime),
    (ImportError, _missing),
    (OSError, _system),
    (Exception, _fault),
]
