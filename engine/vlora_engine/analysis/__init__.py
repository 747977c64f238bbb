"""How adapters relate: similarity, clusters, outliers, duplicates, runs, interference.

Every figure is on the weight change dW. `relations` sums one pass over the modules up in a few
(N, N) matrices, from which `similarity`, `outliers`, `duplicates` and `checkpoints` follow;
`interference_measures` compares pairs module by module, `module_view` shows one module.
"""

from __future__ import annotations

from vlora_engine.utils.lazy import lazy_names

# What `vlora_engine.analysis` held while it was one module; importable from here until 0.2.
_HOMES = {
    "vlora_engine.analysis.compare": [
        "adapter_diff",
        "diff_total",
        "duplicates_among",
        "find_duplicates",
        "find_outliers",
        "find_runs",
        "outliers_of",
        "runs_among",
    ],
    "vlora_engine.analysis.interference_measures": ["interference"],
    "vlora_engine.analysis.similarity": [
        "compute_similarity_matrix",
        "cosines",
        "delta_grams",
        "find_clusters",
        "relate",
    ],
    "vlora_engine.subspace.coverage": ["coverage_total", "subspace_coverage"],
}

__getattr__ = lazy_names(__name__, _HOMES)
