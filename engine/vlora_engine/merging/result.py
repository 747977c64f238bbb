"""Assemble the result of a merge: factors, a clean config, the rest tensors and the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    ModuleShape,
    match_pattern,
    same_bits,
)
from vlora_engine.findings import Finding
from vlora_engine.formats.config_fields import acting
from vlora_engine.merging.core_space import Change, ModuleInputs
from vlora_engine.merging.retention import ModuleRetention, Retention, retentions

# Keys of the first adapter's config that still hold after a merge. Everything else is computed or
# left out: use_rslora, for one, would make the result too strong.
_COPIED_KEYS = ("task_type", "base_model_name_or_path", "revision", "auto_mapping")
# With one of these keys, a list of leaf names would match more modules than the adapters have.
_NARROWS = ("layers_to_transform", "layers_pattern", "exclude_modules")


@dataclass
class MergeReport:
    """What a merge did, beyond the adapter it returned.

    Args:
        method: The method's name.
        space: ``"delta"`` or ``"factors"``.
        parameters: The method's parameters as used, a drawn seed included.
        weights: The weights as given, or the method's default.
        varied: The number of modules with other weights or parameters, by ``layers``.
        kept: What is kept of each adapter, in order.
        ranks: The result's rank by module.
        cut_error: Relative error of dW that cutting to ``rank`` cost, over all modules.
        rest_kept: Keys of the rest tensors of the result.
        rest_left_out: Keys of rest tensors that differ between adapters and are not in it.
        findings: What the user should know.
    """

    method: str
    space: str
    parameters: dict[str, Any]
    weights: tuple[float, ...]
    varied: int = 0
    kept: list[Retention] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    cut_error: float = 0.0
    rest_kept: list[str] = field(default_factory=list)
    rest_left_out: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {**asdict(self), "findings": [finding.as_json() for finding in self.findings]}


@dataclass(frozen=True)
class MergedModule:
    """The result for one module.

    Args:
        a: (r, d_in).
        b: (d_out, r).
        scale: Of the module.
        norm2: ``||dW||^2`` before its rank was cut.
        cut2: ``||.||^2`` of what was cut.
        kept: What is kept of each adapter, by its index.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0
    norm2: float = 0.0
    cut2: float = 0.0
    kept: Mapping[int, ModuleRetention] = field(default_factory=dict)

    @classmethod
    def stacked(cls, inputs: ModuleInputs, factor: float, dtype: torch.dtype) -> MergedModule:
        """The adapters' A below each other and their B side by side: the exact sum of dW.

        The largest ``|weight * scale|`` is the module's scale, and each A is multiplied by its
        share of it, with its sign: of one adapter, or of equal ones, all numbers stay as they are.
        PEFT's cat puts the whole of it on A (add_weighted_adapter).
        """
        factors = [w * s * factor for w, s in zip(inputs.weights, inputs.scales, strict=True)]
        scale = max(map(abs, factors)) or 1.0
        pairs = list(zip(inputs.factors, factors, strict=True))
        a = torch.cat([(a.double() * (f / scale)).to(dtype) for (a, _), f in pairs])
        b = torch.cat([b.to(dtype) for (_, b), _ in pairs], dim=1)
        return cls(a.contiguous(), b.contiguous(), scale)

    @classmethod
    def of(cls, change: Change, rank: int, dtype: torch.dtype) -> MergedModule:
        """Factor the first directions of ``U S V^T`` as ``B = U sqrt(S)``, ``A = sqrt(S) V^T``.

        B and A then have equal norms. A zero change gets rank 1 and zeros, since no program loads a
        module of rank 0.
        """
        U, S, V = change.U, change.S, change.V
        if rank == 0:
            a = torch.zeros(1, V.shape[0], dtype=dtype)
            return cls(a, torch.zeros(U.shape[0], 1, dtype=dtype))
        root = S[:rank].sqrt()
        a = (V[:, :rank] * root).T.to(dtype).contiguous()
        b = (U[:, :rank] * root).to(dtype).contiguous()
        energy = S.square()
        return cls(a, b, norm2=float(energy.sum()), cut2=float(energy[rank:].sum()))


def kept_rank(change: Change, rank: int | None, energy: float | None) -> int:
    """The rank to cut to: ``rank``, or as many directions as hold this share of the energy."""
    count = len(change.S)
    if energy is not None and energy < 1 and count:
        held = change.S.square().cumsum(0)
        count = int((held < energy * held[-1]).sum()) + 1
    return count if rank is None else min(rank, count)


def assemble(
    sources: Sequence[AdapterSource], modules: Mapping[str, MergedModule], report: MergeReport
) -> LoRAWeights:
    """Assemble the merged modules as one adapter; fills the report's ranks, cut error and rest."""
    ranks = {name: module.a.shape[0] for name, module in modules.items()}
    norm2 = math.fsum(module.norm2 for module in modules.values())
    cut2 = math.fsum(module.cut2 for module in modules.values())
    rest = _shared_rest(sources, report)
    report.ranks = ranks
    report.kept = retentions(
        len(sources),
        {name: module.kept for name, module in modules.items()},
        {name: max(0.0, module.norm2 - module.cut2) for name, module in modules.items()},
    )
    report.cut_error = math.sqrt(cut2 / norm2) if norm2 else 0.0
    config = merged_config(sources, ranks, {n: m.scale for n, m in modules.items()})
    config |= _rest_config(sources, report)
    return LoRAWeights(
        layer_names=list(modules),
        lora_a={name: module.a for name, module in modules.items()},
        lora_b={name: module.b for name, module in modules.items()},
        rank=config["r"],
        metadata=config,
        scales={name: module.scale for name, module in modules.items()},
        rest=rest,
        shapes=_shapes(sources, ranks),
    )


def merged_config(
    sources: Sequence[AdapterSource], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """The PEFT config that gives exactly these ranks and scales.

    ``r`` is the largest rank and ``lora_alpha`` what that module's scale needs (r for a scale of
    1); modules that differ are named in ``rank_pattern`` and ``alpha_pattern``.
    """
    first = sources[0].config
    config: dict[str, Any] = {"peft_type": "LORA"}
    config |= {key: first[key] for key in _COPIED_KEYS if first.get(key) is not None}
    config |= acting(first)  # the same in all of them
    alphas = {name: _whole(scales[name] * rank) for name, rank in ranks.items()}
    widest = max(ranks, key=lambda name: (ranks[name], name))
    config |= {
        "r": ranks[widest],
        "lora_alpha": alphas[widest],
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(bool(s.config.get("fan_in_fan_out")) for s in sources),
        "inference_mode": True,
        "target_modules": _targets(sources, list(ranks)),
    }
    for key, default, values in (
        ("rank_pattern", ranks[widest], ranks),
        ("alpha_pattern", alphas[widest], alphas),
    ):
        config[key] = _pattern(values, default)
    return config


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """A rank or alpha pattern, as PEFT reads it: the first key that matches a name's end counts."""
    special = {name: value for name, value in values.items() if value != default}
    for chosen in (special, values):  # a name may be the end of another: then all are named
        by_length = sorted(chosen, key=lambda name: (-len(name), name))
        pattern = {_escaped(name): chosen[name] for name in by_length}
        if all(match_pattern(pattern, name, default) == values[name] for name in values):
            break
    return pattern


def _escaped(name: str) -> str:
    # A plain dot matches itself, and configs with unescaped names are what people expect to read.
    return name if re.fullmatch(r"[\w.\-]*", name) else re.escape(name)


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _targets(sources: Sequence[AdapterSource], modules: list[str]) -> list[str]:
    """The union of the adapters' target lists, or full module names where that matches too much."""
    given = [source.config.get("target_modules") for source in sources]
    narrowed = any(source.config.get(key) for source in sources for key in _NARROWS)
    if narrowed or not all(isinstance(names, (list, tuple, set)) for names in given):
        if not narrowed and not any(given):
            return sorted({name.rpartition(".")[2] for name in modules})
        return sorted(modules)
    union = sorted({str(name) for names in given for name in names or ()})
    reached = all(any(m == t or m.endswith(f".{t}") for t in union) for m in modules)
    return union if reached else sorted(modules)


def _shapes(sources: Sequence[AdapterSource], ranks: Mapping[str, int]) -> dict[str, ModuleShape]:
    """The shapes on disk of modules that are not plain linear maps, at their new rank."""
    shapes = {}
    for name, rank in ranks.items():
        shape = next(s.modules[name] for s in sources if name in s.modules)
        if shape.kind != "linear":
            shapes[name] = shape.at_rank(rank)
    return shapes


# ---- the rest -----------------------------------------------------------------------------------


def _shared_rest(sources: Sequence[AdapterSource], report: MergeReport) -> dict[str, Tensor]:
    """The rest tensors that are the same, bit for bit, in every adapter that has them."""
    rest: dict[str, Tensor] = {}
    differing: set[str] = set()
    for source in sources:
        for key, tensor in source.read_rest().items():
            if key in rest and not same_bits(rest[key], tensor):
                differing.add(key)
            rest.setdefault(key, tensor)
    report.rest_left_out = sorted(differing)
    report.rest_kept = sorted(rest.keys() - differing)
    if differing:
        what = (
            f"{len(differing)} tensor(s) beside the LoRA modules differ between the adapters "
            "and are not in the result."
        )
        remedy = "take them from the adapter whose head is wanted"
        place = ", ".join(report.rest_left_out)
        report.findings.append(Finding("rest-left-out", "warning", what, remedy, place=place))
    return {key: rest[key] for key in report.rest_kept}


def _rest_config(sources: Sequence[AdapterSource], report: MergeReport) -> dict[str, Any]:
    """The ``modules_to_save`` and ``bias`` that agree with the rest tensors of the result."""
    saved = {name for s in sources for name in s.config.get("modules_to_save") or ()}
    saved_modules = sorted(
        name for name in saved if any(f".{name}." in f".{key}." for key in report.rest_kept)
    )
    biases = {s.config.get("bias") for s in sources} - {None, "none"}
    has_bias = any(key.endswith(".bias") for key in report.rest_kept)
    complete = has_bias and not any(key.endswith(".bias") for key in report.rest_left_out)
    config: dict[str, Any] = {"modules_to_save": saved_modules} if saved_modules else {}
    return config | ({"bias": biases.pop()} if complete and len(biases) == 1 else {})
