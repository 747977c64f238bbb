"""Describe one module of an adapter in detail, or compare it between two adapters.

Everything follows from the thin SVD ``dW = U diag(S) V^T``, so nothing depends on the gauge
(docs/mathematics.md#canonical-form).
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, as_source
from vlora_engine.analysis.similarity import Adapter, not_finite, scaled_factors
from vlora_engine.errors import CollectionError, NotFoundError
from vlora_engine.linalg.low_rank import canonical_svd, delta_error2

Changes = tuple[Tensor, Tensor, Tensor]  # U (d_out, q), S (q,), V (d_in, q)


def module_view(adapter: Adapter, module: str) -> dict[str, Any]:
    """Describe the weight change of one module: norm, singular values and ranks.

    Returns:
        ``d_in``, ``d_out``, ``rank`` as stored, ``scale``, ``dtype``; ``norm``, ``||dW||``;
        ``singular_values`` of dW, descending; ``numerical_rank``, their number;
        ``stable_rank``, ``||dW||^2 / S_1^2``; ``effective_rank``, the exponential of the entropy
        of the shares ``S_j^2 / ||dW||^2`` (Roy and Vetterli 2007 take S_j's own shares); both are
        0 where dW is zero.

    Raises:
        NotFoundError: The adapter has no such module.
        AdapterError: NaN or infinity in it.
    """
    source = as_source(adapter)
    return _portrait(source, module, _changes(source, module))


def module_comparison(first: Adapter, second: Adapter, module: str) -> dict[str, Any]:
    """Compare one module of two adapters: cosine, difference, principal angles, common energy.

    Returns:
        ``a`` and ``b``, as `module_view`; ``cosine`` of the two dW; ``relative_difference``,
        ``||dW_a - dW_b|| / ||dW_a||`` (over ``||dW_b||`` where dW_a is zero); ``angles_in`` and
        ``angles_out``, the cosines of the principal angles between the row and the column spaces,
        descending (Bjoerck and Golub 1973); ``a_in_b`` and ``b_in_a``, the share of the one's
        ``||dW||^2`` that lies within both spaces of the other; ``directions``, for each of the
        strongest `DIRECTIONS` singular directions i of the first the largest
        ``|<u_i v_i^T, u_j v_j^T>|`` with a direction of the second, and its number ``j``.

    Raises:
        NotFoundError: One of them has no such module.
        CollectionError: The module's dimensions differ.
        AdapterError: NaN or infinity in one.
    """
    sources = as_source(first), as_source(second)
    changes = [_changes(source, module) for source in sources]
    (U, S, V), (U2, S2, V2) = changes
    if (len(U), len(V)) != (len(U2), len(V2)):
        raise CollectionError(
            f"Module {module!r} has different shapes: the adapters are not of one base.",
            expected=f"{len(U)} x {len(V)}",
            found=f"{len(U2)} x {len(V2)}",
        )
    out, within = U.T @ U2, V.T @ V2  # [q, q2]
    norm, norm2 = _norm(S), _norm(S2)
    inner = float((S[:, None] * out * within * S2).sum())
    distance = math.sqrt(float(delta_error2(S[:, None] * V.T, U, S2[:, None] * V2.T, U2)))
    return {
        "a": _portrait(sources[0], module, changes[0]),
        "b": _portrait(sources[1], module, changes[1]),
        "cosine": inner / (norm * norm2) if norm and norm2 else 0.0,
        "relative_difference": distance / (norm or norm2 or 1.0),
        "angles_out": _cosines(out),
        "angles_in": _cosines(within),
        "a_in_b": _within(S, out, within),
        "b_in_a": _within(S2, out.T, within.T),
        "directions": _alike((out * within).abs()),
    }


DIRECTIONS = 16  # singular directions of the first that are compared


def _changes(source: AdapterSource, module: str) -> Changes:
    if module not in source.modules:
        close = difflib.get_close_matches(module, source.modules, n=1)
        raise NotFoundError(
            f"The adapter has no module {module!r}.",
            where=source.path,
            expected=", ".join(sorted(source.modules)[:6]),
            remedy=f"did you mean {close[0]!r}?" if close else None,
        )
    a, b = scaled_factors(source, module)
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise not_finite(source, 0, module)
    return canonical_svd(a, b)


def _portrait(source: AdapterSource, module: str, change: Changes) -> dict[str, Any]:
    shape, S = source.modules[module], change[1]
    energy = S.square()
    total = float(energy.sum())
    shares = energy / total if total else energy
    return {
        "module": module,
        "d_in": shape.d_in,
        "d_out": shape.d_out,
        "rank": shape.rank,
        "scale": source.scales[module],
        "dtype": shape.dtype,
        "norm": math.sqrt(total),
        "singular_values": S.tolist(),
        "numerical_rank": len(S),
        "stable_rank": total / float(energy[0]) if total else 0.0,
        "effective_rank": float(torch.special.entr(shares).sum().exp()) if total else 0.0,
    }


def _norm(S: Tensor) -> float:
    return float(torch.linalg.vector_norm(S))


def _cosines(products: Tensor) -> list[float]:
    """The cosines of the principal angles of two orthonormal bases: the SVD of ``U^T U2``."""
    values: list[float] = torch.linalg.svdvals(products).clamp(0, 1).tolist()
    return values


def _within(S: Tensor, out: Tensor, within: Tensor) -> float:
    """The share of ``||U S V^T||^2`` left after projecting on both spaces of the other."""
    energy = float(S.square().sum())
    if not energy:
        return 0.0
    left = (out.T * S) @ within  # U2^T (U S V^T) V2
    return min(1.0, float(left.square().sum()) / energy)


def _alike(products: Tensor) -> list[dict[str, Any]]:
    """For each of the first's strongest directions the most similar one of the second."""
    if not products.numel():
        return []
    best = products[:DIRECTIONS].max(dim=1)
    return [
        {"j": int(j), "alike": float(value)}
        for value, j in zip(best.values, best.indices, strict=True)
    ]
