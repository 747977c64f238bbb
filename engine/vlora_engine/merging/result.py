"""What comes out of a merge: the factors, a clean config, the rest tensors, the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    ModuleShape,
    match_pattern,
)
from vlora_engine.findings import Finding
from vlora_engine.merging.core_space import Change
from vlora_engine.merging.retention import Kept, ModuleKept, all_kept

# What of the first adapter's config still holds after a merge. Everything else is computed or
# left out: a field carried over blindly (use_rslora) once made every such merge too strong.
_KEPT = ("task_type", "base_model_name_or_path", "revision", "auto_mapping")
# With one of these a list of leaf names would reach more modules than the adapters have.
_NARROWS = ("layers_to_transform", "layers_pattern", "exclude_modules")


@dataclass
class MergeReport:
    """What a merge did, beyond the adapter it returned.

    Args:
        method: The method's name.
        space: ``"delta"`` or ``"factors"``.
        parameters: The method's parameters as used, a drawn seed included.
        weights: The weights as given, or the method's default.
        varied: Modules whose weights or parameters are others, by ``layers``.
        kept: What is kept of each adapter, in order.
        ranks: The result's rank per module.
        cut_error: Relative error of dW that cutting to ``rank`` cost, over all modules.
        rest_kept: Keys of the rest tensors of the result.
        rest_left_out: Keys of rest tensors that differ between adapters and are not in it.
        findings: What a person should know.
    """

    method: str
    space: str
    parameters: dict[str, Any]
    weights: tuple[float, ...]
    varied: int = 0
    kept: list[Kept] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    cut_error: float = 0.0
    rest_kept: list[str] = field(default_factory=list)
    rest_left_out: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MergedModule:
    """The result for one module: A (r, d_in), B (d_out, r) and its scale.

    ``norm2`` and ``cut2`` are the squared norms of its dW before a cut and of what was cut;
    ``kept`` says by adapter what of it is left.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0
    norm2: float = 0.0
    cut2: float = 0.0
    kept: Mapping[int, ModuleKept] = field(default_factory=dict)

    @classmethod
    def of(cls, change: Change, kept: int, dtype: torch.dtype) -> MergedModule:
        """Factor ``kept`` directions of ``U S V^T`` as ``B = U sqrt(S)``, ``A = sqrt(S) V^T``.

        Both factors are of one size. A zero change gets rank 1 and zeros, since no consumer loads a
        module of rank 0.
        """
        U, S, V = change.U, change.S, change.V
        if kept == 0:
            a = torch.zeros(1, V.shape[0], dtype=dtype)
            return cls(a, torch.zeros(U.shape[0], 1, dtype=dtype))
        root = S[:kept].sqrt()
        a = (V[:, :kept] * root).T.to(dtype).contiguous()
        b = (U[:, :kept] * root).to(dtype).contiguous()
        energy = S.square()
        return cls(a, b, norm2=float(energy.sum()), cut2=float(energy[kept:].sum()))


def kept_rank(change: Change, rank: int | None, energy: float | None) -> int:
    """How many directions stay: ``rank``, or as many as hold this share of the energy."""
    count = len(change.S)
    if energy is not None and energy < 1 and count:
        held = change.S.square().cumsum(0)
        count = int((held < energy * held[-1]).sum()) + 1
    return count if rank is None else min(rank, count)


def assemble(
    sources: Sequence[AdapterSource], modules: Mapping[str, MergedModule], report: MergeReport
) -> LoRAWeights:
    """One adapter from the merged modules; fills the report's ranks, cut error and rest."""
    ranks = {name: module.a.shape[0] for name, module in modules.items()}
    norm2 = math.fsum(module.norm2 for module in modules.values())
    cut2 = math.fsum(module.cut2 for module in modules.values())
    rest = _shared_rest(sources, report)
    report.ranks = ranks
    report.kept = all_kept(
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
    """A PEFT config that gives exactly these ranks and scales.

    ``r`` is the largest rank and ``lora_alpha`` what that module's scale needs (r for a scale of
    1); modules that differ are named in ``rank_pattern`` and ``alpha_pattern``.
    """
    first = sources[0].config
    config: dict[str, Any] = {"peft_type": "LORA"}
    config |= {key: first[key] for key in _KEPT if first.get(key) is not None}
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
    """PEFT matches a pattern against the end of a name, and takes the first that matches."""
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
    """The adapters' target lists together, or the modules' full names where those say too much."""
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
    """How modules that are not plain linear maps lie on disk, at their new rank."""
    shapes = {}
    for name, rank in ranks.items():
        known = next(s.modules[name] for s in sources if name in s.modules)
        if known.kind != "linear":
            shapes[name] = replace(
                known,
                rank=rank,
                shape_a=(rank, *known.shape_a[1:]),
                shape_b=(known.shape_b[0], rank, *known.shape_b[2:]),
            )
    return shapes


# ---- the rest -----------------------------------------------------------------------------------


def _shared_rest(sources: Sequence[AdapterSource], report: MergeReport) -> dict[str, Tensor]:
    """The rest tensors that are the same, bit for bit, in every adapter that has them."""
    rest: dict[str, Tensor] = {}
    differing: set[str] = set()
    for source in sources:
        for key, tensor in source.read_rest().items():
            if key in rest and not _same_bits(rest[key], tensor):
                differing.add(key)
            rest.setdefault(key, tensor)
    report.rest_left_out = sorted(differing)
    report.rest_kept = sorted(rest.keys() - differing)
    if differing:
        report.findings.append(
            Finding(
                "rest-left-out",
                "warning",
                f"{len(differing)} tensor(s) beside the LoRA modules differ between the adapters "
                "and are not in the result.",
                "take them from the adapter whose head is wanted",
                place=", ".join(report.rest_left_out),
            )
        )
    return {key: rest[key] for key in report.rest_kept}


def _rest_config(sources: Sequence[AdapterSource], report: MergeReport) -> dict[str, Any]:
    """Of ``modules_to_save`` and ``bias`` what the kept rest tensors bear out."""
    saved = {name for s in sources for name in s.config.get("modules_to_save") or ()}
    kept = sorted(
        name for name in saved if any(f".{name}." in f".{key}." for key in report.rest_kept)
    )
    biases = {s.config.get("bias") for s in sources} - {None, "none"}
    has_bias = any(key.endswith(".bias") for key in report.rest_kept)
    whole = has_bias and not any(key.endswith(".bias") for key in report.rest_left_out)
    config: dict[str, Any] = {"modules_to_save": kept} if kept else {}
    return config | ({"bias": biases.pop()} if whole and len(biases) == 1 else {})


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    left, right = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(left, right)
