"""Each adapter by itself: the singular directions of dW, one step for all of them.

With ``dW = U S V^T``, an error of e in a column of ``U S`` or of ``V S`` is an error of e in dW, to
first order. So both sides of every direction are quantized in the same steps, a strong direction
takes more bits than a weak one, a side of many rows fewer bits a number than a short one, and a
direction that is not worth its bits takes none. Nothing depends on the gauge of A and B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlora_engine.codec.algebra import gram, least_squares, product
from vlora_engine.codec.quantizer import PRICE, quantize
from vlora_engine.codec.rates import SIDE_OVERHEAD, number_bits
from vlora_engine.codec.tables import Array
from vlora_engine.inner import canonical_svd_batch
from vlora_engine.linalg import halves

_NEAR = 1e-3  # pivots of a Gram's factor below this share of the largest: two rows nearly alike
_CANCELLED = 1e-7  # below this share of the energy a difference of Grams has few digits left
_FINE = 1e-9  # below this share of the energy the rounding of three-byte gains is felt


@dataclass(frozen=True)
class Directions:
    """Quantized directions of one dW: ``dW^ = sum_j gains_j left_j right_j^T``.

    Args:
        left: (n, d_out) int32. right: (n, d_in) int32. gains: (n,) as they are stored.
        missed: ||dW - dW^||^2. fine: Gains are stored in four bytes, not three.
    """

    left: Array
    right: Array
    gains: Array
    missed: float
    fine: bool = False


def canonical(a: Tensor, bt: Tensor, scale: Tensor) -> tuple[Array, Array, Array]:
    """Singular directions of N changes, as rows: U (N, q, d_out), S (N, q), V (N, q, d_in).

    Through the Cholesky factors of r x r Grams; changes whose factors are near to dependent, where
    that loses digits, go through QR.

    Args:
        a: (N, r, d_in). bt: (N, r, d_out). scale: (N,).
    """
    root_a, fine_a = _cholesky(a)
    root_b, fine_b = _cholesky(bt)
    p, s, rh = torch.linalg.svd(scale.view(-1, 1, 1) * (root_b.mT @ root_a), full_matrices=False)
    u = p.mT @ torch.linalg.solve_triangular(root_b, bt, upper=False)  # [N, r, d_out]
    v = rh @ torch.linalg.solve_triangular(root_a, a, upper=False)
    # Signs that follow from dW alone, so that the gauge does not show in the bytes.
    sign = torch.where(u.sum(dim=2, keepdim=True) < 0, -1.0, 1.0)
    u, v = u * sign, v * sign
    rough = (~(fine_a & fine_b)).nonzero().flatten()
    out = [t.cpu().numpy() for t in (u, s, v)]
    if len(rough):
        exact = canonical_svd_batch(a[rough], bt[rough].mT, scale[rough])
        rows = exact[0].mT, exact[1], exact[2].mT
        for whole, own in zip(out, rows, strict=True):
            whole[rough.cpu().numpy()] = 0
            whole[rough.cpu().numpy(), : own.shape[1]] = own.cpu().numpy()
    return out[0], out[1], out[2]


def singular_values(gram_a: Tensor, gram_b: Tensor, scale: Tensor) -> Array:
    """Singular values (N, r) of N changes from the Grams of their factors (N, r, r)."""
    core = halves(gram_b).mT @ halves(gram_a)
    return (torch.linalg.svdvals(core) * scale.abs().view(-1, 1)).cpu().numpy()


def _cholesky(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors of the Grams (N, r, r), and which of them keep enough digits; others: 1."""
    grams = rows @ rows.mT
    factor, failed = torch.linalg.cholesky_ex(grams)
    pivots = factor.diagonal(dim1=1, dim2=2)
    fine = (failed == 0) & (pivots.amin(dim=1) > _NEAR * pivots.amax(dim=1))
    one = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.where(fine.view(-1, 1, 1), factor, one), fine


def code_directions(u: Array, s: Array, v: Array, step: float) -> Directions:
    """Quantize one change in steps of ``step``, keeping the directions that are worth their bits.

    Args:
        u: (q, d_out) orthonormal rows. s: (q,). v: (q, d_in).
    """
    energy = float(np.square(s).sum())
    # A direction that cannot round to anything on one of its sides is not even tried.
    peak = np.minimum(np.abs(u).max(axis=1, initial=0), np.abs(v).max(axis=1, initial=0)) * s
    tried = peak > step / 2
    if not tried.any():
        return _nothing(u, v, energy)
    scale = (s[tried] / step)[:, None]
    left, right = quantize(u[tried] * scale), quantize(v[tried] * scale)
    fine_left, fine_right = left.astype(np.float64), right.astype(np.float64)
    grams = gram(fine_left) * gram(fine_right)
    # With all of dW, also what was not tried: rounded rows are not orthogonal to it.
    inner = (product(fine_left, (u * s[:, None]).T) * product(fine_right, v.T)).sum(axis=1)
    bits = number_bits(left) + number_bits(right) + 2 * SIDE_OVERHEAD
    kept = _worth_keeping(grams, inner, bits, PRICE * step * step)
    if not len(kept):
        return _nothing(u, v, energy)
    exact = _least_squares(grams, inner, kept)
    own = grams[np.ix_(kept, kept)]
    for fine in (False, True):
        gains = round_gains(exact, fine=fine)
        missed = energy - 2 * (gains * inner[kept]).sum() + (own * np.outer(gains, gains)).sum()
        if missed < _CANCELLED * energy:
            parts = u, s, v, fine_left[kept] * gains[:, None], fine_right[kept]
            missed = _missed_exactly(*parts)
        if missed > _FINE * energy:
            break
    return Directions(left[kept], right[kept], gains, max(0.0, float(missed)), fine)


def round_gains(gains: Array, *, fine: bool = False) -> Array:
    """Gains as they are kept: fp32, but for `fine` ones without its last eight bits."""
    raw = gains.astype("<f4")
    if not fine:
        raw = ((raw.view(np.uint32) + 0x80) & np.uint32(0xFFFFFF00)).view("<f4")
    return raw.astype(np.float64)


def _nothing(u: Array, v: Array, energy: float) -> Directions:
    empty = np.zeros((0, u.shape[1]), np.int32), np.zeros((0, v.shape[1]), np.int32)
    return Directions(*empty, np.zeros(0), energy)


def _worth_keeping(grams: Array, inner: Array, bits: Array, price: float) -> Array:
    """Directions whose error without them exceeds the price of their bits."""
    diagonal = np.diagonal(grams)
    gain = np.where(diagonal > 0, np.square(inner) / np.where(diagonal > 0, diagonal, 1), 0)
    return np.flatnonzero((gain > price * bits) & (inner > 0))


def _least_squares(grams: Array, inner: Array, kept: Array) -> Array:
    scale = 1 / np.sqrt(np.diagonal(grams)[kept])
    own = grams[np.ix_(kept, kept)] * np.outer(scale, scale)
    return least_squares(own, inner[kept] * scale, cut=1e-12) * scale


def _missed_exactly(u: Array, s: Array, v: Array, left: Array, right: Array) -> float:
    """Where Grams have too few digits left: through QR of the difference's factors."""
    from vlora_engine.inner import delta_error2

    parts: Sequence[Array] = (v, (u * s[:, None]).T, right, left.T)
    return float(delta_error2(*(torch.from_numpy(np.ascontiguousarray(p)) for p in parts)))
