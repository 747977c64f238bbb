"""The first library's numerical functions, by the path that its users import them from.

They live in `vlora_engine.linalg.ops`; this path stays until 0.2.
"""

from vlora_engine.linalg.ops import (
    compute_svd,
    explained_variance_ratio,
    gram_schmidt,
    incremental_svd_update,
    project_onto_subspace,
    reconstruct_from_subspace,
    select_num_components,
)

__all__ = [
    "compute_svd",
    "explained_variance_ratio",
    "gram_schmidt",
    "incremental_svd_update",
    "project_onto_subspace",
    "reconstruct_from_subspace",
    "select_num_components",
]
