"""The share of dW's energy that each side of a basis spans, from the small tensors on disk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlora_engine.errors import VLoRAError
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.manifest.task_errors import task_figures
from vlora_engine.utils.safetensors_file import read_bytes, read_header


class Explained(NamedTuple):
    """The share of dW's energy that is left when one side alone is projected; None: not known.

    Args:
        note: Why it is not known; empty where it is.
    """

    a: float | None
    b: float | None
    note: str = ""


def explained(manifest: Manifest) -> Explained:
    """The shares of both sides, over all layers and tasks, every task counted alike.

    Singular values squared sum to what a side spans of ``sum_i ||dW_i||^2 / ||dW||^2``; what the
    whole is follows from the tasks' norms (`delta` alone: the others' spectra are of factors, of
    which nothing tells the whole). A task that was projected into the basis counts as missed.
    """
    if manifest.coding is not None and manifest.shared_basis is None:
        return Explained(None, None, "no basis is kept beside the tasks: vlora-tui basis makes one")
    if manifest.peer:
        return Explained(None, None, f"{manifest.peer} does not keep the energy of its adapters")
    if manifest.method != "delta" and manifest.shared_basis is None:
        note = f"the spectra of method {manifest.method} are of A and B, whose whole is not kept"
        return Explained(None, None, note)
    try:
        return _of_delta(manifest)
    except VLoRAError as error:
        return Explained(None, None, f"not read: {error.what}")


def _of_delta(manifest: Manifest) -> Explained:
    whole = sum(
        # Beside coded tasks the spectra are of what these decode to.
        1.0
        if manifest.shared_basis is not None
        else float(np.square(task_figures(manifest, name).norms / task.norm).sum())
        for name, task in manifest.tasks.items()
        if task.norm > 0
    )
    if manifest.shared_basis is not None:
        manifest = manifest.of_basis()
    if whole == 0:
        return Explained(1.0, 1.0)
    spanned = {"a": 0.0, "b": 0.0}
    for shard in manifest.basis:
        header = read_header(manifest.path / shard.name)
        values = np.frombuffer(bytes(read_bytes(header, "singular_values")), dtype="<f4")
        energy, at = np.square(values.astype(np.float64)), 0
        for layer in manifest.layers[shard.first : shard.last]:
            for side, k in (("a", layer.k_a), ("b", layer.k_b)):
                spanned[side] += float(energy[at : at + k].sum())
                at += k
    a, b = (min(1.0, spanned[side] / whole) for side in ("a", "b"))
    return Explained(a, b)
