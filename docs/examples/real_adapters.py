"""What compression does to adapters: error against bytes, and what is shared.

    python docs/examples/real_adapters.py
    python docs/examples/real_adapters.py runs/legal runs/medical hf://org/name

Without arguments four small adapters are made here: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vlora_engine import (
    SharedSubspace,
    compute_similarity_matrix,
    find_clusters,
    load_adapter,
    subspace_coverage,
)
from vlora_engine.demo import make_demo_collection

ERRORS = (0.2, 0.05, 0.02)
SHARES = (0.5, 0.9, 0.99)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the adapters that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", nargs="*", help="folders, or hf://org/name")
    options = parser.parse_args(arguments)
    if len(options.adapters) == 1:
        parser.error("two adapters at least")
    with tempfile.TemporaryDirectory() as folder:
        measure(options.adapters or made_here(Path(folder)), Path(folder))


def measure(paths: Sequence[str | Path], work: Path) -> None:
    """The adapters, the curve of error against bytes, the basis, and one adapter out again."""
    adapters = [load_adapter(path) for path in paths]
    matrix = compute_similarity_matrix(adapters)
    print(f"{len(adapters)} adapters, {len(adapters[0].layer_names)} modules, similarity of dW:")
    for row in matrix.tolist():
        print("  " + " ".join(f"{value:5.2f}" for value in row))
    print(f"clusters at .9: {find_clusters(matrix, threshold=0.9)}")

    print("largest error   bytes       of A and B in 16 bit")
    for error in ERRORS:
        stats = SharedSubspace.from_adapters(adapters, max_error=error).compression_stats()
        small, whole = stats["bytes_compressed"], stats["bytes_original"]
        print(f"{error:13.0%}   {small:<10,}  {whole / small:.1f}x")

    subspace = SharedSubspace.from_adapters_streaming(paths)
    subspace.save(work / "subspace")
    print("energy kept   k of the basis that keeps it")
    for share in SHARES:
        layers = subspace.with_basis(variance=share).in_basis().layers
        ks = [k for spec in layers for k in (spec.k_a, spec.k_b)]
        print(f"{share:11.0%}   {min(ks)} to {max(ks)}")

    subspace = SharedSubspace.load(work / "subspace").with_basis()
    name = next(iter(subspace.tasks))
    held = subspace_coverage(subspace, adapters[0])
    print(f"the basis holds {min(row['coverage'] for row in held.values()):.1%} of {name} at least")
    weights = subspace.reconstruct(name)
    print(f"{name}: rank {weights.rank}, error {subspace.tasks.record(name).error:.2%}")


def made_here(folder: Path) -> list[Path]:
    """Four small adapters of related tasks."""
    demo = make_demo_collection(folder / "demo").path
    return [demo / name for name in ("french", "german", "italian", "spanish")]


if __name__ == "__main__":
    main()
