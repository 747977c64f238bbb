"""Run merges of A and B apart, to reproduce the results of two other packages.

``space="factors"`` is the arithmetic of vlora-dev (`factors`), ``dialect="peft"`` that of PEFT
(`peft`). Neither merges weight changes (docs/mathematics.md#merging-a-and-b-apart).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.errors import CollectionError
from vlora_engine.findings import Finding
from vlora_engine.linalg.low_rank import Factors
from vlora_engine.merging import factors, peft
from vlora_engine.merging.core_space import Change
from vlora_engine.merging.result import MergedModule
from vlora_engine.merging.retention import module_retention
from vlora_engine.merging.weights import ModuleSettings

FIRST_LIBRARY: Mapping[str, factors.FactorFunction] = {
    "task_arithmetic": factors.weighted_sum,
    "ties": factors.ties,
    "dare": factors.dare,
}
_REMEDY = "merge weight changes: space='delta'"


def as_first_library(
    name: str,
    sources: Sequence[AdapterSource],
    holders: Mapping[str, Sequence[int]],
    settings: Mapping[str, ModuleSettings],
    scale: float,
    findings: list[Finding],
) -> dict[str, MergedModule]:
    """Merge the modules that all adapters have as vlora-dev does, drawing in its order.

    Raises:
        CollectionError: No common module, or ranks that differ.
    """
    common = [module for module, owners in holders.items() if len(owners) == len(sources)]
    if not common:
        raise CollectionError("The adapters have no module in common.")
    if len(common) < len(holders):
        what = "Merging A and B apart leaves out modules that an adapter lacks."
        place = f"{len(holders) - len(common)} module(s)"
        findings.append(Finding("modules-left-out", "warning", what, _REMEDY, place=place))
    function = FIRST_LIBRARY[name]
    generator = torch.Generator().manual_seed(_seed(settings))
    merged = {}
    ignored = 0
    for module in common:
        _require_one_rank(sources, module, range(len(sources)))
        module_settings = settings[module]
        pairs = {i: source.read(module) for i, source in enumerate(sources)}
        a, b = (
            function(side, module_settings.weights, module_settings.values, generator)
            for side in zip(*pairs.values(), strict=True)
        )
        scales = {source.scales[module] for source in sources}
        ignored += len(scales) > 1
        common_scale = scales.pop() if len(scales) == 1 else 1.0
        merged[module] = _measured(sources, module, pairs, a, b, common_scale * scale)
    if ignored:
        what = "Merging A and B apart ignores scales; where the adapters' differ, 1 is set."
        place = f"{ignored} module(s)"
        findings.append(Finding("scales-ignored", "warning", what, _REMEDY, place=place))
    return merged


def as_peft(
    name: str,
    sources: Sequence[AdapterSource],
    holders: Mapping[str, Sequence[int]],
    settings: Mapping[str, ModuleSettings],
    scale: float,
) -> dict[str, MergedModule]:
    """Merge every module as PEFT does, drawing in its order: modules sorted, A before B.

    Raises:
        CollectionError: Ranks of a module that differ.
    """
    function = peft.SIDES["linear" if len(sources) == 1 else name]  # PEFT's own shortcut
    generator = torch.Generator().manual_seed(_seed(settings))
    merged = {}
    for module, owners in holders.items():
        _require_one_rank(sources, module, owners)
        module_settings = settings[module]
        weights = peft.side_weights(
            [module_settings.weights[i] for i in owners],
            [sources[i].scales[module] for i in owners],
        )
        pairs = {i: sources[i].read(module) for i in owners}
        a, b = (
            function(side, weight.to(side[0].dtype), module_settings.values, generator)
            for side, weight in zip(zip(*pairs.values(), strict=True), weights, strict=True)
        )
        merged[module] = _measured(sources, module, pairs, a, b, scale)
    return merged


def _measured(
    sources: Sequence[AdapterSource],
    module: str,
    pairs: Mapping[int, Factors],
    a: Tensor,
    b: Tensor,
    scale: float,
) -> MergedModule:
    change = Change.of(a, b, scale)
    retained = {
        i: module_retention(change, pair, sources[i].scales[module]) for i, pair in pairs.items()
    }
    return MergedModule(a, b, scale, norm2=change.norm**2, kept=retained)


def _require_one_rank(sources: Sequence[AdapterSource], module: str, owners: Sequence[int]) -> None:
    ranks = sorted({sources[i].modules[module].rank for i in owners})
    if len(ranks) > 1:
        raise CollectionError(
            f"A and B of module {module!r} cannot be merged apart.",
            expected="one rank in all adapters",
            found=f"ranks {ranks}",
            remedy=_REMEDY,
        )


def _seed(settings: Mapping[str, ModuleSettings]) -> int:
    """The seed, which is one for all modules."""
    return next((s.values["seed"] for s in settings.values() if "seed" in s.values), 0)
