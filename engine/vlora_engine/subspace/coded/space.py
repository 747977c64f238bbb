"""`CodedSpace`: a subspace whose tasks are entropy-coded, with or without a basis beside them.

Tasks are added and removed without changing the others' bytes: a new adapter is coded by itself,
in the step that the collection was coded in. `compact` plans anew.

What needs components is given a shared basis of the tasks, made when it is first asked for. It is
saved beside the tasks where that was asked for, or where a task is loadings in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from vlora_engine.adapters.address import relative_source
from vlora_engine.adapters.base_models import base_model_of
from vlora_engine.adapters.check import check_adapter
from vlora_engine.adapters.model import AdapterSource, LoRAWeights
from vlora_engine.codec.forecast import FINEST
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.manifest.coding import Coding
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.records import figure, shared_layers, task_record
from vlora_engine.subspace.basis import Bases
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.alone import LoneAdapter
from vlora_engine.subspace.coded.basis import SharedBasis, make_basis
from vlora_engine.subspace.coded.build import code_in_memory, coded_task
from vlora_engine.subspace.coded.in_basis import reexpressed, space_in_basis
from vlora_engine.subspace.coded.layout import bytes_around, task_bytes
from vlora_engine.subspace.coded.store import (
    CodedStore,
    CodedTask,
    Decoder,
    MemoryShared,
    SharedBytes,
    write_coded,
    write_task,
)
from vlora_engine.subspace.coded.tasks import CodedTasks
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.subspace.projection import assembled, check_fits, shared_specs
from vlora_engine.subspace.request import Collection
from vlora_engine.subspace.soundness import finite_basis
from vlora_engine.subspace.space import SpaceState
from vlora_engine.subspace.stats import size_stats
from vlora_engine.subspace.store import Store
from vlora_engine.subspace.tasks import TaskProjection
from vlora_engine.utils.run_context import RunContext

logger = logging.getLogger(__name__)


def load_coded(manifest: Manifest, *, verify: bool = True) -> CodedSpace:
    """The coded collection of a manifest; tensor files are read when a task is asked for."""
    assert manifest.coding is not None  # noqa: S101
    stored = CodedStore(manifest, verify)
    tasks = CodedTasks(list(manifest.layers), Decoder(stored), stored, _stored_basis(stored))
    space = CodedSpace(
        method=manifest.method,
        layers=tasks.layers,
        coding=manifest.coding,
        tasks=tasks,
        shared=stored,
        base_model=manifest.base_model,
    )
    space.keeps_basis = manifest.shared_basis is not None
    space.bind(stored)
    return space


def _stored_basis(stored: CodedStore) -> SharedBasis | None:
    """The basis beside the tasks of a directory, read layer by layer when it is asked for."""
    manifest = stored.manifest
    if manifest.shared_basis is None:
        return None
    rows = enumerate(zip(manifest.layers, manifest.shared_basis.k, strict=True))
    positions = {spec.name: i for i, (spec, k) in rows if max(k)}
    bases = Bases(
        list(positions), lambda name: finite_basis(stored.of_basis.stored_basis(positions[name]))
    )
    k = {name: manifest.shared_basis.k[i] for name, i in positions.items()}
    return SharedBasis(k, bases, manifest.shared_basis.dtype)


def code_collection(
    collection: Collection, targets: CompressionTarget, run: RunContext
) -> CodedSpace:
    """Code a checked collection in memory."""
    coding, units, coded = code_in_memory(collection, targets, run)
    shared = MemoryShared(units)
    tasks = CodedTasks(list(collection.layers), Decoder(shared))
    for record, task in coded:
        tasks.put(record, cast(EncodedTask, task))
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
        keeps_basis: Whether the basis is saved beside the tasks even if no task needs it.
    """

    dtype: str = "U8"
    tasks: CodedTasks
    coding: Coding
    shared: SharedBytes
    keeps_basis: bool = field(default=False, init=False)
    _stored_basis: SharedBasis | None = field(default=None, init=False)
    _in_basis: BasisSpace | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.layers = self.tasks.layers  # the very same, which grow with new tasks

    @property
    def has_basis(self) -> bool:
        """Whether a basis is there already; it is made when it is first asked for."""
        return self.tasks.basis is not None

    @property
    def basis(self) -> SharedBasis:
        """The shared basis of the tasks, made where there is none yet: then a warning says so."""
        if self.tasks.basis is None:
            self.set_basis(make_basis(self.tasks))
            logger.warning("%s (in memory; to keep it: with_basis)", self.notes[-1])
        assert self.tasks.basis is not None  # noqa: S101  (made just now)
        return self.tasks.basis

    def set_basis(self, basis: SharedBasis) -> None:
        """Give the collection a basis; tasks that are loadings are expressed in it."""
        before, names = self.tasks.basis, [r.id for r in self.tasks.records() if r.in_basis]
        whole = [(self.tasks.record(name), self.tasks.decoded(name)) for name in names]
        self.tasks.basis, self._in_basis = basis, None
        if basis.figures is not None:
            self.notes.append(basis.figures.words())
        if before is not None:
            for record, task in whole:
                self.tasks.put(*reexpressed(self.tasks, basis, record, task))

    def in_basis(self) -> BasisSpace:
        """The collection as one with a basis: its tasks as loadings, which are projected.

        A task that is put there is one of the collection, as loadings.
        """
        basis, space = self.basis, self._in_basis
        if space is None:
            space = self._in_basis = space_in_basis(self.tasks, basis, self.base_model)
            space.home = self.home
            space.move(*self.tasks.place)
        return space

    @property
    def bases(self) -> Bases:
        """The basis of every layer, made where there is none yet."""
        return self.in_basis().bases

    @property
    def num_components(self) -> int:
        """The largest k of any side of the basis; 0 where none is there."""
        basis = self.tasks.basis
        return max((max(pair) for pair in basis.k.values()), default=0) if basis else 0

    def surface(self, layer: str) -> dict[str, Any]:
        """The error of one layer for every (k_b, k_a) in the basis. As `projection.surface`."""
        return self.in_basis().surface(layer)

    def bind(self, stored: Store) -> None:
        """Note that its content is that of ``stored``."""
        super().bind(stored)
        self._stored_basis = self.tasks.basis if stored.manifest.shared_basis is not None else None

    @property
    def is_as_stored(self) -> bool:
        """Whether nothing was changed in memory since it was loaded or saved."""
        same_basis = not self.keeps_basis or self.tasks.basis is self._stored_basis
        return super().is_as_stored and same_basis

    @property
    def is_update(self) -> bool:
        """Whether saving writes the tasks that changed alone: the basis on disk is still its own.

        Where a basis is to be written that is not there, all is written anew.
        """
        wanted = self.tasks.basis if self.keeps_basis or self.tasks.any_in_basis else None
        return wanted is self._stored_basis

    def copy(self) -> CodedSpace:
        """The same tasks in a space of its own; what is done there changes nothing here."""
        tasks = self.tasks.copy()
        twin = replace(self, tasks=tasks)
        twin.home, twin.opened = self.home, self.opened
        twin.stored, twin._stored_basis = self.stored, self._stored_basis
        twin.keeps_basis = self.keeps_basis
        return twin

    def move(self, device: str | torch.device | None, dtype: torch.dtype | None) -> None:
        """Hand out the basis, loadings and factors on a device or in a dtype from now on.

        What is stored stays as it is: a basis that is made later is made on the CPU as well.
        """
        self.tasks.move(None if device is None else torch.device(device), dtype)
        self._in_basis = None

    def reconstruct(self, task_id: str, *, exact: bool = False) -> LoRAWeights:
        """The adapter of a task: its rank, alpha, config, dtype and rest tensors.

        Args:
            exact: In fp32, before anything is rounded to the task's dtype.
        """
        task = self.tasks.decoded(task_id) if exact else self.tasks[task_id]
        record = self.tasks.record(task_id)
        return assembled(
            self.layers, record, task, lambda spec, rank: task.own[spec.name], exact=exact
        )

    def project(self, source: AdapterSource, task_id: str) -> TaskProjection:
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
        alone = LoneAdapter(layers, source, check.norm)
        error = alone.code(step)
        if limit is not None and error > limit:
            error = alone.code_within(limit, step, error)
        record = task_record(
            task_id,
            source,
            layers,
            file="",
            digest=check.digest,
            norm=check.norm,
            error=figure(error),
            location=relative_source(source.path, None),
        )
        task = coded_task(alone.shares(), source.read_rest())
        added = layers[len(self.layers) :]
        self.layers[:] = layers[: len(self.layers)]
        self.add_layers(added)
        return self.tasks.decode(record, task)

    def add_layers(self, layers: Sequence[LayerSpec]) -> None:
        """Modules that new tasks bring; no group shares anything on them."""
        modes = {n: text + "-" * len(layers) for n, text in self.coding.modes.items()}
        self.coding = replace(self.coding, modes=modes)
        self.layers.extend(layers)

    def compression_stats(self) -> dict[str, Any]:
        """Bytes stored for A and B of all tasks, and what they are at 16 bit.

        Coded numbers have no parameters to count: their bytes count as parameters of 16 bit.
        """
        stored = sum(_stored_bytes(self.tasks.encoded(name)) for name in self.tasks)
        stored += sum(len(self.shared.shared(*unit)) for unit in self.coding.units())
        original = sum(record.factor_elements for record in self.tasks.records())
        return {"components_per_layer": {}} | size_stats(self, (stored + 1) // 2, stored, original)

    def sizes(self) -> tuple[int, int]:
        """About the bytes of coded numbers, and of the index and the files' heads around them.

        Without rest tensors, the basis and what is loadings in it.
        """
        records = [record for record in self.tasks.records() if not record.in_basis]
        units = [self.shared.shared(*unit) for unit in self.coding.units()]
        of_tasks = {r.id: _stored_bytes(self.tasks.encoded(r.id)) for r in records}
        coded = sum(of_tasks.values()) + sum(map(len, units))
        around = bytes_around(
            self.method,
            self.base_model,
            self.layers,
            self.coding,
            {
                r.id: replace(r, sha256="0" * 64, nbytes=task_bytes(r, of_tasks[r.id]))
                for r in records
            },
            payload=coded,
            of_tasks=of_tasks,
        )
        return coded, around

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

    def store_of(self, manifest: Manifest) -> CodedStore:
        """What reads the files of a manifest; see `SpaceState`."""
        return CodedStore(manifest, verify=False)

    def open_store(self, manifest: Manifest) -> CodedStore:
        """Read from here on what a manifest names; see `SpaceState`."""
        stored = CodedStore(manifest)
        self.shared = stored
        self.tasks.read_from(stored)
        if manifest.shared_basis is not None:
            self.tasks.basis, self._in_basis, self.keeps_basis = _stored_basis(stored), None, True
        return stored

    def write(self, directory: Path, tasks: Iterator[tuple[TaskRecord, EncodedTask]]) -> Manifest:
        """Write all files and the index into a directory; see `SpaceState`."""
        return write_coded(
            directory,
            method=self.method,
            base_model=self.base_model,
            layers=self.layers,
            coding=self.coding,
            shared=(self.shared.shared(*unit) for unit in self.coding.units()),
            tasks=tasks,
            shared_basis=self.tasks.basis if self.keeps_basis or self.tasks.any_in_basis else None,
        )

    def write_task(self, path: Path, encoded: EncodedTask) -> str:
        """Write one task's file; see `SpaceState`."""
        return write_task(path, encoded)

    def index(self, manifest: Manifest) -> Manifest:
        """The index to write after tasks came or went; see `SpaceState`."""
        basis = tuple(replace(b, last=len(self.layers)) for b in manifest.basis)
        shared_basis = manifest.shared_basis
        if shared_basis is not None:  # layers that came with new tasks have no basis
            files = (
                *shared_basis.files[:-1],
                replace(shared_basis.files[-1], last=len(self.layers)),
            )
            none = ((0, 0),) * (len(self.layers) - len(shared_basis.k))
            shared_basis = replace(shared_basis, k=(*shared_basis.k, *none), files=files)
        coding, layers = self.coding, tuple(self.layers)
        return replace(
            manifest, layers=layers, coding=coding, basis=basis, shared_basis=shared_basis
        )


def _stored_bytes(task: CodedTask | EncodedTask) -> int:
    """The bytes of a task's factors as they are stored."""
    if isinstance(task, EncodedTask):
        return task.values.nbytes + sum(a.nbytes + b.nbytes for a, b in task.own.values())
    return sum(map(len, task.blobs))
