"""Code a group of related adapters: a Karhunen-Loeve transform (KLT) across them, then the step.

A and B of every adapter, in their own gauge, are weighted by the root of the other side's mean
Gram, so that an error in them is an error of dW to first order. The KLT across the adapters turns N
of them into N principal components, most of them almost zero where the adapters are checkpoints of
one run; each of these is rotated along its rank, and its rows are quantized in the same steps as
everything else (docs/mathematics.md#related-adapters, whose symbols are used here).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.algebra import eigh, eigvalsh, gram, product
from vlora_engine.codec.quantizer import PRICE, quantize
from vlora_engine.codec.rates import SIDE_OVERHEAD, number_bits
from vlora_engine.codec.tables import Array

_FLOOR = 1e-8  # of a mean Gram's largest eigenvalue: smaller ones count as 0


@dataclass(frozen=True)
class SharedSide:
    """One side of a group's module after the transform, every number as it is stored.

    Args:
        rows: (n, d) int32, the kept rows of ``T^T Y_j`` in steps.
        component: (n,) the component j of each row, ascending.
        turn: (n, r) the column of ``M^(-1/2) T`` that takes each row back to the factor's rows.
        mix: (N, components) the columns of Z, each adapter's share in each component.
        fine: ``turn`` and ``mix`` are stored as fp32, not fp16.
    """

    rows: Array
    component: Array
    turn: Array
    mix: Array
    fine: bool = False

    def factors(self, mix: Array | None = None) -> Array:
        """Reconstruct the factors (N, r, d) in fp64, of all adapters or of those with this ``mix``.

        Args:
            mix: (N, components) rows of Z; by default those of this side.
        """
        shares = (self.mix if mix is None else mix)[:, self.component]  # [N, n]
        weights = (shares[:, :, None] * self.turn[None]).transpose(0, 2, 1)  # [N, r, n]
        return product(weights, self.rows)


def code_cluster(a: Array, bt: Array, *, fine: bool = False) -> tuple[SharedSide, SharedSide]:
    """Transform and quantize the factors of N related changes, in steps of 1.

    Args:
        a: (N, r, d_in).
        bt: (N, r, d_out), B^T with the scale, divided by each adapter's own step.
        fine: See `SharedSide`; fp16 alone costs an error of about 4e-4.

    Returns:
        Side a and side b.
    """
    # M_A = mean_i A_i A_i^T, M_B = mean_i B_i^T B_i; each weights the other side.
    root_a = _roots(np.einsum("nrd,nsd->rs", a, a) / len(a))
    root_b = _roots(np.einsum("nrd,nsd->rs", bt, bt) / len(bt))
    return _code_side(a, *root_b, fine), _code_side(bt, *root_a, fine)


def row_energies(a: Array, bt: Array) -> tuple[Array, Array]:
    """The energies of the rows that `code_cluster` would quantize, (components, r) for each side.

    Args:
        a: (N, r, d_in).
        bt: (N, r, d_out).
    """
    root_a, root_b = (_roots(np.einsum("nrd,nsd->rs", x, x) / len(x))[0] for x in (a, bt))
    return _side_energies(a, root_b), _side_energies(bt, root_a)


def _side_energies(factors: Array, root: Array) -> Array:
    """Eigenvalues of ``Y_j Y_j^T`` of every component j, strongest component first."""
    weighted = np.einsum("rs,nsd->nrd", root, factors)
    flat = weighted.reshape(len(factors), -1)
    values, vectors = eigh(gram(flat))
    energies = []
    for j in np.argsort(-values):
        principal = np.einsum("n,nrd->rd", vectors[:, j], weighted)
        energies.append(eigvalsh(gram(principal)).clip(0))
    return np.array(energies)


def _code_side(factors: Array, root: Array, inverse: Array, fine: bool) -> SharedSide:
    """Transform and quantize one side; ``root`` and ``inverse`` are M^(1/2) and M^(-1/2)."""
    count, rank, width = factors.shape
    weighted = np.einsum("rs,nsd->nrd", root, factors)  # X_i = M^(1/2) A_i
    flat = weighted.reshape(count, -1)
    values, vectors = eigh(gram(flat))  # X X^T = Z L Z^T, (N, N)
    rows, turns, components = [], [], []
    mixes: list[Array] = []
    for j in np.argsort(-values):
        if values[j] <= PRICE * SIDE_OVERHEAD:
            break
        principal = np.einsum("n,nrd->rd", vectors[:, j], weighted)  # Y_j = sum_i Z_ij X_i
        energy, turn = eigh(gram(principal))  # T and eigenvalues of Y_j Y_j^T
        turned = product(turn.T, principal)
        coded = quantize(turned)
        missed = np.square(turned - coded).sum(axis=1)
        worth = energy - missed > PRICE * (number_bits(coded) + SIDE_OVERHEAD)
        if not worth.any():
            continue
        rows.append(coded[worth])
        turns.append(product(inverse, turn[:, worth]).T)
        components += [len(mixes)] * int(worth.sum())
        mixes.append(vectors[:, j])
    if not rows:
        empty = np.zeros((0, width), np.int32)
        return SharedSide(empty, np.zeros(0, int), np.zeros((0, rank)), np.zeros((count, 0)), fine)
    return SharedSide(
        np.concatenate(rows),
        np.array(components),
        from_scaled(*to_scaled(np.concatenate(turns), fine=fine)),
        np.stack(mixes, axis=1).astype(stored_as(fine)).astype(np.float64),
        fine,
    )


def stored_as(fine: bool) -> str:
    """The dtype that turns and mixes are stored in."""
    return "<f4" if fine else "<f2"


def to_scaled(rows: Array, *, fine: bool) -> tuple[Array, Array]:
    """Store rows in 16 or 32 bits with a power of two each, so that fp16 loses no range.

    Returns:
        Values (n, r) fp16 or fp32, and exponents (n,) int8.
    """
    largest = np.abs(rows).max(axis=1, initial=0)
    power = np.zeros(len(rows))
    np.log2(largest, out=power, where=largest > 0)
    power = np.floor(power).clip(-120, 120)
    return (rows * np.exp2(-power)[:, None]).astype(stored_as(fine)), power.astype(np.int8)


def from_scaled(values: Array, exponents: Array) -> Array:
    """Rows (n, r) in fp64 from what `to_scaled` gave."""
    return values.astype(np.float64) * np.exp2(exponents.astype(np.float64))[:, None]


def _roots(mean: Array) -> tuple[Array, Array]:
    """The symmetric root M^(1/2) of a mean Gram (r, r), and its pseudo-inverse M^(-1/2)."""
    values, vectors = eigh(mean)
    nonzero = values > _FLOOR * max(values.max(initial=0), 0)
    root = np.sqrt(np.where(nonzero, values, 0))
    inverse = np.where(nonzero, 1 / np.where(nonzero, root, 1), 0)
    return product(vectors * root, vectors.T), product(vectors * inverse, vectors.T)
