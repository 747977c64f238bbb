"""Estimate the bits and the error of vectors at a step, from their energies alone. No torch.

A direction of energy e and d numbers is taken for d normal numbers of variance e / d, whose bits
b(sigma) and squared error D(sigma) are tabulated (docs/mathematics.md#choosing-what-is-shared). On
real adapters the estimate is within a few percent; what is built is measured.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from vlora_engine.codec.quantizer import PRICE, shrinkage
from vlora_engine.codec.tables import Array, curves

SIDE_OVERHEAD = 44.0  # bits of a vector beside its numbers: scale, shape, gain, share of a lane


def number_bits(rows: Array) -> Array:
    """Estimate the bits (n,) of integer rows (n, d)."""
    if not rows.size:
        return np.zeros(len(rows))
    return bits_of(np.square(rows.astype(np.float64)).sum(axis=1), rows.shape[1])


def bits_of(squares: Array, d: int) -> Array:
    """Estimate the bits of rows of ``d`` integers from the sums of their ``squares`` (...)."""
    log = np.log2(np.maximum(squares, 1e-30) / d) / 2
    rounded, bits = _rounded_bits()
    above = np.maximum(0, log - rounded[-1])
    return np.where(squares > 0, np.interp(log, rounded, bits) + above, 0) * d


@cache
def _rounded_bits() -> tuple[Array, Array]:
    """Bits of a normal number by log2 of the deviation that it has after rounding.

    Where most numbers round to 0, that deviation is far below the one before.
    """
    table = curves()
    x = np.linspace(0, 9, 9001)
    density = np.exp(-x * x / 2)
    density /= density.sum()
    levels = np.rint(x * (np.exp2(table.grid) * shrinkage(np.exp2(2 * table.grid)))[:, None])
    energy = (np.square(levels) * density).sum(axis=1)
    reached = energy > 1e-6
    return np.log2(energy[reached]) / 2, table.bits[reached]


def normal_rate(deviation: Array) -> tuple[Array, Array]:
    """Bits b(sigma) and squared error D(sigma) of a normal number, by its deviation in steps."""
    table = curves()
    log = np.log2(np.maximum(deviation, 1e-30))
    bits = np.interp(log, table.grid, table.bits)
    error = np.interp(log, table.grid, table.errors)
    above = np.maximum(0, log - table.grid[-1])
    below = log < table.grid[0]
    return np.where(below, 0, bits + above), np.where(below, np.square(deviation), error)


def direction_rate(energy: Array, d_out: int, d_in: int, step: Array) -> tuple[Array, Array]:
    """Estimate bits and error of singular directions at a step; each is coded or dropped.

    Args:
        energy: (...) squared singular values.
        d_out: Numbers of a left row.
        d_in: Numbers of a right row.
        step: Broadcast against ``energy``.

    Returns:
        Bits (...) and missed energy (...).
    """
    shape = np.broadcast(energy, step).shape
    bits, missed = np.full(shape, 2 * SIDE_OVERHEAD), np.zeros(shape)
    for d in (d_out, d_in):
        side_bits, side_error = normal_rate(np.sqrt(energy / d) / step)
        bits = bits + side_bits * d
        missed = missed + side_error * d * np.square(step)
    return _better(energy, bits, missed, step)


def vector_rate(energy: Array, d: int, step: float) -> tuple[Array, Array]:
    """Estimate bits and error of vectors of one side, such as a transform's; coded or dropped.

    Args:
        energy: (...) squared norms.
        d: Numbers of a vector.
        step: The step.

    Returns:
        Bits (...) and missed energy (...).
    """
    bits, error = normal_rate(np.sqrt(energy / d) / step)
    return _better(energy, bits * d + SIDE_OVERHEAD, error * d * np.square(step), step)


def _better(energy: Array, bits: Array, missed: Array, step: Any) -> tuple[Array, Array]:
    """Drop what is not worth its bits: ``energy <= missed + lambda step^2 bits``."""
    dropped = energy <= missed + PRICE * np.square(step) * bits
    return np.where(dropped, 0, bits), np.where(dropped, energy, missed)
