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

from vlora_engine.codec.algebra import transposed
from vlora_engine.codec.tables import PRECISION, UNIT_BITS, Array, models
from vlora_engine.errors import CorruptFileError

LOW = 1 << 16  # a state stays in [2^16, 2^32)
_SHIFT = np.uint64(PRECISION)
_WORD = np.uint64(16)
_ADAPT = 4  # the running mean moves by 1/16 of what it is off
_KEPT = 2  # eighths of the starting value that stay in it
_HALF = np.array(16, dtype=np.uint32)
_STEPS_AT_ONCE = 128
_PUSHED_AT_ONCE = 16  # what is looked up of so many steps stays in a core's cache


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
        return int(self.lengths.max(initial=0))

    def only(self, at: Array) -> Lanes:
        """Those at some places."""
        return Lanes(self.lengths[at], self.periods[at], self.starts[at], self.shapes[at])

    def active(self) -> list[int]:
        """How many lanes are still going at each step."""
        ends = np.bincount(self.lengths, minlength=self.steps + 1)[: self.steps + 1]
        return (len(self.lengths) - np.cumsum(ends))[: self.steps].tolist()


def contexts(lanes: Lanes, magnitudes: Array) -> Array:
    """(steps, L) uint8 the context of every symbol of ``magnitudes`` (steps, L) uint8.

    All lanes have one period here. What `_Tracker` does while reading, of many steps at once
    where no step needs the one before: ``(k start + (8 - k) mean) >> 3`` in 16 bits.
    """
    table, out = models(), np.empty(magnitudes.shape, dtype=np.uint8)
    period = int(lanes.periods[0])
    for begin in range(0, lanes.steps, period):
        start = lanes.starts[:, begin // period].astype(np.int16)
        mean = start
        for step in range(begin, min(begin + period, lanes.steps), _STEPS_AT_ONCE):
            block = slice(step, min(step + _STEPS_AT_ONCE, begin + period, lanes.steps))
            means = _running_means(mean, magnitudes[block])
            mean = means[-1]
            mixed = means[:-1].view(np.uint16)
            mixed *= np.uint16(8 - _KEPT >> 1)
            mixed += start.view(np.uint16) * np.uint16(_KEPT >> 1)
            mixed >>= np.uint16(2)
            table.context.take(mixed, out=out[block], mode="clip")
    return out


def _running_means(first: Array, magnitudes: Array) -> Array:
    """(steps + 1, L) int16 the running means before each step and after the last."""
    level = magnitudes.astype(np.int16) << np.int16(UNIT_BITS)
    means = np.empty((len(level) + 1, len(first)), dtype=np.int16)
    means[0], off, shift = first, np.empty_like(first), np.array(_ADAPT, dtype=np.int16)
    for i, now in enumerate(level):
        np.subtract(now, means[i], out=off)
        np.right_shift(off, shift, out=off)
        np.add(means[i], off, out=means[i + 1])
    return means


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


def encode(lanes: Lanes, symbols: Array, order: Array) -> tuple[Array, Array, Array]:
    """Code (steps, L) uint16 symbols: 64 times the model, which `contexts` and a shape make, plus
    the magnitude.

    Args:
        order: (L,) the lanes in the order in which they are to come back.

    Returns:
        states: (L,) uint32. words: those of all lanes, lane after lane, uint16, in the order of
        reading. written: (L,) how many each has.
    """
    state = np.full(len(lanes.lengths), LOW, dtype=np.uint32)
    words = np.empty(symbols.shape, dtype=np.uint16)
    full = np.zeros(symbols.shape, dtype=bool)
    active, push = lanes.active(), _Push(len(state))
    for end in range(lanes.steps, 0, -_PUSHED_AT_ONCE):
        begin = max(0, end - _PUSHED_AT_ONCE)
        push.look_up(symbols[begin:end])
        for step in range(end - 1, begin - 1, -1):
            count = active[step]
            push(step - begin, state[:count], words[step, :count], full[step, :count])
    # Written from the last symbol to the first, and read the other way round.
    inside = transposed(full)[order]
    written = inside.sum(axis=1, dtype=np.int64)
    return state[order], np.compress(inside.ravel(), transposed(words)[order].ravel()), written


class _Push:
    """Puts a symbol into each of many states; arrays are kept, since making them takes longer."""

    def __init__(self, lanes: int) -> None:
        table = models()
        self._frequency, self._first = table.frequency.ravel(), table.first.ravel()
        self._whole = np.empty(lanes, dtype=np.uint32)
        self._wide = np.empty(lanes)

    def look_up(self, symbols: Array) -> None:
        """What is known of some steps (steps, L) before the states are."""
        index = symbols.astype(np.intp)
        own = self._frequency.take(index, mode="clip")
        self._before = self._first.take(index, mode="clip")
        self._own, self._others = own.astype(np.float64), np.uint32(1 << PRECISION) - own
        self._limit = own << np.uint32(32 - PRECISION)

    def __call__(self, step: int, state: Array, word: Array, full: Array) -> None:
        """Of one of those steps: ``state`` (n,) as it becomes, the ``word`` written if ``full``.

        ``(x / f) << 14 | x % f + first`` is ``x + first + (x / f) (2^14 - f)``. The quotient of two
        such integers in fp64 is never rounded up to the next one: it is a 2^-14 away, of 2^18.
        """
        n = len(state)
        whole, wide = self._whole[:n], self._wide[:n]
        np.greater_equal(state, self._limit[step, :n], out=full)
        np.copyto(word, state, casting="unsafe")  # the low half
        np.right_shift(state, _HALF, out=whole)
        np.copyto(state, whole, where=full)
        np.divide(state, self._own[step, :n], out=wide)
        np.copyto(whole, wide, casting="unsafe")
        np.multiply(whole, self._others[step, :n], out=whole)
        np.add(state, self._before[step, :n], out=state)
        np.add(state, whole, out=state)


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
