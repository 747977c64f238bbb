"""Run a merge: check the request, merge module by module, assemble one adapter."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.adapters.collection import modules_of, source_label
from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    as_source,
    nominal_rank,
    provenance_of,
)
from vlora_engine.adapters.module_names import common_names
from vlora_engine.adapters.needs import by_layer, merging
from vlora_engine.adapters.provenance import Provenance
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.errors import AdapterError, UnsupportedAdapterError
from vlora_engine.findings import Finding
from vlora_engine.formats.config import shown
from vlora_engine.formats.config_fields import differing
from vlora_engine.merging.core_space import Change, ModuleInputs
from vlora_engine.merging.factorwise import as_first_library, as_peft
from vlora_engine.merging.operators import OPERATORS
from vlora_engine.merging.result import MergedModule, MergeReport, assemble, kept_rank
from vlora_engine.merging.retention import ModuleRetention, module_retention
from vlora_engine.merging.settings import MergeRequest, check_request
from vlora_engine.merging.weights import (
    Layers,
    ModuleSettings,
    check_weights,
    settings_of,
    varied_modules,
)
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import map_ordered

Space = Literal["delta", "factors"]
Adapters = Sequence[LoRAWeights | AdapterSource]

logger = logging.getLogger(__name__)


def merge(
    adapters: Adapters,
    method: str,
    *,
    weights: Sequence[float] | None = None,
    layers: Layers | None = None,
    normalize: bool | None = None,
    scale: float = 1.0,
    space: Space = "delta",
    dialect: Literal["peft"] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    **parameters: Any,
) -> LoRAWeights:
    """Merge adapters into one by a method of `MERGE_METHODS`, by name or alias.

    Args:
        adapters: At least one, in memory or as sources, which are read module by module.
        method: A name out of `MERGE_METHODS` (of `PEFT_METHODS` with that dialect).
        weights: One for each adapter; by default what the method says.
        layers: Other weights for the modules that a pattern matches (later patterns win), or a
            table of ``weights`` and parameters: ``{"*.attn.*": [0.5, 0.5]}``.
        normalize: Divide the weights by their sum, or average what agrees; by default as the
            method says.
        scale: Multiplies the result.
        space: ``"delta"`` merges weight changes; ``"factors"`` A and B apart, as vlora-dev does.
        dialect: ``"peft"`` for the arithmetic of PEFT's ``add_weighted_adapter``.
        rank: Cut every module of the result to this rank; only where weight changes are merged.
        energy: Cut to as many directions as hold this share of a module's energy, instead.
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
        adapters,
        method,
        weights=weights,
        layers=layers,
        normalize=normalize,
        scale=scale,
        space=space,
        dialect=dialect,
        rank=rank,
        energy=energy,
        **parameters,
    )
    return merged


def merge_with_report(
    adapters: Adapters,
    method: str,
    *,
    weights: Sequence[float] | None = None,
    layers: Layers | None = None,
    normalize: bool | None = None,
    scale: float = 1.0,
    space: Space = "delta",
    dialect: Literal["peft"] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
    **parameters: Any,
) -> tuple[LoRAWeights, MergeReport]:
    """Merge adapters as `merge` does, and report ranks, what is kept of each, what is left out."""
    sources = common_names([as_source(adapter) for adapter in adapters])
    request, values = check_request(
        len(sources),
        method,
        weights=weights,
        layers=layers,
        normalize=normalize,
        scale=scale,
        space=space,
        dialect=dialect,
        rank=rank,
        energy=energy,
        parameters=parameters,
    )
    spec = request.spec
    if "seed" in values and values["seed"] is None:
        values["seed"] = torch.Generator().seed()  # a fresh one, reported so that it can be reused
    _check_adapters(sources)
    holders = modules_of(sources)
    settings = settings_of(
        spec,
        list(holders),
        len(sources),
        weights=weights,
        layers=layers,
        normalise=request.divides_weights,
        values=values,
    )
    base = check_weights(weights, len(sources), spec)
    report = MergeReport(spec.label, space if dialect is None else dialect, values, base)
    report.findings += _differences(sources, holders)
    if spec.caution:
        report.findings.append(Finding("caution", "warning", spec.caution, place=spec.label))
    if spec.remark:
        report.findings.append(Finding("method", "note", spec.remark, place=spec.label))
    if len(sources) == 1 and sources[0].rest:
        report.findings.append(_rest_unscaled(sources))
    if layers:
        report.varied = varied_modules(list(holders), layers)
    if request.is_factorwise and dialect is None:
        modules = as_first_library(spec.name, sources, holders, settings, scale, report.findings)
    elif request.is_factorwise:
        modules = as_peft(spec.name, sources, holders, settings, scale)
    else:
        request = _with_rank_of(request, sources)

        def merge_module(module: str) -> MergedModule:
            return _merge_module(request, sources, module, holders[module], settings[module])

        run = RunContext(progress, cancelled)
        need = by_layer(sources, merging)
        results = map_ordered(merge_module, list(holders), run, stage="merge", need=need)
        modules = dict(zip(holders, results, strict=True))
    merged = assemble(sources, modules, report)
    merged.provenance = _provenance(sources, request, report, layers)
    require_unchanged(sources)
    for finding in report.findings:
        if finding.severity == "warning":
            logger.warning("%s: %s", finding.where, finding.what)
    return merged, report


def _merge_module(
    request: MergeRequest,
    sources: Sequence[AdapterSource],
    module: str,
    holders: Sequence[int],
    settings: ModuleSettings,
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
    inputs = ModuleInputs(
        module=module,
        factors=factors,
        scales=scales,
        weights=[settings.weights[i] for i in holders],
        positions=holders,
        mean=request.averages,
        weights_of_all=settings.weights,
    )

    def retained(change: Change) -> dict[int, ModuleRetention]:
        each = zip(holders, factors, scales, strict=True)
        return {i: module_retention(change, pair, scale) for i, pair, scale in each}

    if request.is_side_by_side or (request.keeps_rank and request.is_sum and len(sources) == 1):
        merged = MergedModule.stacked(inputs, request.scale, _result_dtype(factors))
        change = Change.of(merged.a, merged.b, merged.scale)
        return replace(merged, norm2=change.norm**2, kept=retained(change))
    operator = OPERATORS[request.operator if any(settings.weights) else "task_arithmetic"]
    change = operator(inputs, settings.values).times(request.scale)
    rank = kept_rank(change, request.rank, request.energy)
    merged = MergedModule.of(change, rank, _result_dtype(factors))
    return replace(merged, kept=retained(change.cut(rank)))


def _with_rank_of(request: MergeRequest, sources: Sequence[AdapterSource]) -> MergeRequest:
    """Set the rank of PEFT's "svd", which by default cuts to the adapters' largest rank."""
    is_cut = request.rank is not None or request.energy is not None
    if request.dialect != "peft" or request.spec.name != "svd" or is_cut:
        return request
    return replace(request, rank=max(nominal_rank(source) for source in sources))


def _check_adapters(sources: Sequence[AdapterSource]) -> None:
    for i, source in enumerate(sources):
        if source.config.get("use_dora"):
            raise UnsupportedAdapterError(
                "A DoRA adapter cannot be merged as a sum of weight changes.",
                where=source_label(sources, i),
                remedy="merge it into its base model, or leave it out",
            )
        if not source.modules:
            raise AdapterError("The adapter has no LoRA module.", where=source_label(sources, i))
    field = differing([source.config for source in sources])
    if field is not None:
        values = [shown(source.config.get(field.name)) for source in sources]
        raise UnsupportedAdapterError(
            f"The adapters differ in {field.name[:80]}, which changes when or how they act: one "
            "adapter cannot do both.",
            where=", ".join(source_label(sources, i) for i in range(len(sources)))[:200],
            expected=f"the same {field.name[:80]} in every adapter",
            found="; ".join(values)[:200],
            remedy=f"merge only adapters whose {field.name[:80]} is the same",
        )


def _differences(
    sources: Sequence[AdapterSource], holders: Mapping[str, Sequence[int]]
) -> list[Finding]:
    """Findings about base models and modules that the adapters do not share."""
    findings = []
    named = {str(source.config.get("base_model_name_or_path") or "") for source in sources}
    bases = sorted({normalise_base_model(name): name for name in sorted(named - {""})}.values())
    if len(bases) > 1:
        what = "The adapters name different base models; their sum is meaningful only on one."
        remedy = "make sure that the names mean the same model"
        findings.append(
            Finding("base-models-differ", "warning", what, remedy, place=", ".join(bases))
        )
    for i, source in enumerate(sources):
        missing = len(holders) - len(source.modules)
        if missing:
            what = f"It lacks {missing} of {len(holders)} modules; they count as zero."
            findings.append(
                Finding("modules-missing", "note", what, place=source_label(sources, i))
            )
    return findings


def _provenance(
    sources: Sequence[AdapterSource],
    request: MergeRequest,
    report: MergeReport,
    layers: Layers | None,
) -> Provenance:
    """What the result was made of, and how."""
    known = [provenance_of(source) for source in sources]
    origins = tuple(origin for one in known for origin in one.origins)
    steps = known[0].steps if len(known) == 1 else ()
    return Provenance(origins, steps).then(
        "merge",
        method=report.method,
        weights=list(report.weights),
        **report.parameters,
        layers=dict(layers) if layers else None,
        normalize=request.normalize,
        scale=None if request.scale == 1 else request.scale,
        space=None if request.space == "delta" else request.space,
        dialect=request.dialect,
        rank=request.rank,
        energy=request.energy,
        error=report.cut_error,
    )


def _rest_unscaled(sources: Sequence[AdapterSource]) -> Finding:
    what = f"{len(sources[0].rest)} tensor(s) beside A and B stay as they are: weights are of dW."
    return Finding("rest-unweighted", "note", what, place=source_label(sources, 0))


def _result_dtype(factors: Sequence[tuple[Tensor, Tensor]]) -> torch.dtype:
    """The smallest dtype that holds all inputs; 16 bit at least."""
    dtypes = [tensor.dtype for pair in factors for tensor in pair]
    result = dtypes[0]
    for dtype in dtypes:
        result = torch.promote_types(result, dtype) if dtype != result else result
    return result if result.itemsize > 1 else torch.float16
