"""The editor of whoever sits at the terminal."""

from __future__ import annotations

import os
import shlex
import shutil

KNOWN = ("nano", "vim", "vi")  # where $VISUAL and $EDITOR name none


def editor() -> tuple[list[str], str]:
    """The words that start it, none where there is none, and what was looked for."""
    for variable in ("VISUAL", "EDITOR"):
        named = os.environ.get(variable, "").strip()
        if named:
            words = _words(named)
            return words if shutil.which(words[0]) else [], f"${variable} is {named}"
    found = next((name for name in KNOWN if shutil.which(name)), None)
    return [found] if found else [], "neither $VISUAL nor $EDITOR is set"


def _words(command: str) -> list[str]:
    """The words of a command line; what has an odd quotation mark is one word."""
    try:
        return shlex.split(command) or [command]
    except ValueError:
        return [command]
