"""Starts the interface: checks the terminal, recipe and config before Textual is imported."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.errors import InputError
from vlora_tui.utils.config import load_config

if TYPE_CHECKING:
    from vlora_tui.recipe.model import Recipe


class NoTerminalError(InputError):
    """There is no terminal that the interface could be shown on."""


def start(
    paths: Sequence[str] = (),
    recipe: Recipe | str | Path | None = None,
    *,
    ascii_only: bool | None = None,
    theme: str | None = None,
    demo: str | None = None,
    instead: str = "",
) -> int:
    """Open the interface and return its exit code when it is left.

    Args:
        paths: Folders to look into at once.
        recipe: A recipe, or the file of one, to open on.
        demo: Where to make the demo collection, to open on that.
        instead: The command that does the work without the interface, for the refusal; by
            default the one that builds.

    Raises:
        NoTerminalError: stdin or stderr is no terminal, or it is a dumb one.
    """
    require_terminal(instead or headless(paths))
    loaded = None
    if isinstance(recipe, str | Path):
        from vlora_tui.recipe.reader import load_recipe

        loaded = load_recipe(recipe)
    elif recipe is not None:
        loaded = recipe
    config = load_config({"ascii": ascii_only or None, "theme": theme})
    from vlora_tui.tui.app.app import VLoRAApp
    from vlora_tui.tui.terminal.driver import Terminal

    app = VLoRAApp(paths, config=config)
    app.driver_class = Terminal
    app.recipe, app.demo = loaded, demo
    app.run(mouse=bool(config["mouse"]))
    return app.return_code or 0


def headless(paths: Sequence[str] = ()) -> str:
    """The command that builds without the interface, from these places."""
    places = shlex.join(paths[:3]) if paths else "PATHS"
    return f"vlora-tui run --headless {places} -o DIR"


def require_terminal(instead: str = "") -> None:
    """Refuse to open the interface where nobody could see or use it.

    Raises:
        NoTerminalError: It says what is missing and which command does without.
    """
    instead = instead or headless()
    missing = [
        name
        for name, stream in (("stdin", sys.stdin), ("stderr", sys.stderr))
        if not _is_terminal(stream)
    ]
    if missing:
        raise NoTerminalError(
            "The interface needs a terminal.",
            found=f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} none",
            remedy=f"open it on a terminal, or go without: {instead}",
        )
    if os.environ.get("TERM", "dumb") == "dumb":
        raise NoTerminalError(
            "The interface needs a terminal that can place text.",
            found=f"TERM={os.environ.get('TERM', '')}",
            remedy=f"set TERM (xterm-256color fits most), or go without: {instead}",
        )


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return False
