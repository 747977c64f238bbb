"""The command line. `main` is the one way in; commands are imported when they are called."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (cli/errors.py says which)."""
    from vlora_tui.cli.app import run_app

    return run_app(list(sys.argv[1:] if argv is None else argv))
