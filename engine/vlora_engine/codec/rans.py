"""Entropy code magnitudes by range asymmetric numeral systems (rANS), many lanes in step.

A lane is a sequence of symbols with a state x and 16-bit words of its own (Duda 2013,
arXiv:1311.2540; the word-wise interleaved form of Giesen 2014, arXiv:1402.3392). All
lanes take one step at a time, so that NumPy works on whole arrays; all decisions are on integers,
so that every machine reads the same.

A symbol's model follows from a running mean of the magnitudes before it. The mean restarts, at a
value that the caller gives, at every period of its lane (docs/mathematics.md#entropy-coder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.algebra import transposed
from vlora_engine.codec.floats import unsound
from vlora_engine.codec.tables import PRECISION, UNIT_BITS, Array, models
from vlora_engine.errors import CorruptFileError

LOW = 1 << 16  # a state x stays in [2^16, 2^32)
_SHIFT = np.uint64(PRECISION)
_WORD = np.uint64(16)
_ADAPT = 4  # mean <- mean + (magnitude - mean) / 2^4
_START_EIGHTHS = 2  # the context is that of (2 start + 6 mean) / 8
_HALF = np.array(16, dtype=np.uint32)
_STEPS_AT_ONCE = 128
_PUSHED_AT_ONCE = 16  # steps whose frequencies, looked up together, fit in a core's cache


@dataclass(frozen=True)
class Lanes:
    """What encoder and decoder both know of L lanes.

    Args:
        lengths: (L,) symbols of each, not increasing.
        periods: (L,) symbols after which a lane's running mean restarts.
        starts: (L, times) int32 running means to start with, in 1/256.
        shapes: (L, times) uint8 the shape of the distribution in each period.
    """

    lengths: Array
    periods: Array
    starts: Array
    shapes: Array

    @property
    def steps(self) -> int:
        """The number of symbols in the longest lane."""
        return int(self.lengths.max(initial=0))

    def only(self, at: Array) -> Lanes:
        """The lanes at these indices, in this order."""
        return Lanes(self.lengths[at], self.periods[at], self.starts[at], self.shapes[at])

    def active(self) -> list[int]:
        """The number of lanes that have a symbol at each step."""
        ends = np.bincount(self.lengths, minlength=self.steps + 1)[: self.steps + 1]
        active: list[int] = (len(self.lengths) - np.cumsum(ends))[: self.steps].tolist()
        return active


def contexts(lanes: Lanes, magnitudes: Array) -> Array:
    """The context (steps, L) uint8 of every symbol of ``magnitudes`` (steps, L) uint8.

    All lanes have one period here. Computes what `_Tracker` does while reading, but for many steps
    at once where no step needs the one before: ``(k start + (8 - k) mean) >> 3`` in 16 bits.
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
            mixed *= np.uint16(8 - _START_EIGHTHS >> 1)
            mixed += start.view(np.uint16) * np.uint16(_START_EIGHTHS >> 1)
            mixed >>= np.uint16(2)
            table.context.take(mixed, out=out[block], mode="clip")
    return out


def _running_means(first: Array, magnitudes: Array) -> Array:
    """The running means (steps + 1, L) int16 before each step and after the last."""
    level = magnitudes.astype(np.int16) << np.int16(UNIT_BITS)
    means = np.empty((len(level) + 1, len(first)), dtype=np.int16)
    means[0], difference, shift = first, np.empty_like(first), np.array(_ADAPT, dtype=np.int16)
    for i, target in enumerate(level):
        np.subtract(target, means[i], out=difference)
        np.right_shift(difference, shift, out=difference)
        np.add(means[i], difference, out=means[i + 1])
    return means


class _Tracker:
    """The running means of all lanes while reading, from which each symbol's model follows."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes, self._table = lanes, models()
        count = len(lanes.lengths)
        self._mean = np.zeros(count, dtype=np.int32)
        self._start_share = np.zeros(count, dtype=np.int32)
        self._base = np.zeros(count, dtype=np.uint8)
        self._turn = np.zeros(count, dtype=np.int64)
        self._next = 0  # the step at which some lane begins anew

    def model(self, step: int, count: int) -> Array:
        """The models (count,) of the symbols at ``step`` of the first ``count`` lanes."""
        if count < len(self._mean):
            self._mean, self._start_share = self._mean[:count], self._start_share[:count]
            self._base = self._base[:count]
        if step == self._next:
            self._begin(step, count)
        mixed = (self._start_share + (8 - _START_EIGHTHS) * self._mean) >> 3
        context: Array = self._base + self._table.context[mixed]
        return context

    def _begin(self, step: int, count: int) -> None:
        lanes = self._lanes
        due = np.flatnonzero(step % lanes.periods[:count] == 0)
        start = lanes.starts[due, self._turn[due]].astype(np.int32)
        self._mean[due], self._start_share[due] = start, start * _START_EIGHTHS
        self._base[due] = lanes.shapes[due, self._turn[due]] * np.uint8(self._table.contexts)
        self._turn[due] += 1
        self._next = int((self._turn[:count] * lanes.periods[:count]).min())

    def update(self, magnitude: Array) -> None:
        """Move the running means by the magnitudes (count,) just read."""
        difference = (magnitude.astype(np.int32) << UNIT_BITS) - self._mean
        self._mean += difference >> _ADAPT


def encode(lanes: Lanes, symbols: Array, order: Array) -> tuple[Array, Array, Array]:
    """Encode symbols, lane by lane.

    Args:
        lanes: L lanes.
        symbols: (steps, L) uint16: 64 times the model (shape and context), plus the magnitude.
        order: (L,) the lanes in the order in which they are returned.

    Returns:
        states: (L,) uint32, the final states.
        words: uint16, those of all lanes, lane after lane, in the order of reading.
        written: (L,) the number of words of each.
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
    """Encodes one symbol into each of many states; buffers are reused, which saves time."""

    def __init__(self, lanes: int) -> None:
        table = models()
        self._frequency, self._first = table.frequency.ravel(), table.first.ravel()
        self._whole = np.empty(lanes, dtype=np.uint32)
        self._wide = np.empty(lanes)

    def look_up(self, symbols: Array) -> None:
        """Look up frequencies of some steps' symbols (steps, L), which need no state."""
        index = symbols.astype(np.intp)
        frequency = self._frequency.take(index, mode="clip")
        self._step_first = self._first.take(index, mode="clip")
        self._step_frequency, self._complement = (
            frequency.astype(np.float64),
            np.uint32(1 << PRECISION) - frequency,
        )
        self._limit = frequency << np.uint32(32 - PRECISION)

    def __call__(self, step: int, state: Array, word: Array, full: Array) -> None:
        """Encode one of those steps: updates ``state`` (n,); ``word`` counts where ``full``.

        ``x <- ((x / f) << 14) + x % f + first``, which is ``x + first + (x / f) (2^14 - f)``. The
        quotient of two such integers in fp64 is never rounded up to the next one: it is at least
        2^-14 away from it, and less than 2^18.
        """
        n = len(state)
        whole, wide = self._whole[:n], self._wide[:n]
        np.greater_equal(state, self._limit[step, :n], out=full)
        np.copyto(word, state, casting="unsafe")  # the low half
        np.right_shift(state, _HALF, out=whole)
        np.copyto(state, whole, where=full)
        np.divide(state, self._step_frequency[step, :n], out=wide)
        np.copyto(whole, wide, casting="unsafe")
        np.multiply(whole, self._complement[step, :n], out=whole)
        np.add(state, self._step_first[step, :n], out=state)
        np.add(state, whole, out=state)


def decode(lanes: Lanes, states: Array, words: Sequence[Array]) -> Array:
    """Decode what `encode` wrote: magnitudes (steps, L) uint8.

    Args:
        lanes: The same lanes.
        states: (L,) the encoder's final states.
        words: Those of each lane.

    Raises:
        CorruptFileError: The words end too early, or are not those that were written.
    """
    table = models()
    lengths = np.array([len(w) for w in words], dtype=np.int64)
    position = np.cumsum(lengths) - lengths
    stream = np.concatenate([*words, np.zeros(1, dtype=np.uint16)]).astype(np.uint64)
    state = states.astype(np.uint64)
    out = np.zeros((lanes.steps, len(lengths)), dtype=np.uint8)
    tracker = _Tracker(lanes)
    mask, low = np.uint64((1 << PRECISION) - 1), np.uint64(LOW)
    end = len(stream) - 1
    for step, count in enumerate(lanes.active()):
        model = tracker.model(step, count)
        active = state[:count]
        slot = active & mask
        row = model.astype(np.int64)
        # x <- f (x >> 14) + (x mod 2^14) - first; a word is read where x falls below 2^16.
        symbol = table.symbol[(row << PRECISION) + slot.astype(np.int64)]
        active = table.frequency[row, symbol] * (active >> _SHIFT) + slot - table.first[row, symbol]
        short = np.flatnonzero(active < low)
        if len(short):
            source = np.minimum(position[short], end)
            active[short] = (active[short] << _WORD) | stream[source]
            position[short] += 1
        state[:count] = active
        out[step, :count] = symbol
        tracker.update(symbol)
    if not ((state == low).all() and (position == np.cumsum(lengths)).all()):
        raise other_words()
    return out


def other_words() -> CorruptFileError:
    """The error for words that are not those that were written, or too few."""
    what = "Coded numbers do not end where they should."
    return unsound(what, "other words, or too few", "the words that were written")
