"""Bytes as people read them, and how far a stage is, whose units may be bytes."""

from __future__ import annotations

IN_BYTES = ("download", "upload")  # stages whose units are bytes


def size(nbytes: float) -> str:
    """Bytes in steps of 10^3, as budgets count them, with three digits."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def how_much(stage: str, done: int, total: int, of: str = "/") -> str:
    """``3/9``, or ``1.2 MB/4 MB`` of a stage that counts bytes."""
    return f"{size(done)}{of}{size(total)}" if stage in IN_BYTES else f"{done}{of}{total}"


def how_fast(stage: str, rate: float) -> str:
    """Units a second."""
    return f"{size(rate)}/s" if stage in IN_BYTES else f"{rate:.3g}/s"
