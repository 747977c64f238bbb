"""The interface of every subspace, however its numbers are stored, and the state all share."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.errors import ParameterError
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.quantization.packing import Quantization
from vlora_engine.subspace.basis import Bases
from vlora_engine.subspace.loadings import EncodedTask, Storage
from vlora_engine.subspace.store import Store
from vlora_engine.subspace.tasks import TaskMap, TaskProjection


class Space(Protocol):
    """The interface of a subspace for reading tasks: used by models, exports and evaluation.

    `SharedSubspace`, `BasisSpace` and `CodedSpace` implement it.
    """

    @property
    def method(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def quantization(self) -> Quantization | None: ...

    @property
    def base_model(self) -> str | None: ...

    @property
    def layers(self) -> list[LayerSpec]: ...

    @property
    def layer_names(self) -> list[str]: ...

    @property
    def rank(self) -> int: ...

    @property
    def num_components(self) -> int: ...

    @property
    def home(self) -> Path | None: ...

    @property
    def tasks(self) -> TaskMap: ...

    @property
    def storage(self) -> Storage: ...

    @property
    def has_basis(self) -> bool:
        """Whether components are there; a coded collection makes them when they are asked for."""
        ...

    @property
    def bases(self) -> Bases:
        """The basis of every layer, made where there is none yet."""
        ...

    def in_basis(self) -> Space:
        """The same with every task as loadings: itself, or of a coded collection a view of it."""
        ...

    def add_task(self, projection: TaskProjection, *, replace: bool = False) -> None: ...

    def reconstruct(self, task_id: str) -> LoRAWeights: ...

    def compression_stats(self) -> dict[str, Any]: ...


@dataclass(kw_only=True, eq=False, repr=False)
class SpaceState:
    """The state of a subspace, whichever way its numbers are stored.

    Attributes:
        layers: The shared modules: their shapes and k.
        tasks: The tasks by id.
        stored: The files that unchanged tasks are read from, None for one in memory.
        home: The directory that it was loaded from or saved to.
        opened: The index as it was loaded, or saved last.
        notes: Remarks from building or opening it.
    """

    method: str
    dtype: str
    layers: list[LayerSpec]
    tasks: TaskMap
    base_model: str | None = None
    quantization: Quantization | None = None
    stored: Store | None = field(default=None, init=False)
    home: Path | None = field(default=None, init=False)
    opened: Manifest | None = field(default=None, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.layers = list(self.layers)

    @property
    def storage(self) -> Storage:
        """How its numbers are stored."""
        return Storage(self.method, self.dtype, self.quantization)

    @property
    def layer_names(self) -> list[str]:
        """The names of the shared modules."""
        return [spec.name for spec in self.layers]

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max((spec.rank for spec in self.layers), default=0)

    @property
    def num_components(self) -> int:
        """The largest k of any side; 0 where there are no components."""
        return max((max(spec.k_a, spec.k_b) for spec in self.layers), default=0)

    def bind(self, stored: Store) -> None:
        """Note that its content is that of ``stored``."""
        self.stored = stored
        self.home, self.opened = stored.manifest.path, stored.manifest

    @property
    def is_update(self) -> bool:
        """Whether saving to its own directory writes the tasks that changed alone."""
        return True

    @property
    def is_as_stored(self) -> bool:
        """Whether nothing was changed in memory since it was loaded or saved."""
        return (
            self.stored is not None
            and not self.tasks.changed
            and list(self.tasks) == list(self.stored.manifest.tasks)
            and tuple(self.layers) == self.stored.manifest.layers
        )

    # saving: each way of storing writes its own files

    def store_of(self, manifest: Manifest) -> Store:
        """What reads the files of ``manifest``; the subspace stays bound to where it came from."""
        raise NotImplementedError

    def open_store(self, manifest: Manifest) -> Store:
        """Read from the files of ``manifest`` from now on; the store that does."""
        raise NotImplementedError

    def write(self, directory: Path, tasks: Iterator[tuple[TaskRecord, EncodedTask]]) -> Manifest:
        """Write all files and the index into ``directory``."""
        raise NotImplementedError

    def write_task(self, path: Path, encoded: EncodedTask) -> str:
        """Write one task's file; its sha256."""
        raise NotImplementedError

    def index(self, manifest: Manifest) -> Manifest:
        """The index to write after tasks were added or removed."""
        return manifest

    def add_task(self, projection: TaskProjection, *, replace: bool = False) -> None:
        """Register a projected task.

        Raises:
            ParameterError: There is a task of that name already, and not ``replace``.
        """
        require_new(self.tasks, projection.task_id, replace=replace)
        self.tasks[projection.task_id] = projection


def require_new(tasks: Container[str], task_id: str, *, replace: bool = False) -> None:
    """Raise where there is a task of that name already, unless it is to be replaced.

    Raises:
        ParameterError: It says so.
    """
    if task_id in tasks and not replace:
        raise ParameterError(
            f"There is already a task {task_id!r}.",
            remedy="replace it with replace=True, or choose another name",
        )
