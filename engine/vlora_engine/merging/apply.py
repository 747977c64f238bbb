"""Running a merge: check everything first, then module by module, then one adapter."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from vlora_engine.adapters import AdapterSource, LoRAWeights, as_source
from vlora_engine.catalog import normalise_base_model
from vlora_engine.errors import (
    AdapterError,
    CollectionError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.health import Finding
from vlora_engine.inner import modules_of, source_label
from vlora_engine.merging.registry import MERGE_METHODS, MergeMethod
from vlora_engine.merging.result import MergedModule, MergeReport, assemble
from vlora_engine.merging.space import Change, CoreSpace, ModuleCores, summed
from vlora_engine.progress import CancelCheck, ProgressCallback, map_ordered

Space = Literal["delta", "factors"]

logger = logging.getLogger(__name__)


def merge(
    adapters: Sequence[LoRAWeights | AdapterSource],
    method: str,
    *,
    weights: Sequence[float] | None = None,
    space: Space = "delta",
    rank: int | None = None,
    **parameters: Any,
) -> LoRAWeights:
    """Merge adapters into one by a method of `MERGE_METHODS`, by name or alias.

    Args:
        adapters: At least one, in memory or as sources, which are read module by module.
        method: ``task_arithmetic`` (``average``, ``linear``), ``ties``, ``dare``.
        weights: One for each adapter.
        space: ``"delta"`` merges weight changes; ``"factors"`` A and B apart (the old way).
        rank: Cut every module of the result to this rank (``"delta"`` only).
        **parameters: Those of the method.

    Returns:
        The merged adapter. `merge_with_report` also says what was left out.

    Raises:
        ParameterError: An unknown method or parameter, or a value out of range.
        CollectionError: No adapters, or adapters that do not fit together.
        AdapterError: NaN or infinity in an adapter.
        UnsupportedAdapterError: A DoRA adapter: its change is not ``scale * B @ A``.
    """
    merged, _ = merge_with_report(
        adapters, method, weights=weights, space=space, rank=rank, **parameters
    )
    return merged


def merge_with_report(
    adapters: Sequence[LoRAWeights | AdapterSource],
    method: str,
    *,
    weights: Sequence[float] | None = None,
    space: Space = "delta",
    rank: int | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
    **parameters: Any,
) -> tuple[LoRAWeights, MergeReport]:
    """`merge`, and a report: the parameters used, ranks, what a cut lost, what was left out."""
    spec = MERGE_METHODS.find(method)
    values = spec.check(parameters)
    if "seed" in values and values["seed"] is None:
        values["seed"] = torch.Generator().seed()  # a fresh one, reported so that it can be reused
    sources = [as_source(adapter) for adapter in adapters]
    _check_request(sources, space, rank)
    checked_weights = _checked_weights(weights, len(sources))
    holders = modules_of(sources)

    report = MergeReport(spec.name, space, values, checked_weights)
    report.findings += _differences(sources, holders)
    if space == "factors":
        modules = _merge_factors(spec, sources, holders, checked_weights, values, report.findings)
    else:

        def one(module: str) -> MergedModule:
            return _merge_module(
                spec, sources, module, holders[module], checked_weights, values, rank
            )

        results = map_ordered(
            one, list(holders), stage="merge", progress=progress, cancelled=cancelled
        )
        modules = dict(zip(holders, results, strict=True))
    merged = assemble(sources, modules, report)
    for finding in report.findings:
        if finding.severity == "warning":
            logger.warning("%s: %s", finding.where, finding.what)
    return merged, report


def _merge_module(
    spec: MergeMethod,
    sources: Sequence[AdapterSource],
    module: str,
    holders: Sequence[int],
    weights: Sequence[float],
    values: Mapping[str, Any],
    rank: int | None,
) -> MergedModule:
    factors = [sources[i].read(module) for i in holders]
    scales = [sources[i].scales[module] for i in holders]
    for i, (a, b), scale in zip(holders, factors, scales, strict=True):
        # a sum is finite only if every entry is; 8-bit floats have no isfinite of their own
        if not math.isfinite(float(a.double().sum() + b.double().sum()) * scale):
            raise AdapterError(
                f"Module {module!r} is not finite.",
                where=source_label(sources, i),
                expected="finite numbers",
                found="NaN or infinity in A, B or the scale",
                remedy="merge without this adapter",
            )
    own = [weights[i] for i in holders]
    if spec.core is None:
        folded = zip(factors, scales, own, strict=True)
        change = summed([(a, b.double() * (s * w)) for (a, b), s, w in folded])
    else:
        changes = [Change.of(a, b, s) for (a, b), s in zip(factors, scales, strict=True)]
        space = CoreSpace.of(changes)
        size = sum(abs(w) * c.norm for w, c in zip(own, changes, strict=True))
        if spec.normalises_weights:
            size /= sum(map(abs, own)) or 1.0
        cores = ModuleCores(module, space, changes, own, holders)
        change = space.change(spec.core(cores, values), size)
    return MergedModule.of(change, rank, _result_dtype(factors))


def _merge_factors(
    spec: MergeMethod,
    sources: Sequence[AdapterSource],
    holders: Mapping[str, Sequence[int]],
    weights: Sequence[float],
    values: Mapping[str, Any],
    findings: list[Finding],
) -> dict[str, MergedModule]:
    """A and B apart, over the modules that all adapters have, in the first library's order."""
    common = [module for module, owners in holders.items() if len(owners) == len(sources)]
    if not common:
        raise CollectionError("The adapters have no module in common.")
    if len(common) < len(holders):
        findings.append(
            Finding(
                "warning",
                "modules-left-out",
                f"{len(holders) - len(common)} module(s)",
                "Merging A and B apart leaves out modules that an adapter lacks.",
                "merge weight changes: space='delta'",
            )
        )
    generator = torch.Generator().manual_seed(values.get("seed", 0))
    merged = {}
    ignored = 0
    for module in common:
        ranks = sorted({source.modules[module].rank for source in sources})
        if len(ranks) > 1:
            raise CollectionError(
                f"A and B of module {module!r} cannot be merged apart.",
                expected="one rank in all adapters",
                found=f"ranks {ranks}",
                remedy="merge weight changes: space='delta'",
            )
        sides = zip(*(source.read(module) for source in sources), strict=True)
        a, b = (spec.factors(side, weights, values, generator) for side in sides)
        scales = {source.scales[module] for source in sources}
        ignored += len(scales) > 1
        merged[module] = MergedModule(a, b, scales.pop() if len(scales) == 1 else 1.0)
    if ignored:
        findings.append(
            Finding(
                "warning",
                "scales-ignored",
                f"{ignored} module(s)",
                "Merging A and B apart ignores scales; where the adapters' differ, 1 is set.",
                "merge weight changes: space='delta'",
            )
        )
    return merged


def _check_request(sources: Sequence[AdapterSource], space: str, rank: int | None) -> None:
    if not sources:
        raise CollectionError("There are no adapters to merge.", expected="at least one")
    if space not in ("delta", "factors"):
        raise ParameterError(
            "Adapters are merged in one of two spaces.",
            expected="'delta' or 'factors'",
            found=repr(space),
        )
    if rank is not None:
        if not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 1:
            raise ParameterError("rank is out of range.", expected=">= 1", found=repr(rank))
        if space == "factors":
            raise ParameterError(
                "rank cuts weight changes; merging A and B apart keeps the adapters' rank.",
                remedy="leave rank out, or merge with space='delta'",
            )
    for i, source in enumerate(sources):
        if source.config.get("use_dora"):
            raise UnsupportedAdapterError(
                "A DoRA adapter cannot be merged as a sum of weight changes.",
                where=source_label(sources, i),
                remedy="merge it into its base model, or leave it out",
            )
        if not source.modules:
            raise AdapterError("The adapter has no LoRA module.", where=source_label(sources, i))


def _checked_weights(weights: Sequence[float] | None, n: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / n,) * n
    given = list(weights)
    if len(given) != n:
        raise ParameterError(
            "Every adapter needs one weight.",
            expected=f"{n} weights",
            found=f"{len(given)}",
        )
    for weight in given:
        good = isinstance(weight, Real) and not isinstance(weight, bool)
        if not good or not math.isfinite(weight):
            raise ParameterError(
                "A weight is no finite number.", expected="finite numbers", found=repr(weight)
            )
    if not any(given):
        raise ParameterError("All weights are zero: nothing would be merged.")
    return tuple(float(weight) for weight in given)


def _differences(
    sources: Sequence[AdapterSource], holders: Mapping[str, Sequence[int]]
) -> list[Finding]:
    """What the adapters do not share, and what that means for the merge."""
    findings = []
    named = {str(source.config.get("base_model_name_or_path") or "") for source in sources}
    bases = sorted({normalise_base_model(name): name for name in sorted(named - {""})}.values())
    if len(bases) > 1:
        findings.append(
            Finding(
                "warning",
                "base-models-differ",
                ", ".join(bases),
                "The adapters name different base models; their sum is meaningful only on one.",
                "make sure that the names mean the same model",
            )
        )
    for i, source in enumerate(sources):
        missing = len(holders) - len(source.modules)
        if missing:
            findings.append(
                Finding(
                    "note",
                    "modules-missing",
                    source_label(sources, i),
                    f"It lacks {missing} of {len(holders)} modules; they count as zero.",
                )
            )
    return findings


def _result_dtype(factors: Sequence[tuple[Tensor, Tensor]]) -> torch.dtype:
    """The smallest dtype that holds all inputs; 16 bit at least."""
    dtypes = [tensor.dtype for pair in factors for tensor in pair]
    result = dtypes[0]
    for dtype in dtypes:
        result = torch.promote_types(result, dtype) if dtype != result else result
    return result if result.itemsize > 1 else torch.float16
