"""The command line. `main` is the one way in; commands are imported when they are called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (cli/errors.py says which)."""
    if sys.unraisablehook is sys.__unraisablehook__:  # where nobody else listens, tests for one
        sys.unraisablehook = _tell_unraisable
    words = list(sys.argv[1:] if argv is None else argv)
    if all("/" in word and not word.startswith("-") for word in words):
        return _interface(words)  # these can only be places: no command has a slash in its name
    from vlora_tui.cli.app import run_app

    return run_app(words)


def _tell_unraisable(told: Any) -> None:
    """Show what a finalizer could not raise, but for the disk's refusal: the command tells that.

    A library's temporary folder that cannot be deleted would else end in a traceback.
    """
    if not isinstance(told.exc_value, OSError):
        sys.__unraisablehook__(told)


def _interface(places: Sequence[str]) -> int:
    """The interface, without the parser: that alone would take a tenth of a second."""
    from vlora_tui.tui.app.start import start

    try:
        return start(places)
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        from vlora_tui.cli.errors import report
        from vlora_tui.cli.output import Output

        return report(error, Output())
