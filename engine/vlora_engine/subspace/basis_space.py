"""A subspace with a basis: per module shared components, per task loadings in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vlora_engine.adapters.model import AdapterSource, LoRAWeights
from vlora_engine.manifest.manifest import Manifest, TaskRecord
from vlora_engine.quantization.packed import PackedBasis
from vlora_engine.subspace.basis import Bases, LayerBasis
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.subspace.projection import project, reconstruct, surface
from vlora_engine.subspace.soundness import finite_basis
from vlora_engine.subspace.space import SpaceState
from vlora_engine.subspace.stats import compression_stats
from vlora_engine.subspace.store import Store, StoredSubspace
from vlora_engine.subspace.tasks import TaskMap, TaskProjection
from vlora_engine.subspace.write import write_subspace, write_task


@dataclass(kw_only=True, eq=False, repr=False)
class BasisSpace(SpaceState):
    """Bases and loadings (methods `delta`, `columns` and `flat`), in memory or in a directory.

    Attributes:
        bases: The basis of every layer; packed ones become numbers one module at a time.
    """

    has_basis = True
    bases: Bases
    _stored_bases: Bases | None = field(default=None, init=False)

    def bind(self, stored: Store) -> None:
        """Say that it is what ``stored`` holds."""
        super().bind(stored)
        self._stored_bases = self.bases

    @property
    def is_as_stored(self) -> bool:
        """Whether nothing was changed in memory since it was loaded or saved."""
        return super().is_as_stored and self.bases is self._stored_bases

    def copy(self) -> BasisSpace:
        """The same bases and tasks in a space of its own, in memory."""
        twin = replace(self, tasks=self.tasks.copy())
        twin.opened = self.opened
        return twin

    def in_basis(self) -> BasisSpace:
        """Itself: its tasks are loadings."""
        return self

    def project(self, source: AdapterSource, task_id: str) -> TaskProjection:
        """An adapter in these bases; nothing changes. Raises as `projection.project`."""
        return project(self, source, task_id)

    def reconstruct(self, task_id: str) -> LoRAWeights:
        """The adapter of a task: its rank, alpha, config, dtype and rest tensors."""
        return reconstruct(self, self.tasks[task_id])

    def surface(self, layer: str) -> dict[str, Any]:
        """The exact error of one layer for every (k_b, k_a). Raises as `projection.surface`."""
        return surface(self, layer)

    def compression_stats(self) -> dict[str, Any]:
        """Parameters and bytes, kept and replaced."""
        return compression_stats(self)

    def move(self, device: str | torch.device | None, dtype: torch.dtype | None) -> None:
        """Move the bases and the loadings to a device, or narrow them."""
        self.bases = self.bases.moved(device, dtype)
        self.tasks.move(None if device is None else torch.device(device), dtype)

    # saving

    def store_of(self, manifest: Manifest) -> StoredSubspace:
        """What reads the files of a manifest; see `SpaceState`."""
        return StoredSubspace(manifest, verify=False)

    def open_store(self, manifest: Manifest) -> StoredSubspace:
        """Read from here on what a manifest names; see `SpaceState`."""
        return StoredSubspace(manifest)

    def write(self, directory: Path, tasks: Iterator[tuple[TaskRecord, EncodedTask]]) -> Manifest:
        """Write all files and the index into a directory; see `SpaceState`."""
        return write_subspace(
            directory,
            storage=self.storage,
            base_model=self.base_model,
            layers=self.layers,
            bases=(self._at_home(name) for name in self.layer_names),
            tasks=tasks,
        )

    def _at_home(self, layer: str) -> LayerBasis | PackedBasis:
        """A basis as files take it: on the CPU, in fp32, wherever it was moved to."""
        basis = self.bases.as_stored(layer)
        if isinstance(basis, PackedBasis):
            return basis.to("cpu")
        return basis.moved("cpu", torch.float32)

    def write_task(self, path: Path, encoded: EncodedTask) -> str:
        """Write one task's file; see `SpaceState`."""
        return write_task(path, encoded)


def load_basis_space(manifest: Manifest, *, verify: bool = True) -> BasisSpace:
    """The subspace of a manifest; tensor files are read when a basis or task is asked for."""
    stored = StoredSubspace(manifest, verify)
    positions = {spec.name: i for i, spec in enumerate(manifest.layers)}
    space = BasisSpace(
        method=manifest.method,
        dtype=manifest.dtype,
        layers=list(manifest.layers),
        bases=Bases(
            list(positions), lambda name: finite_basis(stored.stored_basis(positions[name]))
        ),
        tasks=TaskMap(stored.storage, manifest.layers, stored),
        base_model=manifest.base_model,
        quantization=manifest.quantization,
    )
    space.bind(stored)
    return space
