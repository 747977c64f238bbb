"""Read what every module of a stored task lost, and the bytes it takes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.codec.floats import MODULE_HEAD, open_floats
from vlora_engine.errors import CorruptFileError, NotFoundError
from vlora_engine.manifest.manifest import Manifest, TaskRecord
from vlora_engine.utils.safetensors_file import ITEM_BYTES, Header, read_bytes, read_header

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TaskFigures:
    """The measured norms and errors of one task of a subspace.

    Args:
        layers: The shared modules that the task has.
        norms: (modules,) ||dW|| of each in the adapter. errors: (modules,) relative error of
            each as stored.
        nbytes: (modules,) bytes of each in the task's file, without what tasks share.
    """

    task: str
    layers: tuple[str, ...]
    norms: Array
    errors: Array
    nbytes: Array

    @property
    def error_of(self) -> Mapping[str, float]:
        """The errors by module."""
        return dict(zip(self.layers, self.errors.tolist(), strict=True))


def task_figures(manifest: Manifest, task_id: str) -> TaskFigures:
    """Read the per-module figures of one task: a few kB, however large the task is.

    Raises:
        NotFoundError: There is no such task, or its file is gone.
        CorruptFileError: The file is not the one that the index means.
    """
    record = manifest.task(task_id)
    if manifest.peer:
        raise NotFoundError(
            f"{manifest.peer} does not keep what its tasks lost in each module.",
            where=manifest.path,
            remedy=f"compare it with its adapter: vlora-tui diff {manifest.path}:{task_id} ADAPTER",
        )
    header = read_header(manifest.path / "tasks" / record.file)
    count = len(record.layers)
    if manifest.coding is None or record.in_basis:
        norms, errors = (_figures(header, name, (count,)) for name in ("norms", "errors"))
        nbytes = loadings_bytes(
            manifest if manifest.coding is None else manifest.of_basis(), record
        )
    else:
        norms, errors, nbytes = _coded_figures(header, count)
    layers = tuple(manifest.layers[i].name for i in record.layers)
    return TaskFigures(task_id, layers, norms, errors, nbytes)


def loadings_bytes(manifest: Manifest, record: TaskRecord) -> Array:
    """(modules,) bytes of the loadings of a task in a basis."""
    packing = None if manifest.quantization is None else manifest.quantization.loadings
    item = ITEM_BYTES[manifest.dtype]
    rows = []
    for i, rank in zip(record.layers, record.ranks, strict=True):
        sides = manifest.layers[i].loadings_sides(manifest.method, rank)
        rows.append(sum(map(packing.nbytes, sides)) if packing is not None else item * sum(sides))
    return np.array(rows, dtype=np.int64)


def _figures(header: Header, name: str, shape: tuple[int, ...]) -> Array:
    entry = header.entries.get(name)
    if entry is None or entry.dtype != "F32" or entry.shape != shape:
        raise CorruptFileError(
            f"The task's file does not hold the {name} that its index speaks of.",
            where=header.path,
            expected=f"F32 {shape}",
            found="nothing" if entry is None else f"{entry.dtype} {entry.shape}",
            remedy="restore it from a copy, or compress the adapters again",
        )
    figures = np.frombuffer(bytes(read_bytes(header, name)), dtype="<f4")
    return figures.reshape(shape).astype(np.float64)


def _coded_figures(header: Header, count: int) -> tuple[Array, Array, Array]:
    """Norms, errors and bytes, which stand before the modules of a coded task."""
    entry, head = header.entries.get("coded"), MODULE_HEAD * count
    if entry is None or entry.nbytes < head:
        raise CorruptFileError(
            "The task's file does not hold the figures that its index speaks of.",
            where=header.path,
            expected=f"coded, {head} bytes or more",
            found="nothing" if entry is None else f"{entry.nbytes} bytes",
            remedy="restore it from a copy, or compress the adapters again",
        )
    raw = bytes(read_bytes(header, "coded", head))
    figures = open_floats(raw, 4 * count, 2 * count)
    nbytes = np.frombuffer(raw, "<u4", count).astype(np.int64)
    return figures[:count], figures[count:], nbytes
