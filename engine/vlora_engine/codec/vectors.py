"""Encode integer matrices as bytes and decode them: n vectors of length d, each with its scale.

The bytes of a matrix are: a byte for each vector (its first running mean, and its shape), then all
lanes' states (uint32), numbers of words (uint16) and words; then the signs of all nonzero numbers,
the low bits, and the excess over an escape (uint32 each). How many there are of each follows from
n, d and what was read before. Where low bits are stored apart, a mark comes first, and their
number, a byte for each vector, after the bytes of the vectors (docs/formats.md#coded-matrices).

There are two ways to the same bytes: many matrices at once in NumPy, or one after the other in
compiled loops (`vlora_engine.codec.compiled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from vlora_engine.codec.algebra import transposed
from vlora_engine.codec.compiled import Loops, loader, tables
from vlora_engine.codec.floats import unsound
from vlora_engine.codec.rans import Lanes, contexts, decode, encode, other_words
from vlora_engine.codec.tables import ESCAPE, UNIT_BITS, Array, models

LANE = 2048  # symbols of a lane at most: its state and length cost four bytes
_LANES_AT_ONCE = 8192
_HIGH_MEAN = 10.0  # magnitudes are shifted down to about this mean; the bits below are noise
_MAX_LOW_BITS = 24
_LOW_BITS_FOLLOW = 0xFF  # where a vector's byte stands: no vector begins with so large a mean
_NONE = np.zeros(0, dtype=np.int32)
_SYMBOL_BITS = 6
_UNSOUND = "Coded numbers are not sound."
_SAMPLE = 5  # the shape of a long vector is chosen by every fifth of its numbers


@dataclass(frozen=True)
class Layout:
    """How n vectors of length d are distributed over lanes."""

    n: int
    d: int

    @cached_property
    def pieces(self) -> int:
        """The number of pieces that one vector is cut into."""
        return max(1, -(-self.d // LANE))

    @cached_property
    def period(self) -> int:
        """The number of symbols in a piece."""
        return -(-self.d // self.pieces)

    @cached_property
    def per_lane(self) -> int:
        """The number of pieces in a lane; more than one where vectors are short."""
        return max(1, LANE // self.period) if self.pieces == 1 else 1

    @cached_property
    def lanes(self) -> int:
        """The number of lanes."""
        return -(-self.n * self.pieces // self.per_lane)

    def lengths(self) -> Array:
        """The number of symbols in each lane, (lanes,)."""
        if self.pieces > 1:
            tail = self.d - (self.pieces - 1) * self.period
            return np.tile([self.period] * (self.pieces - 1) + [tail], self.n)
        full = np.full(self.lanes, self.per_lane * self.d)
        if self.lanes:
            full[-1] = (self.n - (self.lanes - 1) * self.per_lane) * self.d
        return full

    def deal(self, rows: Array) -> Array:
        """Arrange a matrix (n, d) by lanes: (lanes, longest lane), ends filled up with zeros."""
        width = self.period * self.per_lane
        flat = rows
        if self.pieces > 1:
            flat = np.pad(rows, ((0, 0), (0, self.pieces * self.period - self.d)))
        return _filled(flat.reshape(-1), self.lanes * width).reshape(self.lanes, width)

    def collect(self, dealt: Array) -> Array:
        """Undo `deal`: lanes (lanes, at least the longest or all there are) to a matrix (n, d)."""
        width = self.period * self.per_lane
        missing = max(0, width - dealt.shape[1])
        flat = np.pad(dealt[:, :width], ((0, 0), (0, missing))).reshape(-1)
        if self.pieces > 1:
            return flat.reshape(self.n, -1)[:, : self.d]
        return flat[: self.n * self.d].reshape(self.n, self.d)

    def spread(self, values: Array) -> Array:
        """Repeat a value for each vector (n,) for each piece of every lane: (lanes, per_lane)."""
        pieces = np.repeat(values, self.pieces) if self.pieces > 1 else values
        return _filled(pieces, self.lanes * self.per_lane).reshape(self.lanes, self.per_lane)


def _filled(values: Array, count: int) -> Array:
    """Pad ``values`` (n,) with zeros to ``count``; returned unchanged where n is ``count``."""
    if len(values) == count:
        return values
    out = np.zeros(count, dtype=values.dtype)
    out[: len(values)] = values
    return out


@dataclass(frozen=True)
class _Coded:
    """One matrix's encoded lanes: states (lanes,), words in each (lanes,), and all words."""

    states: Array
    lengths: Array
    words: Array


@dataclass(frozen=True)
class _Prepared:
    """One matrix prepared for coding: magnitudes split into a coded part and low bits.

    Args:
        layout: Its lanes.
        rows: (n, d) the integers.
        magnitude: (n, d).
        high: (n, d) uint8, the magnitude without its low bits, at most an escape.
        low_bits: (n,) how many low bits are stored apart.
        start: (n,) uint8, which running mean to start with.
        shape: (n,) uint8, filled in while coding.
    """

    layout: Layout
    rows: Array
    magnitude: Array
    high: Array
    low_bits: Array
    start: Array
    shape: Array


def encode_matrices(matrices: Sequence[Array]) -> list[bytes]:
    """Encode integer matrices (n, d), each to its own bytes; all are coded together, for speed."""
    loops = loader.loops(sum(rows.size for rows in matrices))
    if loops is not None:
        return [_encode_compiled(loops, rows) for rows in matrices]
    prepared = [_prepare(rows) for rows in matrices]
    coded: list[_Coded | None] = [None] * len(matrices)
    for members in _batches([p.layout for p in prepared]):
        batch = _encode_batch([prepared[i] for i in members])
        for i, lanes in zip(members, batch, strict=True):
            coded[i] = lanes
    return [_pack(p, lanes) for p, lanes in zip(prepared, coded, strict=True)]


def decode_matrices(parts: Sequence[tuple[bytes, int, int]]) -> list[Array]:
    """Decode what `encode_matrices` encoded.

    Args:
        parts: Each as (bytes, n, d).

    Returns:
        Matrices (n, d) int32.

    Raises:
        CorruptFileError: The bytes are not those of such a matrix.
    """
    opened = [_Opened(memoryview(raw), Layout(n, d)) for raw, n, d in parts]
    loops = loader.loops(sum(o.layout.n * o.layout.d for o in opened))
    if loops is not None:
        escapes = [_decode_compiled(loops, o) for o in opened]
        return [_finish_compiled(loops, o, e) for o, e in zip(opened, escapes, strict=True)]
    for members in _batches([o.layout for o in opened]):
        _decode_group([opened[i] for i in members])
    return [o.finish() for o in opened]


def _batches(layouts: Sequence[Layout]) -> list[list[int]]:
    """Group the indices of matrices into batches that are coded at once; empty ones in none."""
    batches: list[list[int]] = [[]]
    lanes = 0
    for i, layout in enumerate(layouts):
        if layout.n and layout.d:
            if lanes and lanes + layout.lanes > _LANES_AT_ONCE:
                batches.append([])
                lanes = 0
            batches[-1].append(i)
            lanes += layout.lanes
    return [batch for batch in batches if batch]


def _prepare(rows: Array) -> _Prepared:
    n, d = rows.shape
    magnitude = np.abs(rows)
    low_bits = _low_bits_for(magnitude.mean(axis=1) if d else np.zeros(n)).astype(np.int32)
    high = magnitude >> low_bits[:, None] if low_bits.any() else magnitude
    return _Prepared(
        Layout(n, d),
        rows,
        magnitude,
        np.minimum(high, ESCAPE).astype(np.uint8),
        low_bits,
        _start_for(high.mean(axis=1) if d else np.zeros(n)),
        np.zeros(n, dtype=np.uint8),
    )


def _low_bits_for(mean: Array) -> Array:
    """How many low bits are stored apart (n,), for vectors of these mean magnitudes (n,)."""
    octaves: Array = np.ceil(np.log2(np.maximum(mean, 1) / _HIGH_MEAN))
    return octaves.clip(0, _MAX_LOW_BITS).astype(np.int64)


def _start_for(mean: Array) -> Array:
    """The running mean to start with (n,) uint8, for means (n,) without the low bits."""
    octaves: Array = np.rint(4 * np.log2(np.maximum(mean * (1 << UNIT_BITS), 1)))
    return octaves.clip(0, len(models().starts) - 1).astype(np.uint8)


def _lanes(layouts: Sequence[Layout], starts: Sequence[Array], shapes: Sequence[Array]) -> Lanes:
    """Join the lanes of several matrices, in their order."""
    return Lanes(
        lengths=np.concatenate([x.lengths() for x in layouts]),
        periods=np.repeat([x.period for x in layouts], [x.lanes for x in layouts]),
        starts=models().starts[_spread(layouts, starts)],
        shapes=_spread(layouts, shapes),
    )


def _spread(layouts: Sequence[Layout], values: Sequence[Array]) -> Array:
    """Repeat each matrix's values by vector (n,) for every piece of all lanes: (lanes, times)."""
    most = max(x.per_lane for x in layouts)
    out = np.zeros((sum(x.lanes for x in layouts), most), dtype=np.uint8)
    at = 0
    for layout, of_vectors in zip(layouts, values, strict=True):
        out[at : at + layout.lanes, : layout.per_lane] = layout.spread(of_vectors)
        at += layout.lanes
    return out


def _sorted(lanes: Lanes) -> tuple[Array, Lanes]:
    order = np.argsort(-lanes.lengths, kind="stable")
    return order, lanes.only(order)


def _encode_batch(members: Sequence[_Prepared]) -> list[_Coded]:
    layouts, starts = [m.layout for m in members], [m.start for m in members]
    order, lanes = _sorted(_lanes(layouts, starts, [m.shape for m in members]))
    back = np.argsort(order)  # where each lane is among the sorted ones
    bounds = np.cumsum([0] + [x.lanes for x in layouts]).tolist()
    spans = [slice(a, b) for a, b in pairwise(bounds)]
    symbols = np.zeros((lanes.steps, len(order)), dtype=np.uint16)
    for period in sorted({x.period for x in layouts}):
        same_period = [i for i, layout in enumerate(layouts) if layout.period == period]
        at = np.concatenate([back[spans[i]] for i in same_period])
        block = _symbols([members[i] for i in same_period], lanes, at)
        symbols[: len(block), np.sort(at)] = block
    states, words, written = encode(lanes, symbols, back)
    ends = np.concatenate([[0], np.cumsum(written)])
    return [
        _Coded(states[s], written[s].astype("<u2"), words[ends[s.start] : ends[s.stop]])
        for s in spans
    ]


def _symbols(members: Sequence[_Prepared], lanes: Lanes, positions: Array) -> Array:
    """The symbols (steps, L) of matrices of one period; chooses the shapes of their vectors.

    Args:
        members: The matrices.
        lanes: The sorted lanes of all matrices in the batch.
        positions: (L,) where the members' lanes are among them; symbols come in that order.
    """
    order = np.argsort(positions)
    sorted_lanes, period = lanes.only(positions[order]), members[0].layout.period
    dealt = np.concatenate([m.layout.deal(m.high) for m in members])
    dealt = transposed(dealt[order, : sorted_lanes.steps])
    symbols = contexts(sorted_lanes, dealt).astype(np.uint16)
    symbols <<= np.uint16(_SYMBOL_BITS)
    symbols |= dealt
    costs, begin = _shape_costs(sorted_lanes, period, symbols)[:, np.argsort(order)], 0
    for member in members:
        layout = member.layout
        member.shape[:] = _best_shape(layout, costs[:, begin : begin + layout.lanes])
        begin += layout.lanes
    shapes = _spread([m.layout for m in members], [m.shape for m in members])[order]
    shapes = shapes.astype(np.uint16) * np.uint16(models().contexts << _SYMBOL_BITS)
    for turn, first in enumerate(range(0, sorted_lanes.steps, period)):
        symbols[first : first + period] += shapes[:, turn]
    return symbols


def _shape_costs(lanes: Lanes, period: int, symbols: Array) -> Array:
    """Estimate the cost of every piece under every shape from a sample: (shapes, L, times)."""
    table = models()
    steps = np.arange(0, lanes.steps, _sampled(period))
    index = symbols[steps].astype(np.intp)
    inside = (steps[:, None] < lanes.lengths[None, :]).astype(np.int32)
    pieces = np.arange(-(-lanes.steps // period))
    edges = np.searchsorted(steps // period, pieces)
    costs = []
    for cost in table.cost.reshape(table.shapes, -1):
        bits = cost.take(index, mode="clip")
        bits *= inside
        costs.append(np.add.reduceat(bits, edges, axis=0).T)
    return np.stack(costs)


def _sampled(period: int) -> int:
    return _SAMPLE if period >= 16 * _SAMPLE else 1


def _best_shape(layout: Layout, costs: Array) -> Array:
    """Choose the cheapest shape of every vector of one matrix, (n,)."""
    bits = costs.reshape(len(costs), -1)
    if layout.pieces > 1:
        bits = bits.reshape(len(costs), layout.n, layout.pieces).sum(2)
    cheapest: Array = bits[:, : layout.n].argmin(0)
    return cheapest


def _pack(p: _Prepared, coded: _Coded | None) -> bytes:
    if coded is None or not p.layout.n or not p.layout.d:
        return b""
    head = _head(p.start, p.shape, p.low_bits)
    signs = np.packbits((p.rows < 0)[p.rows != 0])
    low = _pack_low(p.magnitude, p.low_bits)
    escaped = p.high == ESCAPE
    beyond = (p.magnitude >> p.low_bits[:, None])[escaped] - ESCAPE if escaped.any() else _NONE
    parts = [coded.states.astype("<u4"), coded.lengths, coded.words.astype("<u2")]
    return head + b"".join(x.tobytes() for x in [*parts, signs, low, beyond.astype("<u4")])


def _head(start: Array, shape: Array, low_bits: Array) -> bytes:
    head: bytes = (start | shape << 6).tobytes()
    if not low_bits.any():
        return head
    return bytes([_LOW_BITS_FOLLOW]) + head + low_bits.astype(np.uint8).tobytes()


def _pack_low(magnitude: Array, low_bits: Array) -> Array:
    bits = [
        (row[:, None] >> np.arange(count - 1, -1, -1) & 1).astype(np.uint8).ravel()
        for row, count in zip(magnitude, low_bits.tolist(), strict=True)
        if count
    ]
    return np.packbits(np.concatenate(bits)) if bits else np.zeros(0, np.uint8)


class _Opened:
    """One encoded matrix while it is read."""

    def __init__(self, raw: memoryview, layout: Layout) -> None:
        self.layout, self._raw, self._at = layout, raw, 0
        self.high: Array = np.zeros((0, 0), dtype=np.uint8)
        if not layout.n or not layout.d:
            if raw:
                raise unsound(_UNSOUND, f"{len(raw)} bytes for a matrix without numbers")
            return
        follow = bytes(raw[:1]) == bytes([_LOW_BITS_FOLLOW])
        self._at = int(follow)
        head = self._take(layout.n, np.uint8)
        self.start, self.shape = (head & 63).astype(np.int64), head >> 6
        low_bits = self._take(layout.n, np.uint8) if follow else np.zeros(layout.n)
        self.low_bits = low_bits.astype(np.int64)
        table = models()
        if self.start.max() >= len(table.starts) or self.low_bits.max() > _MAX_LOW_BITS:
            raise unsound(_UNSOUND, "a scale that there is not")
        self.states = self._take(layout.lanes, "<u4")
        self.lengths = self._take(layout.lanes, "<u2").astype(np.int64)
        self.words = self._take(int(self.lengths.sum()), "<u2")

    def finish(self) -> Array:
        """The matrix, once ``high`` is known."""
        if not self.layout.n or not self.layout.d:
            return np.zeros((self.layout.n, self.layout.d), dtype=np.int32)
        magnitude = self.high.astype(np.int64)
        # A number is 0 only where its low bits are, too: they come before the signs are counted.
        escaped = self.high == ESCAPE
        low, beyond = self.tail(int(escaped.sum()))
        magnitude[escaped] += beyond.astype(np.int64)
        magnitude = (magnitude << self.low_bits[:, None]) | self._low(low)
        nonzero = magnitude > 0
        signs = self.signs(int(nonzero.sum()), int(magnitude.max(initial=0)), low, beyond)
        negative = np.zeros(magnitude.shape, dtype=bool)
        negative[nonzero] = np.unpackbits(signs)[: int(nonzero.sum())]
        return np.where(negative, -magnitude, magnitude).astype(np.int32)

    def tail(self, escapes: int) -> tuple[Array, Array]:
        """The bytes at the end: low bits (uint8), and the excess over each escape (uint32)."""
        count = -(-int((self.low_bits * self.layout.d).sum()) // 8)
        rest = self._raw[self._at :]
        end = len(rest) - 4 * escapes
        if end < count:
            raise unsound(_UNSOUND, f"{len(rest)} bytes for what follows the words")
        low = np.frombuffer(rest[end - count : end], dtype=np.uint8)
        return low, np.frombuffer(rest[end:], dtype="<u4")

    def signs(self, nonzero: int, largest: int, low: Array, beyond: Array) -> Array:
        """The bytes of the signs, which end where the tail begins."""
        signs = self._take(-(-nonzero // 8), np.uint8)
        if self._at + low.nbytes + beyond.nbytes != len(self._raw) or largest >= 1 << 31:
            raise unsound(_UNSOUND, "other lengths")
        return signs

    def _low(self, packed: Array) -> Array:
        bits = np.unpackbits(packed).astype(np.int64)
        out = np.zeros((self.layout.n, self.layout.d), dtype=np.int64)
        at = 0
        for i, width in enumerate(self.low_bits.tolist()):
            if width:
                digits = bits[at : at + width * self.layout.d].reshape(-1, width)
                out[i] = digits @ (1 << np.arange(width - 1, -1, -1))
                at += width * self.layout.d
        return out

    def _take(self, count: int, dtype: str | type) -> Array:
        size = count * np.dtype(dtype).itemsize
        if self._at + size > len(self._raw):
            raise unsound(_UNSOUND, f"{len(self._raw)} bytes")
        values = np.frombuffer(self._raw[self._at : self._at + size], dtype=dtype)
        self._at += size
        return values


def _decode_group(members: Sequence[_Opened]) -> None:
    layouts = [m.layout for m in members]
    order, lanes = _sorted(_lanes(layouts, [m.start for m in members], [m.shape for m in members]))
    states = np.concatenate([m.states for m in members])[order]
    words = [w for m in members for w in np.split(m.words, np.cumsum(m.lengths)[:-1])]
    dealt = decode(lanes, states, [words[i] for i in order]).T[np.argsort(order)]
    bounds = np.cumsum([0] + [x.lanes for x in layouts]).tolist()
    for member, (a, b) in zip(members, pairwise(bounds), strict=True):
        member.high = member.layout.collect(dealt[a:b])


# one matrix at a time, in compiled loops


def _encode_compiled(loops: Loops, matrix: Array) -> bytes:
    layout, table = Layout(*matrix.shape), tables()
    n, d = layout.n, layout.d
    if not n or not d:
        return b""
    rows, sums = np.ascontiguousarray(matrix, dtype=np.int32), np.empty(n, dtype=np.int64)
    low_bits = np.zeros(n, dtype=np.int64)
    loops.row_sums(rows, low_bits, sums)
    low_bits = _low_bits_for(sums / d)
    if low_bits.any():
        loops.row_sums(rows, low_bits, sums)
    start, shape = _start_for(sums / d), np.empty(n, dtype=np.uint8)
    symbols = np.empty(n * d, dtype=np.uint16)
    lanes = layout.pieces, layout.period, _sampled(layout.period)
    models_ = table.context, table.starts, table.cost
    loops.find_symbols(rows, low_bits, start, *lanes, *models_, symbols, shape)
    states = np.empty(layout.lanes, dtype=np.uint32)
    written = np.empty(layout.lanes, dtype=np.uint16)
    lengths, words = layout.lengths().astype(np.int64), np.empty(n * d, dtype=np.uint16)
    coded = symbols, lengths, table.code, table.inverse
    count = loops.encode_lanes(*coded, states, written, words)
    signs = np.empty(-(-n * d // 8), dtype=np.uint8)
    low = np.empty(-(-int(low_bits.sum()) * d // 8), dtype=np.uint8)
    beyond = np.empty(n * d, dtype=np.uint32)
    signed, escapes = loops.pack_rest(rows, low_bits, signs, low, beyond)
    parts = [states.astype("<u4"), written.astype("<u2"), words[:count].astype("<u2")]
    parts += [signs[:signed], low, beyond[:escapes].astype("<u4")]
    return _head(start, shape, low_bits) + b"".join(part.tobytes() for part in parts)


def _decode_compiled(loops: Loops, opened: _Opened) -> int:
    """Fill in ``opened.high``; return how many escapes are in it."""
    layout, table = opened.layout, tables()
    if not layout.n or not layout.d:
        return 0
    opened.high = np.empty(layout.n * layout.d, dtype=np.uint8)
    found: int = loops.decode_lanes(
        layout.lengths().astype(np.int64),
        *(layout.d, layout.period, table.contexts),
        *(opened.start.astype(np.uint8), opened.shape),
        *(opened.states.astype(np.uint32), opened.lengths, _and_one(opened.words, np.uint16)),
        *(table.code, table.symbol, table.context, table.starts),
        opened.high,
    )
    if found < 0:
        raise other_words()
    return found


def _finish_compiled(loops: Loops, opened: _Opened, escapes: int) -> Array:
    """The matrix, once ``opened.high`` is known."""
    out = np.zeros((opened.layout.n, opened.layout.d), dtype=np.int32)
    if out.size:
        low, beyond = opened.tail(escapes)
        magnitudes = opened.high, opened.low_bits, low, beyond.astype(np.uint32)
        nonzero, largest = loops.join_magnitudes(*magnitudes, out)
        signs = opened.signs(nonzero, largest, low, beyond)
        loops.set_signs(_and_one(signs, np.uint8), out.reshape(-1))
    return out


def _and_one(values: Array, dtype: type) -> Array:
    """The values and a zero: the loops look one ahead."""
    out: Array = np.zeros(len(values) + 1, dtype=dtype)
    out[:-1] = values
    return out
