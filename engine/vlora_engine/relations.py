"""How adapters relate, from the inner products of their weight changes; numpy alone.

The spectra hold these products, so that whoever reads them needs no torch. `vlora_engine.analysis`
and `vlora_engine.similarity` say the same of adapters and tensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Spreads below these are taken as these: among near-identical adapters a difference that no one
# would call one must not become a large score.
_SPREAD_FLOOR = {"norm": math.log(1.05), "similarity": 0.02}
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


def cosines_of(gram: Array) -> Array:
    """Cosines (N, N) from inner products, 1 on the diagonal; a zero dW is like no other."""
    norms = np.sqrt(gram.diagonal().clip(0))
    inverse = np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
    matrix: Array = (gram * inverse[:, None] * inverse).clip(-1, 1)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def clusters_of(cosines: Array, threshold: float) -> list[list[int]]:
    """Indices grouped so that every two of a cluster are at least ``threshold`` alike.

    Greedy, in index order: one joins the first cluster whose members are all similar enough, or
    starts one. Every index is in exactly one cluster.
    """
    alike = cosines >= threshold
    n = len(alike)
    clusters: list[list[int]] = []
    # welcome[c, i]: adapter i is similar enough to all members of cluster c so far
    welcome = np.ones((n, n), dtype=bool)
    for i in range(n):
        homes = np.flatnonzero(welcome[: len(clusters), i])
        c = int(homes[0]) if len(homes) else len(clusters)
        if c == len(clusters):
            clusters.append([])
        clusters[c].append(i)
        welcome[c] &= alike[:, i]
    return clusters


def outliers_of(gram: Array, threshold: float = 2.0) -> list[dict[str, Any]]:
    """Who stands apart (see `vlora_engine.analysis.find_outliers`), from inner products (N, N).

    With N below 3 none can.
    """
    n = len(gram)
    if n < 3:
        return []
    norms = np.sqrt(gram.diagonal().clip(0))
    similarity = (cosines_of(gram).sum(axis=1) - 1) / (n - 1)
    # A zero norm has no logarithm; far below every other is what it means.
    logs = np.log(norms.clip(max(float(norms.max()), 1e-300) * 1e-12))
    sizes, size_typical = _scores_against_others("norm", logs)
    likeness, like_typical = _scores_against_others("similarity", similarity)
    scores = {"norm": np.abs(sizes), "similarity": -likeness}
    distance2 = gram.diagonal() - 2 * gram.mean(axis=1) + gram.mean()
    outliers = []
    for i in range(n):
        feature = max(scores, key=lambda name: float(scores[name][i]))
        if scores[feature][i] <= threshold:
            continue
        is_norm = feature == "norm"
        outliers.append(
            {
                "index": i,
                "distance": math.sqrt(max(0.0, float(distance2[i]))),
                "z_score": float(scores[feature][i]),
                "feature": feature,
                "value": float(norms[i] if is_norm else similarity[i]),
                "typical": math.exp(size_typical[i]) if is_norm else float(like_typical[i]),
                "norm": float(norms[i]),
                "mean_similarity": float(similarity[i]),
            }
        )
    return outliers


def _scores_against_others(name: str, values: Array) -> tuple[Array, Array]:
    """Per entry its robust z-score among the others, and their median: (N,), (N,)."""
    n = len(values)
    others = np.broadcast_to(values, (n, n))[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    typical = np.median(others, axis=1)
    deviation = np.median(np.abs(others - typical[:, None]), axis=1)
    spread = (_MAD_TO_SIGMA * deviation).clip(_SPREAD_FLOOR[name])
    return (values - typical) / spread, typical
