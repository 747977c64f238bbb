"""`CodedSpace`: a subspace whose tasks are entropy-coded, without components.

Tasks are added and removed without changing the others' bytes: a new adapter is coded by itself,
in the step that the collection was coded in. `compact` plans anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vlora_engine.adapters.base_models import base_model_of
from vlora_engine.adapters.check import check_adapter
from vlora_engine.adapters.model import AdapterSource, LoRAWeights
from vlora_engine.adapters.stack import read_stack
from vlora_engine.codec.forecast import COARSEST, FINEST
from vlora_engine.codec.layer import code_layer
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import SubspaceError
from vlora_engine.manifest.coding import Coding
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.records import figure, shared_layers, task_record
from vlora_engine.subspace.basis import Bases
from vlora_engine.subspace.coded.build import code_in_memory, coded_task
from vlora_engine.subspace.coded.layer_parts import TaskShare
from vlora_engine.subspace.coded.store import (
    CodedStore,
    CodedTask,
    Decoder,
    MemoryShared,
    SharedBytes,
    write_coded,
    write_task,
)
from vlora_engine.subspace.loadings import EncodedTask, Storage
from vlora_engine.subspace.projection import assembled, check_fits, shared_specs
from vlora_engine.subspace.request import Collection
from vlora_engine.subspace.soundness import require_finite
from vlora_engine.subspace.space import SpaceState
from vlora_engine.subspace.stats import size_stats
from vlora_engine.subspace.tasks import TaskMap, TaskProjection
from vlora_engine.utils.run_context import RunContext

_HALVINGS = 24


def load_coded(manifest: Manifest, *, verify: bool = True) -> CodedSpace:
    """The coded collection of a manifest; tensor files are read when a task is asked for."""
    assert manifest.coding is not None  # noqa: S101
    stored = CodedStore(manifest, verify)
    tasks = CodedTasks(list(manifest.layers), Decoder(stored), stored)
    space = CodedSpace(
        method=manifest.method,
        layers=tasks.layers,
        coding=manifest.coding,
        tasks=tasks,
        shared=stored,
        base_model=manifest.base_model,
    )
    space.bind(stored)
    return space


def code_collection(
    collection: Collection, targets: CompressionTarget, run: RunContext
) -> CodedSpace:
    """Code a checked collection in memory."""
    coding, units, coded = code_in_memory(collection, targets, run)
    shared = MemoryShared(units)
    tasks = CodedTasks(list(collection.layers), Decoder(shared))
    for record, task in coded:
        source = collection.sources[record.id]
        location = str(source.path.absolute()) if source.path else None
        tasks.put(replace(record, source=location), cast(EncodedTask, task))
    base = base_model_of(collection.sources)
    return CodedSpace(
        method=targets.method,
        layers=tasks.layers,
        coding=coding,
        tasks=tasks,
        shared=shared,
        base_model=base,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class CodedSpace(SpaceState):
    """A subspace of which every direction is coded with bits of its own (`own` and `auto`).

    Attributes:
        coding: The step, the modes and the target that it was coded with.
    """

    has_basis = False
    dtype: str = "U8"
    tasks: CodedTasks
    coding: Coding
    shared: SharedBytes

    def __post_init__(self) -> None:
        self.layers = self.tasks.layers  # the very same, which grow with new tasks

    @property
    def bases(self) -> Bases:
        """Raises: there is none."""
        raise no_basis()

    def surface(self, layer: str) -> dict[str, Any]:
        """Raises: there is no basis."""
        raise no_basis()

    def move(self, device: str | torch.device | None, dtype: torch.dtype | None) -> None:
        """Nothing is moved: tasks are decoded on the CPU, one when it is asked for."""

    def reconstruct(self, task_id: str, *, exact: bool = False) -> LoRAWeights:
        """The adapter of a task: its rank, alpha, config, dtype and rest tensors.

        Args:
            exact: In fp32, before anything is rounded to the task's dtype.
        """
        task = self.tasks[task_id]
        record = self.tasks.record(task_id)
        return assembled(
            self.layers, record, task, lambda spec, rank: task.own[spec.name], exact=exact
        )

    def project(
        self, source: AdapterSource, task_id: str, warn_threshold: float | None = None
    ) -> TaskProjection:
        """Code an adapter by itself, in the collection's step; nothing else changes.

        Where the collection was coded for a largest error, the adapter gets a finer step if it
        needs one to stay below it.

        Raises:
            CollectionError: A module has other dimensions. AdapterError: NaN or Inf.
            SubspaceError: No module in common.
        """
        check = check_adapter(task_id, source)
        if check.error is not None:
            raise check.error
        shared_specs(self.layers, source, task_id)
        layers = self._layers_with(source)
        limit = self.coding.target.get("max_error")
        step = self.coding.step or FINEST
        shares = _code_alone(layers, source, check.norm, step)
        if limit is not None and _error(shares, check.norm) > limit:
            shares = _code_within(layers, source, check.norm, limit)
        error = _error(shares, check.norm)
        if warn_threshold is not None and 1 - error**2 < warn_threshold:
            warnings.warn(f"Adapter {task_id!r} loses {error:.1%} of its dW.", stacklevel=3)
        record = task_record(task_id, source, layers, file="", digest=check.digest, norm=check.norm)
        location = str(source.path.absolute()) if source.path else None
        record = replace(record, error=figure(error), source=location)
        task = coded_task(shares, source.read_rest())
        added = len(layers) - len(self.layers)
        modes = {n: text + "-" * added for n, text in self.coding.modes.items()}
        self.coding = replace(self.coding, modes=modes)
        self.layers[:] = layers
        return self.tasks.decode(record, task)

    def compression_stats(self) -> dict[str, Any]:
        """Bytes stored for A and B of all tasks, and what they are at 16 bit.

        Coded numbers have no parameters to count: their bytes count as parameters of 16 bit.
        """
        stored = sum(
            sum(map(len, cast(CodedTask, self.tasks.encoded(name)).blobs)) for name in self.tasks
        )
        stored += sum(len(self.shared.shared(*unit)) for unit in self.coding.units())
        original = sum(record.factor_elements for record in self.tasks.records())
        return {"components_per_layer": {}} | size_stats(self, (stored + 1) // 2, stored, original)

    def _layers_with(self, source: AdapterSource) -> list[LayerSpec]:
        """The layers with the modules and ranks that ``source`` brings."""
        layers = list(self.layers)
        positions = {spec.name: i for i, spec in enumerate(layers)}
        for spec in shared_layers({"": source}):
            if spec.name not in positions:
                layers.append(spec)
                continue
            existing = layers[positions[spec.name]]
            check_fits(existing, source, self.method)
            layers[positions[spec.name]] = replace(existing, rank=max(existing.rank, spec.rank))
        return layers

    # saving

    def open_store(self, manifest: Manifest) -> CodedStore:
        """See `WritableSpace`."""
        stored = CodedStore(manifest)
        self.shared = stored
        self.tasks.read_from(stored)
        return stored

    def write(self, directory: Path, tasks: Iterator[tuple[TaskRecord, EncodedTask]]) -> Manifest:
        """See `WritableSpace`."""
        return write_coded(
            directory,
            method=self.method,
            base_model=self.base_model,
            layers=self.layers,
            coding=self.coding,
            shared=(self.shared.shared(*unit) for unit in self.coding.units()),
            tasks=cast("Iterator[tuple[TaskRecord, CodedTask]]", tasks),
        )

    def write_task(self, path: Path, encoded: EncodedTask) -> str:
        """See `WritableSpace`."""
        return write_task(path, cast(CodedTask, encoded))

    def index(self, manifest: Manifest) -> Manifest:
        """See `WritableSpace`."""
        basis = tuple(replace(b, last=len(self.layers)) for b in manifest.basis)
        return replace(manifest, layers=tuple(self.layers), coding=self.coding, basis=basis)


class CodedTasks(TaskMap):
    """Tasks of a coded collection: decoded when asked for, one kept at a time."""

    def __init__(
        self, layers: list[LayerSpec], decoder: Decoder, stored: CodedStore | None = None
    ) -> None:
        super().__init__(Storage("own", "F32"), layers, stored)
        self._layers = layers  # grows with adapters that bring new modules
        self._decoder = decoder

    @property
    def layers(self) -> list[LayerSpec]:
        """The modules that the tasks have; it grows with adapters that bring new ones."""
        return self._layers

    def read_from(self, shared: SharedBytes) -> None:
        """Take the bytes that groups share from ``shared`` from now on."""
        self._decoder = Decoder(shared)

    def decode(self, record: TaskRecord, task: CodedTask) -> TaskProjection:
        """Decode a task's factors from its bytes."""
        return self._decode(record, cast(EncodedTask, task))

    def _decode(self, record: TaskRecord, encoded: EncodedTask) -> TaskProjection:
        self._projections.clear()
        task = cast(CodedTask, encoded)
        names = [self._layers[i].name for i in record.layers]
        scales = dict(zip(names, record.scales, strict=True))
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (a, b) in self._decoder.each(self._layers, record, task.blobs):
            scale = scales[name]
            narrow = a.float(), (b / scale if scale else torch.zeros_like(b)).float().contiguous()
            require_finite(name, *narrow)
            factors[name] = narrow
        return TaskProjection(
            task_id=record.id,
            loadings_a={},
            loadings_b={},
            scales=scales,
            rest=task.rest,
            config=dict(record.config),
            source_norms=dict(zip(names, task.norms.tolist(), strict=True)),
            errors=dict(zip(names, task.errors.tolist(), strict=True)),
            own=factors,
            record=record,
            encoded=encoded,
        )

    def _checked(self, record: TaskRecord, stored: EncodedTask) -> EncodedTask:
        return stored  # its numbers are known once they are decoded

    def _encode(self, projection: TaskProjection) -> tuple[TaskRecord, EncodedTask]:
        record, encoded = projection.record, projection.encoded
        if record is None or not isinstance(encoded, CodedTask):
            raise SubspaceError(
                "A coded collection takes adapters, not loadings.",
                where=projection.task_id,
                remedy="make the task with project(adapter, id)",
            )
        config = dict(projection.config)
        return replace(record, id=projection.task_id, config=config), cast(EncodedTask, encoded)


def _code_alone(
    layers: list[LayerSpec], source: AdapterSource, norm: float, step: float, *, write: bool = True
) -> list[TaskShare]:
    shares = []
    for spec in layers:
        if spec.name in source.modules:
            stack = read_stack(spec.name, {"": source}, {"": 1 / norm if norm else 0.0})
            coded = code_layer(stack, np.array([step * norm]), write=write)
            energy, residual = float(coded.energy[0]), float(coded.residual[0])
            shares.append(TaskShare(coded.blobs[0], energy, residual))
    return shares


def _code_within(
    layers: list[LayerSpec], source: AdapterSource, norm: float, limit: float
) -> list[TaskShare]:
    """Coded in the coarsest step that keeps to an error."""
    low, high = np.log2(FINEST), np.log2(COARSEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _error(_code_alone(layers, source, norm, 2.0**middle, write=False), norm)
        low, high = (middle, high) if found <= limit else (low, middle)
        if high - low < 0.002:
            break
    return _code_alone(layers, source, norm, 2.0**low)


def _error(shares: list[TaskShare], norm: float) -> float:
    return float(sum(share.residual for share in shares) ** 0.5 / norm) if norm > 0 else 0.0


def no_basis() -> SubspaceError:
    """The error for asking a coded collection for components."""
    return SubspaceError(
        "A coded collection has no components: every direction has bits of its own.",
        expected="a subspace of method delta, columns or flat",
        remedy="compress the adapters again with method delta",
    )
