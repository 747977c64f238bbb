"""The tasks of a coded collection: coded each by itself, or loadings in the basis beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from vlora_engine.errors import SubspaceError
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.subspace.coded.basis import SharedBasis
from vlora_engine.subspace.coded.store import (
    CodedStore,
    CodedTask,
    Decoder,
    SharedBytes,
    pad_factors,
    used_rows,
)
from vlora_engine.subspace.loadings import EncodedTask, Storage
from vlora_engine.subspace.soundness import finite_task, require_finite
from vlora_engine.subspace.store import decode_task
from vlora_engine.subspace.tasks import (
    TaskMap,
    TaskProjection,
    encode_projection,
    stored_projection,
)


class CodedTasks(TaskMap):
    """Tasks of a coded collection: decoded when asked for, one kept at a time.

    Attributes:
        basis: The basis beside them, None where there is none (yet).
    """

    def __init__(
        self,
        layers: list[LayerSpec],
        decoder: Decoder,
        stored: CodedStore | None = None,
        basis: SharedBasis | None = None,
    ) -> None:
        super().__init__(Storage("own", "F32"), layers, stored)
        self._layers = layers  # grows with adapters that bring new modules
        self._decoder = decoder
        self.basis = basis

    @property
    def layers(self) -> list[LayerSpec]:
        """The modules that the tasks have; it grows with adapters that bring new ones."""
        return self._layers

    @property
    def any_in_basis(self) -> bool:
        """Whether a task is loadings in the basis."""
        return any(record.in_basis for record in self._records.values())

    def copy(self) -> CodedTasks:
        """A second mapping of the same tasks, which may be changed without this one."""
        twin = CodedTasks(list(self._layers), self._decoder, basis=self.basis)
        twin._stored = self._stored
        twin._records, twin._encoded = dict(self._records), dict(self._encoded)
        twin._changed, twin._place = set(self._changed), self._place
        return twin

    def read_from(self, shared: SharedBytes) -> None:
        """Take the bytes that groups share from ``shared`` from now on."""
        self._decoder = Decoder(shared)

    def decode(self, record: TaskRecord, task: CodedTask) -> TaskProjection:
        """Decode a task's factors from its bytes."""
        return self._decode(record, cast(EncodedTask, task))

    def layer_factors(
        self, index: int, records: Sequence[TaskRecord]
    ) -> list[tuple[Tensor, Tensor]]:
        """A (r, d_in) and B (d_out, r), the scale in B, of one layer of tasks that have it; fp64.

        Raises:
            CorruptFileError: What is stored is not sound.
        """
        coded = []
        for record in records:
            if not record.in_basis:
                position = record.layers.index(index)
                coded.append((record.ranks[position], self._blob(record, position)))
        found = iter(self._decoder.of_layer(self._layers, index, coded))
        pairs = [self._expanded(r, index) if r.in_basis else next(found) for r in records]
        for a, b in pairs:
            require_finite(self._layers[index].name, a, b)
        return pairs

    def _blob(self, record: TaskRecord, position: int) -> bytes:
        held = self._encoded.get(record.id)
        if held is not None:
            return cast(CodedTask, held).blobs[position]
        stored = self._stored
        assert isinstance(stored, CodedStore)  # noqa: S101  (a record is encoded or stored)
        return stored.blob(record, position)

    def _expanded(self, record: TaskRecord, index: int) -> tuple[Tensor, Tensor]:
        """The factors that a task's loadings of one layer stand for, the scale in B."""
        position, basis = record.layers.index(index), self._required_basis(record.id)
        if record.id not in self._encoded:  # few numbers, which every layer asks for again
            self._encoded[record.id] = self.encoded(record.id)
        layers, encoded = basis.layers_of(self._layers), self._encoded[record.id]
        ((spec, a, b),) = decode_task(basis.storage, layers, record, encoded, position)
        of_layer, used = basis.bases.numbers(spec.name).moved("cpu"), used_rows(a, b.T)
        bt = (b[:used] * record.scales[position]) @ of_layer.b.double()
        return a[:used] @ of_layer.a.double(), bt.T

    def _decode(self, record: TaskRecord, encoded: EncodedTask) -> TaskProjection:
        self._projections.clear()
        if record.in_basis:
            return self._decode_loadings(record, encoded)
        task = cast(CodedTask, encoded)
        names = [self._layers[i].name for i in record.layers]
        scales = dict(zip(names, record.scales, strict=True))
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        found = self._decoder.each(self._layers, record, task.blobs)
        for (name, (a, b)), rank in zip(found, record.ranks, strict=True):
            scale = scales[name]
            narrow = a.float(), (b / scale if scale else torch.zeros_like(b)).float()
            require_finite(name, *narrow)
            factors[name] = pad_factors(*narrow, rank)
        projection = stored_projection(record, encoded, names, factors)
        projection.encoded = encoded
        return projection

    def _decode_loadings(self, record: TaskRecord, encoded: EncodedTask) -> TaskProjection:
        """A task that is loadings, with the factors that they stand for."""
        basis = self._required_basis(record.id)
        factors_of, loadings_a, loadings_b = dict(encoded.own), {}, {}
        layers = basis.layers_of(self._layers)
        for spec, a, b in decode_task(basis.storage, layers, record, encoded):
            of_layer = basis.bases.numbers(spec.name).moved("cpu")
            factors = (a @ of_layer.a.double()).float(), (of_layer.b.double().T @ b.T).float()
            require_finite(spec.name, *factors)
            factors_of[spec.name] = factors
            loadings_a[spec.name], loadings_b[spec.name] = a.float(), b.float()
        projection = stored_projection(record, encoded, list(loadings_a), factors_of)
        projection.loadings_a, projection.loadings_b = loadings_a, loadings_b
        return projection

    def _required_basis(self, task_id: str) -> SharedBasis:
        if self.basis is None:
            raise SubspaceError(
                "A task that is loadings needs the basis that they are loadings in.",
                where=task_id,
                remedy="make the basis first: with_basis()",
            )
        return self.basis

    def _checked(self, record: TaskRecord, stored: EncodedTask) -> EncodedTask:
        # The numbers of what is coded are known once they are decoded.
        return finite_task(record, stored) if record.in_basis else stored

    def _encode(self, projection: TaskProjection) -> tuple[TaskRecord, EncodedTask]:
        record, encoded = projection.record, projection.encoded
        if record is not None and isinstance(encoded, CodedTask):
            config = dict(projection.config)
            return replace(record, id=projection.task_id, config=config), cast(EncodedTask, encoded)
        if not projection.loadings_a:
            raise SubspaceError(
                "A coded collection takes adapters, or loadings in its basis.",
                where=projection.task_id,
                remedy="make the task with project(adapter, id)",
            )
        basis = self._required_basis(projection.task_id)
        layers = basis.layers_of(self._layers)
        # The factors that loadings stand for are seen beside them, but not stored.
        outside = {
            name: f for name, f in projection.own.items() if name not in projection.loadings_a
        }
        made, loadings = encode_projection(basis.storage, layers, replace(projection, own=outside))
        return replace(made, in_basis=True), loadings
