"""Keeping to a target while a collection is coded once: what was measured tells the next steps.

The tables are a few percent off. Layers are coded block by block, every block spread over the
whole depth, so that it is a sample of what is still to come; after each, the steps of the layers
that are left are chosen anew, so that what they bring and what was measured come to the target
together. The last block is small: what it brings is hardly uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlora_engine.codec.forecast import (
    COARSEST,
    FINEST,
    Forecast,
    Outlook,
)
from vlora_engine.codec.tables import Array
from vlora_engine.compression_target import CompressionTarget

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are spread evenly however many there are
_FIRST = 16  # of one layer in so many it is measured how far the tables are off, ...
_SHARE = 4  # ... then of one in so many of those that are left,
_LEAST = 2  # and of so many at least: the same ones with any number of workers
_REACH = 2.0  # octaves that a step may move
_HALVINGS = 15
_LOWER = 0.0005  # so much lower the second try of the last block aims, and each twice as much


def blocks(count: int) -> list[list[int]]:
    """The indices of ``count`` layers, in the blocks in which they are coded."""
    order = sorted(range(count), key=lambda i: ((i + 1) * _GOLDEN) % 1)
    found = []
    size = max(_LEAST, count // _FIRST)
    while order:
        if len(order) - size < _LEAST:
            size = len(order)
        found.append(sorted(order[:size]))
        order = order[size:]
        size = max(_LEAST, len(order) // _SHARE)
    return found


@dataclass
class Passed:
    """What coded layers came to, and what the tables had said of them.

    Args:
        missed, told: (N,) shares of ||dW||^2 that are missed. nbytes, told_bytes: payload.
    """

    missed: Array
    told: Array
    nbytes: float = 0.0
    told_bytes: float = 0.0

    def plus(self, other: Passed) -> Passed:
        """Both together."""
        return Passed(
            self.missed + other.missed,
            self.told + other.told,
            self.nbytes + other.nbytes,
            self.told_bytes + other.told_bytes,
        )

    @property
    def off(self) -> Array:
        """(N,) measured over told, of what is missed."""
        known = (self.told > 0) & (self.missed > 0)
        return np.where(known, self.missed / np.where(known, self.told, 1), 1.0)

    @property
    def bytes_off(self) -> float:
        """Measured over told, of the payload."""
        return self.nbytes / self.told_bytes if self.nbytes and self.told_bytes else 1.0


@dataclass
class Course:
    """Chooses steps for what is left of a collection.

    Args:
        forecast: The steps and modes to begin with. wanted: See `CompressionTarget.allowed`.
        beside: Bytes on disk that are neither payload nor rest tensors.
    """

    outlook: Outlook
    target: CompressionTarget
    wanted: float
    forecast: Forecast
    beside: float
    passed: Passed = field(init=False)
    _lower: float = _LOWER

    def __post_init__(self) -> None:
        nothing = np.zeros(len(self.outlook.tasks))
        self.passed = Passed(nothing, nothing)

    def steps(self, left: Sequence[int], off: Passed | None = None) -> Array:
        """(N,) steps with which the layers ``left`` bring all to the target.

        Args:
            off: What tells how far the tables are off, where not everything that has passed does.
        """
        known = off or self.passed
        part, modes = self.outlook.only(left), [self.forecast.modes[i] for i in left]
        alike = self.target.max_error is None  # one multiplier for all tasks
        low, high = (np.full(1 if alike else len(self.outlook.tasks), x) for x in (-1.0, 1.0))
        low, high = low * _REACH, high * _REACH
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = part.forecast(self._moved(middle), modes)
            coarser = self._may_be_coarser(found, known)
            low, high = np.where(coarser, middle, low), np.where(coarser, high, middle)
        return self._moved(high if self.target.budget is not None else low)

    def steered_again(
        self, last: Sequence[int], steps: Array, found: Passed, allowed: float
    ) -> Array:
        """Steps for the last block once more, which came to ``found`` with ``steps``.

        Every try aims a little lower: a direction that comes or goes with a step can upset what
        was told of it. Of a bound for each task only those that exceed it move, unless something
        is shared, which moves for all.
        """
        self.wanted *= 1 - self._lower
        self._lower *= 2
        moved = self.steps(last, found)
        if self.target.max_error is None or any(self.forecast.modes[i] for i in last):
            return moved
        exceeds = self.passed.missed + found.missed > allowed**2
        return np.where(exceeds, moved, steps) if exceeds.any() else moved

    def measured(self, layers: Sequence[int], steps: Array, missed: Array, nbytes: int) -> Passed:
        """What ``layers`` came to with ``steps``, beside what the tables say of that."""
        modes = [self.forecast.modes[i] for i in layers]
        told = self.outlook.only(layers).forecast(steps, modes)
        return Passed(missed, np.square(told.errors), float(nbytes), told.payload)

    def _moved(self, octaves: Array) -> Array:
        moved: Array = self.forecast.steps * np.exp2(octaves)
        return moved.clip(FINEST, COARSEST)

    def _may_be_coarser(self, found: Forecast, known: Passed) -> Array:
        """Whether (1,) all, or (N,) each task, keeps to the target; of a budget, whether not."""
        if self.target.budget is not None:
            whole = self.beside + self.passed.nbytes + known.bytes_off * found.payload
            return np.array([whole > self.wanted])
        missed = self.passed.missed + known.off * np.square(found.errors)
        if self.target.max_error is not None:
            return missed <= self.wanted**2
        if self.target.variance is not None:
            return np.array([missed.mean() <= self.wanted])
        return np.array([np.sqrt(missed).mean() <= self.wanted])
