"""An option or an argument of a command in one line: the words that stand for it, then its help."""

from __future__ import annotations

from typing import Any

import typer


def option(*words_and_help: str, **settings: Any) -> Any:
    """An option: ``option("-o", "--output", "Where to write.", metavar="DIR")``."""
    *words, text = words_and_help
    return typer.Option(*words, help=text, **settings)


def argument(text: str, **settings: Any) -> Any:
    """An argument, and what it stands for: ``argument("Where to write.", metavar="DIR")``."""
    return typer.Argument(help=text, **settings)
