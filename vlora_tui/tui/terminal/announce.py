"""What the terminal itself shows: its title, a notification of the desktop, the bell."""

from __future__ import annotations

import os
from collections.abc import Mapping

PUSH_TITLE, POP_TITLE = "\x1b[22;2t", "\x1b[23;2t"
BELL = "\x07"
# Those that take OSC 9; the others that notify at all (VTE, foot, urxvt) take OSC 777.
_OSC_9 = ("iTerm.app", "WezTerm", "ghostty", "kitty", "vscode", "mintty")


def title(text: str) -> str:
    """What sets the title of the window, or of a pane in tmux."""
    return f"\x1b]2;{_harmless(text)}{BELL}"


def notification(summary: str, body: str, environ: Mapping[str, str] = os.environ) -> str:
    """What asks the terminal for a notification, and rings its bell."""
    if environ.get("TERM_PROGRAM") in _OSC_9 or "kitty" in environ.get("TERM", ""):
        asked = f"\x1b]9;{_harmless(f'{summary}: {body}')}{BELL}"
    else:
        asked = f"\x1b]777;notify;{_harmless(summary)};{_harmless(body)}{BELL}"
    return asked + BELL


def _harmless(text: str) -> str:
    """Without what would end the sequence early, or begin another field of it."""
    return "".join(c if c.isprintable() and c != ";" else " " for c in text)
