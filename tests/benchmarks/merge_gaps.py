"""The figures of `merge_gap`: every elementwise method on the core and on the dense dW.

``python -m tests.benchmarks.merge_gaps COLLECTION RESULT``; an empty collection makes one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, LoRAWeights, as_source
from vlora_engine.catalog.open import open_adapter
from vlora_engine.merging import MERGE_METHODS, merge, sparsify

ADAPTERS, MODULES = 4, 6
SIEVES = {
    "ties": (sparsify.trim, True),
    "dare": (sparsify.draw, False),
    "dare_ties": (sparsify.draw, True),
    "della": (sparsify.draw_by_size, True),
    "della_linear": (sparsify.draw_by_size, False),
    "breadcrumbs": (sparsify.drop_tails, False),
    "breadcrumbs_ties": (sparsify.drop_tails, True),
    "magnitude_prune": (sparsify.trim, False),
}


def sources_of(place: str) -> list[AdapterSource]:
    """Some adapters of one base from a folder, spread over it; or made ones."""
    if not place:
        return [as_source(made(seed)) for seed in range(ADAPTERS)]
    found = [p.parent for p in sorted(Path(place).rglob("adapter_config.json"))]
    opened = [open_adapter(path) for path in found]
    first = {name: shape.fits for name, shape in opened[0].modules.items()}
    alike = [s for s in opened if {n: m.fits for n, m in s.modules.items()} == first]
    step = max(1, len(alike) // ADAPTERS)
    return alike[::step][:ADAPTERS]


def made(seed: int, width: int = 512, rank: int = 16) -> LoRAWeights:
    """One with falling singular values in directions of its own."""
    g = torch.Generator().manual_seed(seed)
    fall = torch.logspace(0, -1, rank, dtype=torch.float64)
    a = fall.sqrt()[:, None] * torch.randn(rank, width, generator=g, dtype=torch.float64)
    b = torch.randn(width, rank, generator=g, dtype=torch.float64) * fall.sqrt()
    return LoRAWeights(["m"], {"m": a}, {"m": b}, rank, {})


def part(sources: Sequence[AdapterSource]) -> list[LoRAWeights]:
    """The adapters with some of their modules, in memory and fp64."""
    names = sorted(sources[0].modules)
    names = names[:: max(1, len(names) // MODULES)][:MODULES]
    adapters = []
    for source in sources:
        pairs = {name: source.read(name) for name in names}
        a = {name: pair[0].double() for name, pair in pairs.items()}
        b = {name: pair[1].double() for name, pair in pairs.items()}
        scales = {name: source.scales[name] for name in names}
        adapters.append(LoRAWeights(names, a, b, max(t.shape[0] for t in a.values()), {}, scales))
    return adapters


def dense(method: str, deltas: list[Tensor], values: dict[str, Any]) -> Tensor:
    """The same steps on the entries of the dense changes, equal weights."""
    weight = 1.0 / len(deltas)
    if method == "sce":  # at its default nothing is selected: energies and the election are left
        energy = [float(delta.square().sum()) for delta in deltas]

        def votes() -> list[tuple[Tensor, float]]:
            return [(e * d, e) for e, d in zip(energy, deltas, strict=True)]

        return sparsify.elect(votes, mean=True, ballots=lambda: [(d, 1.0) for d in deltas])
    sieve, elects = SIEVES[method]
    kept = [sieve(d, values, torch.Generator().manual_seed(i)) for i, d in enumerate(deltas)]

    def weighted() -> list[tuple[Tensor, float]]:
        return [(weight * k, weight) for k in kept]

    return sparsify.elect(weighted, mean=True) if elects else sparsify.add(weighted)


def gaps(adapters: list[LoRAWeights]) -> list[dict[str, Any]]:
    """A row for each method."""
    rows = []
    for method in (*SIEVES, "sce"):
        values = MERGE_METHODS[method].check({})
        if "seed" in values:
            values["seed"] = 0
        merged = merge(adapters, method, **values)
        sums = dict.fromkeys(("gap", "core", "dense", "inner", "total", "c_sum", "d_sum"), 0.0)
        for module in adapters[0].layer_names:
            deltas = [adapter.delta(module) for adapter in adapters]
            total = sum(deltas[1:], deltas[0]) / len(deltas)
            core, other = merged.delta(module), dense(method, deltas, values)
            for name, matrix in (
                ("gap", core - other),
                ("core", core),
                ("dense", other),
                ("total", total),
                ("c_sum", core - total),
                ("d_sum", other - total),
            ):
                sums[name] += float(matrix.square().sum())
            sums["inner"] += float((core * other).sum())
        rows.append(
            {
                "method": method,
                "gap": (sums["gap"] / sums["dense"]) ** 0.5,
                "cosine": sums["inner"] / (sums["core"] * sums["dense"]) ** 0.5,
                "norm": (sums["core"] / sums["dense"]) ** 0.5,
                "core_to_sum": (sums["c_sum"] / sums["total"]) ** 0.5,
                "dense_to_sum": (sums["d_sum"] / sums["total"]) ** 0.5,
            }
        )
    return rows


if __name__ == "__main__":
    chosen = part(sources_of(sys.argv[1]))
    found = {
        "adapters": len(chosen),
        "modules": len(chosen[0].layer_names),
        "rows": gaps(chosen),
    }
    Path(sys.argv[2]).write_text(json.dumps(found))
