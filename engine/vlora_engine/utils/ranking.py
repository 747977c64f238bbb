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
    sign = -1 if largest else 1
    rows = [(sign * float(figure(item)), item) for item in items]
    numbers = sorted({value for value, _ in rows if not math.isnan(value)})
    groups, first = dict[float, int](), math.nan
    for value in numbers:
        if not (value == first or value - first <= max(FLOOR, CLOSE * abs(first)) < math.inf):
            first = value
        groups[value] = groups.get(first, len(groups))

    def key(row: tuple[float, T]) -> tuple[Any, ...]:
        return groups.get(row[0], len(groups)), () if name is None else _names(name(row[1]))

    return [item for _, item in sorted(rows, key=key)]


def foremost(
    items: Iterable[T],
    figure: Callable[[T], float],
    name: Callable[[T], str | tuple[str, ...]] | None = None,
    *,
    largest: bool = True,
) -> T | None:
    """The first of `ranked`, None of nothing."""
    return next(iter(ranked(items, figure, name, largest=largest)), None)


def worst(figures: Mapping[str, float], *, largest: bool = True) -> str | None:
    """The name with the largest figure, or the smallest; None of nothing."""
    return foremost(figures, figures.__getitem__, lambda name: name, largest=largest)


def by_number(text: str) -> tuple[tuple[int, Any], ...]:
    """A sort key that puts ``checkpoint-500`` before ``checkpoint-1000``."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((1, int(p)) if p.isdecimal() else (0, p) for p in parts if p)


def _names(name: str | tuple[str, ...]) -> tuple[Any, ...]:
    """A key that tells apart all names: those that differ in case alone by their letters."""
    names = (name,) if isinstance(name, str) else name
    return tuple((by_number(text), text) for text in names)
