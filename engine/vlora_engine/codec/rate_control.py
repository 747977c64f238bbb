"""Rate control: meet a target while coding a collection once, by correcting steps on the way.

The forecast is a few percent off. Layers are coded block by block, every block spread over the
whole depth, so that it is a sample of what is still to come; after each, the steps of the remaining
layers are chosen anew, so that they and what was measured meet the target together. The last block
is small: what it adds is hardly uncertain (docs/mathematics.md#meeting-a-target).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlora_engine.codec.forecast import COARSEST, FINEST, Forecast, RateTables
from vlora_engine.codec.tables import Array
from vlora_engine.compression_target import CompressionTarget

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly, however many there are
_FIRST = 16  # the first block holds one layer in 16, ...
_SHARE = 4  # ... each later one a quarter of the remaining layers,
_LEAST = 2  # ... and each at least two; all independent of the number of workers
_REACH = 2.0  # octaves by which a step may move
_HALVINGS = 15
_LOWER = 0.0005  # how much lower the second try of the last block aims, doubled each time


def blocks(count: int) -> list[list[int]]:
    """Divide ``count`` layers into the blocks in which they are coded, as indices."""
    order = sorted(range(count), key=lambda i: ((i + 1) * _GOLDEN) % 1)
    result = []
    size = max(_LEAST, count // _FIRST)
    while order:
        if len(order) - size < _LEAST:
            size = len(order)
        result.append(sorted(order[:size]))
        order = order[size:]
        size = max(_LEAST, len(order) // _SHARE)
    return result


@dataclass
class Measured:
    """What coded layers came to, beside what the forecast predicted for them.

    Args:
        missed: (N,) measured ||dW_i - dW^_i||^2 over the adapter's ||dW_i||^2.
        predicted: (N,) the forecast of it.
        nbytes: Measured payload in bytes.
        predicted_bytes: The forecast of it.
    """

    missed: Array
    predicted: Array
    nbytes: float = 0.0
    predicted_bytes: float = 0.0

    def plus(self, other: Measured) -> Measured:
        """Add up two sets of figures."""
        return Measured(
            self.missed + other.missed,
            self.predicted + other.predicted,
            self.nbytes + other.nbytes,
            self.predicted_bytes + other.predicted_bytes,
        )

    @property
    def missed_ratio(self) -> Array:
        """Measured over predicted error energy, (N,); 1 where either is 0."""
        both = (self.predicted > 0) & (self.missed > 0)
        return np.where(both, self.missed / np.where(both, self.predicted, 1), 1.0)

    @property
    def bytes_ratio(self) -> float:
        """Measured over predicted payload; 1 where either is 0."""
        return self.nbytes / self.predicted_bytes if self.nbytes and self.predicted_bytes else 1.0


@dataclass
class RateController:
    """Chooses the steps of the remaining layers from what the coded ones came to.

    Args:
        rate_tables: The tables of the collection.
        target: What has to be met.
        aim: The number that must not be exceeded; see `CompressionTarget.allowed`.
        forecast: The steps and modes to begin with.
        overhead: Bytes on disk that are neither payload nor rest tensors.
    """

    rate_tables: RateTables
    target: CompressionTarget
    aim: float
    forecast: Forecast
    overhead: float
    measured: Measured = field(init=False)
    _lower: float = _LOWER

    def __post_init__(self) -> None:
        nothing = np.zeros(len(self.rate_tables.tasks))
        self.measured = Measured(nothing, nothing)

    def steps(self, remaining: Sequence[int], calibration: Measured | None = None) -> Array:
        """Choose steps (N,) with which the remaining layers bring the collection to the target.

        Args:
            remaining: Indices of the layers that are not coded yet.
            calibration: Layers that show how far the forecast is off; by default all coded ones.
        """
        calibrated = calibration or self.measured
        tables = self.rate_tables.only(remaining)
        modes = [self.forecast.modes[i] for i in remaining]
        one_step = self.target.max_error is None  # one multiplier for all tasks
        reach = np.full(1 if one_step else len(self.rate_tables.tasks), _REACH)
        low, high = -reach, reach
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            forecast = tables.forecast(self._moved(middle), modes)
            coarser = self._may_be_coarser(forecast, calibrated)
            low, high = np.where(coarser, middle, low), np.where(coarser, high, middle)
        return self._moved(high if self.target.budget is not None else low)

    def retry_steps(
        self, last: Sequence[int], steps: Array, tried: Measured, allowed: float
    ) -> Array:
        """Choose steps (N,) to code the last block once more, after it missed the target.

        Every try aims a little lower: a direction that comes or goes with a step can upset the
        forecast. Under a bound for each task only the tasks that exceed it move, unless something
        is shared, which moves for all.

        Args:
            last: Indices of the block's layers.
            steps: (N,) of the try before.
            tried: What the block came to with them.
            allowed: See `CompressionTarget.allowed`.
        """
        self.aim *= 1 - self._lower
        self._lower *= 2
        moved = self.steps(last, tried)
        if self.target.max_error is None or any(self.forecast.modes[i] for i in last):
            return moved
        exceeds = self.measured.missed + tried.missed > allowed**2
        return np.where(exceeds, moved, steps) if exceeds.any() else moved

    def measure(self, layers: Sequence[int], steps: Array, missed: Array, nbytes: int) -> Measured:
        """Compare what ``layers`` came to with ``steps`` to the forecast for these steps."""
        modes = [self.forecast.modes[i] for i in layers]
        predicted = self.rate_tables.only(layers).forecast(steps, modes)
        return Measured(missed, np.square(predicted.errors), float(nbytes), predicted.payload)

    def _moved(self, octaves: Array) -> Array:
        moved: Array = self.forecast.steps * np.exp2(octaves)
        return moved.clip(FINEST, COARSEST)

    def _may_be_coarser(self, forecast: Forecast, calibration: Measured) -> Array:
        """Whether steps may be coarser: (1,) for all tasks, or (N,) for each.

        For a budget it is the reverse, whether they must be.
        """
        if self.target.budget is not None:
            whole = (
                self.overhead + self.measured.nbytes + calibration.bytes_ratio * forecast.payload
            )
            return np.array([whole > self.aim])
        missed = self.measured.missed + calibration.missed_ratio * np.square(forecast.errors)
        if self.target.max_error is not None:
            met: Array = missed <= self.aim**2
            return met
        if self.target.variance is not None:
            return np.array([missed.mean() <= self.aim])
        return np.array([np.sqrt(missed).mean() <= self.aim])
