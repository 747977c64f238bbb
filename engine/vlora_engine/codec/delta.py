"""A group that shares the subspaces of dW: U and V once, a small core a task (SCIENCE.md 3.5).

The columns of U are the directions along which the group's weight changes have most energy, all
adapters at unit norm; a column is coded as long as it is with the root of that energy, in the same
steps as everything else, so that an error in it is an error of dW. Cores are taken after the
columns were rounded, in coordinates that are orthonormal again: what rounding has bent costs a
little subspace, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.algebra import eigh, gram, product, qr, svd
from vlora_engine.codec.own import Directions, code_directions
from vlora_engine.codec.quantizer import PRICE, quantize
from vlora_engine.codec.rates import SIDE_OVERHEAD, number_bits
from vlora_engine.codec.tables import Array

_FAR_LARGER = 4  # a dense core of so many times the numbers of a core's factors is not even tried
_DEPENDENT = 1e-6  # a rounded column that adds less than this of itself to those before is none


@dataclass(frozen=True)
class Core:
    """One task's core, quantized: dense, or as directions of its own.

    Args:
        dense: (k_b, k_a) int32, or None. gain: What it is multiplied by.
        directions: (n, k_b) and (n, k_a), or None.
        missed: ||dW - dW^||^2.
    """

    dense: Array | None
    gain: float
    directions: Directions | None
    missed: float

    def value(self, k_b: int, k_a: int) -> Array:
        """The core, (k_b, k_a) in fp64."""
        if self.dense is not None:
            return self.gain * self.dense.astype(np.float64)
        if self.directions is None:
            return np.zeros((k_b, k_a))
        own = self.directions
        return product(own.left.T * own.gains, own.right)


def shared_columns(rows: Array) -> Array:
    """Columns of one side that are worth coding, in steps of 1: (k, d) int32.

    Args:
        rows: (R, d) whose Gram adds up what the side has of energy, in steps.
    """
    energy, vectors = principal(rows)
    coded = quantize(vectors * np.sqrt(energy)[:, None])
    missed = np.square(vectors * np.sqrt(energy)[:, None] - coded).sum(axis=1)
    worth = energy - missed > PRICE * (number_bits(coded) + SIDE_OVERHEAD)
    return coded[worth]


def principal(rows: Array) -> tuple[Array, Array]:
    """The strongest directions of a row matrix: energies (k,) descending, vectors (k, d)."""
    count, width = rows.shape
    if count <= width:
        values, vectors = eigh(gram(rows))
        values, vectors = values[::-1], vectors[:, ::-1]
        live = values > 1e-12 * max(values.max(initial=0), 0)
        values, vectors = values[live], vectors[:, live]
        return values, product(vectors.T, rows) / np.sqrt(values)[:, None]
    values, vectors = eigh(gram(rows.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    live = values > 1e-12 * max(values.max(initial=0), 0)
    return values[live], vectors[:, live].T


def orthonormal(columns: Array) -> Array:
    """Rounded columns (k, d) as orthonormal rows, in their order; dependent ones become zero."""
    if not columns.size:
        return np.zeros(columns.shape)
    lengths = np.linalg.norm(columns.astype(np.float64), axis=1, keepdims=True)
    rows = columns / np.where(lengths > 0, lengths, 1)
    q, r = qr(rows.T)
    signs = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    live = np.abs(np.diagonal(r)) > _DEPENDENT
    if live.all():
        return (q * signs).T
    out = np.zeros(columns.shape)  # the others must not turn away from what is but rounding noise
    out[live] = orthonormal(columns[live])
    return out


def code_core(
    u: Array, s: Array, v: Array, q_b: Array, q_a: Array, rank: int
) -> tuple[Core, float]:
    """One task's core in the shared columns, in steps of 1, and about its bits.

    Args:
        u: (q, d_out) orthonormal rows. s: (q,) in steps. v: (q, d_in).
        q_b: (k_b, d_out) orthonormal rows. q_a: (k_a, d_in).
        rank: What comes back has no more directions than the task had.
    """
    left, right = product(u * s[:, None], q_b.T), product(v, q_a.T)  # [q, k_b], [q, k_a]
    kept = float((gram(left) * gram(right)).sum())
    lost = max(0.0, float(np.square(s).sum()) - kept)
    directions = code_directions(*_singular(left, right), 1.0)
    bits = number_bits(directions.left).sum() + number_bits(directions.right).sum()
    bits += 2 * SIDE_OVERHEAD * len(directions.gains)
    best = Core(None, 0.0, directions if len(directions.gains) else None, lost + directions.missed)
    if q_b.shape[0] * q_a.shape[0] > _FAR_LARGER * len(s) * (len(q_b) + len(q_a)):
        return best, float(bits)
    core = product(left.T, right)
    rows = quantize(core)
    square = float(np.square(rows.astype(np.float64)).sum())
    if not square:
        return best, float(bits)
    gain = round_gain(float((core * rows).sum()) / square)
    missed = lost + float(np.square(core - cut(gain * rows, rank)).sum())
    dense_bits = float(number_bits(rows).sum()) + SIDE_OVERHEAD * len(rows)
    if missed + PRICE * dense_bits < best.missed + PRICE * bits:
        return Core(rows, gain, None, missed), dense_bits
    return best, float(bits)


def _singular(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Singular directions of ``left^T right`` as rows, from rows (q, k_b) and (q, k_a)."""
    basis_b, upper_b = qr(left.T)
    basis_a, upper_a = qr(right.T)
    p, t, r = svd(product(upper_b, upper_a.T))
    return product(basis_b, p).T, t, product(r, basis_a.T)


def cut(core: Array, rank: int) -> Array:
    """A dense core's strongest directions: rounded, it has more of them than its task."""
    if min(core.shape) <= rank:
        return core
    u, s, v = svd(core)
    return product(u[:, :rank] * s[:rank], v[:rank])


def round_gain(gain: float) -> float:
    """A gain as it is stored."""
    return float(np.float32(gain))
