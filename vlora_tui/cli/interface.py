"""Opens the interface from the command line: alone, on folders, on a recipe, on the demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlora_tui.cli.declare import argument
from vlora_tui.cli.output import is_terminal

if TYPE_CHECKING:
    from vlora_tui.recipe.model import Recipe


def open_folders(
    ctx: typer.Context,
    paths: Annotated[list[str], argument("Folders of adapters.", metavar="PATHS")],
) -> int:
    """Open the interface on folders: ``vlora-tui runs/``."""
    return open_interface(ctx, paths)


def open_interface(
    ctx: Any,
    paths: Sequence[str] = (),
    recipe: Recipe | str | None = None,
    *,
    demo: str | None = None,
    instead: str = "",
) -> int:
    """Open it with the flags that stand before the command; return its exit code."""
    from vlora_tui.tui.app.start import start

    flags = (ctx.obj if ctx is not None else None) or {}
    return start(paths, recipe, demo=demo, instead=instead, **flags)


def could_open() -> bool:
    """Whether there is a terminal all round: then a command may answer with the interface."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(is_terminal(s) for s in streams) and os.environ.get("TERM", "dumb") != "dumb"


def are_places(words: Sequence[str]) -> bool:
    """Whether the words can only be meant as places: each has a slash, or is there, or both."""
    from vlora_tui.recipe.model import is_path

    return bool(words) and all(
        not word.startswith("-") and (is_path(word) or "://" in word or os.path.isdir(word))
        for word in words
    )
