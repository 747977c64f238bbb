"""A coded collection as a subspace with a basis: its tasks as loadings in the basis beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora_engine.adapters.stack import LayerStack
from vlora_engine.manifest.manifest import LayerSpec, OwnModule, TaskRecord
from vlora_engine.manifest.records import figure
from vlora_engine.subspace.basis import LayerPlan, encode_tasks
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.basis import SharedBasis
from vlora_engine.subspace.coded.store import used_rows
from vlora_engine.subspace.coded.tasks import CodedTasks
from vlora_engine.subspace.loadings import EncodedTask, Loadings, join_loadings
from vlora_engine.subspace.tasks import TaskMap, TaskProjection, moved


def space_in_basis(tasks: CodedTasks, basis: SharedBasis, base_model: str | None) -> BasisSpace:
    """The collection in its basis. What is put there as a task becomes one of the collection.

    Modules that the basis lacks are the tasks' own.
    """
    in_basis = TasksInBasis(tasks, basis)
    return BasisSpace(
        method=basis.storage.method,
        dtype=basis.dtype,
        layers=in_basis.layers,
        bases=basis.bases,
        tasks=in_basis,
        base_model=base_model,
    )


def reexpressed(
    tasks: CodedTasks, basis: SharedBasis, record: TaskRecord, task: TaskProjection
) -> tuple[TaskRecord, EncodedTask]:
    """A task that was loadings in another basis, in this one.

    Its error is a bound from now on: what was lost before, and what is lost now.
    """
    in_basis = TasksInBasis(tasks, basis)
    made, encoded = in_basis.projected(task, record)
    return in_basis.of_collection(made), encoded


@dataclass(frozen=True)
class _Projected:
    """A coded task in the basis, and the record that it was projected from."""

    of: TaskRecord
    record: TaskRecord
    encoded: EncodedTask | None = None


class TasksInBasis(TaskMap):
    """The tasks of a coded collection as loadings in its basis, projected when asked for.

    The errors of a coded task are bounds: what coding lost, and what the projection loses.
    """

    def __init__(self, coded: CodedTasks, basis: SharedBasis) -> None:
        layers = basis.layers_of(coded.layers)
        self._places = [i for i, spec in enumerate(layers) if spec.name in basis.k]
        super().__init__(basis.storage, [layers[i] for i in self._places])
        self._coded, self._basis = coded, basis
        self._projected: dict[str, _Projected] = {}

    @property
    def layers(self) -> list[LayerSpec]:
        """The layers that the basis has."""
        return list(self._layers)

    def of_collection(self, record: TaskRecord) -> TaskRecord:
        """The record of a task as one of the collection, whose layers are more."""
        layers = tuple(self._places[i] for i in record.layers)
        return replace(record, layers=layers, in_basis=True, cluster=0, kept=())

    def record(self, task_id: str) -> TaskRecord:
        """A task's row, as of a subspace with a basis."""
        return self._of(task_id).record

    def records(self) -> list[TaskRecord]:
        return [self.record(name) for name in self._coded]

    def encoded(self, task_id: str) -> EncodedTask:
        """A task as loadings; a coded one is decoded and projected."""
        known = self._of(task_id)
        if known.of.in_basis:
            return self._coded.encoded(task_id)
        if known.encoded is not None:
            return known.encoded
        record, encoded = self.projected(self._coded.decoded(task_id), known.of)
        self._projected[task_id] = _Projected(known.of, record, encoded)
        return encoded

    def put(self, record: TaskRecord, encoded: EncodedTask) -> None:
        """Make loadings a task of the collection."""
        self._coded.put(self.of_collection(record), encoded)

    def copy(self) -> TaskMap:
        """All tasks as loadings, in memory, apart from the collection."""
        twin = TaskMap(self._storage, self._layers)
        for name in self:
            encoded = self.encoded(name)
            record = replace(self.record(name), in_basis=False, cluster=0, kept=())
            twin.put(record, encoded)
        return twin

    @property
    def changed(self) -> set[str]:
        return self._coded.changed

    def __getitem__(self, task_id: str) -> TaskProjection:
        return moved(self.decoded(task_id), *self._place)

    def decoded(self, task_id: str) -> TaskProjection:
        """A task as a projection that is not cached."""
        encoded = self.encoded(task_id)  # first: it makes the errors of the record known
        return self._decode(self.record(task_id), encoded)

    def __delitem__(self, task_id: str) -> None:
        del self._coded[task_id]
        self._projected.pop(task_id, None)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._coded

    def __iter__(self) -> Iterator[str]:
        return iter(self._coded)

    def __len__(self) -> int:
        return len(self._coded)

    def _of(self, task_id: str) -> _Projected:
        known, record = self._projected.get(task_id), self._coded.record(task_id)
        if known is None or known.of is not record:
            known = self._projected[task_id] = _Projected(record, self._restricted(record))
        return known

    def _restricted(self, record: TaskRecord) -> TaskRecord:
        """The record with the modules that the basis lacks as the task's own."""
        places = {place: i for i, place in enumerate(self._places)}
        rows = list(zip(record.layers, record.ranks, record.scales, record.dtypes, strict=True))
        inside = [(places[row[0]], *row[1:]) for row in rows if row[0] in places]
        lacking = [(self._coded.layers[i], scale) for i, _, scale, _ in rows if i not in places]
        own = [OwnModule(spec.name, scale, spec.kind, spec.tail_a) for spec, scale in lacking]
        layers, ranks, scales, dtypes = zip(*inside, strict=True) if inside else ((),) * 4
        return replace(
            record,
            layers=layers,
            ranks=ranks,
            scales=scales,
            dtypes=dtypes,
            own=(*record.own, *own),
            measured=record.measured and record.in_basis,
        )

    def projected(self, task: TaskProjection, whole: TaskRecord) -> tuple[TaskRecord, EncodedTask]:
        """A task of the collection, decoded, as loadings; its error is a bound."""
        record = self._restricted(whole)
        loadings, norms, errors, lost2 = [], [], [], 0.0
        for index, rank, scale in zip(record.layers, record.ranks, record.scales, strict=True):
            spec = self._layers[index]
            a, b = task.own[spec.name]
            of_module, residual = self._share(spec, a, b, scale, rank)
            norm = task.source_norms[spec.name]
            missed = task.errors[spec.name] * norm + residual**0.5
            loadings.append(of_module)
            norms.append(norm)
            errors.append(missed / norm if norm > 0 else 0.0)
            lost2 += residual
        encoded = EncodedTask(
            **join_loadings(self._storage, loadings),
            norms=torch.tensor(norms),
            errors=torch.tensor(errors),
            own={module.name: task.own[module.name] for module in record.own},
            rest=task.rest,
        )
        bound = whole.error + (lost2**0.5 / whole.norm if whole.norm > 0 else 0.0)
        return replace(record, error=figure(bound), measured=False), encoded

    def _share(
        self, spec: LayerSpec, a: Tensor, b: Tensor, scale: float, rank: int
    ) -> tuple[Loadings, float]:
        """Loadings of one module of one task, and what they miss of it: ||dW - dW^||^2."""
        unit = torch.ones(1, dtype=torch.float64)
        if self._basis.storage.form(rank, spec.k_a, spec.k_b).is_core:
            # A core is the same without the rows of zeros, which may be many.
            least = spec.k_a * spec.k_b // (spec.k_a + spec.k_b) + 1
            rank = min(rank, max(least, used_rows(a, b)))
        factors = a[:rank].double()[None], b[:, :rank].T.double()[None]
        stack = LayerStack(spec.name, [""], [rank], *factors, scale=unit * scale, weight=unit)
        plan = LayerPlan(self._basis.storage.method, spec.k_a, spec.k_b, self._basis.dtype)
        basis = self._basis.bases.numbers(spec.name)
        loadings, residual = encode_tasks(stack, plan, basis, rank, slice(0, 1))
        return loadings.of(0), float(residual[0])
