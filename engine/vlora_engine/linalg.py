"""The few numerical kernels of the engine: Gram matrices, eigenbases, sign convention, residuals.

Everything is fp64. A *row matrix* X (rows x D) stands for what a basis has to capture; its basis
is an orthonormal set of directions in D dimensions, most important first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlora_engine.inner import largest_entry_sign

FULL_EIGH_LIMIT = 1536
PARTIAL_COMPONENTS = 512
GRAM_LIMIT = 4096
OVERSAMPLE = 12
POWER_STEPS = 3
EPS = torch.finfo(torch.float64).eps


@dataclass
class Basis:
    """Orthonormal directions and how much of the row matrix lies along each.

    Args:
        components: (k, D), orthonormal rows, the largest entry of each positive.
        singular_values: (k,), descending: of the row matrix.
        energy: The squared Frobenius norm of the whole row matrix.
    """

    components: Tensor
    singular_values: Tensor
    energy: float

    def cut(self, k: int) -> Basis:
        """The first ``k`` directions."""
        return Basis(self.components[:k], self.singular_values[:k], self.energy)


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
    """One QR: rows made orthonormal without mixing later ones into earlier ones.

    The largest entry of every row is positive (ties: the first).
    """
    if not components.numel():
        return components
    q, r = torch.linalg.qr(components.T)
    rows = (q * torch.sign(r.diagonal())).T
    return rows * largest_entry_sign(rows.T).unsqueeze(1)


def full_basis(rows: Tensor) -> tuple[Basis, Tensor]:
    """The eigenbasis of ``rows`` (m, D) through the smaller Gram matrix, and its eigenvectors.

    The eigenvectors (min(m, D), k) let `basis_from_vectors` form the same basis again from the
    same rows. Eigenvalues under ``max(m, D) * eps * L_1`` are dropped. Beyond
    `FULL_EIGH_LIMIT` only the first `PARTIAL_COMPONENTS` directions are computed.
    """
    m, d = rows.shape
    n = min(m, d)
    if n > FULL_EIGH_LIMIT:
        basis = range_basis(rows, PARTIAL_COMPONENTS)
        vectors = basis.components.T if d < m else _row_vectors(rows, basis)
        return basis, vectors
    gram = rows.T @ rows if d < m else rows @ rows.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = int((values > max(m, d) * EPS * values[:1].clamp_min(0)).sum()) if n else 0
    return basis_from_vectors(rows, vectors[:, :keep]), vectors[:, :keep]


def basis_from_vectors(rows: Tensor, vectors: Tensor) -> Basis:
    """The basis of ``rows`` (m, D) from eigenvectors of its smaller Gram matrix."""
    m, d = rows.shape
    candidates = vectors.T if d < m else vectors.T @ rows
    components = orthonormal_rows(candidates)
    singular_values = torch.linalg.vector_norm(rows @ components.T, dim=0)
    return Basis(components, singular_values, float(rows.square().sum()))


def _row_vectors(rows: Tensor, basis: Basis) -> Tensor:
    return (rows @ basis.components.T) / basis.singular_values.clamp_min(EPS)


def range_basis(rows: Tensor, k: int) -> Basis:
    """The first ``k`` directions of ``rows`` (m, D) by a seeded randomised range finder.

    Halko, Martinsson, Tropp 2011, algorithm 4.4 with Rayleigh-Ritz on the sample; where the
    sample would hold nearly everything the full eigensolve is used instead.
    """
    m, d = rows.shape
    width = k + OVERSAMPLE + k // 4
    if 2 * width >= min(m, d) and min(m, d) <= GRAM_LIMIT:
        limit = min(m, d)
        gram = rows.T @ rows if d < m else rows @ rows.T
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
        keep = int((values > max(m, d) * EPS * values[:1].clamp_min(0)).sum()) if limit else 0
        return basis_from_vectors(rows, vectors[:, :keep])
    seeded = torch.Generator().manual_seed(0x5EED)
    sample = torch.randn(m, width, generator=seeded, dtype=torch.float64).to(rows.device)
    q = torch.linalg.qr(rows.T @ sample).Q
    for _ in range(POWER_STEPS):
        q = torch.linalg.qr(rows.T @ (rows @ q)).Q
    _, values, vectors = torch.linalg.svd(rows @ q, full_matrices=False)
    keep = min(k, int((values > max(m, d) * EPS * values[:1]).sum()))
    components = orthonormal_rows(vectors[:keep] @ q.T)
    singular_values = torch.linalg.vector_norm(rows @ components.T, dim=0)
    return Basis(components, singular_values, float(rows.square().sum()))


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
    keep = min(k, int((values > max(core.shape) * EPS * values[:1]).sum()))
    stacked = torch.cat([components, q.T], 0)
    return orthonormal_rows(vectors[:keep] @ stacked), values[:keep]
