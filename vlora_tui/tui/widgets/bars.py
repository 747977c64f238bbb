"""Bars in text, to stand beside a figure."""

from __future__ import annotations

PARTS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int, *, ascii_only: bool) -> str:
    """A bar of ``width`` cells of which a share from 0 to 1 is full, however little something."""
    share = min(1.0, max(0.0, share))
    if ascii_only:
        full = max(round(share * width), int(share > 0))
        return "#" * full + "." * (width - full)
    eighths = max(round(share * width * 8), int(share > 0))
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (PARTS[part] if part else "")
    return text.ljust(width)
