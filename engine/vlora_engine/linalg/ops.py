"""Principal component analysis of plain row matrices, with the function names of vlora-dev.

Stateless; nothing here knows adapters or subspaces. Everything is computed in fp64 and returned
in the dtype of the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlora_engine.errors import InputError, ParameterError
from vlora_engine.linalg.grams import update_basis
from vlora_engine.linalg.low_rank import largest_entry_sign

__all__ = [
    "compute_svd",
    "explained_variance_ratio",
    "gram_schmidt",
    "incremental_svd_update",
    "project_onto_subspace",
    "reconstruct_from_subspace",
    "select_num_components",
]


def compute_svd(
    data_matrix: Tensor, num_components: int | None = None, center: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The principal directions of the rows of a matrix.

    Args:
        data_matrix: (N, D), one observation a row.
        num_components: How many directions to keep; all min(N, D) by default. Of N centred rows
            the last direction is always empty: its singular value is rounding.
        center: Whether the mean of the rows is subtracted first.

    Returns:
        components: (k, D), orthonormal rows, the largest entry of each positive.
        singular_values: (k,), descending.
        mean: (D,), zeros without ``center``.

    Raises:
        InputError: NaN or infinity in the data, or no matrix of at least one row.
        ParameterError: ``num_components`` below 1.
    """
    if data_matrix.ndim != 2 or not data_matrix.shape[0]:
        raise InputError(
            "The data are no matrix of observations.",
            expected="(N, D) with N of at least 1",
            found=str(tuple(data_matrix.shape)),
        )
    _check_count("num_components", num_components)
    _check_finite("data_matrix", data_matrix)
    rows = data_matrix.double()
    mean = rows.mean(dim=0) if center else torch.zeros_like(rows[0])
    _, S, Vh = torch.linalg.svd(rows - mean, full_matrices=False)  # X - mean = U S V^T
    k = len(S) if num_components is None else min(num_components, len(S))
    components = Vh[:k] * largest_entry_sign(Vh[:k].T)[:, None]
    dtype = data_matrix.dtype
    return components.to(dtype), S[:k].to(dtype), mean.to(dtype)


def project_onto_subspace(weights: Tensor, components: Tensor) -> Tensor:
    """Loadings ``x C^T`` of vectors on an orthonormal basis.

    Args:
        weights: (D,) or (N, D).
        components: (k, D), orthonormal rows.

    Returns:
        (k,) or (N, k).
    """
    return (weights.double() @ components.double().T).to(weights.dtype)


def reconstruct_from_subspace(components: Tensor, loadings: Tensor) -> Tensor:
    """Vectors from their loadings, ``p C``.

    Args:
        components: (k, D), orthonormal rows.
        loadings: (k,) or (N, k).

    Returns:
        (D,) or (N, D).
    """
    return (loadings.double() @ components.double()).to(loadings.dtype)


def gram_schmidt(basis: Tensor, new_vectors: Tensor) -> Tensor:
    """Extend an orthonormal basis by the directions that some vectors add to it.

    The basis comes back untouched in front (vlora-dev's QR may flip its signs). A vector
    whose part outside the span is below the rounding of its own dtype, relative to the vector
    itself, adds no direction.

    Args:
        basis: (k, D), orthonormal rows; k may be 0.
        new_vectors: (m, D), taken in order.

    Returns:
        (k + n, D) with n <= m.
    """
    extended = basis.double()
    rounding = 16 * torch.finfo(new_vectors.dtype).eps
    for vector in new_vectors.double():
        rest = vector - (vector @ extended.T) @ extended
        rest = rest - (rest @ extended.T) @ extended  # twice is enough (Kahan, Parlett)
        norm = torch.linalg.vector_norm(rest)
        if norm > rounding * torch.linalg.vector_norm(vector) and len(extended) < len(vector):
            extended = torch.cat([extended, (rest / norm)[None]])
    return torch.cat([basis, extended[len(basis) :].to(basis.dtype)])


def incremental_svd_update(
    components: Tensor,
    singular_values: Tensor,
    mean: Tensor,
    n_seen: int,
    new_data: Tensor,
    max_components: int | None = None,
    *,
    center: bool = True,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Add observations to a principal component analysis.

    Exact: as long as no direction of the old data was cut off, the result is `compute_svd` of all
    rows together. New rows X with mean x0 enter as ``[X - x0; sqrt(n m / (n + m)) (mean - x0)]``,
    the last row being the shift of the mean (Ross et al. 2008), and the augmented core
    ``[[diag s, 0], [P, T^T]]`` is rotated in full (Brand 2006; docs/mathematics.md#growing).
    vlora-dev leaves the core unrotated, which costs it half of the variance.

    Args:
        components: (k, D), orthonormal rows; k may be 0.
        singular_values: (k,).
        mean: (D,) of the old rows.
        n_seen: Their number.
        new_data: (m, D).
        max_components: The largest number to keep; by default every direction that is not empty.
        center: False for an analysis without a mean, whose ``mean`` is then returned as it is.

    Returns:
        components (k', D), singular_values (k',), mean (D,), number of rows seen.

    Raises:
        InputError: Shapes that do not fit, NaN or infinity.
        ParameterError: ``max_components`` below 1, or a negative ``n_seen``.
    """
    _check_count("max_components", max_components)
    if n_seen < 0:
        raise ParameterError("n_seen is out of range.", expected=">= 0", found=str(n_seen))
    if new_data.ndim != 2 or new_data.shape[1] != components.shape[1]:
        raise InputError(
            "The new rows do not have the dimension of the basis.",
            expected=f"(m, {components.shape[1]})",
            found=str(tuple(new_data.shape)),
        )
    _check_finite("new_data", new_data)
    m = new_data.shape[0]
    if not m:
        return components, singular_values, mean, n_seen
    rows, new_mean = new_data.double(), mean.double()
    if center:
        row_mean = rows.mean(dim=0)
        shift = math.sqrt(n_seen * m / (n_seen + m)) * (new_mean - row_mean)
        rows = torch.cat([rows - row_mean, shift[None]])  # [m + 1, D]
        new_mean = (n_seen * new_mean + m * row_mean) / (n_seen + m)
    limit = max_components or len(components) + len(rows)
    basis, values = update_basis(components.double(), singular_values.double(), rows, limit)
    # What rounding made is no direction: rows far from the origin carry that of their mean.
    size = torch.maximum(values[:1].sum(), torch.linalg.vector_norm(new_mean))
    smallest = max(n_seen + m, basis.shape[1]) * torch.finfo(torch.float64).eps * size
    significant = int((values > smallest).sum())
    basis, values = basis[:significant], values[:significant]
    dtype = components.dtype
    return basis.to(dtype), values.to(dtype), new_mean.to(mean.dtype), n_seen + m


def explained_variance_ratio(singular_values: Tensor, *, total: float | None = None) -> Tensor:
    """Cumulative share of the variance that the first components hold.

    Args:
        singular_values: (k,), descending.
        total: The variance of the data, sum of all squared singular values. Without it the given
            ones are taken for all there are: right for a full spectrum only.

    Returns:
        (k,), zeros where there is no variance.
    """
    variance = singular_values.double().square()
    whole = float(variance.sum()) if total is None else float(total)
    ratio = variance.cumsum(dim=0) / whole if whole > 0 else torch.zeros_like(variance)
    return ratio.to(singular_values.dtype)


def select_num_components(
    singular_values: Tensor, threshold: float = 0.6, *, total: float | None = None
) -> int:
    """The fewest components that hold at least ``threshold`` of the variance.

    Args:
        singular_values: (k,), descending.
        threshold: A share in (0, 1].
        total: As for `explained_variance_ratio`.

    Returns:
        A count from 1 to k; k where even all of them hold less.

    Raises:
        ParameterError: A threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ParameterError("threshold is out of range.", expected="(0, 1]", found=repr(threshold))
    ratio = explained_variance_ratio(singular_values.double(), total=total)
    enough = (ratio >= threshold).nonzero()
    return int(enough[0]) + 1 if len(enough) else len(singular_values)


def _check_count(name: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise ParameterError(f"{name} is out of range.", expected=">= 1", found=str(count))


def _check_finite(name: str, data: Tensor) -> None:
    if not bool(data.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinity.", expected="finite numbers")
