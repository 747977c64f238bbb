"""Which cells of a widget's lines changed, so that no others are painted again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

NEAR = 8  # cells between two stretches that are cheaper painted than jumped over


def changed_regions(before: Sequence[Strip], after: Sequence[Strip]) -> list[Region]:
    """Where lines differ from those painted before, a stretch of cells or two in each."""
    if len(before) != len(after):
        return [Region(0, 0, max((s.cell_length for s in after), default=0), len(after))]
    return [
        Region(start, y, end - start, 1)
        for y, (old, new) in enumerate(zip(before, after, strict=True))
        if old != new
        for start, end in _stretches(_cells(old), _cells(new))
    ]


def _cells(strip: Strip) -> list[tuple[str, Style | None]]:
    """Every cell of a line of narrow characters."""
    return [(char, segment.style) for segment in strip for char in segment.text]


def _stretches(
    old: Sequence[tuple[str, Style | None]], new: Sequence[tuple[str, Style | None]]
) -> list[tuple[int, int]]:
    """Stretches that differ; those that lie near each other are one."""
    if len(old) != len(new):
        return [(0, len(new))]
    found: list[tuple[int, int]] = []
    for x, (one, other) in enumerate(zip(old, new, strict=True)):
        if one == other:
            continue
        if found and x - found[-1][1] < NEAR:
            found[-1] = found[-1][0], x + 1
        else:
            found.append((x, x + 1))
    return found
