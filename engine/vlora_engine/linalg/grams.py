"""The few numerical kernels of the engine: Gram matrices, eigenbases, sign convention, residuals.

Everything is fp64. A *row matrix* X (rows x D) stands for what a basis has to capture; its basis
is an orthonormal set of directions in D dimensions, most important first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlora_engine.linalg.low_rank import largest_entry_sign

FULL_EIGH_LIMIT = 4096
PARTIAL_COMPONENTS = 1024
OVERSAMPLE = 12
EPS = torch.finfo(torch.float64).eps


@dataclass
class Basis:
    """Orthonormal directions and how much of the row matrix lies along each.

    Args:
        components: (k, D), orthonormal rows, the largest entry of each positive.
        singular_values: (k,), descending: of the row matrix.
    """

    components: Tensor
    singular_values: Tensor

    def cut(self, k: int) -> Basis:
        """The first ``k`` directions."""
        return Basis(self.components[:k], self.singular_values[:k])


def small_grams(x: Tensor) -> Tensor:
    """Per adapter X X^T: (N, r, d) to (N, r, r)."""
    return torch.bmm(x, x.transpose(1, 2))


def halves(grams: Tensor) -> Tensor:
    """Per matrix a factor H with H H^T = G: (N, r, r) to (N, r, r); G may be singular."""
    factor, info = torch.linalg.cholesky_ex(grams)
    # A Gram that is singular to rounding passes Cholesky with a noisy last pivot; the symmetric
    # root is exact for those, and there are few.
    pivots = factor.diagonal(dim1=1, dim2=2)
    floor = 1e-6 * grams.diagonal(dim1=1, dim2=2).amax(dim=1).clamp_min(0).sqrt()
    doubtful = (info != 0) | (pivots.amin(dim=1) <= floor) | ~torch.isfinite(pivots).all(dim=1)
    if doubtful.any():
        values, vectors = torch.linalg.eigh(grams[doubtful])
        factor[doubtful] = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return factor


def orthonormal_rows(components: Tensor) -> Tensor:
    """Rows (k, D) made orthonormal without mixing later ones into earlier ones.

    The largest entry of every row is positive (ties: the first). Rows that are orthogonal
    already to half the digits go through Cholesky QR, which is as exact there and much faster
    for long rows (Yamamoto et al. 2015); others through Householder QR.
    """
    if not components.numel():
        return components
    lengths = torch.linalg.vector_norm(components, dim=1, keepdim=True)
    rows = components / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    gram = rows @ rows.T
    off = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().amax()
    if off < 1e-8:
        factor = torch.linalg.cholesky(gram)
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)
    else:
        q, r = torch.linalg.qr(rows.T)
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
        rows = (q * signs).T
    return rows * largest_entry_sign(rows.T).unsqueeze(1)


def full_basis(rows: Tensor) -> tuple[Basis, Tensor]:
    """The eigenbasis of ``rows`` (m, D) through the smaller Gram matrix, and its eigenvectors.

    The eigenvectors (min(m, D), k) let `basis_from_vectors` form the same basis again from the
    same rows. Eigenvalues under ``max(m, D) * eps * L_1`` are dropped. Beyond
    `FULL_EIGH_LIMIT` only the first `PARTIAL_COMPONENTS` directions are computed.
    """
    m, d = rows.shape
    if min(m, d) > FULL_EIGH_LIMIT:
        basis = _sampled_basis(rows, PARTIAL_COMPONENTS)
        if d < m:
            return basis, basis.components.T
        return basis, (rows @ basis.components.T) / basis.singular_values.clamp_min(EPS)
    vectors, values = _gram_vectors(rows)
    return basis_from_vectors(rows, vectors, values), vectors


def basis_from_vectors(rows: Tensor, vectors: Tensor, values: Tensor | None = None) -> Basis:
    """The basis of ``rows`` (m, D) from eigenvectors of its smaller Gram matrix.

    Args:
        vectors: (min(m, D), k); values: (k,) their eigenvalues, where they are at hand.
    """
    m, d = rows.shape
    if d < m:  # the eigenvectors are the directions themselves
        components = vectors.T * largest_entry_sign(vectors).unsqueeze(1)
        if values is not None:
            return Basis(components, values.clamp_min(0).sqrt())
        return Basis(components, torch.linalg.vector_norm(rows @ components.T, dim=0))
    candidates = vectors.T @ rows
    return Basis(orthonormal_rows(candidates), torch.linalg.vector_norm(candidates, dim=1))


def range_basis(rows: Tensor, k: int) -> Basis:
    """The first ``k`` directions of ``rows`` (m, D), by whichever way is cheaper.

    A Gram matrix costs min(m, D) products with ``rows``, a range finder about eight of the width
    of its sample.
    """
    if min(rows.shape) <= 8 * _sample_width(k):
        vectors, values = _gram_vectors(rows)
        return basis_from_vectors(rows, vectors[:, :k], values[:k])
    return _sampled_basis(rows, k)


def _gram_vectors(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (min(m, D), k) and values (k,) of the smaller Gram matrix, largest first."""
    m, d = rows.shape
    gram = rows.T @ rows if d < m else rows @ rows.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = int((values > max(m, d) * EPS * values[:1].clamp_min(0)).sum())
    return vectors[:, :keep], values[:keep]


def _sample_width(k: int) -> int:
    return k + OVERSAMPLE + k // 4


def _sampled_basis(rows: Tensor, k: int) -> Basis:
    """A seeded randomised range finder with Rayleigh-Ritz on the sample.

    Halko, Martinsson, Tropp 2011, algorithm 4.4, with two power steps: the first in fp32, whose
    noise the second, in fp64, takes out again.
    """
    m, d = rows.shape
    seeded = torch.Generator().manual_seed(0x5EED)
    width = min(_sample_width(k), m, d)
    sample = torch.randn(m, width, generator=seeded, dtype=torch.float32).to(rows.device)
    peak = max(abs(float(edge)) for edge in rows.aminmax())
    rough = (rows if 1e-12 < peak < 1e12 else rows / max(peak, 1e-300)).float()
    # (Z^T X)^T is X^T Z at less than half the time: BLAS then reads X along its rows.
    q = torch.linalg.qr((sample.T @ rough).T).Q
    q = torch.linalg.qr(((rough @ q).T @ rough).T).Q.double()
    q = torch.linalg.qr(((rows @ q).T @ rows).T).Q
    _, values, vectors = torch.linalg.svd(rows @ q, full_matrices=False)
    keep = min(k, int((values > max(m, d) * EPS * values[:1]).sum()))
    return Basis(orthonormal_rows(vectors[:keep] @ q.T), values[:keep])


def update_basis(
    components: Tensor, singular_values: Tensor, new_rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The basis of the old rows and ``new_rows`` (m, D) together, at most ``k`` directions.

    Exact when ``components`` (k0, D) held all of the old rows. Brand 2006; the augmented core is
    rotated in full. Returns components (k', D) and singular values (k',).
    """
    inside = new_rows @ components.T
    outside = new_rows - inside @ components
    again = outside @ components.T
    inside, outside = inside + again, outside - again @ components
    q, t = torch.linalg.qr(outside.T)
    none = singular_values.new_zeros(len(components), q.shape[1])
    top = torch.cat([torch.diag(singular_values), none], 1)
    core = torch.cat([top, torch.cat([inside, t.T], 1)], 0)
    _, values, vectors = torch.linalg.svd(core, full_matrices=False)
    stacked = torch.cat([components, q.T], 0)
    keep = min(k, int((values > max(len(core), stacked.shape[1]) * EPS * values[:1]).sum()))
    return orthonormal_rows(vectors[:keep] @ stacked), values[:keep]


@dataclass
class CumulatedGrams:
    """``C[k] = sum over j <= k of p_j p_j^T`` of N tasks at chosen k: (N, points, r, r)."""

    k: np.ndarray[Any, np.dtype[np.int64]]
    values: Tensor

    def at(self, k: Any) -> Tensor:
        return self.values[:, torch.from_numpy(np.searchsorted(self.k, k))]


def cumulated_grams(p: Tensor, k: np.ndarray[Any, np.dtype[np.int64]]) -> CumulatedGrams:
    """Cumulated r x r Grams of projected factors ``p`` (N, r, K) at ascending ``k``."""
    n, r, _ = p.shape
    steps = torch.zeros(n, len(k), r, r, dtype=p.dtype, device=p.device)
    for i, (low, high) in enumerate(zip(np.concatenate([[0], k[:-1]]), k, strict=True)):
        if high > low:
            piece = p[:, :, int(low) : int(high)]
            steps[:, i] = torch.bmm(piece, piece.transpose(1, 2))
    return CumulatedGrams(k, steps.cumsum(1))
