"""What a subspace takes, in parameters and in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlora_engine.shared_subspace import SharedSubspace


def compression_stats(subspace: SharedSubspace) -> dict[str, Any]:
    """`SharedSubspace.compression_stats`."""
    compressed = original = 0
    for spec in subspace.layers:
        compressed += sum(spec.basis_elements(subspace.method)) + spec.k_a + spec.k_b
        compressed += sum(spec.mean_elements(subspace.method))
    for record in subspace.tasks.records():
        for i, rank in zip(record.layers, record.ranks, strict=True):
            compressed += subspace.layers[i].loadings_elements(subspace.method, rank)
        original += record.factor_elements
    stored = subspace.storage.payload_bytes(subspace.layers, subspace.tasks.records())
    return {
        "components_per_layer": {s.name: (s.k_a, s.k_b) for s in subspace.layers},
        "total_params_compressed": compressed,
        "total_params_original": original,
        "compression_ratio": original / compressed if compressed else 0.0,
        "bytes_compressed": stored,
        "bytes_original": 2 * original,
        "bytes_ratio": 2 * original / stored if stored else 0.0,
        "num_tasks": len(subspace.tasks),
        "num_layers": len(subspace.layers),
    }
