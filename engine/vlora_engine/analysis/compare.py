"""Compare adapters: differences, outliers, duplicates and runs, as plain dictionaries.

Every figure is on the weight change that the model sees, ``dW = scale * B @ A``, and on exact
inner products of it; A and B apart depend on the gauge ``(B G, G^-1 A)``: an adapter and its
twin ``(-B, -A)`` are the same. ``space="factors"`` gives the arithmetic of vlora-dev
(docs/mathematics.md#relations).

Adapters are `LoRAWeights` or `AdapterSource`s. A module that one of them lacks counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.collection import modules_of
from vlora_engine.adapters.model import AdapterSource, ModuleShape, as_source
from vlora_engine.adapters.module_names import common_names
from vlora_engine.analysis import similarity
from vlora_engine.analysis.checkpoints import Run, runs_in, step_of
from vlora_engine.analysis.duplicates import Duplicates, coarsest, duplicates_in
from vlora_engine.analysis.outliers import THRESHOLD, outliers_in
from vlora_engine.analysis.outliers import outliers_of as outliers_of_array
from vlora_engine.analysis.relations import Relations
from vlora_engine.analysis.similarity import Adapter, Space, relate
from vlora_engine.errors import ParameterError
from vlora_engine.linalg.low_rank import Factors, delta_error2, delta_inner, delta_norm2


def adapter_diff(
    adapter_a: Adapter, adapter_b: Adapter, *, space: Space = "delta"
) -> dict[str, dict[str, float]]:
    """Compare two adapters module by module.

    Args:
        adapter_a: The reference.
        adapter_b: The other one.
        space: What ``l2_distance`` and ``cosine_sim`` are taken of: the weight changes, or the
            concatenated entries of A and B (vlora-dev's, for modules of equal shapes).

    Returns:
        For each module of either adapter, sorted::

            l2_distance          ||dW_a - dW_b||
            cosine_sim           cosine of dW_a and dW_b (0 where one of them is zero)
            relative_difference  ||dW_a - dW_b|| / ||dW_a||, over ||dW_b|| where dW_a is zero
            norm_a, norm_b       ||dW_a||, ||dW_b||; 0 where the adapter lacks the module

    Raises:
        CollectionError: The dimensions of a module differ (with ``"factors"``: also its rank,
            or a module that one of them lacks).
        AdapterError: NaN or infinity in an adapter.
    """
    similarity.check_space(space)
    sources = common_names([as_source(adapter_a), as_source(adapter_b)])
    result = {}
    for module, holders in modules_of(sources).items():
        shape = sources[holders[0]].modules[module]
        pair = [
            similarity.scaled_factors(source, module) if i in holders else _nothing(shape)
            for i, source in enumerate(sources)
        ]
        measures = _delta_measures(*pair)
        if not math.isfinite(measures["norm_a"] + measures["norm_b"]):
            bad = 0 if not math.isfinite(measures["norm_a"]) else 1
            raise similarity.not_finite(sources[bad], bad, module)
        if space == "factors":
            measures.update(_factor_measures(sources, module))
        result[module] = measures
    return result


def diff_total(diff: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Combine the figures of `adapter_diff` (of weight changes) over all modules."""
    total = {
        key: math.sqrt(math.fsum(measures[key] ** 2 for measures in diff.values()))
        for key in ("l2_distance", "norm_a", "norm_b")
    }
    inner = math.fsum(m["cosine_sim"] * m["norm_a"] * m["norm_b"] for m in diff.values())
    return _ratios(total["l2_distance"], inner, total["norm_a"], total["norm_b"])


def _nothing(shape: ModuleShape) -> Factors:
    zeros = torch.zeros(0, dtype=torch.float64)
    return zeros.reshape(0, shape.d_in), zeros.reshape(shape.d_out, 0)


def _delta_measures(first: Factors, second: Factors) -> dict[str, float]:
    norm_a, norm_b = (math.sqrt(float(delta_norm2(*factors))) for factors in (first, second))
    distance = math.sqrt(float(delta_error2(*first, *second)))
    return _ratios(distance, float(delta_inner(*first, *second)), norm_a, norm_b)


def _ratios(distance: float, inner: float, norm_a: float, norm_b: float) -> dict[str, float]:
    product = norm_a * norm_b
    return {
        "l2_distance": distance,
        "cosine_sim": max(-1.0, min(1.0, inner / product)) if product > 0 else 0.0,
        "relative_difference": distance / (norm_a or norm_b or 1.0),
        "norm_a": norm_a,
        "norm_b": norm_b,
    }


def _factor_measures(sources: Sequence[AdapterSource], module: str) -> dict[str, float]:
    """vlora-dev's two figures of one module, on A and B concatenated."""
    similarity.same_factor_shapes(sources, module)
    x, y = (torch.cat([t.double().flatten() for t in s.read(module)]) for s in sources)
    norm_x, norm_y = float(x.norm()), float(y.norm())
    cosine = float(x @ y) / (max(norm_x, 1e-8) * max(norm_y, 1e-8))
    return {"l2_distance": float((x - y).norm()), "cosine_sim": cosine}


# ---- outliers -----------------------------------------------------------------------------------


def find_outliers(
    adapters: Sequence[Adapter], threshold: float = THRESHOLD
) -> list[dict[str, Any]]:
    """Find adapters whose change differs from all others in size or direction.

    Over all modules and in each family of modules (all ``q_proj``), ``log ||dW||`` and the mean
    cosine similarity to the others are held against the median and the median absolute deviation
    of the *other* adapters, so that an outlier cannot hide by widening the spread (vlora-dev's mean
    and standard deviation allow no score above ``(N - 1) / sqrt(N)``). Sizes count both ways,
    similarity only when it is low.

    Args:
        adapters: With fewer than three, none can be an outlier.
        threshold: In standard deviations of a normal variable, corrected for the size of the
            collection and for the number of tests: 2 means that 4.6 % of collections without any
            outlier would show one; see `vlora_engine.analysis.outliers`.

    Returns:
        One dict for each outlier, in order: ``index``; ``distance`` of dW from the mean dW;
        ``z_score``, that of its strongest reason; that reason's ``family`` (None: all modules),
        ``feature`` (``"norm"`` or ``"similarity"``), ``value`` and ``typical``; ``norm`` and
        ``mean_similarity`` of the whole; ``reasons``, all of them with the same keys.

    Raises:
        ParameterError: A threshold that is not positive.
    """
    if not threshold > 0:
        raise ParameterError("The threshold is positive.", found=str(threshold))
    if len(adapters) < 3:
        return []
    return [outlier.as_dict() for outlier in outliers_in(relate(adapters), threshold)]


def outliers_of(gram: Tensor, threshold: float = THRESHOLD) -> list[dict[str, Any]]:
    """Find outliers from inner products (N, N) over all modules; see `find_outliers`."""
    return outliers_of_array(gram.detach().cpu().double().numpy(), threshold)


# ---- duplicates and runs ------------------------------------------------------------------------


def find_duplicates(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Find adapters that are the same: bit for bit, in their effect, or up to strength.

    Returns:
        One dict for each group: ``members`` (indices); ``kind`` (``"identical"``, ``"same change"``
        up to the rounding of their dtypes, ``"multiple"``); ``difference``, the largest relative
        difference of dW in any module; ``factors``, the size of each over that of the first.
    """
    sources = common_names([as_source(adapter) for adapter in adapters])
    if len(sources) < 2:
        return []
    return [group.as_dict() for group in duplicates_among(sources, relate(sources))]


def duplicates_among(sources: Sequence[AdapterSource], relations: Relations) -> list[Duplicates]:
    """Find duplicates from known relations; reads again only adapters that seem the same."""
    dtypes = [coarsest(shape.dtype for shape in source.modules.values()) for source in sources]
    groups = duplicates_in(relations, dtypes)
    without_effect = [i for i in range(len(sources)) if relations.norms[i] == 0]
    candidates = {i for group in groups if group.kind != "multiple" for i in group.members} | {
        *without_effect
    }
    digests = [source.digest() if i in candidates else str(i) for i, source in enumerate(sources)]
    return duplicates_in(relations, dtypes, digests) if candidates else groups


def find_runs(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Find adapters of one training run, in its order, and those with a common start.

    Returns:
        One dict for each group, see `vlora_engine.analysis.checkpoints.Run`: ``members`` (indices),
        ``kind`` (``"run"`` or ``"start"``), ``ordered_by``, ``steps``, ``cosine`` of A,
        ``monotone`` and ``how`` that is known.
    """
    sources = common_names([as_source(adapter) for adapter in adapters])
    return [run.as_dict() for run in runs_among(sources, relate(sources))]


def runs_among(sources: Sequence[AdapterSource], relations: Relations) -> list[Run]:
    """Find runs and common starts from known relations."""
    dtypes = [coarsest(shape.dtype for shape in source.modules.values()) for source in sources]
    return runs_in(relations, [step_of(source.path) for source in sources], dtypes)
