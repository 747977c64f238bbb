"""What a build is asked for, over which adapters, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vlora_engine.adapters.address import relative_source
from vlora_engine.adapters.check import CheckReport, check_adapters
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.errors import ParameterError
from vlora_engine.findings import Finding
from vlora_engine.manifest.coding import METHODS as CODED_METHODS
from vlora_engine.manifest.coding import default_method
from vlora_engine.manifest.manifest import METHODS, LayerSpec, TaskRecord
from vlora_engine.manifest.records import figure, shared_layers, task_record
from vlora_engine.quantization.dtypes import is_lossy, storage_dtype
from vlora_engine.quantization.packing import Quantization, named_quantization
from vlora_engine.spectra.choose import Choice, check_targets
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.basis import LayerPlan
from vlora_engine.subspace.loadings import EncodedTask, Storage, TaskLayer
from vlora_engine.utils.progress import CancelCheck, ProgressCallback


def canonical_order(check: CheckReport, names: Sequence[str]) -> list[str]:
    """Task names in the order of every sum: by name, then content."""
    return sorted(names, key=lambda name: (name, check.adapters[name].digest))


DEFAULT_MAX_ERROR = 0.05


@dataclass(frozen=True)
class Targets:
    """What a subspace is to be: a method and one way of choosing k (by default, an error).

    Args:
        quantize: ``none``, ``int8``, ``int4`` or ``nf4``: pack bases and loadings.
        noise: The share of the captured energy that packing costs, where it is known better than
            by `Quantization.noise`.
        method: By default `auto`, and `delta` where something is asked for that only a basis has:
            see `default_method`.
    """

    method: str = ""
    k: int | None = None
    k_a: int | None = None
    k_b: int | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    variance: float | None = None
    adaptive: bool = False
    max_error: float | None = None
    mean_error: float | None = None
    budget: int | None = None
    dtype: str = "auto"
    refine: int = 0
    quantize: str = "none"
    noise: float | None = None

    def __post_init__(self) -> None:
        if not self.method:
            object.__setattr__(self, "method", default_method(self))

    def checked(self) -> Targets:
        """The same with the default filled in.

        Raises:
            ParameterError: Unknown method, several targets, or one outside its range.
        """
        known = (*METHODS, *CODED_METHODS)
        if self.method not in known:
            raise ParameterError(f"Unknown method {self.method!r}.", expected=", ".join(known))
        if self.is_coded:
            self._check_coded()
        fixed = self.k if self.k is not None else (self.k_a or self.k_b)
        goals = {
            "k": self.k if self.k is not None else fixed,
            "variance": self.variance,
            "max_error": self.max_error,
            "mean_error": self.mean_error,
            "budget": self.budget,
        }
        if all(goal is None for goal in goals.values()):
            return replace(self, max_error=DEFAULT_MAX_ERROR).checked()
        check_targets(goals)
        if (self.k_a is None) != (self.k_b is None) or (self.k is not None and self.k_a):
            raise ParameterError("Give k, or k_a and k_b together.")
        if min(v for v in (self.k, self.k_a, self.k_b, 1) if v is not None) < 1:
            raise ParameterError("k is at least 1.", found=str(fixed))
        if self.refine and self.method != "delta":
            raise ParameterError("Only delta is refined.", found=self.method)
        storage_dtype(self.dtype, ())
        named_quantization(self.quantize)
        return self

    @property
    def is_coded(self) -> bool:
        """Whether every direction gets bits of its own, and no k is chosen."""
        return self.method in CODED_METHODS

    def _check_coded(self) -> None:
        given = {
            "k": self.k or self.k_a or self.k_b or self.layers or None,
            "dtype": self.dtype if self.dtype != "auto" else None,
            "refine": self.refine or None,
            "adaptive": self.adaptive or None,
            "quantize": self.quantize if self.quantize != "none" else None,
        }
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise ParameterError(
                f"Method {self.method!r} chooses directions and their bits itself.",
                expected="max_error, mean_error, variance or budget",
                found=", ".join(wrong),
                remedy="leave it out, or choose method delta, columns or flat",
            )

    @property
    def quantization(self) -> Quantization | None:
        """How it is packed; None where it is not."""
        return named_quantization(self.quantize)

    def storage(self, collection: Collection) -> Storage:
        """What the numbers of the subspace are stored as."""
        return Storage(self.method, collection.dtype, self.quantization)

    @property
    def lossy(self) -> bool:
        """Whether fp16 storage is exact enough for the target."""
        return self.quantization is not None or is_lossy(
            variance=self.variance,
            max_error=self.max_error,
            mean_error=self.mean_error,
            budget=self.budget,
        )

    @property
    def fixed_pair(self) -> tuple[int, int] | None:
        """(k_a, k_b) where k is given outright."""
        if self.k is not None:
            return self.k, self.k
        return (self.k_a, self.k_b) if self.k_a is not None and self.k_b is not None else None


@dataclass
class Collection:
    """Adapters that were opened, checked and put in their canonical order."""

    sources: dict[str, AdapterSource]
    check: CheckReport
    layers: list[LayerSpec]
    dtype: str

    @property
    def weights(self) -> dict[str, float]:
        return {name: self.check.adapters[name].weight for name in self.sources}


@dataclass
class Plan:
    """What to build on every layer, and where its k came from."""

    layers: dict[str, LayerPlan]
    spectra: Spectra | None = None
    choice: Choice | None = None
    findings: list[Finding] = field(default_factory=list)


@dataclass
class BuildReport:
    """What a build made, measured on what is stored."""

    path: Path
    method: str
    dtype: str
    tasks: list[str]
    k: dict[str, tuple[int, int]]
    mean_error: float
    max_error: float
    worst_task: str
    variance: float
    task_errors: dict[str, float]
    layer_errors: dict[str, float]
    nbytes: int
    input_bytes: int
    ratio: float
    codec_ratio: float
    skipped: list[dict[str, Any]]
    reused_layers: int
    findings: list[Finding]
    quantization: dict[str, Any] | None = None
    choice: Choice | None = None
    spectra: Spectra | None = None
    coding: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        own = {k: v for k, v in vars(self).items() if k not in ("choice", "spectra")}
        findings = [finding.as_dict() for finding in self.findings]
        return {**own, "path": str(self.path), "findings": findings}


def prepare(
    sources: Mapping[str, AdapterSource],
    *,
    dtype: str = "auto",
    lossy: bool = False,
    skip_bad: bool = False,
    check: CheckReport | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Collection:
    """Check every adapter and order the good ones. ``dtype``, ``lossy``: see `storage_dtype`.

    Raises:
        CollectionError: There are bad ones and not ``skip_bad``, or nothing is left.
    """
    check = check or check_adapters(sources, progress=progress, cancelled=cancelled)
    names = canonical_order(check, check.require(skip_bad=skip_bad))
    good = {name: sources[name] for name in names}
    found = {shape.dtype for source in good.values() for shape in source.modules.values()}
    return Collection(good, check, shared_layers(good), storage_dtype(dtype, found, lossy=lossy))


def assemble_task(
    collection: Collection, name: str, layers: Sequence[TaskLayer], *, file: str, out: Path | None
) -> tuple[TaskRecord, EncodedTask]:
    """One task from its share of every layer that it has."""
    source, check = collection.sources[name], collection.check.adapters[name]
    energy = torch.tensor([layer.energy for layer in layers], dtype=torch.float64)
    residual = torch.tensor([layer.residual for layer in layers], dtype=torch.float64)
    total = check.norm**2  # with the modules that are the task's own, which lose nothing
    error = (float(residual.sum()) / total) ** 0.5 if total > 0 else 0.0
    record = task_record(
        name,
        source,
        collection.layers,
        file=file,
        digest=check.digest,
        norm=check.norm,
        error=figure(error),
        location=relative_source(source.path, out) if out else None,
    )
    shares = torch.where(energy > 0, residual / energy, torch.zeros_like(energy)).sqrt()
    encoded = EncodedTask(
        values=torch.cat([layer.loadings.values for layer in layers]),
        exponents=torch.stack([layer.loadings.exponents for layer in layers]),
        scales=torch.cat([layer.loadings.scales for layer in layers]),
        norms=energy.sqrt().float(),
        errors=shares.float(),
        own={own.name: source.read(own.name) for own in record.own},
        rest=source.read_rest(),
    )
    return record, encoded
