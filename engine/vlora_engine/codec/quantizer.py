"""Quantize numbers in one step, rounding towards zero where that saves more than it costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlora_engine.codec.tables import Array

# lambda, the price of a bit in squared steps. At high rate a step of 1 leaves an error of 1/12 a
# number, and one bit more divides it by four: dD/dR = -2 ln 2 / 12
# (docs/mathematics.md#the-step-and-the-price-of-a-bit).
PRICE = 2 * np.log(2) / 12


def shrinkage(variance: Any) -> Any:
    """The factor ``v / (v + 1/12)`` that numbers of variance v (in squared steps) are rounded with.

    Rounding down pays where it saves more bits than it costs error. For a normal number x one level
    less saves ``x / (v ln 2)`` bits; at the price of a bit that moves the threshold outwards by
    ``x / (12 v)``, and the mean of what falls between two thresholds lies below their middle by as
    much, so that integers are the right points to reconstruct with.
    """
    return variance / (variance + 1 / 12)


def quantize(rows: Array) -> Array:
    """Quantize rows (n, d), given in steps, to int32; each row has a variance of its own."""
    if not rows.size:
        return np.zeros(rows.shape, dtype=np.int32)
    variance = np.square(rows).mean(axis=1, keepdims=True)
    steps: Array = np.rint(rows * shrinkage(variance)).astype(np.int32)
    return steps


def round_rows(unit: Array, sizes: Array) -> Array:
    """Quantize unit rows (..., n, d) scaled to ``sizes`` (..., n) in steps; integers in fp64."""
    variance = np.square(sizes) / max(1, unit.shape[-1])
    rows: Array = unit * (sizes * shrinkage(variance))[..., None]
    return np.rint(rows, out=rows)
