"""Code an adapter by itself: the singular directions of dW, quantized in one step.

With ``dW = U S V^T``, an error of e in a column of ``U S`` or of ``V S`` is an error of e in dW, to
first order. So both sides of every direction are quantized in the same steps, a strong direction
takes more bits than a weak one, a side of many rows fewer bits a number than a short one, and a
direction that is not worth its bits takes none. Nothing depends on the gauge of A and B
(docs/mathematics.md#own-directions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlora_engine.codec.algebra import inner, least_squares, solve_symmetric
from vlora_engine.codec.quantizer import PRICE, round_rows
from vlora_engine.codec.rates import SIDE_OVERHEAD, bits_of
from vlora_engine.codec.tables import Array
from vlora_engine.linalg.grams import gram_roots
from vlora_engine.linalg.low_rank import canonical_svd_batch, delta_error2

_NEAR = 1e-3  # share of the largest pivot of a Gram's factor below which rows are near dependent
_CANCELLED = 1e-7  # squared error over energy below which a difference of Grams has few digits left
_FINE = 1e-9  # squared error over energy below which the rounding of three-byte gains is felt


@dataclass(frozen=True)
class Directions:
    """Quantized directions of one dW: ``dW^ = sum_j gains_j left_j right_j^T``.

    Args:
        left: (n, d_out) int32.
        right: (n, d_in) int32.
        gains: (n,) as they are stored.
        missed: ||dW - dW^||^2.
        fine: Gains are stored in four bytes, not three.
    """

    left: Array
    right: Array
    gains: Array
    missed: float
    fine: bool = False


def canonical(a: Tensor, bt: Tensor, scale: Tensor) -> tuple[Array, Array, Array]:
    """The singular directions of N changes, as rows.

    Through the Cholesky factors of r x r Grams; changes with nearly dependent factors, where that
    loses digits, go through QR (docs/mathematics.md#canonical-form).

    Args:
        a: (N, r, d_in).
        bt: (N, r, d_out).
        scale: (N,).

    Returns:
        U (N, q, d_out), S (N, q) descending, V (N, q, d_in). The entries of each row of U have a
        sum that is not negative (by QR: its largest entry is positive).
    """
    root_a, exact_a = _cholesky(a)
    root_b, exact_b = _cholesky(bt)
    # A A^T = L_a L_a^T, B^T B = L_b L_b^T: dW = s B A has the singular values of s L_b^T L_a.
    p, s, rh = torch.linalg.svd(scale.view(-1, 1, 1) * (root_b.mT @ root_a), full_matrices=False)
    u = torch.linalg.solve_triangular(root_b.mT, p, upper=True).mT @ bt  # [N, r, d_out]
    v = torch.linalg.solve_triangular(root_a.mT, rh.mT, upper=True).mT @ a
    # Signs that follow from dW alone, so that the gauge does not show in the bytes.
    sign = torch.where(u.sum(dim=2, keepdim=True) < 0, -1.0, 1.0)
    u.mul_(sign)
    v.mul_(sign)
    inexact = (~(exact_a & exact_b)).nonzero().flatten()
    out = [t.cpu().numpy() for t in (u, s, v)]
    if len(inexact):
        by_qr = canonical_svd_batch(a[inexact], bt[inexact].mT, scale[inexact])
        rows = by_qr[0].mT, by_qr[1], by_qr[2].mT
        for whole, part in zip(out, rows, strict=True):
            whole[inexact.cpu().numpy()] = 0
            whole[inexact.cpu().numpy(), : part.shape[1]] = part.cpu().numpy()
    return out[0], out[1], out[2]


def singular_values(gram_a: Tensor, gram_b: Tensor, scale: Tensor) -> Array:
    """The singular values (N, r) of N changes, from the Grams (N, r, r) of their factors."""
    core = gram_roots(gram_b).mT @ gram_roots(gram_a)
    values: Array = (torch.linalg.svdvals(core) * scale.abs().view(-1, 1)).cpu().numpy()
    return values


def _cholesky(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors (N, r, r) of the rows' Grams, and which of them keep their digits.

    The others are replaced by the identity.
    """
    grams = rows @ rows.mT
    factor, failed = torch.linalg.cholesky_ex(grams)
    pivots = factor.diagonal(dim1=1, dim2=2)
    exact = (failed == 0) & (pivots.amin(dim=1) > _NEAR * pivots.amax(dim=1))
    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.where(exact.view(-1, 1, 1), factor, identity), exact


def code_changes(u: Array, s: Array, v: Array, steps: Array) -> list[Directions]:
    """Quantize N changes, keeping the directions that are worth their bits.

    Args:
        u: (N, q, d_out), orthonormal rows, or zeros.
        s: (N, q), descending.
        v: (N, q, d_in), orthonormal rows, or zeros.
        steps: (N,), in units of dW.
    """
    energy, price = np.square(s).sum(axis=1), PRICE * np.square(steps)
    # A direction whose energy is below the price of its overhead alone is not tried.
    tried = int((s > np.sqrt(2 * SIDE_OVERHEAD * price)[:, None]).any(axis=0).sum())
    sizes = s[:, :tried] / steps[:, None]  # S_j / step
    left, right = round_rows(u[:, :tried], sizes), round_rows(v[:, :tried], sizes)
    squares = inner(left, left), inner(right, right)
    grams = squares[0] * squares[1]  # M_jk = <l_j, l_k> <m_j, m_k>: [N, n, n]
    # c_j = l_j^T dW m_j, with all of dW: rounded rows are not orthogonal to what was not tried.
    along = (inner(left, u) * s[:, None, :] * inner(right, v)).sum(axis=2)  # [N, n]
    bits = np.full(sizes.shape, 2 * SIDE_OVERHEAD)
    for square, d in zip(squares, (u.shape[2], v.shape[2]), strict=True):
        bits += bits_of(np.diagonal(square, axis1=1, axis2=2), d)
    worth = _worth_keeping(grams, along, bits, price)
    exact = _least_squares(grams, along, worth)
    out = []
    for i, mask in enumerate(worth):
        parts = left[i, mask], right[i, mask]
        gains, missed, fine = exact[i, mask], float(energy[i]), False
        if mask.any():
            change = u[i] * s[i, :, None], v[i]
            products = energy[i], grams[i][np.ix_(mask, mask)], along[i, mask]
            gains, missed, fine = _rounded(gains, change, parts, *products)
        integers = [x.astype(np.int32) for x in parts]
        out.append(Directions(integers[0], integers[1], gains, missed, fine))
    return out


def _rounded(
    exact: Array,
    change: tuple[Array, Array],
    parts: tuple[Array, Array],
    energy: float,
    grams: Array,
    along: Array,
) -> tuple[Array, float, bool]:
    """Round gains as they are stored: in three bytes, or in four where three would be felt.

    Args:
        exact: (n,) the gains of least squares.
        change: dW as U S (q, d_out) and V (q, d_in).
        parts: Its rounded rows, (n, d_out) and (n, d_in).
        energy: ||dW||^2.
        grams: M (n, n).
        along: c (n,).

    Returns:
        Gains (n,), ||dW - dW^||^2 with them, and whether they take four bytes.
    """
    for fine in (False, True):
        gains = round_gains(exact, fine=fine)
        # ||dW - dW^||^2 = ||dW||^2 - 2 g^T c + g^T M g
        missed = float(energy - 2 * (gains * along).sum() + (gains @ grams @ gains))
        if missed < _CANCELLED * energy:
            missed = _missed_exactly(*change, parts[0] * gains[:, None], parts[1])
        if missed > _FINE * energy:
            break
    return gains, max(0.0, missed), fine


def round_gains(gains: Array, *, fine: bool = False) -> Array:
    """Round gains as they are stored: fp32 without its last eight bits; ``fine``: whole fp32."""
    raw = gains.astype("<f4")
    if not fine:
        raw = ((raw.view(np.uint32) + 0x80) & np.uint32(0xFFFFFF00)).view("<f4")
    return raw.astype(np.float64)


def _worth_keeping(grams: Array, along: Array, bits: Array, price: Array) -> Array:
    """Which directions (N, n) save more error than their bits cost.

    ``c_j > 0`` and ``c_j^2 / M_jj > lambda step^2 bits_j``.
    """
    diagonal = np.diagonal(grams, axis1=1, axis2=2)
    gain = np.where(diagonal > 0, np.square(along) / np.where(diagonal > 0, diagonal, 1), 0)
    return (gain > price[:, None] * bits) & (along > 0)


def _least_squares(grams: Array, along: Array, kept: Array) -> Array:
    """The gains g (N, n) of least squares, ``M g = c`` over the kept directions; 0 for others."""
    diagonal = np.where(kept, np.diagonal(grams, axis1=1, axis2=2), 1)
    scale = kept / np.sqrt(diagonal)
    normalized = grams * (scale[:, :, None] * scale[:, None, :])
    normalized += np.eye(kept.shape[1]) * ~kept[:, None, :]
    gains, solved = solve_symmetric(normalized, along * scale, pivot=_NEAR)
    for i in np.flatnonzero(~solved):
        gains[i] = least_squares(normalized[i], (along * scale)[i], cut=1e-12)
    return gains * scale


def _missed_exactly(us: Array, v: Array, left: Array, right: Array) -> float:
    """``||dW - dW^||^2`` by QR of the difference's factors, where Grams have too few digits."""
    parts: Sequence[Array] = (v, us.T, right, left.T)
    return float(delta_error2(*(torch.from_numpy(np.ascontiguousarray(p)) for p in parts)))
