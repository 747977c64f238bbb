"""Orders by a figure that are the same on every machine: what differs by rounding alone is equal.

Sums of floats differ in their last digits from one CPU to another. Two tasks whose errors are
one number but for those digits would change places with the machine, and so would the one called
the worst. Here such figures tie, and names decide. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

CLOSE = 1e-6  # relative: some fp32 roundings; nobody is shown that many digits
FLOOR = 1e-9  # absolute: an error or a cosine as small as this is rounding altogether


def ranked(
    items: Iterable[T],
    figure: Callable[[T], float],
    name: Callable[[T], str | tuple[str, ...]] | None = None,
    *,
    largest: bool = True,
) -> list[T]:
    """Items in the order of a figure; those that are alike in it in the natural order of names.

    Alike are figures that lie within `CLOSE` (and at least `FLOOR`) of the first of their group,
    from where the order begins, so that no fixed border runs between two values that are nearly
    equal. What is not a number comes last.

    Args:
        name: What decides between those that are alike; without it the order in which they came.
        largest: The largest figure comes first; otherwise the smallest.
    """
    rows = _signed(items, figure, largest)
    numbers = sorted({value for value, _ in rows if not math.isnan(value)})
    groups, first = dict[float, int](), math.nan
    for value in numbers:
        if not _are_alike(value, first):
            first = value
        groups[value] = groups.get(first, len(groups))
    alike: dict[int, list[T]] = {}
    for value, item in rows:
        alike.setdefault(groups.get(value, len(groups)), []).append(item)
    return [item for _, group in sorted(alike.items()) for item in _by_name(group, name)]


def foremost(
    items: Iterable[T],
    figure: Callable[[T], float],
    name: Callable[[T], str | tuple[str, ...]] | None = None,
    *,
    largest: bool = True,
) -> T | None:
    """The first of `ranked`, None of nothing; without ordering the others."""
    rows = _signed(items, figure, largest)
    first = min((value for value, _ in rows if not math.isnan(value)), default=math.nan)
    alike = [item for value, item in rows if math.isnan(first) or _are_alike(value, first)]
    return next(iter(_by_name(alike, name)), None)


def worst(figures: Mapping[str, float], *, largest: bool = True) -> str | None:
    """The name with the largest figure, or the smallest; None of nothing."""
    return foremost(figures, figures.__getitem__, lambda name: name, largest=largest)


def by_number(text: str) -> tuple[tuple[int, Any], ...]:
    """A sort key that puts ``checkpoint-500`` before ``checkpoint-1000``."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((1, int(p)) if p.isdecimal() else (0, p) for p in parts if p)


def _signed(
    items: Iterable[T], figure: Callable[[T], float], largest: bool
) -> list[tuple[float, T]]:
    """Items with their figures, the least of which comes first."""
    sign = -1 if largest else 1
    return [(sign * float(figure(item)), item) for item in items]


def _are_alike(value: float, first: float) -> bool:
    """Whether a figure differs by rounding alone from the first of a group."""
    return value == first or value - first <= max(FLOOR, CLOSE * abs(first)) < math.inf


def _by_name(items: list[T], name: Callable[[T], str | tuple[str, ...]] | None) -> list[T]:
    if name is None or len(items) < 2:
        return items
    return sorted(items, key=lambda item: _names(name(item)))


def _names(name: str | tuple[str, ...]) -> tuple[Any, ...]:
    """A key that tells apart all names: those that differ in case alone by their letters."""
    names = (name,) if isinstance(name, str) else name
    return tuple((by_number(text), text) for text in names)
