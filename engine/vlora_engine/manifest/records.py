"""The records of a collection for a subspace's index, before any k is chosen. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vlora_engine._version import __version__
from vlora_engine.adapters.base_models import base_model_of
from vlora_engine.adapters.model import AdapterSource, nominal_rank
from vlora_engine.manifest.manifest import BasisFile, LayerSpec, Manifest, OwnModule, TaskRecord
from vlora_engine.manifest.readme import model_card
from vlora_engine.utils.file_names import BASIS_FILE
from vlora_engine.utils.files import dump_json
from vlora_engine.utils.naming import natural_key
from vlora_engine.utils.safetensors_file import ITEM_BYTES
from vlora_engine.utils.tensor_writer import encode_header

Layout = list[tuple[str, str, tuple[int, ...]]]

LONGEST_FIGURE = 0.000123456789  # a float whose decimal form is as long as any stored one


def figure(value: float) -> float:
    """Round a float to the nine digits that the index keeps."""
    return float(f"{value:.9g}")


def shared_layers(sources: Mapping[str, AdapterSource]) -> list[LayerSpec]:
    """Every module of the collection in natural order, with its largest rank and k still 0."""
    specs: dict[str, LayerSpec] = {}
    for source in sources.values():
        for name, shape in source.modules.items():
            spec, rank = specs.get(name), max(1, shape.rank)
            if spec is None:
                tail = shape.shape_a[1:] if len(shape.shape_a) > 2 else ()
                specs[name] = LayerSpec(
                    name, shape.d_in, shape.d_out, rank, 0, 0, shape.kind, tuple(tail)
                )
            elif rank > spec.rank:
                specs[name] = replace(spec, rank=rank)
    return [specs[name] for name in sorted(specs, key=natural_key)]


def max_k(method: str, spec: LayerSpec, sources: Mapping[str, AdapterSource]) -> tuple[int, int]:
    """The largest useful k of either side of a layer: where the method is exact."""
    ranks = [s.modules[spec.name].rank for s in sources.values() if spec.name in s.modules]
    if method == "flat":
        return len(ranks) - 1, len(ranks) - 1
    return min(spec.d_in, sum(ranks)), min(spec.d_out, sum(ranks))


def task_record(
    name: str,
    source: AdapterSource,
    layers: Sequence[LayerSpec],
    *,
    file: str,
    digest: str,
    norm: float,
    error: float = LONGEST_FIGURE,
    location: str | None = None,
) -> TaskRecord:
    """The record of one adapter; modules that ``layers`` lacks become its own."""
    positions = {spec.name: i for i, spec in enumerate(layers)}
    shared = sorted(positions[m] for m in source.modules if m in positions)
    shapes = [source.modules[layers[i].name] for i in shared]
    outside = tuple(
        OwnModule(m, source.scales[m], s.kind, s.shape_a[1:] if len(s.shape_a) > 2 else ())
        for m, s in source.modules.items()
        if m not in positions
    )
    return TaskRecord(
        id=name,
        file=file,
        sha256="0" * 64,
        nbytes=10**7,
        digest=digest,
        layers=tuple(shared),
        ranks=tuple(shape.rank for shape in shapes),
        scales=tuple(source.scales[layers[i].name] for i in shared),
        dtypes=tuple(shape.dtype for shape in shapes),
        norm=figure(norm),
        error=error,
        rank=nominal_rank(source),
        config=dict(source.config),
        own=outside,
        rest=len(source.rest),
        source=location,
        source_bytes=source.nbytes,
        factor_elements=sum(s.rank * (s.d_in + s.d_out) for s in source.modules.values()),
        rest_bytes=rest_bytes(source),
        kept=tuple((key, dtype, tuple(x)) for key, (dtype, x) in sorted(source.rest.items())),
    )


def rest_bytes(source: AdapterSource) -> int:
    """Bytes of the rest tensors."""
    return sum(
        int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype]
        for dtype, shape in source.rest.values()
    )


def overhead_bytes(
    sources: Mapping[str, AdapterSource],
    records: Mapping[str, TaskRecord],
    layers: Sequence[LayerSpec],
    dtype: str,
) -> int:
    """Bytes of a subspace that are neither payload nor rest tensors.

    Taken from the index and the headers themselves with figures of full length, so that it is an
    upper bound, by some bytes a task.
    """
    wide = tuple(replace(spec, k_a=999, k_b=999) for spec in layers)
    manifest = Manifest(
        path=Path("."),
        method="columns",
        dtype=dtype,
        base_model=base_model_of(sources),
        layers=wide,
        basis=(BasisFile(BASIS_FILE, "0" * 64, 10**9, 0, len(layers)),),
        tasks=dict(records),
        engine=__version__,
    )
    index = len(dump_json(manifest.as_json()).encode()) + len(model_card(manifest).encode())
    factors = sum(record.factor_elements for record in records.values())
    shared: Layout = [
        ("components", dtype, (factors,)),
        ("singular_values", "F32", (factors,)),
        ("means", dtype, (factors,)),
        ("mean_exponents", "I8", (len(layers), 2)),
    ]
    basis, _ = encode_header(shared)
    total = index + len(basis) + 2 * len(layers)
    for name, record in records.items():
        count = len(record.layers)
        figures = 8 * count + (2 * count if dtype == "F16" else 0)
        layout: Layout = [("loadings", dtype, (record.factor_elements,))]
        layout += [("exponents", "I8", (count, 2))] if dtype == "F16" else []
        layout += [("norms", "F32", (count,)), ("errors", "F32", (count,))]
        layout += [(f"rest/{key}", d, shape) for key, (d, shape) in sources[name].rest.items()]
        header, _ = encode_header(layout)
        total += len(header) + figures
    return total
