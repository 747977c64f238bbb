"""Make ``tables.npz``, the models of the codec: ``python -m vlora_engine.codec.make_tables FILE``.

The file is part of the format: what was coded with its frequencies is decoded with the very same
ones, on any machine, so they are shipped and never computed where they are used. Run again, this
gives the same file up to the last digit of a platform's mathematical functions; do not replace
the shipped one without a new codec version.

A model says how likely each magnitude of a quantized number is, given a running mean of the
magnitudes before it. Its family is the generalized normal distribution, shrunk and rounded as
`vlora_engine.codec.quantizer` does it; its shapes range from flatter than normal (what random
initialisation leaves in A) to heavier than Laplace (what outlying channels leave in B).
"""

from __future__ import annotations

import sys
from math import gamma
from pathlib import Path

import numpy as np
import torch

from vlora_engine.codec.quantizer import shrinkage

SHAPES = (3.0, 2.0, 1.5, 1.1)  # exponents of the generalized normal distribution
CONTEXTS = 32
SYMBOLS = 64  # magnitudes 0 to 62, and an escape
PRECISION = 14
UNIT = 256  # the running mean is kept in 1/256
STARTS = 56


def cdf(x: np.ndarray, scale: float, shape: float) -> np.ndarray:
    """``P(|X| < x)`` of the generalized normal distribution, density ~ exp(-(x / scale)^shape)."""
    at = torch.from_numpy((np.maximum(x, 0) / scale) ** shape)
    below: np.ndarray = torch.special.gammainc(torch.full_like(at, 1 / shape), at).numpy()
    return below


def magnitudes(scale: float, shape: float, count: int = 2000) -> np.ndarray:
    """Probabilities (count,) of magnitudes 0, 1, ... after quantization; the last is the tail."""
    # Magnitude n is what shrinkage takes to (n - 1/2, n + 1/2).
    variance = scale**2 * gamma(3 / shape) / gamma(1 / shape)
    edges = (np.arange(count) - 0.5) / shrinkage(variance)
    edges[0] = 0
    return np.diff(np.append(cdf(edges, scale, shape), 1.0))


def scale_for(mean: float, shape: float) -> float:
    """The scale at which the mean magnitude after quantization is ``mean``, by bisection."""
    low, high = 1e-3, 1e4
    for _ in range(100):
        middle = (low * high) ** 0.5
        p = magnitudes(middle, shape)
        low, high = (middle, high) if p @ np.arange(len(p)) < mean else (low, middle)
    return float((low * high) ** 0.5)


def integers(p: np.ndarray) -> np.ndarray:
    """Integer frequencies (SYMBOLS,) that sum to 2^PRECISION; none is 0: any symbol can occur."""
    total = 1 << PRECISION
    p = np.append(p[: SYMBOLS - 1], p[SYMBOLS - 1 :].sum())
    frequency = np.maximum(1, np.floor(p * total + 0.5).astype(np.int64))
    frequency[np.argmax(frequency)] += total - frequency.sum()
    return frequency


def context_means() -> np.ndarray:
    """The running mean at the middle of each context, (CONTEXTS,), a third of an octave apart."""
    return 2.0 ** ((np.arange(CONTEXTS) - 18) / 3)


def curves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits b(sigma) and squared error D(sigma) of a normal number, by log2 of sigma in steps."""
    grid = np.arange(-5, 8.01, 0.125)  # above, a bit more for every doubling, and an error of 1/12
    bits, errors = [], []
    x = np.linspace(0, 9, 200_001)
    density = np.exp(-x * x / 2)
    density /= density.sum()
    for log in grid:
        value = x * 2.0**log
        level = np.rint(value * shrinkage(4.0**log))
        errors.append(float(((value - level) ** 2 * density).sum()))
        p = np.bincount(level.astype(np.int64), weights=density)
        p = p[p > 0]
        bits.append(float(-(p * np.log2(p)).sum() + (1 - density[level == 0].sum())))
    return grid, np.array(bits), np.array(errors)


def main(path: str) -> None:
    """Make the tables and write them to ``path``."""
    means = context_means()
    frequencies = np.array(
        [[integers(magnitudes(scale_for(m, s), s)) for m in means] for s in SHAPES], dtype=np.uint16
    )
    edges = np.sqrt(means[1:] * means[:-1]) * UNIT
    starts = np.array([max(1, round(2 ** (k / 4))) for k in range(STARTS)], dtype=np.int32)
    grid, bits, errors = curves()
    np.savez(
        Path(path),
        frequencies=frequencies,
        edges=np.ceil(edges).astype(np.int32),
        starts=starts,
        grid=grid,
        bits=bits,
        errors=errors,
    )


if __name__ == "__main__":
    main(sys.argv[1])
