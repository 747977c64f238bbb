"""Packing a subspace that is there: its bases as bytes, its loadings fitted to what is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlora_engine.encode import Storage
from vlora_engine.grow import original_of, reexpress
from vlora_engine.layer import Bases, LayerBasis
from vlora_engine.packing import Quantization
from vlora_engine.tasks import TaskMap

if TYPE_CHECKING:
    from vlora_engine.subspace import SharedSubspace


def requantize(subspace: SharedSubspace, quantization: Quantization) -> None:
    """`SharedSubspace.quantize`."""
    if subspace.quantization == quantization:
        return
    storage = Storage(subspace.method, subspace.dtype, quantization)

    def packed() -> Iterator[LayerBasis]:
        for name in subspace.layer_names:
            yield subspace.bases[name].moved("cpu").packed_as(quantization)

    bases = Bases.of(packed())
    tasks = TaskMap(storage, subspace.layers)
    for record in subspace.tasks.records():
        encoded = subspace.tasks.encoded(record.id)
        original = original_of(record)
        tasks.put(*reexpress(subspace, storage, subspace.layers, bases, record, encoded, original))
    subspace.bases, subspace.tasks, subspace.quantization = bases, tasks, quantization
    subspace.stored = None
