"""The loops of the entropy coder, written out number by number for a compiler.

`vlora_engine.codec.compiled` compiles them where numba is installed; as Python they are a slow way
to the same bytes. What they compute, and why, stands in `vlora_engine.codec.rans` and
`vlora_engine.codec.vectors`, which do it in NumPy. Indices are not checked in compiled code: every
one of them is bounded by what the caller has checked, or here.

All numbers are int64, so that nothing overflows: a state is below 2^32, a magnitude with its low
bits below 2^58. What depends on the numbers coded is added up without branches, which no processor
foresees: a bit is counted by 0 or 1, a word is read or written in any case and only then counted.
"""

from __future__ import annotations

import numpy as np

from vlora_engine.codec.tables import Array

_LOW = 1 << 16
_SLOT_BITS = 14
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_ESCAPE = 63
_CODE_MASK = 0xFFFF
_LANE = 2048  # symbols of a lane at most


def row_sums(rows: Array, low_bits: Array, sums: Array) -> None:
    """Sum the magnitudes of rows (n, d) int32, without their low bits (n,), into ``sums`` (n,)."""
    for v in range(rows.shape[0]):
        total = 0
        for i in range(rows.shape[1]):
            total += abs(np.int64(rows[v, i])) >> low_bits[v]
        sums[v] = total


def find_symbols(
    rows: Array,
    low_bits: Array,
    start: Array,
    pieces: int,
    period: int,
    sampled: int,
    context: Array,
    starts: Array,
    cost: Array,
    symbols: Array,
    shape: Array,
) -> None:
    """Find the symbols of a matrix, and choose the shape of every vector.

    Args:
        rows: (n, d) int32.
        low_bits: (n,) int64.
        start: (n,) uint8.
        pieces: Of a vector; each but the last has ``period`` numbers.
        sampled: Of how many symbols of a lane one is looked at for the choice.
        context: (63 * 256 + 1,) uint8.
        starts: (56,) int64.
        cost: (shapes, contexts * 64) int32.
        symbols: (n * d,) uint16, filled: 64 times the model, plus the magnitude.
        shape: (n,) uint8, filled.
    """
    d = rows.shape[1]
    in_a_lane = max(1, _LANE // period) if pieces == 1 else 1
    bits = np.zeros(cost.shape[0], dtype=np.int64)
    for v in range(rows.shape[0]):
        bits[:] = 0
        first = starts[start[v]]
        # It is every fifth symbol of a lane, not of a vector: where vectors share a lane, they
        # are looked at from another number on.
        skipped = -((v % in_a_lane) * period) % sampled
        for begin in range(0, d, period):
            mean = first
            for i in range(begin, min(d, begin + period)):
                high = min(abs(np.int64(rows[v, i])) >> low_bits[v], _ESCAPE)
                symbol = np.int64(context[(2 * first + 6 * mean) >> 3]) << 6 | high
                symbols[v * d + i] = symbol
                mean += ((high << 8) - mean) >> 4
            for i in range(begin + skipped, min(d, begin + period), sampled):
                for k in range(cost.shape[0]):
                    bits[k] += cost[k, symbols[v * d + i]]
        best = 0
        for k in range(1, cost.shape[0]):
            if bits[k] < bits[best]:
                best = k
        shape[v] = best
        for i in range(d):
            symbols[v * d + i] += best * cost.shape[1]


def encode_lanes(
    symbols: Array,
    lengths: Array,
    code: Array,
    inverse: Array,
    states: Array,
    written: Array,
    words: Array,
) -> int:
    """Encode symbols (numbers,) uint16, lane after lane; return the number of words.

    Args:
        lengths: (L,) int64 symbols of each lane, at most 2048.
        code: (models * 64,) uint32, frequencies in the upper half and first slots in the lower.
        inverse: (models * 64,) fp64, a little more than 1 / frequency.
        states: (L,) uint32, filled.
        written: (L,) uint16, filled with the words of each lane.
        words: (numbers,) uint16, filled from its beginning.
    """
    backwards = np.zeros(_LANE + 1, dtype=np.uint16)
    total, begin = 0, 0
    for lane in range(len(lengths)):
        state, count = _LOW, 0
        for i in range(begin + lengths[lane] - 1, begin - 1, -1):
            symbol = symbols[i]
            frequency = np.int64(code[symbol]) >> 16
            full = np.int64(state >= frequency << (32 - _SLOT_BITS))
            backwards[count] = state & 0xFFFF
            count += full
            state >>= full << 4
            quotient = np.int64(state * inverse[symbol])
            state += (np.int64(code[symbol]) & _CODE_MASK) + quotient * (_SLOT_MASK + 1 - frequency)
        begin += lengths[lane]
        states[lane], written[lane] = state, count
        for i in range(count):
            words[total + i] = backwards[count - 1 - i]
        total += count
    return total


def pack_rest(
    rows: Array, low_bits: Array, signs: Array, low: Array, beyond: Array
) -> tuple[int, int]:
    """Pack what is stored beside the words; return the bytes of signs, and the escapes.

    Args:
        rows: (n, d) int32.
        low_bits: (n,) int64.
        signs: uint8, one bit a number at most; filled from its beginning.
        low: uint8, (low_bits * d) bits, filled.
        beyond: uint32, filled with what magnitudes exceed the escape by.
    """
    sign_byte, signed, nonzero, low_byte, pending, lows, escapes = 0, 0, 0, 0, 0, 0, 0
    for v in range(rows.shape[0]):
        width = low_bits[v]
        for i in range(rows.shape[1]):
            x = np.int64(rows[v, i])
            magnitude = abs(x)
            is_one = np.int64(x != 0)
            sign_byte = sign_byte << is_one | np.int64(x < 0)
            nonzero += is_one
            if nonzero == 8:
                signs[signed] = sign_byte
                signed += 1
                sign_byte, nonzero = 0, 0
            high = magnitude >> width
            if high >= _ESCAPE:
                beyond[escapes] = high - _ESCAPE
                escapes += 1
            if width > 0:
                low_byte = low_byte << width | (magnitude - (high << width))
                pending += width
                while pending >= 8:
                    pending -= 8
                    low[lows] = low_byte >> pending
                    lows += 1
                    low_byte &= (1 << pending) - 1
    if nonzero:
        signs[signed] = sign_byte << (8 - nonzero)
        signed += 1
    if pending:
        low[lows] = low_byte << (8 - pending)
    return signed, escapes


def decode_lanes(
    lengths: Array,
    d: int,
    period: int,
    contexts: int,
    start: Array,
    shape: Array,
    states: Array,
    written: Array,
    words: Array,
    code: Array,
    symbol: Array,
    context: Array,
    starts: Array,
    high: Array,
) -> int:
    """Decode the lanes of a matrix; return the number of escapes, or -1 for words that do not fit.

    Args:
        lengths: (L,) int64 symbols of each lane; n * d all in all.
        d: Of a vector, which has pieces of ``period`` numbers.
        contexts: Of a shape.
        start: (n,) uint8, each below 56.
        shape: (n,) uint8, each below 4.
        states: (L,) uint32.
        written: (L,) int64.
        words: uint16, as many as ``written`` says, and one more.
        code: See `encode_lanes`.
        symbol: (models * 2^14,) uint8.
        context: (63 * 256 + 1,) uint8.
        starts: (56,) int64.
        high: (n * d,) uint8, filled with magnitudes, at most 63.
    """
    at, done, escapes, sound, last = 0, 0, 0, True, len(words) - 1
    for lane in range(len(lengths)):
        state, end, left = np.int64(states[lane]), at + written[lane], lengths[lane]
        while left > 0:
            v = done // d
            first = starts[start[v]]
            mean, base = first, np.int64(shape[v]) * contexts
            stop = min(done + left, v * d + min(d, (done - v * d) // period * period + period))
            left -= stop - done
            for i in range(done, stop):
                model = base + np.int64(context[(2 * first + 6 * mean) >> 3])
                slot = state & _SLOT_MASK
                magnitude = np.int64(symbol[model << _SLOT_BITS | slot])
                entry = np.int64(code[model << 6 | magnitude])
                state = (entry >> 16) * (state >> _SLOT_BITS) + slot - (entry & _CODE_MASK)
                longer = state << 16 | np.int64(words[min(at, last)])
                short = state < _LOW
                state = longer if short else state
                at += np.int64(short)
                high[i] = magnitude
                escapes += np.int64(magnitude == _ESCAPE)
                mean += ((magnitude << 8) - mean) >> 4
            done = stop
        sound = sound and state == _LOW and at == end
        at = end
    return escapes if sound else -1


def join_magnitudes(
    high: Array, low_bits: Array, low: Array, beyond: Array, out: Array
) -> tuple[int, int]:
    """Put magnitudes (n, d) together; return how many are not zero, and the largest.

    Args:
        high: (n * d,) uint8, of which ``len(beyond)`` are an escape.
        low_bits: (n,) int64.
        low: uint8, the low bits of all numbers, (low_bits * d) bits.
        beyond: uint32.
        out: (n, d) int32, filled; what is larger loses its upper bits.
    """
    d = out.shape[1]
    nonzero, largest, bits, pending, lows, escapes = 0, 0, 0, 0, 0, 0
    for v in range(out.shape[0]):
        width = low_bits[v]
        for i in range(d):
            magnitude = np.int64(high[v * d + i])
            if magnitude == _ESCAPE:
                magnitude += np.int64(beyond[escapes])
                escapes += 1
            if width > 0:
                while pending < width:
                    bits = bits << 8 | np.int64(low[lows])
                    lows += 1
                    pending += 8
                pending -= width
                magnitude = magnitude << width | bits >> pending
                bits &= (1 << pending) - 1
            nonzero += np.int64(magnitude > 0)
            largest = max(largest, magnitude)
            out[v, i] = magnitude & 0x7FFFFFFF
    return nonzero, largest


def set_signs(signs: Array, out: Array) -> None:
    """Negate numbers (n * d,) int32, of which ``signs`` has a bit for each that is not zero.

    Args:
        signs: uint8, and one more.
        out: (n * d,) int32, not negative.
    """
    at = 0
    for i in range(len(out)):
        is_one = np.int64(out[i] != 0)
        negative = np.int64(signs[at >> 3]) >> (7 - (at & 7)) & is_one
        out[i] = (np.int64(out[i]) ^ -negative) + negative
        at += is_one
