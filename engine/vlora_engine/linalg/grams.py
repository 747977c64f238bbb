"""Leading eigenbases of row matrices: by Gram matrices, by sampling, and updated with new rows.

Everything is fp64, but for long products where a function says so. A *row matrix* X (m, D) stacks
what a basis has to capture, one vector a row; its basis is an orthonormal set of directions in D
dimensions, the most important first. Which rows each method takes:
docs/mathematics.md#shared-bases; thresholds: docs/mathematics.md#numerics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlora_engine.linalg.low_rank import largest_entry_sign

FULL_EIGH_LIMIT = 4096  # smaller side of X above which not all directions are computed, ...
PARTIAL_COMPONENTS = 1024  # ... but this many
OVERSAMPLE = 12  # columns of a random sample beyond k, with another k / 4
KRYLOV_OVERSAMPLE = 8  # the same where all power steps are kept
KRYLOV_STEPS = 2
CACHED = 1 << 18  # numbers in fp32 that a processor's own cache holds
EPS = torch.finfo(torch.float64).eps


@dataclass
class Basis:
    """Orthonormal directions and how much of the row matrix lies along each.

    Args:
        components: (k, D), orthonormal rows; the entry of largest magnitude of each is positive.
        singular_values: (k,), descending: those of the row matrix.
    """

    components: Tensor
    singular_values: Tensor

    def cut(self, k: int) -> Basis:
        """The first ``k`` directions."""
        return Basis(self.components[:k], self.singular_values[:k])


def small_grams(x: Tensor) -> Tensor:
    """The Gram matrices X X^T of a stack of factors: (N, r, d) to (N, r, r)."""
    return torch.bmm(x, x.transpose(1, 2))


def gram_roots(grams: Tensor) -> Tensor:
    """Square roots of a stack of Gram matrices: H with ``H H^T = G``, (N, r, r) to (N, r, r).

    H is the lower Cholesky factor where G is well conditioned, else V sqrt(L) from G's
    eigenvectors; G may be singular.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(grams)
    # A Gram that is singular to rounding passes Cholesky with a noisy last pivot; the root from
    # eigenvectors is exact for those, and there are few.
    pivots = factor.diagonal(dim1=1, dim2=2)
    floor = 1e-6 * grams.diagonal(dim1=1, dim2=2).amax(dim=1).clamp_min(0).sqrt()
    near_singular = (info != 0) | (pivots.amin(dim=1) <= floor) | ~torch.isfinite(pivots).all(dim=1)
    if near_singular.any():
        values, vectors = torch.linalg.eigh(grams[near_singular])
        factor[near_singular] = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return factor


def gram_cosines(gram: Tensor) -> Tensor:
    """The cosines from inner products (n, n); 0 beside a zero on the diagonal."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return (gram * inverse[:, None] * inverse).clamp(-1, 1)


def orthonormal_rows(components: Tensor) -> Tensor:
    """Make rows (k, D) orthonormal without mixing later ones into earlier ones.

    Rows that are orthogonal already to half the digits go through Cholesky QR, which is as exact
    there and much faster for long rows (Yamamoto et al. 2015, ETNA 44); others through Householder
    QR. The entry of largest magnitude of every row is positive (of equals the first).
    """
    if not components.numel():
        return components
    norms = torch.linalg.vector_norm(components, dim=1, keepdim=True)
    rows = components / norms.clamp_min(torch.finfo(torch.float64).tiny)
    gram = rows @ rows.T
    deviation = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().amax()
    if deviation < 1e-8:
        factor = torch.linalg.cholesky(gram)
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)  # L^-1 X, X X^T = L L^T
    else:
        q, r = torch.linalg.qr(rows.T)
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
        rows = (q * signs).T
    signed: Tensor = rows * largest_entry_sign(rows.T).unsqueeze(1)
    return signed


def full_basis(rows: Tensor) -> tuple[Basis, Tensor]:
    """The eigenbasis of ``rows`` (m, D) through the smaller Gram matrix, and its eigenvectors.

    Eigenvalues under ``max(m, D) * eps * L_1`` are dropped. Beyond `FULL_EIGH_LIMIT` only the first
    `PARTIAL_COMPONENTS` directions are computed.

    Returns:
        The basis, and the eigenvectors (min(m, D), k), from which `basis_from_vectors` forms the
        same basis again out of the same rows.
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
        rows: (m, D).
        vectors: (min(m, D), k) eigenvectors as columns, the largest eigenvalue first.
        values: (k,) the eigenvalues; computed from the rows where they are not given.
    """
    m, d = rows.shape
    if d < m:  # the eigenvectors are the directions themselves
        components = vectors.T * largest_entry_sign(vectors).unsqueeze(1)
        if values is not None:
            return Basis(components, values.clamp_min(0).sqrt())
        return Basis(components, torch.linalg.vector_norm(rows @ components.T, dim=0))
    candidates = vectors.T @ rows  # v^T X = sqrt(L) times the direction
    return Basis(orthonormal_rows(candidates), torch.linalg.vector_norm(candidates, dim=1))


def range_basis(rows: Tensor, k: int) -> Basis:
    """The leading ``k`` directions of ``rows`` (m, D), by Gram matrix or by sampling.

    Whichever is cheaper: a Gram matrix costs min(m, D) products with ``rows``, the range finder
    about eight times the width of its sample.
    """
    if not is_sampled(rows.shape[0], rows.shape[1], k):
        vectors, values = _gram_vectors(rows)
        return basis_from_vectors(rows, vectors[:, :k], values[:k])
    return _sampled_basis(rows, k)


def is_sampled(m: int, d: int, k: int) -> bool:
    """Whether ``k`` directions of m rows of d numbers are found by sampling."""
    return min(m, d) > 8 * _sample_width(k)


def _gram_vectors(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (min(m, D), k) and eigenvalues (k,) of the smaller Gram, largest first."""
    m, d = rows.shape
    gram = rows.T @ rows if d < m else rows @ rows.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = int((values > max(m, d) * EPS * values[:1].clamp_min(0)).sum())
    return vectors[:, :keep], values[:keep]


def _sample_width(k: int) -> int:
    return k + OVERSAMPLE + k // 4


def _sampled_basis(rows: Tensor, k: int) -> Basis:
    """The leading directions of ``rows`` by a seeded random range finder.

    Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithm 4.4, with two power steps, the first
    in fp32, whose noise the second, in fp64, takes out again; then Rayleigh-Ritz on the range.
    """
    m, d = rows.shape
    generator = torch.Generator().manual_seed(0x5EED)
    width = min(_sample_width(k), m, d)
    sample = torch.randn(m, width, generator=generator, dtype=torch.float32).to(rows.device)
    largest = max(abs(float(edge)) for edge in rows.aminmax())
    rows32 = (rows if 1e-12 < largest < 1e12 else rows / max(largest, 1e-300)).float()
    # (Z^T X)^T is X^T Z at less than half the time: BLAS then reads X along its rows.
    q = torch.linalg.qr((sample.T @ rows32).T).Q  # (D, width): the range of X^T Z
    q = torch.linalg.qr(((rows32 @ q).T @ rows32).T).Q.double()
    q = torch.linalg.qr(((rows @ q).T @ rows).T).Q
    _, values, vectors = torch.linalg.svd(rows @ q, full_matrices=False)  # X Q = U S W^T
    keep = min(k, int((values > max(m, d) * EPS * values[:1]).sum()))
    return Basis(orthonormal_rows(vectors[:keep] @ q.T), values[:keep])


def sampled_basis_of_factors(factors: Tensor, weights: Tensor | None, k: int) -> Basis:
    """The leading ``k`` directions of ``sum_i F_i^T G_i F_i``, products of full width in fp32.

    The rows ``H_i^T F_i`` (``H_i H_i^T = G_i``) are not formed: a power step is F^T (G (F q)), with
    r x r products in the middle. Rayleigh-Ritz on the seeded random sample and both of its power
    steps together, a block Krylov space (Musco and Musco 2015, arXiv:1504.05477, algorithm 2): as
    many products as subspace iteration takes, closer to the best basis, and of a narrower sample.
    All that is as narrow as the sample is fp64, so that only the rounding of the products is felt,
    1e-7 of the largest singular value: enough where what is left out is much more.

    Args:
        factors: F (N, r, D) fp32, numbers that are neither huge nor tiny.
        weights: G (N, r, r) fp64, positive semidefinite, not 0; None for the identity.
    """
    n, r, d = factors.shape
    rows, size = factors.reshape(n * r, d), 1.0
    width, steps = min(k + KRYLOV_OVERSAMPLE, n * r, d), KRYLOV_STEPS + 1
    generator = torch.Generator().manual_seed(0x5EED)
    sample = torch.randn(n * r, width, generator=generator, dtype=torch.float32).to(rows.device)
    if weights is not None:
        size = float(weights.diagonal(dim1=1, dim2=2).max())
        weights = weights / size
        sample = _weighted(gram_roots(weights).float(), sample)
    space = torch.empty(d, steps * width, dtype=torch.float64, device=rows.device)
    inside = torch.empty(n * r, steps * width, dtype=torch.float64, device=rows.device)  # F space
    power = sample.T @ rows  # F^T of the sample, transposed: BLAS then reads F along its rows
    per_block = max(1, CACHED // (r * d))
    for first in range(0, steps * width, width):
        known, new = space[:, :first], slice(first, first + width)
        added = power.T.double()
        for _ in range(2 if first else 1):  # once leaves rounding inside the span
            added = torch.linalg.qr(added - known @ (known.T @ added)).Q
        space[:, new] = added
        narrow, power = added.float(), torch.zeros_like(power)
        for start in range(0, n, per_block):  # both products while the rows are in the cache
            end = min(n, start + per_block)
            at = slice(start * r, end * r)
            inside[at, new] = product = (rows[at] @ narrow).double()
            if new.stop < steps * width:
                of_block = None if weights is None else weights[start:end]
                power.addmm_(_weighted(of_block, product).float().T, rows[at])
    values, vectors = torch.linalg.eigh(inside.T @ _weighted(weights, inside))
    values, vectors = values.flip(0)[:k].clamp_min(0), vectors.flip(1)[:, :k]
    return Basis(orthonormal_rows(vectors.T @ space.T), (values * size).sqrt())


def _weighted(weights: Tensor | None, x: Tensor) -> Tensor:
    """Every r rows of x (N r, s) multiplied by their own of the weights (N, r, r)."""
    if weights is None:
        return x
    return torch.bmm(weights, x.view(len(weights), -1, x.shape[1])).view(x.shape)


def gram_basis_of_rows(rows: Tensor, k: int) -> tuple[Basis, float]:
    """The leading ``k`` directions of a few long rows (m, D) fp32, and ``||X||^2``.

    Through the Gram matrix, whose products alone are fp32: right to 1e-7 of the largest eigenvalue.
    """
    gram = (rows @ rows.T).double()
    _, vectors = torch.linalg.eigh(gram)
    candidates = (vectors.flip(1)[:, :k].T.float() @ rows).double()
    values = torch.linalg.vector_norm(candidates, dim=1)
    return Basis(orthonormal_rows(candidates), values), float(gram.trace())


def update_basis(
    components: Tensor, singular_values: Tensor, new_rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Update a basis with new rows, without the old ones: at most ``k`` directions.

    Exact where ``components`` held all of the old rows: the SVD of the augmented core
    ``[[diag(s), 0], [P, T^T]]`` rotates ``[C; Q^T]`` (Brand 2006;
    docs/mathematics.md#growing).

    Args:
        components: C (k0, D), orthonormal rows.
        singular_values: s (k0,).
        new_rows: X (m, D).
        k: The largest number of directions to keep.

    Returns:
        components (k', D) and singular values (k',).
    """
    loadings = new_rows @ components.T  # P = X C^T, (m, k0)
    residual = new_rows - loadings @ components  # R = X - P C
    correction = residual @ components.T  # projected twice: once leaves rounding inside the span
    loadings, residual = loadings + correction, residual - correction @ components
    q, t = torch.linalg.qr(residual.T)  # R^T = Q T
    zeros = singular_values.new_zeros(len(components), q.shape[1])
    top = torch.cat([torch.diag(singular_values), zeros], 1)
    core = torch.cat([top, torch.cat([loadings, t.T], 1)], 0)
    _, values, vectors = torch.linalg.svd(core, full_matrices=False)
    stacked = torch.cat([components, q.T], 0)
    keep = min(k, int((values > max(len(core), stacked.shape[1]) * EPS * values[:1]).sum()))
    return orthonormal_rows(vectors[:keep] @ stacked), values[:keep]


@dataclass
class CumulativeGrams:
    """The r x r Grams of a side's loadings up to each of some k, of N tasks.

    ``C[k] = sum_{j <= k} p_j p_j^T``, from which the error surface follows
    (docs/mathematics.md#the-error-surface).

    Args:
        k: (points,) ascending.
        values: (points, N, r, r).
    """

    k: np.ndarray[Any, np.dtype[np.int64]]
    values: Tensor

    def at(self, k: Any) -> Tensor:
        """C at each of ``k``, which must be among the points: (len(k), N, r, r)."""
        if np.array_equal(k, self.k):
            return self.values
        return self.values[torch.from_numpy(np.searchsorted(self.k, k))]


def cumulative_grams(p: Tensor, k: np.ndarray[Any, np.dtype[np.int64]]) -> CumulativeGrams:
    """`CumulativeGrams` of loadings ``p`` (N, r, K), columns p_j, at ascending ``k``."""
    n, r, _ = p.shape
    values = torch.empty(len(k), n, r, r, dtype=p.dtype, device=p.device)
    so_far = values.new_zeros(n, r, r)
    for grams, first, last in zip(values, [0, *k[:-1].tolist()], k.tolist(), strict=True):
        if last == first + 1:  # most of them: an outer product
            column = p[:, :, first]
            torch.addcmul(so_far, column[:, :, None], column[:, None, :], out=grams)
        else:
            columns = p[:, :, first:last]
            torch.baddbmm(so_far, columns, columns.transpose(1, 2), out=grams)
        so_far = grams
    return CumulativeGrams(k, values)
