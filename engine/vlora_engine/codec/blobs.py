"""One module of one task, or of one group, as bytes that explain themselves.

The first byte says what it is. Of a task: nothing (dW is zero, or not worth a bit), directions of
its own, its share in a group's transform, or its core in a group's columns. Of a group: the
transform, or the columns. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.delta import Core
from vlora_engine.codec.klt import SharedSide, from_halves, to_halves
from vlora_engine.codec.own import Directions
from vlora_engine.codec.tables import Array
from vlora_engine.codec.vectors import decode_matrices, encode_matrices
from vlora_engine.errors import CorruptFileError

NOTHING, OWN, SHARE, CORE = range(4)
KLT, DELTA = 1, 2
_MAX_RANK = 1 << 16


@dataclass(frozen=True)
class Share:
    """A task's place in a group's transform.

    Args:
        group: Its number. mix_a, mix_b: the task's row of either side's mix. step: what B was
            divided by.
    """

    group: int
    mix_a: Array
    mix_b: Array
    step: float


@dataclass(frozen=True)
class SharedCore:
    """A task's core in a group's columns, as bytes; ``step``: what dW was divided by.

    Args:
        gains: (n,) of directions, or the one gain of a dense core.
    """

    group: int
    step: float
    gains: Array
    dense: bool
    left: bytes
    right: bytes = b""


@dataclass(frozen=True)
class OpenedOwn:
    """An adapter's own directions, not decoded yet."""

    gains: Array
    left: bytes
    right: bytes


@dataclass(frozen=True)
class Columns:
    """The shared columns of both sides: (k_b, d_out) and (k_a, d_in) int32."""

    b: Array
    a: Array


def pack_own(directions: Sequence[Directions]) -> list[bytes]:
    """The bytes of each; their matrices are entropy coded together."""
    coded = encode_matrices([m for d in directions for m in (d.left, d.right)])
    out = []
    for i, own in enumerate(directions):
        left, right = coded[2 * i], coded[2 * i + 1]
        if not len(own.gains):
            out.append(bytes([NOTHING]))
            continue
        head = struct.pack("<BHI", OWN, len(own.gains), len(left))
        out.append(head + _pack_gains(own.gains) + left + right)
    return out


def pack_share(share: Share) -> bytes:
    """The bytes of a task's place in a group's transform."""
    head = struct.pack("<BHfHH", SHARE, share.group, share.step, len(share.mix_a), len(share.mix_b))
    return head + share.mix_a.astype("<f2").tobytes() + share.mix_b.astype("<f2").tobytes()


def pack_cores(group: int, cores: Sequence[Core], steps: Sequence[float]) -> list[bytes]:
    """The bytes of each core; their matrices are entropy coded together."""
    matrices: list[Array] = []
    for core in cores:
        own = core.directions
        if core.dense is not None:
            matrices.append(core.dense)
        elif own is not None:
            matrices += [own.left, own.right]
    coded = iter(encode_matrices(matrices))
    out = []
    for core, step in zip(cores, steps, strict=True):
        if core.dense is not None:
            head = struct.pack("<BHfBf", CORE, group, step, 1, core.gain)
            out.append(head + next(coded))
        elif core.directions is not None:
            gains = core.directions.gains
            left, right = next(coded), next(coded)
            head = struct.pack("<BHfBHI", CORE, group, step, 0, len(gains), len(left))
            out.append(head + _pack_gains(gains) + left + right)
        else:
            out.append(bytes([NOTHING]))
    return out


def pack_transform(sides: tuple[SharedSide, SharedSide]) -> bytes:
    """The bytes of a group's transform."""
    coded = encode_matrices([side.rows for side in sides])
    parts = [struct.pack("<BH", KLT, sides[0].turn.shape[1])]
    for side, rows in zip(sides, coded, strict=True):
        values, exponents = to_halves(side.turn)
        parts.append(struct.pack("<HHI", len(side.rows), side.mix.shape[1], len(rows)))
        parts += [side.component.astype("<u2").tobytes(), exponents.tobytes()]
        parts += [values.astype("<f2").tobytes(), rows]
    return b"".join(parts)


def pack_columns(columns: Columns) -> bytes:
    """The bytes of a group's shared columns."""
    b, a = encode_matrices([columns.b, columns.a])
    return struct.pack("<BHHI", DELTA, len(columns.b), len(columns.a), len(b)) + b + a


def open_blob(raw: bytes) -> OpenedOwn | Share | SharedCore | None:
    """What the bytes of one module of one task say; None where dW is nothing.

    Raises:
        CorruptFileError: They are not such bytes.
    """
    try:
        kind = raw[0]
        if kind == NOTHING and len(raw) == 1:
            return None
        if kind == OWN:
            _, count, size = struct.unpack_from("<BHI", raw)
            gains, (left, right) = _open_gains(raw, 7, count), _split(raw, 7 + 3 * count, size)
            return OpenedOwn(gains, left, right)
        if kind == SHARE:
            _, group, step, count_a, count_b = struct.unpack_from("<BHfHH", raw)
            mix = np.frombuffer(raw, "<f2", count_a + count_b, 11).astype(np.float64)
            if len(raw) == 11 + 2 * len(mix) and np.isfinite([step, *mix]).all():
                return Share(group, mix[:count_a], mix[count_a:], step)
        if kind == CORE:
            return _open_core(raw)
    except (ValueError, IndexError, struct.error):
        pass
    raise _unsound()


def _open_core(raw: bytes) -> SharedCore:
    _, group, step, dense = struct.unpack_from("<BHfB", raw)
    if dense:
        gain = struct.unpack_from("<f", raw, 8)[0]
        if not np.isfinite([step, gain]).all():
            raise ValueError
        return SharedCore(group, step, np.array([gain]), True, raw[12:])
    count, size = struct.unpack_from("<HI", raw, 8)
    gains, (left, right) = _open_gains(raw, 14, count), _split(raw, 14 + 3 * count, size)
    if not np.isfinite(step):
        raise ValueError
    return SharedCore(group, step, gains, False, left, right)


def decode_own(opened: Sequence[tuple[OpenedOwn, int, int]]) -> list[tuple[Array, Array]]:
    """B (d_out, n) and A (n, d_in) of each, d_out and d_in given; gains halved between them."""
    parts = []
    for own, d_out, d_in in opened:
        parts += [(own.left, len(own.gains), d_out), (own.right, len(own.gains), d_in)]
    matrices = decode_matrices(parts)
    return [
        halved(matrices[2 * i], own.gains, matrices[2 * i + 1])
        for i, (own, _, _) in enumerate(opened)
    ]


def halved(left: Array, gains: Array, right: Array) -> tuple[Array, Array]:
    """Rows left (n, d_out) and right (n, d_in) as B (d_out, n) and A (n, d_in), alike in size."""
    lengths = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    sizes = [np.where(x > 0, x, 1) for x in lengths]
    root = np.sqrt(np.abs(gains) * sizes[0] * sizes[1])
    b = left * (np.sign(gains) * root / sizes[0])[:, None]
    return b.T, right * (root / sizes[1])[:, None]


def decode_core(core: SharedCore, k_b: int, k_a: int) -> tuple[Array, Array, Array]:
    """Left rows (n, k_b), gains (n,), right rows (n, k_a) of a core; dense ones by their SVD."""
    if core.dense:
        (rows,) = decode_matrices([(core.left, k_b, k_a)])
        u, s, v = np.linalg.svd(rows * core.gains[0], full_matrices=False)
        live = s > 1e-12 * max(s.max(initial=0), 0)
        return u.T[live], s[live], v[live]
    count = len(core.gains)
    left, right = decode_matrices([(core.left, count, k_b), (core.right, count, k_a)])
    return left, core.gains, right


def open_group(raw: bytes, d_in: int, d_out: int) -> tuple[SharedSide, SharedSide] | Columns:
    """The inverse of `pack_transform` (sides a and b; ``mix`` is the tasks' and left empty) and
    of `pack_columns`.

    Raises:
        CorruptFileError: They are not such bytes.
    """
    try:
        if raw[0] == KLT:
            return _open_transform(raw, d_in, d_out)
        if raw[0] == DELTA:
            _, k_b, k_a, size = struct.unpack_from("<BHHI", raw)
            b, a = _split(raw, 9, size)
            rows_b, rows_a = decode_matrices([(b, k_b, d_out), (a, k_a, d_in)])
            return Columns(rows_b, rows_a)
    except (ValueError, IndexError, struct.error):
        pass
    raise _unsound()


def _open_transform(raw: bytes, d_in: int, d_out: int) -> tuple[SharedSide, SharedSide]:
    rank = struct.unpack_from("<BH", raw)[1]
    heads, coded, at = [], [], 3
    for width in (d_in, d_out):
        count, components, size = struct.unpack_from("<HHI", raw, at)
        at += 8
        component = np.frombuffer(raw, "<u2", count, at).astype(np.int64)
        at += 2 * count
        exponents = np.frombuffer(raw, np.int8, count, at)
        at += count
        values = np.frombuffer(raw, "<f2", count * rank, at).reshape(count, rank)
        at += 2 * count * rank
        if at + size > len(raw) or (count and component.max() >= components):
            raise ValueError
        heads.append((component, from_halves(values, exponents), components))
        coded.append((raw[at : at + size], count, width))
        at += size
    sides = [
        SharedSide(rows, component, turn, np.zeros((0, components)))
        for rows, (component, turn, components) in zip(decode_matrices(coded), heads, strict=True)
    ]
    return sides[0], sides[1]


def _pack_gains(gains: Array) -> bytes:
    """Three bytes each: fp32 without its last eight bits."""
    return gains.astype("<f4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


def _open_gains(raw: bytes, at: int, count: int) -> Array:
    low = np.zeros((count, 4), dtype=np.uint8)
    low[:, 1:] = np.frombuffer(raw, np.uint8, 3 * count, at).reshape(-1, 3)
    gains = low.reshape(-1).view("<f4").astype(np.float64)
    if not np.isfinite(gains).all():
        raise ValueError
    return gains


def _split(raw: bytes, at: int, size: int) -> tuple[bytes, bytes]:
    if size > len(raw) - at:
        raise ValueError
    return raw[at : at + size], raw[at + size :]


def _unsound() -> CorruptFileError:
    return CorruptFileError(
        "A coded module is not sound.",
        expected="the bytes that were written",
        found="others",
        remedy="restore the file from a copy, or compress the adapters again",
    )
