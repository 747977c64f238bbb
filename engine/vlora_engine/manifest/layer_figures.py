"""Read what a subspace lost, and the bits it spent, in each of its layers. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlora_engine.errors import CorruptFileError
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.manifest.task_errors import Array, task_figures
from vlora_engine.utils.progress import CancelCheck
from vlora_engine.utils.safetensors_file import ITEM_BYTES, read_bytes, read_header


@dataclass(frozen=True)
class LayerFigures:
    """What all tasks of a subspace lost in each of its shared modules, and what they take there.

    Args:
        layers: The modules. norms: (modules,) root of the sum of ||dW||^2 over the tasks.
        errors: (modules,) root of the lost share of it, as stored.
        nbytes: (modules,) bytes of what tasks share and of what each has for itself.
        weights: (modules,) numbers in the A and B of all tasks.
    """

    layers: tuple[str, ...]
    norms: Array
    errors: Array
    nbytes: Array
    weights: Array

    @property
    def bits(self) -> Array:
        """(modules,) bits for each number of A and B."""
        return 8 * self.nbytes / np.maximum(1, self.weights)

    def by_layer(self, values: Array) -> Mapping[str, float]:
        """A figure of every module by its name."""
        return dict(zip(self.layers, values.tolist(), strict=True))


def layer_figures(manifest: Manifest, cancelled: CancelCheck | None = None) -> LayerFigures | None:
    """Sum the figures of all tasks: a few kB of each one's file; None where that was cancelled.

    Raises:
        NotFoundError: The subspace does not keep what was lost, or a file is gone.
        CorruptFileError: A file is not the one that the index means.
    """
    layers = manifest.layers
    lost, energy = np.zeros(len(layers)), np.zeros(len(layers))
    nbytes, weights = shared_bytes(manifest), np.zeros(len(layers), dtype=np.int64)
    widths = np.array([spec.d_in + spec.d_out for spec in layers], dtype=np.int64)
    for task, record in manifest.tasks.items():
        if cancelled is not None and cancelled():
            return None
        figures, at = task_figures(manifest, task), np.array(record.layers, dtype=np.int64)
        lost[at] += (figures.errors * figures.norms) ** 2
        energy[at] += figures.norms**2
        nbytes[at] += figures.nbytes
        weights[at] += widths[at] * np.array(record.ranks, dtype=np.int64)
    errors = np.sqrt(np.divide(lost, energy, out=np.zeros_like(lost), where=energy > 0))
    names = tuple(spec.name for spec in layers)
    return LayerFigures(names, np.sqrt(energy), errors, nbytes, weights)


def shared_bytes(manifest: Manifest) -> Array:
    """(modules,) bytes of what the tasks share: bases with their means, or coded groups."""
    if manifest.coding is None:
        return _basis_bytes(manifest)
    nbytes = np.zeros(len(manifest.layers), dtype=np.int64)
    units = manifest.coding.units()
    if units and manifest.basis:
        header = read_header(manifest.path / manifest.basis[0].name)
        entry = header.entries.get("sizes")
        if entry is None or entry.dtype != "U32" or entry.shape != (len(units),):
            raise CorruptFileError(
                "The shared file does not hold the sizes that its index speaks of.",
                where=header.path,
                expected=f"U32 ({len(units)},)",
                found="nothing" if entry is None else f"{entry.dtype} {entry.shape}",
                remedy="restore it from a copy, or compress the adapters again",
            )
        sizes = np.frombuffer(bytes(read_bytes(header, "sizes")), "<u4").astype(np.int64)
        np.add.at(nbytes, [layer for layer, _ in units], sizes)
    return nbytes if manifest.shared_basis is None else nbytes + _basis_bytes(manifest.of_basis())


def _basis_bytes(manifest: Manifest) -> Array:
    """(modules,) bytes of components, singular values and means."""
    packing, item = manifest.quantization, ITEM_BYTES[manifest.dtype]
    rows = []
    for spec in manifest.layers:
        numbers, means = spec.basis_elements(manifest.method), spec.mean_elements(manifest.method)
        total = 4 * (spec.k_a + spec.k_b)  # the singular values
        if packing is None:
            total += item * sum(numbers + means)
        else:
            total += sum(map(packing.basis.nbytes, numbers)) + sum(map(packing.means.nbytes, means))
        rows.append(total)
    return np.array(rows, dtype=np.int64)
