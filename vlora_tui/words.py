"""Figures and names as people read them, on a screen and in a report."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` without what would move the cursor or colour the screen: names come from files."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def percent(share: float | None) -> str:
    """An error or a share as a percentage of three digits."""
    if share is None:
        return "-"
    if 0 < share < 0.0001:
        return f"{share:.0e}"
    return f"{100 * share:.3g} %"


def times(ratio: float | None) -> str:
    """A ratio: ``7.9x``."""
    return "-" if ratio is None else f"{ratio:.3g}x"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"
