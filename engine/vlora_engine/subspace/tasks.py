"""The tasks of a subspace: a task's loadings, and all tasks by id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vlora_engine.adapters.address import absolute_source
from vlora_engine.errors import ParameterError, SubspaceError
from vlora_engine.manifest.manifest import LayerSpec, OwnModule, TaskRecord, unknown_task
from vlora_engine.manifest.records import figure
from vlora_engine.quantization.packed import PackedBasis
from vlora_engine.subspace.basis import Bases, BuiltLayer, LayerBasis
from vlora_engine.subspace.loadings import (
    EncodedTask,
    LoadingsForm,
    Storage,
    TaskLayer,
    encode_loadings,
    join_loadings,
)
from vlora_engine.subspace.request import Collection, assemble_task
from vlora_engine.subspace.soundness import finite_task
from vlora_engine.subspace.store import Store, decode_task


@dataclass
class TaskProjection:
    """A task in the subspace's coordinates.

    Args:
        loadings_a: Per module (r, k_a), `flat`: (k_a,). loadings_b: likewise with k_b.
        scales: Per module the adapter's scale.
        rest: Rest tensors, bit for bit. config: adapter_config.json as found.
        source_norms: Per module ||dW|| of the adapter it stands for.
        errors: Per module the relative error of dW, on what is stored.
        own: Modules that the basis lacks, as factors.
        record: Its row of the index.
        encoded: The packed form that its loadings were decoded from.
    """

    task_id: str
    loadings_a: dict[str, Tensor]
    loadings_b: dict[str, Tensor]
    scales: dict[str, float] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    source_norms: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    record: TaskRecord | None = None
    encoded: EncodedTask | None = field(default=None, repr=False)

    @property
    def error(self) -> float:
        """The relative error of dW over all modules, on what is stored."""
        if self.record is not None:
            return self.record.error
        norm2 = sum(norm**2 for norm in self.source_norms.values())
        lost2 = sum(
            (self.errors.get(name, 0.0) * norm) ** 2 for name, norm in self.source_norms.items()
        )
        return float((lost2 / norm2) ** 0.5) if norm2 > 0 else 0.0

    def __repr__(self) -> str:
        return f"TaskProjection(task_id={self.task_id!r}, layers={len(self.loadings_a)})"


class TaskMap(MutableMapping[str, TaskProjection]):
    """Tasks by id. Those on disk or freshly encoded become projections when asked for.

    Attributes:
        in_training: What trains a task, by the task's id, while that lives and the task is not
            replaced: models compute with its parameters.
    """

    def __init__(
        self, storage: Storage, layers: Sequence[LayerSpec], stored: Store | None = None
    ) -> None:
        self._storage, self._layers = storage, list(layers)
        self._stored = stored
        self._records: dict[str, TaskRecord] = _stored_records(stored) if stored else {}
        self._encoded: dict[str, EncodedTask] = {}
        self._projections: dict[str, TaskProjection] = {}
        self._changed: set[str] = set()
        self.in_training: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._place: tuple[torch.device | None, torch.dtype | None] = None, None

    def put(self, record: TaskRecord, encoded: EncodedTask) -> None:
        """Add a task in its encoded form."""
        self._records[record.id] = record
        self._encoded[record.id] = encoded
        self._projections.pop(record.id, None)
        self._changed.add(record.id)
        self.in_training.pop(record.id, None)

    def record(self, task_id: str) -> TaskRecord:
        """A task's row of the index."""
        if task_id not in self._records:
            directory = self._stored.manifest.path if self._stored else None
            raise unknown_task(task_id, self._records, directory)
        return self._records[task_id]

    def records(self) -> list[TaskRecord]:
        return list(self._records.values())

    def encoded(self, task_id: str) -> EncodedTask:
        """A task in its encoded form, as it is or will be on disk."""
        record = self.record(task_id)
        if task_id in self._encoded:
            return self._encoded[task_id]
        assert self._stored is not None  # noqa: S101  (a record is encoded or stored)
        return self._checked(record, self._stored.task(record))

    def _checked(self, record: TaskRecord, stored: EncodedTask) -> EncodedTask:
        """A task as it was read, its numbers checked."""
        return finite_task(record, stored)

    def copy(self) -> TaskMap:
        """A second mapping of the same tasks, which may be changed without this one."""
        twin = TaskMap(self._storage, self._layers)
        twin._stored = self._stored
        twin._records, twin._encoded = dict(self._records), dict(self._encoded)
        twin._changed, twin._place = set(self._changed), self._place
        return twin

    @property
    def changed(self) -> set[str]:
        """The ids of tasks that were changed since the directory was loaded or saved."""
        return set(self._changed)

    def rebind(self, stored: Store) -> None:
        """Read all tasks from ``stored`` from now on; none counts as changed."""
        self._stored = stored
        self._records = _stored_records(stored)
        self._encoded.clear()
        self._changed.clear()

    def __getitem__(self, task_id: str) -> TaskProjection:
        if task_id not in self._projections:
            record = self.record(task_id)
            if self._storage.loadings_packing is not None:
                self._projections.clear()  # what is packed stays so but for the one in use
            decoded = self._decode(record, self.encoded(task_id))
            self._projections[task_id] = moved(decoded, *self._place)
        return self._projections[task_id]

    @property
    def place(self) -> tuple[torch.device | None, torch.dtype | None]:
        """The device and the dtype that loadings are handed out in; None: as they are stored."""
        return self._place

    def move(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Hand out loadings on a device, or in a dtype, from now on; what is stored stays."""
        old_device, old_dtype = self._place
        self._place = device or old_device, dtype or old_dtype
        for task_id, projection in self._projections.items():
            self._projections[task_id] = moved(projection, *self._place)

    def decoded(self, task_id: str) -> TaskProjection:
        """A task as a projection that is not cached, for callers that read many."""
        projection = self._projections.get(task_id)
        if projection is None or self._place != (None, None):  # as it is stored: fp32, on the CPU
            return self._decode(self.record(task_id), self.encoded(task_id))
        return projection

    def _decode(self, record: TaskRecord, encoded: EncodedTask) -> TaskProjection:
        return decode_projection(self._storage, self._layers, record, encoded)

    def _encode(self, projection: TaskProjection) -> tuple[TaskRecord, EncodedTask]:
        at_home = moved(projection, torch.device("cpu"), None)
        return encode_projection(self._storage, self._layers, at_home)

    def __setitem__(self, task_id: str, projection: TaskProjection) -> None:
        if task_id != projection.task_id:
            raise SubspaceError(
                "A task is filed under its own id.", expected=projection.task_id, found=task_id
            )
        self.put(*self._encode(projection))

    def __delitem__(self, task_id: str) -> None:
        self.record(task_id)
        del self._records[task_id]
        self._encoded.pop(task_id, None)
        self._projections.pop(task_id, None)
        self._changed.discard(task_id)
        self.in_training.pop(task_id, None)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def moved(
    projection: TaskProjection, device: torch.device | None, dtype: torch.dtype | None
) -> TaskProjection:
    """The same with its loadings, and factors of its own, on a device or in a dtype."""
    if device is None and dtype is None:
        return projection

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype)

    return replace(
        projection,
        loadings_a={name: to(tensor) for name, tensor in projection.loadings_a.items()},
        loadings_b={name: to(tensor) for name, tensor in projection.loadings_b.items()},
        own={name: (to(a), to(b)) for name, (a, b) in projection.own.items()},
    )


def collect_tasks(
    storage: Storage, collection: Collection, built: Iterable[BuiltLayer]
) -> tuple[Bases, list[LayerSpec], TaskMap]:
    """Built layers as bases, layer specs and tasks in memory."""
    bases: list[LayerBasis | PackedBasis] = []
    k: dict[str, tuple[int, int]] = {}
    shares: dict[str, list[TaskLayer]] = {}
    for layer in built:
        basis = layer.basis
        bases.append(basis.packed or basis)  # what is packed stays so
        k[basis.name] = len(basis.a), len(basis.b)
        for i, name in enumerate(layer.tasks):
            share = TaskLayer(layer.loadings[i], float(layer.energy[i]), float(layer.residual[i]))
            shares.setdefault(name, []).append(share)
    specs = [replace(spec, k_a=k[spec.name][0], k_b=k[spec.name][1]) for spec in collection.layers]
    tasks = TaskMap(storage, specs)
    for name in collection.sources:
        tasks.put(*assemble_task(collection, name, shares[name], file="", out=None))
    return Bases.of(bases), specs, tasks


def task_names(task_ids: Sequence[str] | None, count: int) -> list[str]:
    """The given names, or ``task_0`` and on.

    Raises:
        ParameterError: A wrong number of them, an empty one, or two alike.
    """
    if task_ids is None:
        return [f"task_{i}" for i in range(count)]
    if len(task_ids) != count:
        raise ParameterError(
            "Every adapter needs one name.", expected=f"{count} names", found=str(len(task_ids))
        )
    double = sorted({name for name in task_ids if list(task_ids).count(name) > 1})
    if double or "" in task_ids:
        raise ParameterError(
            f"Two adapters are named {double[0]!r}." if double else "A task's name is empty.",
            remedy="give every adapter a name of its own (--names)",
        )
    return list(task_ids)


def decode_projection(
    storage: Storage, layers: Sequence[LayerSpec], record: TaskRecord, encoded: EncodedTask
) -> TaskProjection:
    """Decode a task into tensors in fp32."""
    loadings_a, loadings_b = {}, {}
    for spec, a, b in decode_task(storage, layers, record, encoded):
        loadings_a[spec.name], loadings_b[spec.name] = a.float(), b.float()
    found = stored_projection(record, encoded, list(loadings_a), encoded.own)
    found.loadings_a, found.loadings_b = loadings_a, loadings_b
    found.encoded = encoded if storage.loadings_packing else None
    return found


def stored_projection(
    record: TaskRecord,
    stored: EncodedTask,
    modules: Sequence[str],
    factors: dict[str, tuple[Tensor, Tensor]],
) -> TaskProjection:
    """What the record and the file of a task say of it, still without loadings.

    Args:
        modules: The names of the record's layers. factors: Of modules that are whole.
    """
    scales = dict(zip(modules, record.scales, strict=True))
    return TaskProjection(
        task_id=record.id,
        loadings_a={},
        loadings_b={},
        scales=scales | {o.name: o.scale for o in record.own},
        rest=stored.rest,
        config=dict(record.config),
        source_norms=dict(zip(modules, stored.norms.tolist(), strict=True)),
        errors=dict(zip(modules, stored.errors.tolist(), strict=True)),
        own=factors,
        record=record,
    )


def encode_projection(
    storage: Storage, layers: Sequence[LayerSpec], projection: TaskProjection
) -> tuple[TaskRecord, EncodedTask]:
    """Turn a task's loadings into what is stored of them; the inverse of `decode_projection`.

    Raises:
        SubspaceError: A loading does not have the shape that the basis asks for.
    """
    positions = {spec.name: i for i, spec in enumerate(layers)}
    unchanged = _unchanged_form(storage, layers, projection)
    if unchanged is not None:
        return unchanged
    names = sorted(projection.loadings_a, key=lambda n: positions.get(n, -1))
    method, loadings, ranks = storage.method, [], []
    for name in names:
        if name not in positions:
            raise SubspaceError(f"The subspace has no module {name!r}.", where=projection.task_id)
        a, b = projection.loadings_a[name], projection.loadings_b[name]
        rank = layers[positions[name]].rank if method == "flat" else a.shape[0]
        form = _checked_form(storage, layers[positions[name]], rank, a, b, projection)
        encoded_module = encode_loadings(form, a.double()[None], b.double()[None], storage.dtype)
        loadings.append(encoded_module.of(0))
        ranks.append(rank)
    encoded = EncodedTask(
        **join_loadings(storage, loadings),
        norms=torch.tensor([projection.source_norms.get(n, 0.0) for n in names]),
        errors=torch.tensor([projection.errors.get(n, 0.0) for n in names]),
        own=projection.own,
        rest=projection.rest,
    )
    record = projection.record or _new_record(projection, names, ranks)
    task_ranks = record.ranks if method == "flat" and projection.record else tuple(ranks)
    shared = tuple(positions[n] for n in names)
    scales = tuple(float(projection.scales.get(n, 1.0)) for n in names)
    record = replace(record, layers=shared, ranks=task_ranks, scales=scales)
    return replace(record, id=projection.task_id, config=dict(projection.config)), encoded


def _unchanged_form(
    storage: Storage, layers: Sequence[LayerSpec], projection: TaskProjection
) -> tuple[TaskRecord, EncodedTask] | None:
    """The packed form of a projection, where nothing was changed since it was decoded.

    Packing a core that was cut to its rank again would add to the error that was measured.
    """
    record, encoded = projection.record, projection.encoded
    if record is None or encoded is None or storage.loadings_packing is None:
        return None
    if record.id != projection.task_id or encoded.values.dtype != torch.uint8:
        return None
    if any(i >= len(layers) for i in record.layers):
        return None
    same = decode_projection(storage, layers, record, encoded)
    for name in ("scales", "source_norms", "errors", "config"):
        if getattr(same, name) != getattr(projection, name):
            return None
    for side in ("loadings_a", "loadings_b"):
        current, given = getattr(same, side), getattr(projection, side)
        if current.keys() != given.keys() or not all(_same(current[n], given[n]) for n in current):
            return None
    return record, replace(encoded, own=projection.own, rest=projection.rest)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _checked_form(
    storage: Storage, spec: LayerSpec, rank: int, a: Tensor, b: Tensor, projection: TaskProjection
) -> LoadingsForm:
    form = storage.form(rank, spec.k_a, spec.k_b)
    rows = () if form.method == "flat" else (rank,)
    wanted = [(*rows, spec.k_a), (*rows, spec.k_b)]
    if [tuple(a.shape), tuple(b.shape)] != wanted:
        raise SubspaceError(
            f"The loadings of task {projection.task_id!r} do not fit the basis.",
            where=spec.name,
            expected=str(wanted),
            found=f"{tuple(a.shape)}, {tuple(b.shape)}",
        )
    return form


def _new_record(
    projection: TaskProjection, names: Sequence[str], ranks: Sequence[int]
) -> TaskRecord:
    """The record of a task that stands for no adapter at hand (a blend, a trained one)."""
    norm2 = sum(v * v for v in projection.source_norms.values())
    return TaskRecord(
        id=projection.task_id,
        file="",
        sha256="",
        nbytes=0,
        digest="",
        layers=(),
        ranks=(),
        scales=(),
        dtypes=("F32",) * len(names),
        norm=figure(norm2**0.5),
        error=figure(projection.error),
        rank=max(ranks, default=0),
        config=projection.config,
        own=tuple(OwnModule(n, projection.scales.get(n, 1.0)) for n in sorted(projection.own)),
        rest=len(projection.rest),
        rest_bytes=sum(t.numel() * t.element_size() for t in projection.rest.values()),
        measured=False,
    )


def _stored_records(stored: Store) -> dict[str, TaskRecord]:
    """The records of a directory, with sources as absolute paths while they are in memory."""
    home = stored.manifest.path
    return {
        name: replace(record, source=absolute_source(record.source, home))
        for name, record in stored.manifest.tasks.items()
    }
