"""The size of a subspace, in parameters and in bytes."""

from __future__ import annotations

from typing import Any

from vlora_engine.subspace.space import Space


def compression_stats(space: Space) -> dict[str, Any]:
    """Count parameters and bytes before and after (`SharedSubspace.compression_stats`)."""
    compressed = original = 0
    for spec in space.layers:
        compressed += sum(spec.basis_elements(space.method)) + spec.k_a + spec.k_b
        compressed += sum(spec.mean_elements(space.method))
    for record in space.tasks.records():
        for i, rank in zip(record.layers, record.ranks, strict=True):
            compressed += space.layers[i].loadings_elements(space.method, rank)
        original += record.factor_elements
    stored = space.storage.payload_bytes(space.layers, space.tasks.records())
    components = {s.name: (s.k_a, s.k_b) for s in space.layers}
    return {"components_per_layer": components} | size_stats(space, compressed, stored, original)


def size_stats(space: Space, params: int, nbytes: int, original: int) -> dict[str, Any]:
    """Parameters and bytes of all tasks, ``original`` being the parameters that they had."""
    return {
        "total_params_compressed": params,
        "total_params_original": original,
        "compression_ratio": original / params if params else 0.0,
        "bytes_compressed": nbytes,
        "bytes_original": 2 * original,
        "bytes_ratio": 2 * original / nbytes if nbytes else 0.0,
        "num_tasks": len(space.tasks),
        "num_layers": len(space.layers),
    }
