"""Steps a target up or down by a key: along round values, about a tenth apart."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

RUNGS = (
    *(1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.2, 2.5, 2.8),
    *(3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 9.0),
)
LEAST_ERROR, MOST_ERROR = 1e-4, 0.9
LEAST_BYTES, MOST_BYTES = 1e3, 1e15


def moved(goal: tuple[str, float], step: int) -> tuple[str, float]:
    """A target so many rungs on: with a positive ``step`` to fewer bytes and more error.

    ``("max_error", 0.05)`` becomes 0.055; a k loses ``step`` directions, and may fall below 1.
    """
    name, value = goal
    if name == "k":
        return name, value - step
    if name == "budget":
        return name, min(max(on_rungs(value, -step), LEAST_BYTES), MOST_BYTES)
    error = 1 - value if name == "variance" else value
    error = min(max(on_rungs(error, step), LEAST_ERROR), MOST_ERROR)
    return name, round(1 - error, 9) if name == "variance" else error


def on_rungs(value: float, step: int) -> float:
    """The rung so many above ``value``, or below; from between two the next one first."""
    decade = math.floor(math.log10(max(value, 1e-12)) + 1e-9)
    lead = value / 10.0**decade
    if step > 0:
        index = bisect_right(RUNGS, lead * (1 + 1e-6)) - 1 + step
    else:
        index = bisect_left(RUNGS, lead * (1 - 1e-6)) + step
    decade += index // len(RUNGS)
    return float(f"{RUNGS[index % len(RUNGS)]:g}e{decade}")
