"""How far a job is as a whole: its stages follow each other, each takes its part of the time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from vlora_tui.pipeline.events import Progress


class Part(NamedTuple):
    """Stages of which a job has one, at the most, and how long that takes beside other parts."""

    stages: tuple[str, ...]
    weight: float


_CHECK, _SHARING = Part(("check",), 1), Part(("groups",), 2)
_MEASURE = (_CHECK, Part(("spectra",), 4), _SHARING, Part(("methods",), 4))
_BUILD = (
    _CHECK,
    Part(("spectra", "codec"), 4),
    _SHARING,
    Part(("build",), 6),
    Part(("refine",), 1),
)
_LATER = {
    "quantize": Part(("quantize",), 2),
    "export": Part(("export",), 2),
    "merge": Part(("merge",), 4),
    "resize": Part(("resize",), 2),
    "convert": Part(("convert",), 2),
    "push": Part(("upload",), 4),
}
_TABLE = re.compile(r"^\[+(\w+)", re.MULTILINE)


def parts_of(recipe: str) -> tuple[Part, ...]:
    """The parts of a job by its recipe, which is TOML; none of what has no recipe.

    A download comes first and is no part: whether there is one, and of how much, no recipe says.
    """
    tables = set(_TABLE.findall(recipe))
    if "input" not in tables:
        return ()
    first = _BUILD if "compress" in tables else ()
    later = tuple(part for table, part in _LATER.items() if table in tables)
    return (*first, *later) or _MEASURE


def share_of(parts: Sequence[Part], progress: Progress) -> float | None:
    """The share of all work that is done; None where the stage is of no part.

    What was passed over counts as done. A job without parts has one stage.
    """
    far = min(1.0, progress.done / progress.total) if progress.total else 0.0
    if not parts:
        return far
    before = 0.0
    for part in parts:
        if progress.stage in part.stages:
            return (before + far * part.weight) / sum(part.weight for part in parts)
        before += part.weight
    return None
