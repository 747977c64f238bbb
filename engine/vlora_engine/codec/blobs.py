"""Pack one module of one task, or of one group, as self-describing bytes, and read it back.

The first byte is the kind. Of a task: nothing (dW is zero, or not worth a bit), directions of its
own, its share in a group's transform, or its core in a group's columns. Of a group: the transform,
or the columns. Numbers are little-endian; docs/formats.md has the byte layout.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.algebra import svd
from vlora_engine.codec.delta import Core
from vlora_engine.codec.floats import open_floats, unsound
from vlora_engine.codec.klt import SharedSide, from_scaled, stored_as, to_scaled
from vlora_engine.codec.own import Directions, round_gains
from vlora_engine.codec.tables import Array
from vlora_engine.codec.vectors import decode_matrices, encode_matrices

# The first byte of a task's module; "fine" kinds hold floats of four bytes, not three or two.
NOTHING, OWN, SHARE, CORE, FINE_OWN, FINE_SHARE = range(6)
NO_EFFECT = bytes([NOTHING])  # a module of which dW is zero; all others take more bytes
LOW_RANK, DENSE, FINE_LOW_RANK = range(3)  # forms of a core
KLT, DELTA, FINE_KLT = 1, 2, 3  # the first byte of a group's module


@dataclass(frozen=True)
class Share:
    """A task's coordinates in a group's transform.

    Args:
        group: The group's number.
        mix_a: (components,) the task's row of Z on side a.
        mix_b: (components,) the same on side b.
        step: What B was divided by.
        fine: The mixes are stored as fp32, not fp16.
    """

    group: int
    mix_a: Array
    mix_b: Array
    step: float
    fine: bool = False


@dataclass(frozen=True)
class SharedCore:
    """A task's core in a group's columns, not decoded yet.

    Args:
        group: The group's number.
        step: What dW was divided by.
        gains: (n,) of its directions, or the one gain of a dense core.
        dense: Whether ``left`` is the whole core (k_b, k_a).
        left: The coded integers of the left rows (n, k_b), or of a dense core.
        right: Those of the right rows (n, k_a); empty for a dense core.
    """

    group: int
    step: float
    gains: Array
    dense: bool
    left: bytes
    right: bytes = b""


@dataclass(frozen=True)
class OpenedOwn:
    """A task's own directions, not decoded yet: gains (n,), coded left and right rows."""

    gains: Array
    left: bytes
    right: bytes


@dataclass(frozen=True)
class Columns:
    """A group's shared columns of both sides as int32 rows: b (k_b, d_out) and a (k_a, d_in)."""

    b: Array
    a: Array


def pack_own(directions: Sequence[Directions]) -> list[bytes]:
    """Pack tasks' own directions as bytes; their matrices are entropy coded together."""
    coded = encode_matrices([m for d in directions for m in (d.left, d.right)])
    out = []
    for i, change in enumerate(directions):
        left, right = coded[2 * i], coded[2 * i + 1]
        if not len(change.gains):
            out.append(NO_EFFECT)
            continue
        head = struct.pack("<BHI", FINE_OWN if change.fine else OWN, len(change.gains), len(left))
        out.append(head + pack_floats(change.gains, change.fine) + left + right)
    return out


def pack_share(share: Share) -> bytes:
    """Pack a task's coordinates in a group's transform as bytes."""
    kind, dtype = FINE_SHARE if share.fine else SHARE, stored_as(share.fine)
    head = struct.pack("<BHfHH", kind, share.group, share.step, len(share.mix_a), len(share.mix_b))
    return head + share.mix_a.astype(dtype).tobytes() + share.mix_b.astype(dtype).tobytes()


def pack_cores(group: int, cores: Sequence[Core], steps: Sequence[float]) -> list[bytes]:
    """Pack cores in a group's columns as bytes; their matrices are entropy coded together."""
    matrices: list[Array] = []
    for core in cores:
        directions = core.directions
        if core.dense is not None:
            matrices.append(core.dense)
        elif directions is not None:
            matrices += [directions.left, directions.right]
    coded = iter(encode_matrices(matrices))
    out = []
    for core, step in zip(cores, steps, strict=True):
        if core.dense is not None:
            head = struct.pack("<BHfBf", CORE, group, step, DENSE, core.gain)
            out.append(head + next(coded))
        elif core.directions is not None:
            gains, fine = core.directions.gains, core.directions.fine
            left, right = next(coded), next(coded)
            form = FINE_LOW_RANK if fine else LOW_RANK
            head = struct.pack("<BHfBHI", CORE, group, step, form, len(gains), len(left))
            out.append(head + pack_floats(gains, fine) + left + right)
        else:
            out.append(NO_EFFECT)
    return out


def pack_transform(sides: tuple[SharedSide, SharedSide]) -> bytes:
    """Pack a group's transform, sides a and b, as bytes."""
    coded = encode_matrices([side.rows for side in sides])
    fine = sides[0].fine
    parts = [struct.pack("<BH", FINE_KLT if fine else KLT, sides[0].turn.shape[1])]
    for side, rows in zip(sides, coded, strict=True):
        values, exponents = to_scaled(side.turn, fine=fine)
        parts.append(struct.pack("<IHI", len(side.rows), side.mix.shape[1], len(rows)))
        parts += [side.component.astype("<u2").tobytes(), exponents.tobytes()]
        parts += [values.tobytes(), rows]
    return b"".join(parts)


def pack_columns(columns: Columns) -> bytes:
    """Pack a group's shared columns as bytes."""
    b, a = encode_matrices([columns.b, columns.a])
    return struct.pack("<BHHI", DELTA, len(columns.b), len(columns.a), len(b)) + b + a


def open_blob(raw: bytes) -> OpenedOwn | Share | SharedCore | None:
    """Read the bytes of one module of one task, matrices still coded; None where dW is zero.

    Raises:
        CorruptFileError: The bytes are not those of a task's module.
    """
    try:
        kind = raw[0]
        if raw == NO_EFFECT:
            return None
        if kind in (OWN, FINE_OWN):
            _, count, size = struct.unpack_from("<BHI", raw)
            return OpenedOwn(*_open_directions(raw, 7, count, size, kind == FINE_OWN))
        if kind in (SHARE, FINE_SHARE):
            return _open_share(raw, fine=kind == FINE_SHARE)
        if kind == CORE:
            return _open_core(raw)
    except (ValueError, IndexError, struct.error):
        pass
    raise unsound("A coded module is not sound.", "others")


def _open_share(raw: bytes, *, fine: bool) -> Share:
    _, group, step, count_a, count_b = struct.unpack_from("<BHfHH", raw)
    mix = np.frombuffer(raw, stored_as(fine), -1, 11).astype(np.float64)
    if len(mix) != count_a + count_b or not np.isfinite([step, *mix]).all():
        raise ValueError
    return Share(group, mix[:count_a], mix[count_a:], step, fine)


def _open_core(raw: bytes) -> SharedCore:
    _, group, step, form = struct.unpack_from("<BHfB", raw)
    if form > FINE_LOW_RANK or not np.isfinite(step):
        raise ValueError
    if form == DENSE:
        gain = struct.unpack_from("<f", raw, 8)[0]
        if not np.isfinite(gain):
            raise ValueError
        return SharedCore(group, step, np.array([gain]), True, raw[12:])
    count, size = struct.unpack_from("<HI", raw, 8)
    gains, left, right = _open_directions(raw, 14, count, size, form == FINE_LOW_RANK)
    return SharedCore(group, step, gains, False, left, right)


def decode_directions(
    opened: Sequence[tuple[OpenedOwn | SharedCore, int, int]],
) -> list[tuple[Array, Array, Array]]:
    """Decode directions and cores: left rows (n, d_out), gains (n,), right rows (n, d_in) each.

    Dense cores are given by their SVD. All are decoded together, for speed.

    Args:
        opened: Each with its widths d_out and d_in (k_b and k_a of a core).

    Raises:
        CorruptFileError: The coded matrices are not valid.
    """
    parts: list[tuple[bytes, int, int]] = []
    for blob, d_out, d_in in opened:
        if _is_dense(blob):
            parts.append((blob.left, d_out, d_in))
        else:
            parts += [(blob.left, len(blob.gains), d_out), (blob.right, len(blob.gains), d_in)]
    matrices = iter(decode_matrices(parts))
    return [
        _dense_directions(next(matrices), blob.gains[0])
        if _is_dense(blob)
        else (next(matrices), blob.gains, next(matrices))
        for blob, _, _ in opened
    ]


def _is_dense(blob: OpenedOwn | SharedCore) -> bool:
    return isinstance(blob, SharedCore) and blob.dense


def _dense_directions(rows: Array, gain: float) -> tuple[Array, Array, Array]:
    u, s, v = svd(rows * gain)
    nonzero = s > 1e-12 * max(s.max(initial=0), 0)
    return u.T[nonzero], s[nonzero], v[nonzero]


def halved(left: Array, gains: Array, right: Array) -> tuple[Array, Array]:
    """Factors B (d_out, n) and A (n, d_in) of equal column and row norms, from directions.

    ``B A = sum_j gains_j left_j right_j^T``, with left (n, d_out), gains (n,), right (n, d_in).
    """
    norms = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    sizes = [np.where(x > 0, x, 1) for x in norms]
    root = np.sqrt(np.abs(gains) * sizes[0] * sizes[1])
    b = left * (np.sign(gains) * root / sizes[0])[:, None]
    return b.T, right * (root / sizes[1])[:, None]


Shared = tuple[SharedSide, SharedSide] | Columns
_HalfOpen = tuple[Callable[[Array, Array], Shared], list[tuple[bytes, int, int]]]


def open_groups(opened: Sequence[tuple[bytes, int, int]]) -> list[Shared]:
    """Read groups packed by `pack_transform` or `pack_columns`; all are decoded together.

    Args:
        opened: Each as (bytes, d_in, d_out).

    Returns:
        Sides a and b of a transform (``mix`` is empty: it is stored with the tasks), or columns.

    Raises:
        CorruptFileError: The bytes are not those of a group.
    """
    heads = [_open_group(*group) for group in opened]
    rows = iter(decode_matrices([part for _, parts in heads for part in parts]))
    return [finish(next(rows), next(rows)) for finish, _ in heads]


def _open_group(raw: bytes, d_in: int, d_out: int) -> _HalfOpen:
    try:
        if raw[0] in (KLT, FINE_KLT):
            return _open_transform(raw, d_in, d_out, fine=raw[0] == FINE_KLT)
        if raw[0] == DELTA:
            _, k_b, k_a, size = struct.unpack_from("<BHHI", raw)
            b, a = _split(raw, 9, size)
            return Columns, [(b, k_b, d_out), (a, k_a, d_in)]
    except (ValueError, IndexError, struct.error):
        pass
    raise unsound("A coded module is not sound.", "others")


def _open_transform(raw: bytes, d_in: int, d_out: int, *, fine: bool) -> _HalfOpen:
    rank = struct.unpack_from("<BH", raw)[1]
    row_bytes = rank * np.dtype(stored_as(fine)).itemsize
    heads, coded, at = [], [], 3
    for d in (d_in, d_out):
        count, components, size = struct.unpack_from("<IHI", raw, at)
        at += 10
        if at + count * (3 + row_bytes) + size > len(raw):
            raise ValueError
        component = np.frombuffer(raw, "<u2", count, at).astype(np.int64)
        exponents = np.frombuffer(raw, np.int8, count, at + 2 * count)
        values = np.frombuffer(raw, stored_as(fine), count * rank, at + 3 * count)
        turn = from_scaled(values.reshape(count, rank), exponents)
        at += count * (3 + row_bytes)
        if not np.isfinite(turn).all() or component.max(initial=-1) >= components:
            raise ValueError
        heads.append((component, turn, components))
        coded.append((raw[at : at + size], count, d))
        at += size
    if at != len(raw):
        raise ValueError

    def finish(rows_a: Array, rows_b: Array) -> Shared:
        side_a, side_b = (
            SharedSide(rows, component, turn, np.zeros((0, components)), fine)
            for rows, (component, turn, components) in zip((rows_a, rows_b), heads, strict=True)
        )
        return side_a, side_b

    return finish, coded


def pack_floats(values: Array, fine: bool = False) -> bytes:
    """Pack floats in three bytes each, fp32 without its last eight bits; ``fine``: in four."""
    rounded = round_gains(values, fine=fine).astype("<f4")
    return rounded.view(np.uint8).reshape(-1, 4)[:, 0 if fine else 1 :].tobytes()


def _open_directions(
    raw: bytes, at: int, count: int, size: int, fine: bool
) -> tuple[Array, bytes, bytes]:
    """Gains, and the bytes of the left and of the right rows."""
    gains = open_floats(raw, at, count, fine)
    if not np.isfinite(gains).all():
        raise ValueError
    return gains, *_split(raw, at + (4 if fine else 3) * count, size)


def _split(raw: bytes, at: int, size: int) -> tuple[bytes, bytes]:
    if size > len(raw) - at:
        raise ValueError
    return raw[at : at + size], raw[at + size :]
