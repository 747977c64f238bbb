"""The command line. `main` is the one way in; commands are imported when they are called."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (cli/errors.py says which)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if all("/" in word and not word.startswith("-") for word in words):
        return _interface(words)  # these can only be places: no command has a slash in its name
    from vlora_tui.cli.app import run_app

    return run_app(words)


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
