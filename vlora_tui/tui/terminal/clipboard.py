"""Copies text over SSH: through tmux, else by the terminal (OSC 52), else into a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from vlora_tui.utils import paths


def copy(text: str, osc52: Callable[[str], None]) -> str:
    """Copy ``text`` by the first way that works; return a sentence that says which it was."""
    if os.environ.get("TMUX") and _through_tmux(text):
        return "copied through tmux"
    if os.environ.get("TERM", "dumb") not in ("dumb", "linux"):
        osc52(text)
        return "sent to the terminal's clipboard"
    return _into_file(text)


def _through_tmux(text: str) -> bool:
    if shutil.which("tmux") is None:
        return False
    try:
        done = subprocess.run(
            ["tmux", "load-buffer", "-w", "-"], input=text.encode(), timeout=2, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _into_file(text: str) -> str:
    path = paths.state_dir() / "copied.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    except OSError as error:
        return f"could not be copied: {error.strerror}"
    return f"written to {path}"
