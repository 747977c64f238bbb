"""Curves of captured variance and size over k, read off the error surface. No torch."""

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
    """The captured share of dW over k (K,) of several layers: median, lowest and highest (K,)."""

    k: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Uniform:
    """Variance and size of the same k in every layer, for each k in the spectra.

    Args:
        k: (K,).
        variance: (K,) captured share of ||dW||^2, mean over tasks; as `Prediction.variance`.
        nbytes: (K,) bytes on disk.
    """

    k: Array
    variance: Array
    nbytes: Array

    def k_for(self, share: float) -> int | None:
        """The least k whose variance reaches ``share``; None if none does."""
        return k_for(self.k, self.variance, share)

    def break_even(self, stored: int) -> int | None:
        """The least k that takes at least ``stored`` bytes; None if there is none."""
        beyond = np.flatnonzero(self.nbytes >= stored)
        return int(self.k[beyond[0]]) if len(beyond) else None


def has_sides(method: str) -> bool:
    """Whether each side has an error of its own; `flat` approximates both factors at once."""
    return method != "flat"


def layer_curve(
    spectra: Spectra, layer: str, method: str, side: str = "both"
) -> tuple[Array, Array]:
    """The captured share of one layer's dW over k: k (K,) and share (K,).

    Args:
        spectra: The error surface of the collection.
        layer: Its name.
        method: ``delta``, ``columns`` or ``flat``.
        side: ``both`` for k_a = k_b = k; ``a`` or ``b`` for that side at k and the other whole.
    """
    if side == "both" or not has_sides(method):
        return spectra.variance(layer, method)
    table = spectra.table(layer, method)
    if method == "delta":
        # The rows of `delta` have the Gram of dW, so their squared singular values are its energy
        # direction by direction; this is finer than the grid.
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
    """The band of `layer_curve` over at least one layer, all of which are computed.

    A layer with a smaller largest k stays at the share that it has reached.
    """
    curves = [layer_curve(spectra, layer, method, side) for layer in layers]
    k = np.unique(np.concatenate([curve_k for curve_k, _ in curves]))
    rows = np.empty((len(curves), len(k)))
    for row, (curve_k, share) in zip(rows, curves, strict=True):
        row[:] = share if len(curve_k) == len(k) else np.interp(k, curve_k, share)
    rows.sort(axis=0)
    middle = len(rows) // 2
    median = rows[middle] if len(rows) % 2 else (rows[middle - 1] + rows[middle]) / 2
    return Band(k, median, rows[0], rows[-1])


def uniform(
    spectra: Spectra, method: str, dtype: str, quantization: Quantization | None = None
) -> Uniform:
    """Variance and size of one k for every layer; layers that are not computed are left out.

    Args:
        spectra: The error surface of the collection.
        method: ``delta``, ``columns`` or ``flat``.
        dtype: What is stored, under safetensors' name.
        quantization: How it is packed, if it is; the variance is then an estimate.
    """
    names = [name for name in spectra.layer_names if name in spectra.layers]
    tables = {name: spectra.table(name, method) for name in names}
    k = np.unique(np.concatenate([table.k for table in tables.values()]))
    residual = np.zeros((len(spectra.tasks), len(k)))
    energy = np.zeros(len(spectra.tasks))
    fixed = overhead_bytes(spectra, dtype, quantization) + rest_bytes(spectra)
    nbytes = np.full(len(k), fixed, dtype=np.int64)
    every = np.arange(len(energy))
    alike: dict[Any, Array] = {}  # most layers have the bytes of some other
    for name, table in tables.items():
        layer = spectra.layers[name]
        layer_residual = table.residual
        if len(table.k) != len(k):
            layer_residual = layer_residual[:, np.searchsorted(table.k, k, "right") - 1]
        if np.array_equal(layer.tasks, every):  # much faster than by their numbers
            residual += layer_residual
            energy += layer.energy
        else:
            residual[layer.tasks] += layer_residual
            energy[layer.tasks] += layer.energy
        key = layer.d_in, layer.d_out, layer.ranks.tobytes(), table.max_a, table.max_b
        if key not in alike:
            k_a, k_b = np.minimum(k, table.max_a), np.minimum(k, table.max_b)
            alike[key] = np.asarray(layer_bytes(method, layer, k_a, k_b, dtype, quantization))
        nbytes += alike[key]
    share = np.divide(
        residual, energy[:, None], out=np.zeros_like(residual), where=energy[:, None] > 0
    )
    captured = 1 - quantization.noise if quantization is not None else 1.0
    return Uniform(k=k, variance=captured * (1 - share.mean(0)), nbytes=nbytes)
