"""Linear algebra of NumPy arrays on torch's kernels, so that results do not depend on threads.

Workers run torch on one thread (`vlora_engine.utils.workers`). NumPy's BLAS they cannot hold to
one: its sums come in another order with another number of threads, and files would differ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlora_engine.codec.tables import Array


def product(a: Array, b: Array) -> Array:
    """The matrix product ``a @ b`` in fp64."""
    return _array(_tensor(a) @ _tensor(b))


def inner(a: Array, b: Array) -> Array:
    """The inner products of rows, ``a @ b.T`` over the last two dimensions, in fp64."""
    return _array(_tensor(a) @ _tensor(b).mT)


def gram(rows: Array) -> Array:
    """The Gram matrix ``rows @ rows.T`` in fp64."""
    tensor = _tensor(rows)
    return _array(tensor @ tensor.T)


def transposed(matrix: Array) -> Array:
    """A contiguous copy of ``matrix.T``, several times as fast as NumPy makes it."""
    narrow = matrix.view(np.int16) if matrix.dtype == np.uint16 else matrix  # torch lacks uint16
    out: Array = torch.from_numpy(narrow).t().contiguous().numpy()
    return out.view(matrix.dtype)


def eigh(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, n) as columns, of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(_tensor(symmetric))
    return _array(values), _array(vectors)


def eigvalsh(symmetric: Array) -> Array:
    """Eigenvalues (n,), ascending, of a symmetric matrix."""
    return _array(torch.linalg.eigvalsh(_tensor(symmetric)))


def qr(matrix: Array) -> tuple[Array, Array]:
    """The thin QR decomposition of (m, n): Q (m, q) and R (q, n) with q = min(m, n)."""
    q, r = torch.linalg.qr(_tensor(matrix))
    return _array(q), _array(r)


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """The thin SVD of (m, n): U (m, q), S (q,) and V^T (q, n) with q = min(m, n)."""
    u, s, v = torch.linalg.svd(_tensor(matrix), full_matrices=False)
    return _array(u), _array(s), _array(v)


def solve_symmetric(matrices: Array, right: Array, *, pivot: float) -> tuple[Array, Array]:
    """Solve N positive definite systems ``matrices @ x = right`` by Cholesky.

    Args:
        matrices: (N, n, n).
        right: (N, n).
        pivot: A system with a pivot up to this is left unsolved.

    Returns:
        x (N, n), and which systems were solved, (N,) bool.
    """
    factor, failed = torch.linalg.cholesky_ex(_tensor(matrices))
    pivots = factor.diagonal(dim1=1, dim2=2)
    solved = (failed == 0) & (pivots > pivot).all(dim=1)
    identity = torch.eye(factor.shape[1], dtype=factor.dtype)
    factor = torch.where(solved.view(-1, 1, 1), factor, identity)
    return _array(torch.cholesky_solve(_tensor(right)[:, :, None], factor)[:, :, 0]), _array(solved)


def least_squares(matrix: Array, right: Array, *, cut: float) -> Array:
    """The least squares solution x (n,) of ``matrix @ x = right``.

    Singular values of ``matrix`` below ``cut`` times the largest count as 0.
    """
    fit = torch.linalg.lstsq(_tensor(matrix), _tensor(right)[:, None], rcond=cut, driver="gelsd")
    return _array(fit.solution[:, 0])


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _array(tensor: Tensor) -> Array:
    return tensor.numpy()
