"""Products and decompositions of NumPy arrays by torch.

Workers hold torch to one thread (`vlora_engine.utils.progress`), and NumPy's BLAS to none: its sums
come in another order with another number of threads, and files would not be the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlora_engine.codec.tables import Array


def product(a: Array, b: Array) -> Array:
    """``a @ b``."""
    return _array(_tensor(a) @ _tensor(b))


def inner(a: Array, b: Array) -> Array:
    """``a @ b.T`` of the last two dimensions."""
    return _array(_tensor(a) @ _tensor(b).mT)


def gram(rows: Array) -> Array:
    """``rows @ rows.T``."""
    tensor = _tensor(rows)
    return _array(tensor @ tensor.T)


def transposed(matrix: Array) -> Array:
    """``matrix.T``, in memory in that order: several times as fast as NumPy does it."""
    narrow = matrix.view(np.int16) if matrix.dtype == np.uint16 else matrix  # torch lacks uint16
    out: Array = torch.from_numpy(narrow).t().contiguous().numpy()
    return out.view(matrix.dtype)


def eigh(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(_tensor(symmetric))
    return _array(values), _array(vectors)


def eigvalsh(symmetric: Array) -> Array:
    """Eigenvalues, ascending."""
    return _array(torch.linalg.eigvalsh(_tensor(symmetric)))


def qr(matrix: Array) -> tuple[Array, Array]:
    """The thin QR decomposition."""
    q, r = torch.linalg.qr(_tensor(matrix))
    return _array(q), _array(r)


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """The thin U, S and V^T."""
    u, s, v = torch.linalg.svd(_tensor(matrix), full_matrices=False)
    return _array(u), _array(s), _array(v)


def solve_symmetric(matrices: Array, right: Array, *, pivot: float) -> tuple[Array, Array]:
    """x (N, n) of ``matrices @ x = right``, and whether (N,) every pivot exceeds ``pivot``: what
    does not is not solved.
    """
    factor, failed = torch.linalg.cholesky_ex(_tensor(matrices))
    pivots = factor.diagonal(dim1=1, dim2=2)
    sound = (failed == 0) & (pivots > pivot).all(dim=1)
    one = torch.eye(factor.shape[1], dtype=factor.dtype)
    factor = torch.where(sound.view(-1, 1, 1), factor, one)
    return _array(torch.cholesky_solve(_tensor(right)[:, :, None], factor)[:, :, 0]), _array(sound)


def least_squares(matrix: Array, right: Array, *, cut: float) -> Array:
    """x (n,) with the smallest ``matrix @ x - right``, singular values under ``cut`` left out."""
    found = torch.linalg.lstsq(_tensor(matrix), _tensor(right)[:, None], rcond=cut, driver="gelsd")
    return _array(found.solution[:, 0])


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array
