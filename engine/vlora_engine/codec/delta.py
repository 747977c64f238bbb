"""Code a group that shares the subspaces of dW: U and V once, a small core for each task.

The columns of U are the directions along which the group's weight changes have most energy, all
adapters at unit norm; a column is scaled by the root of that energy and coded in the same steps as
everything else, so that an error in it is an error of dW. Cores are projected after the columns
were rounded and made orthonormal again: what rounding bends costs a little subspace, and nothing
else (docs/mathematics.md#shared-columns).
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

FIRST = 64  # columns that sampling looks for
SMALL = 768  # rows or columns up to which all directions are found at once
_CLOSE = 1e-3  # pivots from which on Cholesky QR keeps its digits, ...
_NEARLY = 0.1  # ... at once
_NOISE = 1e-14  # of a Gram's largest eigenvalue: smaller ones are rounding
_FAR_LARGER = 4  # a dense core is not tried with more than 4 times the numbers of its factors
_DEPENDENT = 1e-6  # a rounded column with less than this of itself outside the others is dropped


@dataclass(frozen=True)
class Core:
    """One task's quantized core U^T dW V: dense, or as singular directions.

    Args:
        dense: (k_b, k_a) int32, or None.
        gain: What the dense core is multiplied by.
        directions: Left rows (n, k_b) and right rows (n, k_a), or None.
        missed: ||dW - dW^||^2, in squared steps.
    """

    dense: Array | None
    gain: float
    directions: Directions | None
    missed: float

    def value(self, k_b: int, k_a: int) -> Array:
        """The dequantized core, (k_b, k_a) in fp64."""
        if self.dense is not None:
            return self.gain * self.dense.astype(np.float64)
        if self.directions is None:
            return np.zeros((k_b, k_a))
        directions = self.directions
        return product(directions.left.T * directions.gains, directions.right)


def shared_columns(rows: Tensor) -> tuple[Array, float]:
    """The columns of one side that are worth their bits, and an estimate of these bits.

    Args:
        rows: (R, d), whose Gram is the group's energy on this side: sum_i dW_i^T dW_i on side a.

    Returns:
        Columns as rows (k, d) int32, in steps; their bits.
    """
    return round_columns(leading_directions(rows, energy_floor(1.0)), 1.0)


def energy_floor(step: float) -> float:
    """The energy below which a column is not even worth its overhead, ``lambda 44 step^2``."""
    return float(PRICE * SIDE_OVERHEAD * step * step)


def round_columns(basis: Basis, step: float) -> tuple[Array, float]:
    """Quantize the directions of a basis that are worth their bits at a step.

    Returns:
        Rows (k, d) int32, and an estimate of their bits.
    """
    values = basis.singular_values.cpu().numpy() / step
    values = values[np.square(values) > PRICE * SIDE_OVERHEAD]
    scaled = basis.components[: len(values)].cpu().numpy() * values[:, None]
    coded = quantize(scaled)
    bits = number_bits(coded) + SIDE_OVERHEAD
    # kept where the energy that it saves exceeds lambda times its bits
    worth = np.square(values) - np.square(scaled - coded).sum(axis=1) > PRICE * bits
    return coded[worth], float(bits[worth].sum())


def leading_directions(rows: Tensor, floor: float) -> Basis:
    """The leading directions of a row matrix (R, d), those with more energy than ``floor``.

    Up to `FIRST` are found by sampling; where they do not suffice, all through the smaller Gram
    matrix. Weak ones are not orthogonal to the last digit, since a Gram loses digits of them; they
    are made orthonormal after rounding, which bends them more.
    """
    if min(rows.shape) > SMALL:
        basis = range_basis(rows, FIRST)
        count = int((basis.singular_values.square() > floor).sum())
        if count < len(basis.components) or len(basis.components) < FIRST:
            return basis.cut(count)
    wide = rows.shape[1] > rows.shape[0]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    count = int((values > max(floor, _NOISE * float(values[-1]))).sum())
    directions = vectors[:, len(values) - count :].flip(1).T
    lengths = values[len(values) - count :].flip(0).sqrt()
    return Basis((directions @ rows) / lengths[:, None] if wide else directions, lengths)


def orthonormal(columns: Array) -> Array:
    """Make rounded columns (k, d) orthonormal rows, in their order; dependent ones become zero."""
    if not columns.size:
        return np.zeros(columns.shape)
    norms = np.linalg.norm(columns.astype(np.float64), axis=1, keepdims=True)
    rows = torch.from_numpy(columns / np.where(norms > 0, norms, 1))
    factor, failed = torch.linalg.cholesky_ex(rows @ rows.T)
    pivot = 0.0 if int(failed) else float(factor.diagonal().min())
    if pivot > _CLOSE:
        # Cholesky QR, twice where they are less than nearly orthogonal (CholeskyQR2): as
        # orthonormal as Householder's, and faster (Yamamoto et al. 2015).
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)
        if pivot < _NEARLY:
            factor = torch.linalg.cholesky(rows @ rows.T)
            rows = torch.linalg.solve_triangular(factor, rows, upper=False)
        orthonormalised: Array = rows.numpy()
        return orthonormalised
    q, r = qr(rows.numpy().T)
    signs = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    independent = np.abs(np.diagonal(r)) > _DEPENDENT
    if independent.all():
        return (q * signs).T
    out = np.zeros(columns.shape)  # the others must not be rotated away from mere rounding noise
    out[independent] = orthonormal(columns[independent])
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
    """Quantize the cores of N tasks in a group's shared columns, in steps of 1.

    Args:
        a: (N, r, d_in).
        bt: (N, r, d_out).
        scale: (N,) with the steps divided out.
        energy: (N,) ||dW||^2, in squared steps.
        q_b: (k_b, d_out), orthonormal rows.
        q_a: (k_a, d_in), orthonormal rows.
        ranks: (N,) of the tasks: a reconstruction has no more directions than its task had.

    Returns:
        Each core, and an estimate of its bits.
    """
    if not len(q_b) or not len(q_a):
        return [(Core(None, 0.0, None, float(e)), 0.0) for e in energy]
    right = a @ torch.from_numpy(q_a.T.copy()).to(a.device)  # [N, r, k_a]
    left = bt @ torch.from_numpy(q_b.T.copy()).to(a.device)
    u, s, v = canonical(right, left, scale)
    # What the projection loses: ||dW||^2 - ||Q_b dW Q_a^T||^2.
    outside = (energy - np.square(s).sum(axis=1)).clip(0)
    coded = code_changes(u, s, v, np.ones(len(s)))
    return [
        _code_core(*parts) for parts in zip(u, s, v, coded, outside.tolist(), ranks, strict=True)
    ]


def _code_core(
    u: Array, s: Array, v: Array, directions: Directions, outside: float, rank: int
) -> tuple[Core, float]:
    """Choose the cheaper form of one core: its rounded directions, or dense.

    Args:
        u: (q, k_b) singular directions as rows.
        s: (q,).
        v: (q, k_a).
        directions: These, rounded.
        outside: The energy that the projection lost.
        rank: Of the task.
    """
    bits = number_bits(directions.left).sum() + number_bits(directions.right).sum()
    bits += 2 * SIDE_OVERHEAD * len(directions.gains)
    best = Core(
        None, 0.0, directions if len(directions.gains) else None, outside + directions.missed
    )
    if u.shape[1] * v.shape[1] > _FAR_LARGER * len(s) * (u.shape[1] + v.shape[1]):
        return best, float(bits)
    core = product(u.T * s, v)
    rows = quantize(core)
    norm2 = float(np.square(rows.astype(np.float64)).sum())
    if not norm2:
        return best, float(bits)
    # The gain of least squares: <core, rows> / ||rows||^2.
    gain = round_gain(float((core * rows).sum()) / norm2)
    missed = outside + float(np.square(core - truncate(gain * rows, rank)).sum())
    dense_bits = float(number_bits(rows).sum()) + SIDE_OVERHEAD * len(rows)
    if missed + PRICE * dense_bits < best.missed + PRICE * bits:
        return Core(rows, gain, None, missed), dense_bits
    return best, float(bits)


def truncate(core: Array, rank: int) -> Array:
    """Truncate a dense core to the rank of its task: rounding gives it more directions."""
    if min(core.shape) <= rank:
        return core
    u, s, v = svd(core)
    return product(u[:, :rank] * s[:rank], v[:rank])


def round_gain(gain: float) -> float:
    """Round a dense core's gain to fp32, as it is stored."""
    return float(np.float32(gain))
