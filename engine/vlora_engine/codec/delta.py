"""A group that shares the subspaces of dW: U and V once, a small core a task.

The columns of U are the directions along which the group's weight changes have most energy, all
adapters at unit norm; a column is coded as long as it is with the root of that energy, in the same
steps as everything else, so that an error in it is an error of dW. Cores are taken after the
columns were rounded, in coordinates that are orthonormal again: what rounding has bent costs a
little subspace, and nothing else (docs/mathematics.md#shared-columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlora_engine.codec.algebra import product, qr, svd
from vlora_engine.codec.own import Directions, canonical, code_changes
from vlora_engine.codec.quantizer import PRICE, quantize
from vlora_engine.codec.rates import SIDE_OVERHEAD, number_bits
from vlora_engine.codec.tables import Array
from vlora_engine.linalg.grams import Basis, range_basis

FIRST = 64  # columns that are looked for at first
SMALL = 768  # rows or columns up to which all directions are found at once
_CLOSE = 1e-3  # pivots from which on Cholesky QR keeps its digits, ...
_NEARLY = 0.1  # ... at once
_NOISE = 1e-14  # of a Gram's largest eigenvalue: smaller ones have no digit that is true
_FAR_LARGER = 4  # a dense core of so many times the numbers of its factors is not even tried
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


def shared_columns(rows: Tensor, step: float = 1.0) -> tuple[Array, float]:
    """Columns of one side that are worth coding, (k, d) int32 in steps, and about their bits.

    Args:
        rows: (R, d) whose Gram adds up what the side has of energy.
        step: What the rows are still to be divided by.
    """
    return round_columns(strongest(rows, energy_floor(step)), step)


def energy_floor(step: float) -> float:
    """The energy below which no column is worth what stands beside its numbers."""
    return PRICE * SIDE_OVERHEAD * step * step


def round_columns(basis: Basis, step: float) -> tuple[Array, float]:
    """Those of a basis's directions that are worth their bits at a step: (k, d) int32, bits."""
    values = basis.singular_values.cpu().numpy() / step
    values = values[np.square(values) > PRICE * SIDE_OVERHEAD]
    scaled = basis.components[: len(values)].cpu().numpy() * values[:, None]
    coded = quantize(scaled)
    bits = number_bits(coded) + SIDE_OVERHEAD
    worth = np.square(values) - np.square(scaled - coded).sum(axis=1) > PRICE * bits
    return coded[worth], float(bits[worth].sum())


def strongest(rows: Tensor, floor: float) -> Basis:
    """The directions of a row matrix (R, d) with more energy than ``floor``.

    A few are found by sampling; where they do not suffice, all through the smaller Gram matrix.
    Weak ones are orthogonal to the others but for what a Gram loses of them: rounding bends them
    more, and whoever takes them in makes them orthonormal again.
    """
    if min(rows.shape) > SMALL:
        found = range_basis(rows, FIRST)
        live = int((found.singular_values.square() > floor).sum())
        if live < len(found.components) or len(found.components) < FIRST:
            return found.cut(live)
    wide = rows.shape[1] > rows.shape[0]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    live = int((values > max(floor, _NOISE * float(values[-1]))).sum())
    kept = vectors[:, len(values) - live :].flip(1).T
    sizes = values[len(values) - live :].flip(0).sqrt()
    return Basis((kept @ rows) / sizes[:, None] if wide else kept, sizes)


def orthonormal(columns: Array) -> Array:
    """Columns (k, d) as orthonormal rows, in their order; dependent ones become zero."""
    if not columns.size:
        return np.zeros(columns.shape)
    lengths = np.linalg.norm(columns.astype(np.float64), axis=1, keepdims=True)
    rows = torch.from_numpy(columns / np.where(lengths > 0, lengths, 1))
    factor, failed = torch.linalg.cholesky_ex(rows @ rows.T)
    pivot = 0.0 if int(failed) else float(factor.diagonal().min())
    if pivot > _CLOSE:
        # Cholesky QR, twice where they are less than nearly orthogonal: as orthonormal as
        # Householder's, and faster (Yamamoto et al. 2015).
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)
        if pivot < _NEARLY:
            factor = torch.linalg.cholesky(rows @ rows.T)
            rows = torch.linalg.solve_triangular(factor, rows, upper=False)
        return rows.numpy()
    q, r = qr(rows.numpy().T)
    signs = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    live = np.abs(np.diagonal(r)) > _DEPENDENT
    if live.all():
        return (q * signs).T
    out = np.zeros(columns.shape)  # the others must not turn away from what is but rounding noise
    out[live] = orthonormal(columns[live])
    return out


def code_cores(
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    energy: Array,
    q_b: Array,
    q_a: Array,
    ranks: Sequence[int],
) -> list[tuple[Core, float]]:
    """The cores of N tasks in the shared columns, in steps of 1, and about the bits of each.

    Args:
        a: (N, r, d_in). bt: (N, r, d_out). scale: (N,) with the steps divided out.
        energy: (N,) ||dW||^2, in steps. q_b: (k_b, d_out) orthonormal rows. q_a: (k_a, d_in).
        ranks: (N,) what comes back has no more directions than the task had.
    """
    if not len(q_b) or not len(q_a):
        return [(Core(None, 0.0, None, float(e)), 0.0) for e in energy]
    right = a @ torch.from_numpy(q_a.T.copy()).to(a.device)  # [N, r, k_a]
    left = bt @ torch.from_numpy(q_b.T.copy()).to(a.device)
    u, s, v = canonical(right, left, scale)
    lost = (energy - np.square(s).sum(axis=1)).clip(0)
    coded = code_changes(u, s, v, np.ones(len(s)))
    return [_code_core(*one) for one in zip(u, s, v, coded, lost.tolist(), ranks, strict=True)]


def _code_core(
    u: Array, s: Array, v: Array, directions: Directions, lost: float, rank: int
) -> tuple[Core, float]:
    """One core from its singular directions U (q, k_b), S (q,), V (q, k_a), and these rounded."""
    bits = number_bits(directions.left).sum() + number_bits(directions.right).sum()
    bits += 2 * SIDE_OVERHEAD * len(directions.gains)
    best = Core(None, 0.0, directions if len(directions.gains) else None, lost + directions.missed)
    if u.shape[1] * v.shape[1] > _FAR_LARGER * len(s) * (u.shape[1] + v.shape[1]):
        return best, float(bits)
    core = product(u.T * s, v)
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


def cut(core: Array, rank: int) -> Array:
    """A dense core's strongest directions: rounded, it has more of them than its task."""
    if min(core.shape) <= rank:
        return core
    u, s, v = svd(core)
    return product(u[:, :rank] * s[:rank], v[:rank])


def round_gain(gain: float) -> float:
    """A gain as it is stored."""
    return float(np.float32(gain))
