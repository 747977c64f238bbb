"""Words and figures as the screens show them. What comes from files is made harmless here."""

from __future__ import annotations

import os
from pathlib import Path


def clean(text: object) -> str:
    """``text`` in one line, without what would move the cursor, turn text round or colour it."""
    return "".join(
        c if c.isprintable() else " " if c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text)
    )


def size(nbytes: float) -> str:
    """Bytes in steps of 10^3, three digits."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def number(value: object) -> str:
    """A figure; ``-`` where it is not known."""
    return f"{value:g}" if isinstance(value, int | float) else "-"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def tilde(path: str | Path) -> str:
    """A path with the home directory as ``~``, made harmless."""
    text, home = str(path), os.path.expanduser("~")
    if home not in ("/", "~") and (text == home or text.startswith(home + "/")):
        text = "~" + text[len(home) :]
    return clean(text)
