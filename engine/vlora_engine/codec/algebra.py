"""Products and decompositions of NumPy arrays by torch.

Workers hold torch to one thread (`vlora_engine.progress`), and NumPy's BLAS to none: its sums
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


def gram(rows: Array) -> Array:
    """``rows @ rows.T``."""
    tensor = _tensor(rows)
    return _array(tensor @ tensor.T)


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


def least_squares(matrix: Array, right: Array, *, cut: float) -> Array:
    """x (n,) with the smallest ``matrix @ x - right``, singular values under ``cut`` left out."""
    found = torch.linalg.lstsq(_tensor(matrix), _tensor(right)[:, None], rcond=cut, driver="gelsd")
    return _array(found.solution[:, 0])


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array
