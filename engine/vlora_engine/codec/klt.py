"""A cluster of related adapters: a rotation across them, then the step.

A and B of every adapter, in their own gauge, are weighted by the root of the other side's mean
Gram, so that an error in them is an error of dW to first order. The Karhunen-Loeve transform
across the adapters turns N of them into N principal ones, most of them almost nothing where the
adapters are checkpoints of one run; each of these is rotated along its rank, and its rows are
quantized in the same steps as everything else (docs/mathematics.md#related-adapters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlora_engine.codec.algebra import eigh, eigvalsh, gram, product
from vlora_engine.codec.quantizer import PRICE, quantize
from vlora_engine.codec.rates import SIDE_OVERHEAD, number_bits
from vlora_engine.codec.tables import Array

_FLOOR = 1e-8  # of a mean Gram's largest eigenvalue: below, a direction is not there


@dataclass(frozen=True)
class SharedSide:
    """One side of a cluster's module, every number as it is stored.

    Args:
        rows: (n, d) int32.
        component: (n,) which principal one of the cluster a row belongs to, not falling.
        turn: (n, r) what a row adds to each row of that component.
        mix: (N, components) the adapters' shares in each component.
        fine: ``turn`` and ``mix`` are stored as fp32, not fp16.
    """

    rows: Array
    component: Array
    turn: Array
    mix: Array
    fine: bool = False

    def factors(self, mix: Array | None = None) -> Array:
        """(N, r, d) in fp64, of all adapters or of those whose ``mix`` (N, components) is given."""
        shares = (self.mix if mix is None else mix)[:, self.component]  # [N, n]
        weights = (shares[:, :, None] * self.turn[None]).transpose(0, 2, 1)  # [N, r, n]
        return product(weights, self.rows)


def code_cluster(a: Array, bt: Array, *, fine: bool = False) -> tuple[SharedSide, SharedSide]:
    """Quantize the factors of N related changes, the weights folded in, in steps of 1.

    Args:
        a: (N, r, d_in). bt: (N, r, d_out), each already divided by its own step.
        fine: See `SharedSide`; fp16 alone costs an error of about 4e-4.
    """
    root_a = _roots(np.einsum("nrd,nsd->rs", a, a) / len(a))
    root_b = _roots(np.einsum("nrd,nsd->rs", bt, bt) / len(bt))
    return _code_side(a, *root_b, fine), _code_side(bt, *root_a, fine)


def row_energies(a: Array, bt: Array) -> tuple[Array, Array]:
    """Energies of the rows that `code_cluster` would quantize: (components, r) of either side."""
    root_a, root_b = (_roots(np.einsum("nrd,nsd->rs", x, x) / len(x))[0] for x in (a, bt))
    return _side_energies(a, root_b), _side_energies(bt, root_a)


def _side_energies(factors: Array, root: Array) -> Array:
    weighted = np.einsum("rs,nsd->nrd", root, factors)
    flat = weighted.reshape(len(factors), -1)
    values, vectors = eigh(gram(flat))
    energies = []
    for j in np.argsort(-values):
        principal = np.einsum("n,nrd->rd", vectors[:, j], weighted)
        energies.append(eigvalsh(gram(principal)).clip(0))
    return np.array(energies)


def _code_side(factors: Array, root: Array, inverse: Array, fine: bool) -> SharedSide:
    count, rank, width = factors.shape
    weighted = np.einsum("rs,nsd->nrd", root, factors)
    flat = weighted.reshape(count, -1)
    values, vectors = eigh(gram(flat))
    rows, turns, components = [], [], []
    mixes: list[Array] = []
    for j in np.argsort(-values):
        if values[j] <= PRICE * SIDE_OVERHEAD:
            break
        principal = np.einsum("n,nrd->rd", vectors[:, j], weighted)
        energy, turn = eigh(gram(principal))
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
    """The dtype of turns and mixes."""
    return "<f4" if fine else "<f2"


def to_scaled(rows: Array, *, fine: bool) -> tuple[Array, Array]:
    """Rows with a power of two each: values (n, r) fp16 or fp32, exponents (n,) int8."""
    largest = np.abs(rows).max(axis=1, initial=0)
    power = np.zeros(len(rows))
    np.log2(largest, out=power, where=largest > 0)
    power = np.floor(power).clip(-120, 120)
    return (rows * np.exp2(-power)[:, None]).astype(stored_as(fine)), power.astype(np.int8)


def from_scaled(values: Array, exponents: Array) -> Array:
    """The inverse, in fp64."""
    return values.astype(np.float64) * np.exp2(exponents.astype(np.float64))[:, None]


def _roots(mean: Array) -> tuple[Array, Array]:
    """The symmetric root of a mean Gram, and its pseudo-inverse."""
    values, vectors = eigh(mean)
    live = values > _FLOOR * max(values.max(initial=0), 0)
    root = np.sqrt(np.where(live, values, 0))
    inverse = np.where(live, 1 / np.where(live, root, 1), 0)
    return product(vectors * root, vectors.T), product(vectors * inverse, vectors.T)
