"""Load the tables of the codec: the entropy coder's models, and the cost of normal numbers.

The file is part of the format (`vlora_engine.codec.make_tables`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FILE = Path(__file__).with_name("tables.npz")
PRECISION = 14
ESCAPE = 63
UNIT_BITS = 8  # running means are kept in 1/256
_COST_BITS = 16
_LARGEST_MEAN = ESCAPE << UNIT_BITS


@dataclass(frozen=True)
class Models:
    """Static probability models of the magnitudes 0 to 62 and an escape.

    Args:
        shapes: Number of shapes of a row's distribution.
        contexts: Number of contexts by running mean.
        frequency: (models, 64) uint32, model = shape * contexts + context; sums to 2^14.
        first: (models, 64) uint32 the sum of the frequencies before each symbol.
        symbol: (models * 2^14,) uint8 the symbol of every slot of 2^14.
        context: (63 * 256 + 1,) uint8 the context of every running mean, in 1/256.
        starts: (56,) int32 the running means that a vector can begin with.
        cost: (models, 64) int32 bits of each symbol, in 2^-16: sums are the same in any order.
    """

    shapes: int
    contexts: int
    frequency: Array
    first: Array
    symbol: Array
    context: Array
    starts: Array
    cost: Array


@dataclass(frozen=True)
class Curves:
    """Bits and squared error (in steps^2) of a quantized normal number.

    Args:
        grid: (G,) log2 of the number's deviation in steps, in eighths of an octave.
        bits: (G,).
        errors: (G,).
    """

    grid: Array
    bits: Array
    errors: Array


@cache
def models() -> Models:
    """Load the entropy coder's models."""
    with np.load(FILE) as file:
        frequencies, edges, starts = (file[k] for k in ("frequencies", "edges", "starts"))
    shapes, contexts, symbols = frequencies.shape
    frequency = frequencies.reshape(-1, symbols).astype(np.uint32)
    first = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
    slots = np.repeat(
        np.tile(np.arange(symbols, dtype=np.uint8), len(frequency)), frequency.ravel()
    )
    context = np.searchsorted(edges, np.arange(_LARGEST_MEAN + 1), side="right")
    cost = np.rint((PRECISION - np.log2(frequency)) * (1 << _COST_BITS)).astype(np.int32)
    return Models(
        shapes=shapes,
        contexts=contexts,
        frequency=frequency,
        first=first,
        symbol=slots,
        context=context.astype(np.uint8),
        starts=starts,
        cost=cost,
    )


@cache
def curves() -> Curves:
    """Load the bits and errors of a normal number."""
    with np.load(FILE) as file:
        return Curves(file["grid"], file["bits"], file["errors"])
