"""What the terminal itself shows: its title, a notification of the desktop, the bell."""

from __future__ import annotations

import os
from collections.abc import Mapping

PUSH_TITLE, POP_TITLE = "\x1b[22;2t", "\x1b[23;2t"
BELL, ESCAPE = "\x07", "\x1b"
# Those that take OSC 9; the others that notify at all (VTE, foot, urxvt) take OSC 777.
_OSC_9 = ("iTerm.app", "WezTerm", "ghostty", "kitty", "vscode", "mintty", "WarpTerminal")
LONGEST = 200  # characters of a notification: no desktop shows more
# How those are known in tmux, which gives its own name and passes the rest of the environment on.
_OSC_9_MARKS = ("ITERM_SESSION_ID", "WEZTERM_PANE", "GHOSTTY_RESOURCES_DIR", "KITTY_WINDOW_ID")


def title(text: str) -> str:
    """What sets the title of the window, or of a pane in tmux."""
    return f"\x1b]2;{_harmless(text)}{BELL}"


def notification(summary: str, body: str, environ: Mapping[str, str] = os.environ) -> str:
    """What asks the terminal for a notification, and rings its bell.

    In tmux it is wrapped, so that the terminal outside gets it where ``allow-passthrough`` is on.
    """
    body = body[:LONGEST]
    takes_9 = environ.get("TERM_PROGRAM") in _OSC_9 or "kitty" in environ.get("TERM", "")
    takes_9 = takes_9 or environ.get("LC_TERMINAL") == "iTerm2"  # which goes through SSH
    in_tmux = bool(environ.get("TMUX"))
    if takes_9 or (in_tmux and any(environ.get(mark) for mark in _OSC_9_MARKS)):
        asked = f"\x1b]9;{_harmless(f'{summary}: {body}')}{BELL}"
    else:
        asked = f"\x1b]777;notify;{_harmless(summary)};{_harmless(body)}{BELL}"
    if in_tmux:
        asked = f"\x1bPtmux;{asked.replace(ESCAPE, ESCAPE * 2)}{ESCAPE}\\"
    return asked + BELL


def _harmless(text: str) -> str:
    """Without what would end the sequence early, or begin another field of it."""
    return "".join(c if c.isprintable() and c != ";" else " " for c in text)
