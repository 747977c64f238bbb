"""One step for every number: rounding that weighs bits against error."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlora_engine.codec.tables import Array

# At high rate a step of 1 leaves an error of 1/12 a number, and one bit more divides it by four:
# dD/dR = -2 ln 2 / 12. That is the price of a bit in squared steps.
PRICE = 2 * np.log(2) / 12


def shrinkage(variance: Any) -> Any:
    """What numbers of this variance (in steps^2) are multiplied with before rounding.

    Rounding down is worth it where it saves more bits than it costs error. For a normal number x
    one level less saves ``x / (variance ln 2)`` bits; at the price of a bit that moves the
    threshold outwards by ``x / (12 variance)``, and by as much the mean of what falls between two
    thresholds lies below their middle, so that whole numbers are right to reconstruct with.
    """
    return variance / (variance + 1 / 12)


def quantize(rows: Array) -> Array:
    """Rows (n, d), in steps, to integers."""
    if not rows.size:
        return np.zeros(rows.shape, dtype=np.int32)
    variance = np.square(rows).mean(axis=1, keepdims=True)
    return np.rint(rows * shrinkage(variance)).astype(np.int32)


def round_rows(unit: Array, sizes: Array) -> Array:
    """Rows of length 1, (..., n, d), that are to have ``sizes`` (..., n) in steps: whole numbers,
    in fp64 still.
    """
    variance = np.square(sizes) / max(1, unit.shape[-1])
    rows = unit * (sizes * shrinkage(variance))[..., None]
    return np.rint(rows, out=rows)
