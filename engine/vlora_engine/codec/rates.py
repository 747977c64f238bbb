"""What a step costs and loses, told from energies alone. No torch.

A direction of energy e and d numbers is taken for d normal numbers of variance e / d: what they
need and miss at a step is a curve that is part of the tables. On real adapters the prediction is
within a few percent; what is built is measured.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from vlora_engine.codec.quantizer import PRICE, shrinkage
from vlora_engine.codec.tables import Array, curves

SIDE_OVERHEAD = 44.0  # bits of a vector beside its numbers: scale, shape, gain, share of a lane


def number_bits(rows: Array) -> Array:
    """(n,) about what integer rows (n, d) need, in bits."""
    if not rows.size:
        return np.zeros(len(rows))
    return bits_of(np.square(rows.astype(np.float64)).sum(axis=1), rows.shape[1])


def bits_of(squares: Array, d: int) -> Array:
    """About what rows of ``d`` integers need, in bits, by the sums of their ``squares``."""
    log = np.log2(np.maximum(squares, 1e-30) / d) / 2
    rounded, bits = _rounded_bits()
    above = np.maximum(0, log - rounded[-1])
    return np.where(squares > 0, np.interp(log, rounded, bits) + above, 0) * d


@cache
def _rounded_bits() -> tuple[Array, Array]:
    """Bits of normal numbers by log2 of the deviation that they have once they are rounded.

    Where most numbers round to 0 that is far below their own.
    """
    table = curves()
    x = np.linspace(0, 9, 9001)
    density = np.exp(-x * x / 2)
    density /= density.sum()
    levels = np.rint(x * (np.exp2(table.grid) * shrinkage(np.exp2(2 * table.grid)))[:, None])
    energy = (np.square(levels) * density).sum(axis=1)
    seen = energy > 1e-6
    return np.log2(energy[seen]) / 2, table.bits[seen]


def at(deviation: Array) -> tuple[Array, Array]:
    """Bits and squared error in steps of normal numbers of this deviation in steps."""
    table = curves()
    log = np.log2(np.maximum(deviation, 1e-30))
    bits = np.interp(log, table.grid, table.bits)
    error = np.interp(log, table.grid, table.errors)
    above = np.maximum(0, log - table.grid[-1])
    below = log < table.grid[0]
    return np.where(below, 0, bits + above), np.where(below, np.square(deviation), error)


def pair(energy: Array, d_out: int, d_in: int, step: Array) -> tuple[Array, Array]:
    """Bits and error of singular directions at a step, the better of coded and left out.

    Args:
        energy: (...) squared singular values. step: broadcast against it.

    Returns:
        bits (...), missed energy (...).
    """
    shape = np.broadcast(energy, step).shape
    bits, missed = np.full(shape, 2 * SIDE_OVERHEAD), np.zeros(shape)
    for d in (d_out, d_in):
        own_bits, own_error = at(np.sqrt(energy / d) / step)
        bits = bits + own_bits * d
        missed = missed + own_error * d * np.square(step)
    return _better(energy, bits, missed, step)


def single(energy: Array, d: int, step: float) -> tuple[Array, Array]:
    """Bits and error of vectors of one side: those of a transform across adapters."""
    bits, error = at(np.sqrt(energy / d) / step)
    return _better(energy, bits * d + SIDE_OVERHEAD, error * d * np.square(step), step)


def _better(energy: Array, bits: Array, missed: Array, step: Any) -> tuple[Array, Array]:
    out = energy <= missed + PRICE * np.square(step) * bits
    return np.where(out, 0, bits), np.where(out, energy, missed)
