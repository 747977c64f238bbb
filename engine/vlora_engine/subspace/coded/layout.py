"""The layout of a coded collection's files, and the bytes of them that no choice changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlora_engine._version import __version__
from vlora_engine.adapters.base_models import base_model_of
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.codec.floats import MODULE_HEAD
from vlora_engine.compression_target import DEFAULT_MAX_ERROR
from vlora_engine.manifest.coding import Coding
from vlora_engine.manifest.manifest import BasisFile, LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.readme import model_card
from vlora_engine.utils.file_names import BASIS_FILE
from vlora_engine.utils.files import dump_json
from vlora_engine.utils.tensor_writer import encode_header

Layout = list[tuple[str, str, tuple[int, ...]]]


def task_layout(modules: int, nbytes: int, rest_bytes: int) -> Layout:
    """The tensors of a coded task's file: rest, then the modules, their heads before them."""
    rest: Layout = [("rest", "U8", (rest_bytes,))] if rest_bytes else []
    return [*rest, ("coded", "U8", (MODULE_HEAD * modules + nbytes,))]


def shared_layout(units: int, nbytes: int) -> Layout:
    """The tensors of the file of what groups share."""
    return [("sizes", "U32", (units,)), ("coded", "U8", (nbytes,))]


def overhead_bytes(
    sources: Mapping[str, AdapterSource],
    records: Mapping[str, TaskRecord],
    layers: Sequence[LayerSpec],
) -> int:
    """About the bytes that are neither coded numbers nor rest tensors."""
    return bytes_around(
        "auto",
        base_model_of(sources),
        layers,
        Coding(0.000123456789, {"max_error": DEFAULT_MAX_ERROR}, {0: "-" * len(layers)}),
        {name: replace(record, nbytes=10**6, source=None) for name, record in records.items()},
        payload=10**6,
        file_bytes=10**7,
        units=len(layers),
    )


def bytes_around(
    method: str,
    base_model: str | None,
    layers: Sequence[LayerSpec],
    coding: Coding,
    tasks: Mapping[str, TaskRecord],
    *,
    payload: int,
    file_bytes: int | None = None,
    units: int | None = None,
    of_tasks: Mapping[str, int] | None = None,
) -> int:
    """Bytes of index and card, and of the files' heads.

    Args:
        payload: Coded bytes of each file. file_bytes: What the index calls the size of the shared
            one, by default as much. units: Of what is shared, by default those of the coding.
        of_tasks: The coded bytes of each task's file, where they are known.
    """
    units = len(coding.units()) if units is None else units
    shared = BasisFile(BASIS_FILE, "0" * 64, file_bytes or payload, 0, len(layers))
    manifest = Manifest(
        path=Path("."),
        method=method,
        dtype="U8",
        base_model=base_model,
        layers=tuple(layers),
        basis=(shared,) if units else (),
        tasks=tasks,
        engine=__version__,
        coding=coding,
    )
    total = len(dump_json(manifest.as_json()).encode()) + len(model_card(manifest).encode())
    if units:
        total += len(encode_header(shared_layout(units, payload))[0]) + 4 * units
    for record in tasks.values():
        coded = payload if of_tasks is None else of_tasks[record.id]
        total += task_bytes(record, coded) - coded - record.rest_bytes
    return total


def task_bytes(record: TaskRecord, payload: int) -> int:
    """The bytes of a coded task's file: its head, rest tensors, the modules with their heads."""
    count = len(record.layers)
    header, _ = encode_header(task_layout(count, payload, record.rest_bytes))
    return len(header) + record.rest_bytes + MODULE_HEAD * count + payload
