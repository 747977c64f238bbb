"""The entropy coder's models, read from the file that is part of the format."""

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
_LARGEST_MEAN = ESCAPE << UNIT_BITS


@dataclass(frozen=True)
class Models:
    """Static models of the magnitudes 0 to 62 and an escape.

    Args:
        frequency: (models, 64) uint32, model = shape * contexts + context; sums to 2^14.
        first: (models, 64) uint32 what stands before each symbol.
        symbol: (models * 2^14,) uint8 the symbol of every slot.
        context: (63 * 256 + 1,) uint8 the context of every running mean.
        starts: (56,) int32 the running means that a vector can begin with.
        cost: (models, 64) fp32 bits of each symbol.
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
    """Bits and squared error (in steps^2) of a normal number, by log2 of its deviation in steps."""

    grid: Array
    bits: Array
    errors: Array


@cache
def models() -> Models:
    """The models, ready to code with."""
    with np.load(FILE) as file:
        frequencies, edges, starts = (file[k] for k in ("frequencies", "edges", "starts"))
    shapes, contexts, symbols = frequencies.shape
    frequency = frequencies.reshape(-1, symbols).astype(np.uint32)
    first = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
    slots = np.repeat(
        np.tile(np.arange(symbols, dtype=np.uint8), len(frequency)), frequency.ravel()
    )
    context = np.searchsorted(edges, np.arange(_LARGEST_MEAN + 1), side="right")
    cost = (PRECISION - np.log2(frequency)).astype(np.float32)
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
    """What a normal number costs and loses."""
    with np.load(FILE) as file:
        return Curves(file["grid"], file["bits"], file["errors"])
