"""Entropy coding of magnitudes: asymmetric numeral systems, many lanes in step.

A lane is a sequence of symbols with a state and 16-bit words of its own (Duda 2013,
arXiv:1311.2540; the word-wise form of Giesen 2014, arXiv:1402.3392). All lanes take one step at a
time, so that NumPy does the work; integers alone decide, so that every machine reads the same.

A symbol's model follows from a running mean of the magnitudes before it, which begins anew, at a
value that the caller gives, at every period of its lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.tables import PRECISION, UNIT_BITS, Array, models
from vlora_engine.errors import CorruptFileError

LOW = 1 << 16  # a state stays in [2^16, 2^32)
_SHIFT = np.uint64(PRECISION)
_WORD = np.uint64(16)
_ADAPT = 4  # the running mean moves by 1/16 of what it is off
_KEPT = 2  # eighths of the starting value that stay in it


@dataclass(frozen=True)
class Lanes:
    """What is known of L lanes on both sides.

    Args:
        lengths: (L,) symbols of each, not increasing.
        periods: (L,) after so many symbols a lane begins anew.
        starts: (L, times) int32 running means to begin with, in 1/256. shapes: (L, times) uint8.
    """

    lengths: Array
    periods: Array
    starts: Array
    shapes: Array

    @property
    def steps(self) -> int:
        return int(self.lengths[0]) if len(self.lengths) else 0

    def active(self) -> list[int]:
        """How many lanes are still going at each step."""
        ends = np.bincount(self.lengths, minlength=self.steps + 1)[: self.steps + 1]
        return (len(self.lengths) - np.cumsum(ends))[: self.steps].tolist()


def model_indices(lanes: Lanes, magnitudes: Array) -> Array:
    """(steps, L) uint8 the model of every symbol of ``magnitudes`` (steps, L) uint8.

    Which context a symbol has does not depend on the shapes: other shapes only add to the index.
    """
    table = models()
    out = np.zeros(magnitudes.shape, dtype=np.uint8)
    tracker = _Tracker(lanes)
    for step, count in enumerate(lanes.active()):
        out[step, :count] = tracker.model(step, count)
        tracker.see(magnitudes[step, :count])
    assert table.shapes * table.contexts <= 256  # noqa: S101  (a model's index is a byte)
    return out


class _Tracker:
    """The running means of all lanes, the same when writing and when reading."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes, self._table = lanes, models()
        count = len(lanes.lengths)
        self._mean = np.zeros(count, dtype=np.int32)
        self._kept = np.zeros(count, dtype=np.int32)
        self._base = np.zeros(count, dtype=np.uint8)
        self._turn = np.zeros(count, dtype=np.int64)
        self._next = 0  # the step at which some lane begins anew

    def model(self, step: int, count: int) -> Array:
        """The model of the symbol at ``step`` of the first ``count`` lanes."""
        if count < len(self._mean):
            self._mean, self._kept = self._mean[:count], self._kept[:count]
            self._base = self._base[:count]
        if step == self._next:
            self._begin(step, count)
        mixed = (self._kept + (8 - _KEPT) * self._mean) >> 3
        return self._base + self._table.context[mixed]

    def _begin(self, step: int, count: int) -> None:
        lanes = self._lanes
        due = np.flatnonzero(step % lanes.periods[:count] == 0)
        start = lanes.starts[due, self._turn[due]].astype(np.int32)
        self._mean[due], self._kept[due] = start, start * _KEPT
        self._base[due] = lanes.shapes[due, self._turn[due]] * np.uint8(self._table.contexts)
        self._turn[due] += 1
        self._next = int((self._turn[:count] * lanes.periods[:count]).min())

    def see(self, magnitude: Array) -> None:
        """Go on past a symbol."""
        off = (magnitude.astype(np.int32) << UNIT_BITS) - self._mean
        self._mean += off >> _ADAPT


def encode(
    lanes: Lanes, magnitudes: Array, model: Array, order: Array
) -> tuple[Array, Array, Array]:
    """Code (steps, L) uint8 magnitudes under the models that `model_indices` gives.

    Args:
        order: (L,) the lanes in the order in which they are to come back.

    Returns:
        states: (L,) uint32. words: those of all lanes, lane after lane, uint16, in the order of
        reading. written: (L,) how many each has.
    """
    table, count = models(), len(lanes.lengths)
    state = np.full(count, LOW, dtype=np.uint64)
    words = np.zeros((count, lanes.steps + 1), dtype=np.uint16)
    written = np.zeros(count, dtype=np.int64)
    active = lanes.active()
    for step in range(lanes.steps - 1, -1, -1):
        here, going = state[: active[step]], (step, slice(active[step]))
        at = model[going], magnitudes[going]
        own, before = (t[at].astype(np.uint64) for t in (table.frequency, table.first))
        full = np.flatnonzero(here >= own << np.uint64(32 - PRECISION))
        if len(full):
            words[full, written[full]] = here[full].astype(np.uint16)  # the low half
            written[full] += 1
            here[full] >>= _WORD
        whole, part = np.divmod(here, own)
        here[:] = (whole << _SHIFT) + part + before
    words, written, state = words[order], written[order], state[order]
    # Written from the last symbol to the first, and read the other way round.
    inside = np.arange(words.shape[1]) < written[:, None]
    return state.astype(np.uint32), words[:, ::-1][inside[:, ::-1]], written


def decode(lanes: Lanes, states: Array, words: Sequence[Array]) -> Array:
    """The inverse of `encode`: (steps, L) uint8 magnitudes.

    Raises:
        CorruptFileError: The words end too early, or are not those that were written.
    """
    table = models()
    lengths = np.array([len(w) for w in words], dtype=np.int64)
    place = np.cumsum(lengths) - lengths
    stream = np.concatenate([*words, np.zeros(1, dtype=np.uint16)]).astype(np.uint64)
    state = states.astype(np.uint64)
    out = np.zeros((lanes.steps, len(lengths)), dtype=np.uint8)
    tracker = _Tracker(lanes)
    mask, low = np.uint64((1 << PRECISION) - 1), np.uint64(LOW)
    end = len(stream) - 1
    for step, count in enumerate(lanes.active()):
        model = tracker.model(step, count)
        here = state[:count]
        slot = here & mask
        wide = model.astype(np.int64)
        symbol = table.symbol[(wide << PRECISION) + slot.astype(np.int64)]
        here = table.frequency[wide, symbol] * (here >> _SHIFT) + slot - table.first[wide, symbol]
        short = np.flatnonzero(here < low)
        if len(short):
            at = np.minimum(place[short], end)
            here[short] = (here[short] << _WORD) | stream[at]
            place[short] += 1
        state[:count] = here
        out[step, :count] = symbol
        tracker.see(symbol)
    if not ((state == low).all() and (place == np.cumsum(lengths)).all()):
        raise CorruptFileError(
            "Coded numbers do not end where they should.",
            expected="the words that were written",
            found="other words, or too few",
            remedy="restore the file from a copy, or compress the adapters again",
        )
    return out
