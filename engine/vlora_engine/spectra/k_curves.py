"""What the plots show of the error surface: curves over k, over many layers at once. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.quantization.packing import Quantization
from vlora_engine.spectra.sizes import layer_bytes, overhead_bytes, rest_bytes
from vlora_engine.spectra.tables import Spectra

Array = npt.NDArray[Any]
SIDES = ("both", "a", "b")


@dataclass(frozen=True, eq=False)
class Band:
    """The captured share of dW against k (K,), over several layers: median, lowest, highest."""

    k: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Uniform:
    """What the same k in every layer costs, for each k (K,) that the spectra keep.

    Args:
        variance: Captured share of ||dW||^2, mean over tasks; `Prediction.variance`.
        nbytes: Bytes on disk.
    """

    k: Array
    variance: Array
    nbytes: Array

    def k_for(self, share: float) -> int | None:
        """The least k whose variance reaches ``share``."""
        return k_for(self.k, self.variance, share)

    def break_even(self, stored: int) -> int | None:
        """The least k that takes ``stored`` bytes or more; None if there is none."""
        beyond = np.flatnonzero(self.nbytes >= stored)
        return int(self.k[beyond[0]]) if len(beyond) else None


def has_sides(method: str) -> bool:
    """Whether a side has an error of its own: `flat` approximates both factors at once."""
    return method != "flat"


def layer_curve(
    spectra: Spectra, layer: str, method: str, side: str = "both"
) -> tuple[Array, Array]:
    """k (K,) and the captured share of one layer's dW (K,).

    Args:
        side: ``both`` for k_a = k_b = k; ``a`` or ``b`` for that side at k and the other whole.
    """
    if side == "both" or not has_sides(method):
        return spectra.variance(layer, method)
    table = spectra.table(layer, method)
    if method == "delta":
        # The rows of `delta` are dW's own, so their singular values are its energy, direction by
        # direction; this is finer than the grid.
        values = table.singular_values_a if side == "a" else table.singular_values_b
        energy = np.concatenate([[0.0], np.cumsum(values.astype(np.float64) ** 2)])
        total = energy[-1]
        return np.arange(len(energy)), energy / total if total > 0 else np.ones(len(energy))
    weights = spectra.weights[spectra.layers[layer].tasks]
    total = float(weights @ spectra.layers[layer].energy)
    k = table.grid_a if side == "a" else table.grid_b
    residual = table.grid[:, -1, :] if side == "a" else table.grid[:, :, -1]
    return k, 1.0 - (weights @ residual) / total if total > 0 else np.ones(len(k))


def k_for(k: Array, share: Array, level: float) -> int | None:
    """The least k whose captured ``share`` reaches ``level``; None if none does."""
    reached = np.flatnonzero(share >= level - 1e-9)
    return int(k[reached[0]]) if len(reached) else None


def band(spectra: Spectra, layers: Sequence[str], method: str, side: str = "both") -> Band:
    """Median and range over ``layers``, which are all computed; at least one.

    A layer that ends at a smaller k stays at what it has reached.
    """
    curves = [layer_curve(spectra, layer, method, side) for layer in layers]
    k = np.unique(np.concatenate([own for own, _ in curves]))
    rows = np.empty((len(curves), len(k)))
    for row, (own, share) in zip(rows, curves, strict=True):
        row[:] = share if len(own) == len(k) else np.interp(k, own, share)
    rows.sort(axis=0)
    middle = len(rows) // 2
    median = rows[middle] if len(rows) % 2 else (rows[middle - 1] + rows[middle]) / 2
    return Band(k, median, rows[0], rows[-1])


def uniform(
    spectra: Spectra, method: str, dtype: str, quantization: Quantization | None = None
) -> Uniform:
    """The whole collection at one k for every layer; layers that are not computed are left out.

    Args:
        dtype: What is stored, in safetensors' words.
        quantization: How it is packed, if it is; the variance is then an estimate.
    """
    names = [name for name in spectra.layer_names if name in spectra.layers]
    tables = {name: spectra.table(name, method) for name in names}
    k = np.unique(np.concatenate([table.k for table in tables.values()]))
    residual = np.zeros((len(spectra.tasks), len(k)))
    energy = np.zeros(len(spectra.tasks))
    fixed = overhead_bytes(spectra, dtype, quantization) + rest_bytes(spectra)
    nbytes = np.full(len(k), fixed, dtype=np.int64)
    for name, table in tables.items():
        layer = spectra.layers[name]
        kept = table.residual
        if len(table.k) != len(k):
            kept = kept[:, np.searchsorted(table.k, k, "right") - 1]
        residual[layer.tasks] += kept
        energy[layer.tasks] += layer.energy
        k_a, k_b = np.minimum(k, table.max_a), np.minimum(k, table.max_b)
        nbytes += np.asarray(layer_bytes(method, layer, k_a, k_b, dtype, quantization))
    share = np.divide(
        residual, energy[:, None], out=np.zeros_like(residual), where=energy[:, None] > 0
    )
    left = 1 - quantization.noise if quantization is not None else 1.0
    return Uniform(k=k, variance=left * (1 - share.mean(0)), nbytes=nbytes)
