"""Where every number of a basis lies in its files: the pooled tensors, and where a layer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlora_engine.manifest.manifest import LayerSpec, Manifest
from vlora_engine.quantization.packing import Packing
from vlora_engine.subspace.loadings import Storage

Layout = list[tuple[str, str, tuple[int, ...]]]


def basis_layout(storage: Storage, layers: Sequence[LayerSpec]) -> Layout:
    """The tensors of a file that holds the bases of these layers: name, dtype and shape of each."""
    method, dtype, quantization = storage.method, storage.dtype, storage.quantization
    numbers = [count for x in layers for count in x.basis_elements(method)]
    means = [count for x in layers for count in x.mean_elements(method)]
    if quantization is None:
        components: Layout = [("components", dtype, (sum(numbers),))]
        pooled: Layout = [("means", dtype, (sum(means),))]
    else:
        components = _pool("", quantization.basis, numbers)
        pooled = _pool("mean_", quantization.means, means)
    layout = [*components, ("singular_values", "F32", (sum(x.k_a + x.k_b for x in layers),))]
    if method == "flat":
        layout += [*pooled, ("mean_exponents", "I8", (len(layers), 2))]
    return layout


def _pool(prefix: str, packing: Packing, counts: Sequence[int]) -> Layout:
    """The tensors that packed numbers fill: sides of so many numbers each."""
    scale = "I8" if packing.double_quant else "F16"
    pool: Layout = [
        (f"{prefix}codes", "U8", (sum(map(packing.code_bytes, counts)),)),
        (f"{prefix}scales", scale, (sum(map(packing.blocks, counts)),)),
    ]
    if packing.double_quant:
        pool.append((f"{prefix}steps", "F32", (sum(map(packing.groups, counts)),)))
    return pool


@dataclass(frozen=True)
class Offsets:
    """Where one layer begins in the pooled tensors of its shard.

    Args:
        packed: In codes, scales and steps; packed_means likewise.
    """

    components: int = 0
    singular_values: int = 0
    means: int = 0
    packed: tuple[int, int, int] = (0, 0, 0)
    packed_means: tuple[int, int, int] = (0, 0, 0)

    def after(self, spec: LayerSpec, storage: Storage) -> Offsets:
        """Where the next layer begins."""
        numbers, means = spec.basis_elements(storage.method), spec.mean_elements(storage.method)
        quantization = storage.quantization
        return Offsets(
            self.components + sum(numbers),
            self.singular_values + spec.k_a + spec.k_b,
            self.means + sum(means),
            behind(self.packed, quantization.basis, numbers) if quantization else self.packed,
            behind(self.packed_means, quantization.means, means)
            if quantization
            else self.packed_means,
        )


def behind(
    at: tuple[int, int, int], packing: Packing, counts: Sequence[int]
) -> tuple[int, int, int]:
    """Where codes, scales and steps go on after sides of so many packed numbers each."""
    codes, scales, steps = at
    return (
        codes + sum(map(packing.code_bytes, counts)),
        scales + sum(map(packing.blocks, counts)),
        steps + sum(map(packing.groups, counts)),
    )


def offsets_of(manifest: Manifest, storage: Storage) -> list[Offsets]:
    """Where every layer begins in its shard."""
    offsets = []
    for shard in manifest.basis:
        here = Offsets()
        for spec in manifest.layers[shard.first : shard.last]:
            offsets.append(here)
            here = here.after(spec, storage)
    return offsets
