"""Inner products, norms, errors and SVDs of weight changes, without a d_out x d_in matrix.

A weight change is given by its factors, ``dW = B @ A`` with A (r, d_in) and B (d_out, r); the
caller folds the scale into either of them, or passes it where a function takes one.
Everything is computed in fp64, whatever the dtype of the factors, on their device.
Leading dimensions are a batch: A (..., r, d_in), B (..., d_out, r).

All of it rests on one identity, ``<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T))``, entry by entry
(docs/mathematics.md#low-rank-arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vlora_engine.errors import AdapterError

Factors = tuple[Tensor, Tensor]  # A (r, d_in), B (d_out, r)

# Below this share of the summands' magnitudes a sum of Gram products has lost half its digits:
# the error it would give (relative, unsquared) is under 1e-5, and the QR path takes over.
_CANCELLED = 1e-10
_GRAM_ROWS = 1024  # stacked ranks of one block of `module_grams`: 8 MB of fp64 a Gram block


def delta_inner(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """The Frobenius inner product ``<B1 A1, B2 A2>`` of two weight changes.

    Args:
        a1: (..., r1, d_in).
        b1: (..., d_out, r1).
        a2: (..., r2, d_in); its rank may differ.
        b2: (..., d_out, r2).

    Returns:
        (...) in fp64. Its rounding error is relative to the norms, not to the value.
    """
    a1, b1, a2, b2 = a1.double(), b1.double(), a2.double(), b2.double()
    return ((b1.mT @ b2) * (a1 @ a2.mT)).sum(dim=(-2, -1))


def delta_norm2(a: Tensor, b: Tensor) -> Tensor:
    """The squared Frobenius norm ``||B A||^2`` of a weight change, also where its terms cancel.

    Where the Gram products cancel (as in the difference of two nearly equal changes), the norm is
    taken through ``B = Q_b R_b``, ``A^T = Q_a R_a``: ``||R_b R_a^T||`` loses no more than
    eps ``||B|| ||A||`` of the norm itself, where Grams lose that of its square
    (docs/mathematics.md#cancellation).

    Args:
        a: (..., r, d_in).
        b: (..., d_out, r).

    Returns:
        (...) in fp64, never negative.
    """
    a, b = a.double(), b.double()
    products = (b.mT @ b) * (a @ a.mT)  # [..., r, r]
    value = products.sum(dim=(-2, -1)).clamp(min=0)
    cancelled = value < _CANCELLED * products.abs().sum(dim=(-2, -1))
    if not bool(cancelled.any()):
        return value
    if value.ndim == 0:
        return _norm2_by_qr(a, b)
    batch = value.shape
    a, b = (t.expand(*batch, *t.shape[-2:])[cancelled] for t in (a, b))  # [n, r, d]
    value[cancelled] = _norm2_by_qr(a, b)
    return value


def delta_error2(a: Tensor, b: Tensor, a_hat: Tensor, b_hat: Tensor) -> Tensor:
    """The squared error ``||B A - B^ A^||^2`` of an approximation, accurate down to rounding.

    It is the norm of ``[B, -B^] [A; A^]``; exact copies give 0 up to rounding.

    Args:
        a: (..., r, d_in).
        b: (..., d_out, r).
        a_hat: (..., r', d_in); its rank may differ.
        b_hat: (..., d_out, r').

    Returns:
        (...) in fp64, never negative.
    """
    right = torch.cat([a.double(), a_hat.double()], dim=-2)  # [..., r + r', d_in]
    left = torch.cat([b.double(), -b_hat.double()], dim=-1)  # [..., d_out, r + r']
    return delta_norm2(right, left)


def relative_error(pairs: Iterable[tuple[Factors, Factors]]) -> float:
    """The relative error of one adapter's dW over its modules.

    ``err = sqrt(sum ||dW - dW^||^2 / sum ||dW||^2)`` (docs/mathematics.md#relative-error).

    Args:
        pairs: Per module ``((A, B), (A^, B^))`` with the scales folded in.

    Returns:
        The relative error; 0 for an adapter whose dW is zero and whose approximation is too,
        infinity where only the approximation is not.
    """
    error2 = norm2 = 0.0
    for (a, b), (a_hat, b_hat) in pairs:
        error2 += float(delta_error2(a, b, a_hat, b_hat))
        norm2 += float(delta_norm2(a, b))
    if norm2 == 0:
        return 0.0 if error2 == 0 else math.inf
    return math.sqrt(error2 / norm2)


def canonical_svd(a: Tensor, b: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of one weight change: ``scale * B @ A = U diag(S) V^T``.

    Unlike A and B it does not depend on the gauge ``(B G, G^-1 A)`` that training happened to
    end in, up to rotations among equal singular values (docs/mathematics.md#canonical-form).

    Args:
        a: (r, d_in).
        b: (d_out, r).
        scale: The adapter's scale; it goes into S, its sign into V.

    Returns:
        U (d_out, q), S (q,) descending and positive, V (d_in, q). Singular values up to
        ``max(d_out, d_in) * eps * S_1`` are dropped: q is the numerical rank, 0 for a zero B.
        The largest entry of each column of U is positive; the first one where several tie.

    Raises:
        AdapterError: NaN or infinity in the factors.
    """
    U, S, V = canonical_svd_batch(a[None], b[None], scale)
    rank = int((S[0] > 0).sum())
    return U[0, :, :rank], S[0, :rank], V[0, :, :rank]


def canonical_svd_batch(
    a: Tensor, b: Tensor, scale: float | Tensor = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVDs of a stack of weight changes of one shape and rank; see `canonical_svd`.

    Args:
        a: (N, r, d_in).
        b: (N, d_out, r).
        scale: One for all, or (N,).

    Returns:
        U (N, d_out, q), S (N, q), V (N, d_in, q) with q = min(r, d_out, d_in). Directions below
        the numerical rank of their own change are zero in all three.

    Raises:
        AdapterError: NaN or infinity in the factors.
    """
    a, b = a.double(), b.double()
    scale = torch.as_tensor(scale, dtype=torch.float64, device=a.device).reshape(-1, 1, 1)
    q_b, r_b = torch.linalg.qr(b)  # [N, d_out, min(d_out, r)], [N, min(d_out, r), r]
    q_a, r_a = torch.linalg.qr(a.mT)  # [N, d_in, min(d_in, r)], [N, min(d_in, r), r]
    core = scale * (r_b @ r_a.mT)  # dW = Q_b core Q_a^T
    if not bool(core.isfinite().all()):
        raise AdapterError(
            "A weight change is not finite.",
            expected="finite numbers",
            found="NaN or infinity in A, B or their product",
        )
    P, S, Qh = torch.linalg.svd(core, full_matrices=False)  # [N, ., q], [N, q], [N, q, .]
    U, V = q_b @ P, q_a @ Qh.mT
    sign = largest_entry_sign(U)  # [N, q]
    nonzero = max(b.shape[-2], a.shape[-1]) * torch.finfo(torch.float64).eps * S[..., :1] < S
    return U * (sign * nonzero)[..., None, :], S * nonzero, V * (sign * nonzero)[..., None, :]


def largest_entry_sign(columns: Tensor) -> Tensor:
    """The sign of each column's entry of largest magnitude: (..., d, q) to (..., q).

    1 for a zero column; of equal magnitudes the first entry counts.
    """
    if columns.shape[-2] == 0 or columns.shape[-1] == 0:
        return columns.new_ones(*columns.shape[:-2], columns.shape[-1])
    at = columns.abs().argmax(dim=-2, keepdim=True)  # the first of equals
    sign = columns.gather(-2, at).squeeze(-2).sign()
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def module_grams(
    factors: Sequence[Factors],
    scales: Sequence[float] | None = None,
    *,
    ranks: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The inner products ``<dW_i, dW_j>`` and ``<A_i, A_j>`` of one module over n adapters.

    Block by block: the factors of some adapters are stacked to (sum r, d), one Gram a side, the
    entries of their elementwise product summed per pair of adapters
    (docs/mathematics.md#products-of-many-adapters). Costs (sum r)^2 (d_in + d_out)
    multiplications, halved by symmetry; holds two blocks of 1024 rows in ``dtype``.

    Args:
        factors: Per adapter A (r_i, d_in) and B (d_out, r_i) in any dtype. May be lazy: each
            item is asked for once per block of the others.
        scales: Per adapter its scale (all 1 by default).
        ranks: The ranks r_i where reading ``factors`` just to know them would cost.
        dtype: fp64, or fp32 for twice the speed where a cosine to 1e-6 is enough.

    Returns:
        Two matrices (n, n), symmetric, always fp64: of dW and of A. Adapters whose ranks differ
        have ``<A_i, A_j> = 0``.
    """
    n = len(factors)
    ranks = [a.shape[0] for a, _ in factors] if ranks is None else list(ranks)
    scales = [1.0] * n if scales is None else list(scales)
    grams = torch.zeros(2, n, n, dtype=torch.float64)
    blocks = _row_blocks(ranks)
    for x, rows in enumerate(blocks):
        a_x, b_x = _stack_block(factors, scales, rows, dtype)  # [R, d_in], [R, d_out]
        grams = grams.to(a_x.device)
        for columns in blocks[x:]:
            same = columns is rows
            a_y, b_y = (a_x, b_x) if same else _stack_block(factors, scales, columns, dtype)
            inner_a = a_x @ a_y.T  # [R, R']
            of_rows, of_columns = [ranks[i] for i in rows], [ranks[i] for i in columns]
            traces = _trace_blocks(inner_a, of_rows, of_columns)
            inner_dw = _sum_blocks(inner_a.mul_(b_x @ b_y.T).double(), of_rows, of_columns)
            for gram, block in zip(grams, (inner_dw, traces), strict=True):
                gram[rows.start : rows.stop, columns.start : columns.stop] = block
                gram[columns.start : columns.stop, rows.start : rows.stop] = block.T
    dw_gram, a_gram = (grams + grams.mT) / 2
    return dw_gram, a_gram


def _norm2_by_qr(a: Tensor, b: Tensor) -> Tensor:
    """``||R_b R_a^T||^2`` with ``B = Q_b R_b`` and ``A^T = Q_a R_a``."""
    r_b = torch.linalg.qr(b, mode="r").R
    r_a = torch.linalg.qr(a.mT, mode="r").R
    core: Tensor = r_b @ r_a.mT
    return core.square().sum(dim=(-2, -1))


def _row_blocks(ranks: Sequence[int]) -> list[range]:
    """Consecutive adapters whose ranks add up to about `_GRAM_ROWS`."""
    blocks: list[range] = []
    start = rows = 0
    for i, rank in enumerate(ranks):
        if i > start and rows + rank > _GRAM_ROWS:
            blocks.append(range(start, i))
            start, rows = i, 0
        rows += rank
    if start < len(ranks):
        blocks.append(range(start, len(ranks)))
    return blocks


def _stack_block(
    factors: Sequence[Factors], scales: Sequence[float], block: range, dtype: torch.dtype
) -> Factors:
    """A and scaled B^T of some adapters, stacked by rank: (sum r, d_in) and (sum r, d_out)."""
    pairs = [factors[i] for i in block]
    a = torch.cat([pair[0].to(dtype) for pair in pairs])
    b = torch.cat([pair[1].T.to(dtype) * scales[i] for i, pair in zip(block, pairs, strict=True)])
    return a, b


def _sum_blocks(products: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Sum each (r_i, r_j) block: (sum rows, sum columns) to (len(rows), len(columns))."""
    if len({*rows, *columns}) == 1:
        r = rows[0]
        return products.reshape(len(rows), r, len(columns), r).sum(dim=(1, 3))
    # not a product with an indicator matrix: that would spread one adapter's NaN to all
    by_row = torch.stack([chunk.sum(dim=0) for chunk in products.split(rows)])
    return torch.stack([chunk.sum(dim=1) for chunk in by_row.split(columns, dim=1)], dim=1)


def _trace_blocks(products: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Trace each (r_i, r_j) block: (sum rows, sum columns) to (len(rows), len(columns)) fp64.

    Blocks that are not square give 0.
    """
    traces = products.new_zeros(len(rows), len(columns), dtype=torch.float64)
    offsets = [torch.tensor(ranks).cumsum(0) - torch.tensor(ranks) for ranks in (rows, columns)]
    for rank in sorted({*rows} & {*columns}):
        i = torch.tensor([k for k, r in enumerate(rows) if r == rank])
        j = torch.tensor([k for k, r in enumerate(columns) if r == rank])
        diagonal = torch.arange(rank)
        row_at = offsets[0][i][:, None, None] + diagonal  # [I, 1, rank]
        column_at = offsets[1][j][:, None] + diagonal  # [J, rank]
        diagonals = products[row_at.to(products.device), column_at.to(products.device)]
        traces[i[:, None], j] = diagonals.double().sum(-1)
    return traces
