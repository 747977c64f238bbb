"""What each merge method computes for one module; the names are those of the specs.

Three kinds: sums of weight changes (exact, through their factors alone), singular directions and
values (the same in every coordinates), and single entries (`vlora_engine.merging.sparsify`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from vlora_engine.linalg.low_rank import module_gram
from vlora_engine.merging.core_space import (
    EPS,
    ROUNDING,
    Change,
    ModuleInputs,
)
from vlora_engine.merging.sparsify import (
    Values,
    draw,
    draw_by_size,
    drop_tails,
    elect,
    of_adapter,
    on_core,
    sce,
    trim,
)

Operator = Callable[[ModuleInputs, Values], Change]
# Below this a cosine is that of parallel changes: their great circle is no longer determined.
_PARALLEL = 1e-9
# Directions of a set of unit vectors that are nearer than this are one direction.
_SAME = 1e-7


def weighted_sum(inputs: ModuleInputs, values: Values) -> Change:
    """``sum_i w_i dW_i``."""
    return inputs.combined(inputs.weights)


# ---- in the span of the changes -----------------------------------------------------------------


def slerp(inputs: ModuleInputs, values: Values) -> Change:
    """``sin((1-t) a) / sin(a) dW_1 + sin(t a) / sin(a) dW_2``, a the angle of the two changes.

    Without ``t`` it is the second's weight; the two add up to 1. Where there is no great circle
    between them (parallel, opposite, or one of them zero or missing) it is the straight line.
    """
    t = inputs.weights_of_all[1] if values["t"] is None else values["t"]
    shares = 1.0 - t, t
    gram = _gram(inputs)
    if len(gram) == 2 and bool((gram.diagonal() > 0).all()):
        cosine = float(_cosines(gram)[0, 1])
        if abs(cosine) < 1.0 - _PARALLEL:
            angle = math.acos(cosine)
            shares = math.sin((1.0 - t) * angle), math.sin(t * angle)
            shares = shares[0] / math.sin(angle), shares[1] / math.sin(angle)
    return inputs.combined([shares[place] for place in inputs.positions])


def model_stock(inputs: ModuleInputs, values: Values) -> Change:
    """``t mean_i dW_i`` with ``t = T c / (1 + (T - 1) c)``, c the mean cosine of the pairs.

    The mean is weighted by weights that add up to 1; adapters of weight 0 take no part, and those
    that lack the module count as zero. A mean cosine below 0 counts as 0: nothing is common, and
    the base model stays.
    """
    taking = [i for i, weight in enumerate(inputs.weights_of_all) if weight != 0]
    places = {place: i for i, place in enumerate(inputs.positions)}
    cosines = _cosines(_gram(inputs))
    pairs = [
        float(cosines[places[i], places[j]]) if i in places and j in places else 0.0
        for n, i in enumerate(taking)
        for j in taking[:n]
    ]
    cosine = max(0.0, sum(pairs) / len(pairs)) if pairs else 1.0
    shortened = len(taking) * cosine / (1.0 + (len(taking) - 1) * cosine)
    return inputs.combined([shortened * weight for weight in inputs.weights])


def _gram(inputs: ModuleInputs) -> Tensor:
    return module_gram(inputs.factors, inputs.scales)


def _cosines(gram: Tensor) -> Tensor:
    """Cosines from inner products (n, n); 0 beside a change that is zero."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return (gram * inverse[:, None] * inverse).clamp(-1.0, 1.0)


# ---- singular directions and values -------------------------------------------------------------


def tsv_m(inputs: ModuleInputs, values: Values) -> Change:
    """Task singular vectors: those of all adapters together, made orthogonal to each other.

    ``[U_1 .. U_T]`` and ``[V_1 .. V_T]`` are replaced by the nearest matrices with orthonormal
    columns (polar factors); the singular values stay, times the weights. Directions that adapters
    share to rounding stay shared. An adapter of weight 0 takes no part. Computed in the core
    space, in which nothing is lost and the polar factor is the same.
    """
    parts = []
    for weight, change in zip(inputs.weights, inputs.changes, strict=True):
        if weight != 0 and len(change.S):
            parts.append((weight, change.cut(max(1, round(values["keep"] * len(change.S))))))
    if not parts:
        return inputs.combined([0.0] * len(inputs.weights))
    left = _nearest_orthonormal(torch.cat([inputs.space.U.T @ c.U for _, c in parts], dim=1))
    right = _nearest_orthonormal(torch.cat([inputs.space.V.T @ c.V for _, c in parts], dim=1))
    strength = torch.cat([weight * c.S for weight, c in parts])
    return inputs.from_core((left * strength) @ right.T)


def iso_c(inputs: ModuleInputs, values: Values) -> Change:
    """The weighted sum with every singular value replaced by their mean.

    The mean is over the sum's own rank: a sum of LoRAs has far fewer singular values than its
    matrix has rows, and the zeros would shrink it.
    """
    change = inputs.combined(inputs.weights)
    if not len(change.S):
        return change
    return Change(change.U, torch.full_like(change.S, float(change.S.mean())), change.V)


def knots(inputs: ModuleInputs, values: Values) -> Change:
    """TIES on the right factors of ``[dW_1 ... dW_T] = U S [V_1^T ... V_T^T]``.

    U S is the SVD of ``[U_1 S_1 ... U_T S_T]``, whose left Gram matrix is the same; the V_i^T are
    R x d_in with R the rank of it all.
    """
    changes = inputs.changes
    stacked = torch.cat([change.U * change.S for change in changes], dim=1)  # [d_out, sum r]
    q, r = torch.linalg.qr(stacked)
    P, S, _ = torch.linalg.svd(r, full_matrices=False)
    kept = max(stacked.shape) * EPS * S[:1] < S
    U, S = q @ P[:, kept], S[kept]
    if not len(S):
        return inputs.combined([0.0] * len(changes))

    def aligned(i: int) -> Tensor:
        change = changes[i]
        rows = (U.T @ change.U * change.S) @ change.V.T  # [R, d_in], times S
        rows = rows.masked_fill_(rows.abs() <= ROUNDING * change.norm, 0.0)
        return rows / S[:, None]

    def votes() -> Iterable[tuple[Tensor, float]]:
        for i, weight in enumerate(inputs.weights):
            yield weight * trim(aligned(i), *of_adapter(inputs, values, i)), abs(weight)

    merged = elect(votes, mean=inputs.mean)
    return Change.of(merged, U * S, 1.0).without_rounding(inputs.size)


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The polar factor of (k, n): orthonormal columns where they are independent.

    Columns that coincide share one direction, each with its part of the length.
    """
    P, S, Qh = torch.linalg.svd(columns, full_matrices=False)
    kept = _SAME * S[0] < S
    return P[:, kept] @ Qh[kept]


OPERATORS: Mapping[str, Operator] = {
    "task_arithmetic": weighted_sum,
    "ties": on_core(trim, elects=True),
    "dare": on_core(draw, elects=False),
    "dare_ties": on_core(draw, elects=True),
    "della": on_core(draw_by_size, elects=True),
    "della_linear": on_core(draw_by_size, elects=False),
    "breadcrumbs": on_core(drop_tails, elects=False),
    "breadcrumbs_ties": on_core(drop_tails, elects=True),
    "magnitude_prune": on_core(trim, elects=False),
    "sce": sce,
    "slerp": slerp,
    "model_stock": model_stock,
    "knots": knots,
    "tsv_m": tsv_m,
    "iso_c": iso_c,
}
