"""What a build is asked for, over which adapters, and what it reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlora_engine._version import __version__
from vlora_engine.adapters.address import relative_source
from vlora_engine.adapters.check import CheckReport, check_adapters
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.findings import Finding
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.records import LONGEST_FIGURE, figure, shared_layers, task_record
from vlora_engine.quantization.dtypes import storage_dtype
from vlora_engine.spectra.choose import Choice
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.basis import LayerPlan
from vlora_engine.subspace.loadings import EncodedTask, Storage, TaskLayer
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.run_context import RunContext


def fingerprint_of(device: str, **content: Any) -> str:
    """The sha256 of ``content`` with all else that decides on the bytes of a layer."""
    content |= {
        "engine": __version__,
        "torch": torch.__version__,
        "device": pick_device(device).type,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def canonical_order(check: CheckReport, names: Sequence[str]) -> list[str]:
    """Task names in the order of every sum: by name, then content."""
    return sorted(names, key=lambda name: (name, check.adapters[name].digest))


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

    @property
    def digests(self) -> list[tuple[str, str]]:
        """Every task with the digest of its adapter."""
        return [(name, self.check.adapters[name].digest) for name in self.sources]

    def storage(self, target: CompressionTarget) -> Storage:
        """What the numbers of a subspace of these are stored as."""
        return Storage(target.method, self.dtype, target.quantization)

    def layer_plan(
        self, target: CompressionTarget, k: tuple[int, int], *, exact: bool
    ) -> LayerPlan:
        """The settings that a layer of these is built with at (k_a, k_b)."""
        packing = target.quantization
        return LayerPlan(
            target.method, *k, self.dtype, target.refine, exact=exact, quantization=packing
        )

    def record(
        self, name: str, *, file: str, out: Path | None, error: float = LONGEST_FIGURE
    ) -> TaskRecord:
        """A task's row of the index; ``out`` is where it will lie, if that is known."""
        source, check = self.sources[name], self.check.adapters[name]
        return task_record(
            name,
            source,
            self.layers,
            file=file,
            digest=check.digest,
            norm=check.norm,
            error=error,
            location=relative_source(source.path, out),
        )

    def report(
        self, out: Path, manifest: Manifest, findings: Sequence[Finding] = (), **measured: Any
    ) -> BuildReport:
        """The report on a build: what its index says, and what was ``measured`` besides."""
        worst = manifest.worst
        return BuildReport(
            path=out,
            method=manifest.method,
            dtype=manifest.dtype,
            tasks=list(manifest.tasks),
            mean_error=manifest.mean_error,
            max_error=worst.error if worst else 0.0,
            worst_task=worst.id if worst else "",
            variance=manifest.variance,
            task_errors={task.id: task.error for task in manifest.tasks.values()},
            nbytes=manifest.nbytes,
            input_bytes=manifest.input_bytes,
            ratio=manifest.ratio,
            codec_ratio=manifest.codec_ratio,
            skipped=[error.as_dict() for error in self.check.bad],
            findings=[*self.check.findings, *findings],
            **measured,
        )


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
        """All of it as values for JSON."""
        shown = {k: v for k, v in vars(self).items() if k not in ("choice", "spectra")}
        findings = [finding.as_dict() for finding in self.findings]
        return {**shown, "path": str(self.path), "findings": findings}


def prepare(
    sources: Mapping[str, AdapterSource],
    run: RunContext = RunContext(),
    *,
    dtype: str = "auto",
    lossy: bool = False,
    skip_bad: bool = False,
    check: CheckReport | None = None,
) -> Collection:
    """Check every adapter and order the good ones. ``dtype``, ``lossy``: see `storage_dtype`.

    Raises:
        CollectionError: There are bad ones and not ``skip_bad``, or nothing is left.
    """
    if check is None:
        check = check_adapters(
            sources,
            progress=run.progress,
            cancelled=run.cancelled,
            max_memory=run.max_memory,
        )
    names = canonical_order(check, check.require(skip_bad=skip_bad))
    good = {name: sources[name] for name in names}
    found = {shape.dtype for source in good.values() for shape in source.modules.values()}
    return Collection(good, check, shared_layers(good), storage_dtype(dtype, found, lossy=lossy))


def assemble_task(
    collection: Collection, name: str, layers: Sequence[TaskLayer], *, file: str, out: Path | None
) -> tuple[TaskRecord, EncodedTask]:
    """One task from its share of every layer that it has."""
    source = collection.sources[name]
    energy = torch.tensor([layer.energy for layer in layers], dtype=torch.float64)
    residual = torch.tensor([layer.residual for layer in layers], dtype=torch.float64)
    # With the modules that are the task's own, which lose nothing.
    total = collection.check.adapters[name].norm ** 2
    error = (float(residual.sum()) / total) ** 0.5 if total > 0 else 0.0
    record = collection.record(name, file=file, out=out, error=figure(error))
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
