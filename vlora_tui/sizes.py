"""Bytes as people read them."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Bytes in steps of 10^3, as budgets count them, with three digits."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
