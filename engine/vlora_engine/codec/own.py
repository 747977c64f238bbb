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

from vlora_engine.codec.algebra import inner, least_squares, solve_symmetric
from vlora_engine.codec.quantizer import PRICE, round_rows
from vlora_engine.codec.rates import SIDE_OVERHEAD, bits_of
from vlora_engine.codec.tables import Array
from vlora_engine.linalg.grams import gram_roots
from vlora_engine.linalg.low_rank import canonical_svd_batch

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
    u = torch.linalg.solve_triangular(root_b.mT, p, upper=True).mT @ bt  # [N, r, d_out]
    v = torch.linalg.solve_triangular(root_a.mT, rh.mT, upper=True).mT @ a
    # Signs that follow from dW alone, so that the gauge does not show in the bytes.
    sign = torch.where(u.sum(dim=2, keepdim=True) < 0, -1.0, 1.0)
    u.mul_(sign)
    v.mul_(sign)
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
    core = gram_roots(gram_b).mT @ gram_roots(gram_a)
    return (torch.linalg.svdvals(core) * scale.abs().view(-1, 1)).cpu().numpy()


def _cholesky(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors of the Grams (N, r, r), and which of them keep enough digits; others: 1."""
    grams = rows @ rows.mT
    factor, failed = torch.linalg.cholesky_ex(grams)
    pivots = factor.diagonal(dim1=1, dim2=2)
    fine = (failed == 0) & (pivots.amin(dim=1) > _NEAR * pivots.amax(dim=1))
    one = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.where(fine.view(-1, 1, 1), factor, one), fine


def code_changes(u: Array, s: Array, v: Array, steps: Array) -> list[Directions]:
    """Quantize N changes, keeping the directions that are worth their bits.

    Args:
        u: (N, q, d_out) orthonormal rows, or zeros. s: (N, q), descending. v: (N, q, d_in).
        steps: (N,).
    """
    energy, price = np.square(s).sum(axis=1), PRICE * np.square(steps)
    # A direction that is not worth what stands beside its numbers is not even tried.
    tried = int((s > np.sqrt(2 * SIDE_OVERHEAD * price)[:, None]).any(axis=0).sum())
    sizes = s[:, :tried] / steps[:, None]
    left, right = round_rows(u[:, :tried], sizes), round_rows(v[:, :tried], sizes)
    squares = inner(left, left), inner(right, right)
    grams = squares[0] * squares[1]  # [N, n, n]
    # With all of dW, also what was not tried: rounded rows are not orthogonal to it.
    along = (inner(left, u) * s[:, None, :] * inner(right, v)).sum(axis=2)  # [N, n]
    bits = np.full(sizes.shape, 2 * SIDE_OVERHEAD)
    for own, d in zip(squares, (u.shape[2], v.shape[2]), strict=True):
        bits += bits_of(np.diagonal(own, axis1=1, axis2=2), d)
    kept = _worth_keeping(grams, along, bits, price)
    exact = _least_squares(grams, along, kept)
    out = []
    for i, own in enumerate(kept):
        parts = left[i, own], right[i, own]
        gains, missed, fine = exact[i, own], float(energy[i]), False
        if own.any():
            whole = u[i] * s[i, :, None], v[i]
            figures = energy[i], grams[i][np.ix_(own, own)], along[i, own]
            gains, missed, fine = _rounded(gains, whole, parts, *figures)
        integers = [x.astype(np.int32) for x in parts]
        out.append(Directions(integers[0], integers[1], gains, missed, fine))
    return out


def _rounded(
    exact: Array,
    whole: tuple[Array, Array],
    parts: tuple[Array, Array],
    energy: float,
    grams: Array,
    along: Array,
) -> tuple[Array, float, bool]:
    """Gains as they are stored, what is missed with them, and whether they take four bytes.

    Args:
        whole: The change, (q, d_out) and (q, d_in). parts: Its rounded rows, (n, .) each.
    """
    for fine in (False, True):
        gains = round_gains(exact, fine=fine)
        missed = float(energy - 2 * (gains * along).sum() + (gains @ grams @ gains))
        if missed < _CANCELLED * energy:
            missed = _missed_exactly(*whole, parts[0] * gains[:, None], parts[1])
        if missed > _FINE * energy:
            break
    return gains, max(0.0, missed), fine


def round_gains(gains: Array, *, fine: bool = False) -> Array:
    """Gains as they are kept: fp32, but for `fine` ones without its last eight bits."""
    raw = gains.astype("<f4")
    if not fine:
        raw = ((raw.view(np.uint32) + 0x80) & np.uint32(0xFFFFFF00)).view("<f4")
    return raw.astype(np.float64)


def _worth_keeping(grams: Array, along: Array, bits: Array, price: Array) -> Array:
    """(N, n) the directions whose error without them exceeds the price of their bits."""
    diagonal = np.diagonal(grams, axis1=1, axis2=2)
    gain = np.where(diagonal > 0, np.square(along) / np.where(diagonal > 0, diagonal, 1), 0)
    kept: Array = (gain > price[:, None] * bits) & (along > 0)
    return kept


def _least_squares(grams: Array, along: Array, kept: Array) -> Array:
    """(N, n) the gains of the directions kept that miss least; 0 for the others."""
    diagonal = np.where(kept, np.diagonal(grams, axis1=1, axis2=2), 1)
    scale = kept / np.sqrt(diagonal)
    own = grams * (scale[:, :, None] * scale[:, None, :])
    own += np.eye(kept.shape[1]) * ~kept[:, None, :]
    gains, sound = solve_symmetric(own, along * scale, pivot=_NEAR)
    for i in np.flatnonzero(~sound):
        gains[i] = least_squares(own[i], (along * scale)[i], cut=1e-12)
    return gains * scale


def _missed_exactly(us: Array, v: Array, left: Array, right: Array) -> float:
    """Where Grams have too few digits left: through QR of the difference's factors."""
    from vlora_engine.linalg.low_rank import delta_error2

    parts: Sequence[Array] = (v, us.T, right, left.T)
    return float(delta_error2(*(torch.from_numpy(np.ascontiguousarray(p)) for p in parts)))
