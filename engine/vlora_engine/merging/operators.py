"""The arithmetic of every merge method for one module, by the names of the specs.

Three kinds: sums of weight changes (exact, from their factors alone), singular directions and
values (independent of coordinates), and single entries (`vlora_engine.merging.sparsify`). The
formulas and their sources are in docs/mathematics.md#merging.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vlora_engine.linalg.grams import gram_cosines
from vlora_engine.linalg.low_rank import module_grams
from vlora_engine.merging import sparsify
from vlora_engine.merging.core_space import EPS, ROUNDING, Change, ModuleInputs
from vlora_engine.merging.sparsify import Values, sce

Operator = Callable[[ModuleInputs, Values], Change]
# 1 - |cosine| below which two changes count as parallel: their great circle is not determined.
_PARALLEL = 1e-9
# Singular values, over the largest, below which columns of unit vectors count as dependent.
_SAME = 1e-7


def weighted_sum(inputs: ModuleInputs, values: Values) -> Change:
    """Task arithmetic, ``sum_i w_i dW_i``, exact (Ilharco et al. 2023, arXiv:2212.04089)."""
    return inputs.combined(inputs.weights)


# ---- in the span of the changes -----------------------------------------------------------------


def slerp(inputs: ModuleInputs, values: Values) -> Change:
    """Spherical interpolation of two changes, along their great circle (Shoemake 1985).

    ``sin((1-t) a) / sin(a) dW_1 + sin(t a) / sin(a) dW_2`` with a the angle between them. Without
    ``t`` the second's weight is taken; the two add up to 1. Where there is no great circle
    (parallel, opposite, or one of them zero or missing) it is the straight line.
    """
    t = inputs.weights_of_all[1] if values["t"] is None else values["t"]
    shares = 1.0 - t, t
    gram = _gram(inputs)
    if len(gram) == 2 and bool((gram.diagonal() > 0).all()):
        cosine = float(gram_cosines(gram)[0, 1])
        if abs(cosine) < 1.0 - _PARALLEL:
            angle = math.acos(cosine)
            shares = math.sin((1.0 - t) * angle), math.sin(t * angle)
            shares = shares[0] / math.sin(angle), shares[1] / math.sin(angle)
    return inputs.combined([shares[position] for position in inputs.positions])


def model_stock(inputs: ModuleInputs, values: Values) -> Change:
    """Model Stock: the mean, shortened by the adapters' mean cosine (Jang et al. 2024).

    ``t mean_i dW_i`` with ``t = T c / (1 + (T - 1) c)``, c the mean cosine of the pairs
    (arXiv:2403.19522). The mean is weighted by weights that add up to 1; adapters of weight 0 are
    ignored, and those that lack the module count as zero. A negative mean cosine counts as 0:
    nothing is common, and the result is the base model.
    """
    active = [i for i, weight in enumerate(inputs.weights_of_all) if weight != 0]
    index_of = {position: i for i, position in enumerate(inputs.positions)}
    cosines = gram_cosines(_gram(inputs))
    pairs = [
        float(cosines[index_of[i], index_of[j]]) if i in index_of and j in index_of else 0.0
        for n, i in enumerate(active)
        for j in active[:n]
    ]
    cosine = max(0.0, sum(pairs) / len(pairs)) if pairs else 1.0
    t = len(active) * cosine / (1.0 + (len(active) - 1) * cosine)
    return inputs.combined([t * weight for weight in inputs.weights])


def _gram(inputs: ModuleInputs) -> Tensor:
    """The inner products ``<dW_i, dW_j>``, (n, n)."""
    return module_grams(inputs.factors, inputs.scales)[0]


# ---- singular directions and values -------------------------------------------------------------


def tsv_m(inputs: ModuleInputs, values: Values) -> Change:
    """TSV-M: all adapters' singular vectors, made orthogonal to each other, and summed.

    ``[U_1 .. U_T]`` and ``[V_1 .. V_T]`` are replaced by the nearest matrices with orthonormal
    columns (polar factors); the singular values stay, times the weights (Gargiulo et al. 2024,
    arXiv:2412.00081). Directions that coincide up to rounding stay shared. An adapter of weight 0
    is ignored. Computed in the core space, which is lossless and has the same polar factors.
    """
    parts = []
    for weight, change in zip(inputs.weights, inputs.changes, strict=True):
        if weight != 0 and len(change.S):
            parts.append((weight, change.cut(max(1, round(values["keep"] * len(change.S))))))
    if not parts:
        return inputs.combined([0.0] * len(inputs.weights))
    left = _nearest_orthonormal(torch.cat([inputs.space.U.T @ c.U for _, c in parts], dim=1))
    right = _nearest_orthonormal(torch.cat([inputs.space.V.T @ c.V for _, c in parts], dim=1))
    singular_values = torch.cat([weight * c.S for weight, c in parts])
    return inputs.from_core((left * singular_values) @ right.T)


def iso_c(inputs: ModuleInputs, values: Values) -> Change:
    """Iso-C: the weighted sum with every singular value replaced by their mean.

    Marczak et al. 2025, arXiv:2502.04959. The mean is over the sum's rank: a sum of LoRAs has far
    fewer singular values than its matrix has rows, and the zeros would shrink it.
    """
    change = inputs.combined(inputs.weights)
    if not len(change.S):
        return change
    return Change(change.U, torch.full_like(change.S, float(change.S.mean())), change.V)


def knots(inputs: ModuleInputs, values: Values) -> Change:
    """KnOTS: TIES on the right factors of ``[dW_1 ... dW_T] = U S [V_1^T ... V_T^T]``.

    Stoica et al. 2024, arXiv:2410.19735. U and S come from the SVD of ``[U_1 S_1 ... U_T S_T]``,
    which has the same left Gram matrix; the V_i^T are (R, d_in) with R the joint rank.
    """
    changes = inputs.changes
    stacked = torch.cat([change.U * change.S for change in changes], dim=1)  # [d_out, sum r]
    q, r = torch.linalg.qr(stacked)
    P, S, _ = torch.linalg.svd(r, full_matrices=False)
    nonzero = max(stacked.shape) * EPS * S[:1] < S
    U, S = q @ P[:, nonzero], S[nonzero]
    if not len(S):
        return inputs.combined([0.0] * len(changes))

    def aligned(i: int) -> Tensor:
        change = changes[i]
        rows = (U.T @ change.U * change.S) @ change.V.T  # [R, d_in], times S
        rows = rows.masked_fill_(rows.abs() <= ROUNDING * change.norm, 0.0)
        turned: Tensor = rows / S[:, None]
        return turned

    def votes() -> Iterable[tuple[Tensor, float]]:
        for i, weight in enumerate(inputs.weights):
            yield (
                weight * sparsify.trim(aligned(i), *sparsify.of_adapter(inputs, values, i)),
                abs(weight),
            )

    merged = sparsify.elect(votes, mean=inputs.mean)
    return Change.of(merged, U * S, 1.0).without_rounding(inputs.size)


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The polar factor of columns (k, n), the nearest matrix with orthonormal columns.

    With ``X = P S Q^T`` it is ``P Q^T`` over the nonzero singular values; columns that coincide
    share one direction, each with its part of the length.
    """
    P, S, Qh = torch.linalg.svd(columns, full_matrices=False)
    nonzero = _SAME * S[0] < S
    nearest: Tensor = P[:, nonzero] @ Qh[nonzero]
    return nearest


# ---- single entries of the cores ----------------------------------------------------------------

ties = sparsify.on_core(sparsify.trim, elects=True)
dare = sparsify.on_core(sparsify.draw, elects=False)
dare_ties = sparsify.on_core(sparsify.draw, elects=True)
della = sparsify.on_core(sparsify.draw_by_size, elects=True)
della_linear = sparsify.on_core(sparsify.draw_by_size, elects=False)
breadcrumbs = sparsify.on_core(sparsify.drop_tails, elects=False)
breadcrumbs_ties = sparsify.on_core(sparsify.drop_tails, elects=True)
magnitude_prune = sparsify.on_core(sparsify.trim, elects=False)


OPERATORS: dict[str, Operator] = {
    "task_arithmetic": weighted_sum,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "magnitude_prune": magnitude_prune,
    "sce": sce,
    "slerp": slerp,
    "model_stock": model_stock,
    "knots": knots,
    "tsv_m": tsv_m,
    "iso_c": iso_c,
    "cat": weighted_sum,
}
