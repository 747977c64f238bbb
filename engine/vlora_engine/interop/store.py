"""Open a peer's subspace as a `BasisSpace`; bases and tasks are read when they are asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlora_engine.interop.common import read_index, shape_of, unsound
from vlora_engine.interop.lorashare import COMPONENTS_FILE, HEADS_FILE, LOADINGS_FILE
from vlora_engine.interop.names import VLORA_DEV
from vlora_engine.interop.vlora_dev import open_files
from vlora_engine.linalg.low_rank import delta_norm2
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.records import figure
from vlora_engine.quantization.nf4 import NF4_QUANT_TABLE
from vlora_engine.subspace.basis import Bases, LayerBasis
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.loadings import EncodedTask, Storage, encode_loadings, join_loadings
from vlora_engine.subspace.store import StoredSubspace
from vlora_engine.subspace.tasks import TaskMap
from vlora_engine.utils.file_names import VLORA_INDEX
from vlora_engine.utils.safetensors_file import Header, close_below, read_header, read_tensor

ORTHONORMAL = 1e-5  # how far components may be from orthonormal to be taken as they are


class Raw(NamedTuple):
    """The shared part of one side of a layer as the peer has it.

    Args:
        rows: (k, d), or (k, r * d) of vlora-dev, fp32.
        mean: Of vlora-dev, else None. values: (k,) singular values; zeros where none are kept.
    """

    rows: Tensor
    mean: Tensor | None
    values: Tensor


class PeerStore(StoredSubspace):
    """Bases and tasks of a peer's subspace.

    Our methods rely on orthonormal bases. Components that are not (packed ones, those that
    vlora-dev has quantized) are turned into such, and loadings with them: what they stand for
    stays to the rounding of fp32.
    """

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest, verify=False)
        self.storage = Storage(manifest.method, "F32")
        self._turns: dict[tuple[int, str], Tensor | None] = {}
        self._peer_headers: dict[Path, Header] = {}
        self._last: tuple[str, EncodedTask] | None = None

    def hold(self) -> None:
        """Nothing: without checksums what is read later is as good as what is read now."""

    def close(self) -> None:
        """Let go of the files."""
        close_below(self.manifest.path)

    def raw(self, index: int, side: str) -> Raw:
        """One side of a layer as the peer's file has it."""
        raise NotImplementedError

    def raw_loadings(self, record: TaskRecord, spec: LayerSpec, side: str) -> Tensor:
        """A task's loadings: (k,) of vlora-dev, (r, k) of lorashare; fp32."""
        raise NotImplementedError

    def rest(self, record: TaskRecord) -> dict[str, Tensor]:
        """A task's rest tensors."""
        return {}

    def stored_basis(self, index: int) -> LayerBasis:
        """The orthonormal basis of a layer."""
        spec = self.manifest.layers[index]
        parts: dict[str, Any] = {}
        for side in ("a", "b"):
            raw = self.raw(index, side)
            parts[side], self._turns[index, side] = orthonormalized(raw.rows)
            parts |= {f"singular_values_{side}": raw.values, f"mean_{side}": raw.mean}
        return LayerBasis(name=spec.name, rank=spec.rank, **parts)

    def task(self, record: TaskRecord) -> EncodedTask:
        """One task in the orthonormal bases, with the norms of what it stands for."""
        if self._last is None or self._last[0] != record.id:  # its record asks for its norms, too
            self._last = record.id, self._read(record)
        return self._last[1]

    def _read(self, record: TaskRecord) -> EncodedTask:
        loadings, norms = [], []
        for i, rank, scale in zip(record.layers, record.ranks, record.scales, strict=True):
            spec = self.manifest.layers[i]
            basis = self._basis(i)
            sides = [self._loadings(record, i, side) for side in ("a", "b")]
            form = self.storage.form(rank, spec.k_a, spec.k_b)
            loadings.append(encode_loadings(form, sides[0][None], sides[1][None], "F32").of(0))
            a, bt = (
                basis.expand(self.manifest.method, side, loadings_of_side[None])[:, :rank]
                for side, loadings_of_side in zip("ab", sides, strict=True)
            )
            norms.append(abs(scale) * float(delta_norm2(a, bt.transpose(1, 2))[0]) ** 0.5)
        return EncodedTask(
            **join_loadings(self.storage, loadings),
            norms=torch.tensor(norms, dtype=torch.float32),
            errors=torch.zeros(len(norms)),
            rest=self.rest(record),
        )

    def _loadings(self, record: TaskRecord, index: int, side: str) -> Tensor:
        """In the orthonormal basis, fp64."""
        raw = self.raw_loadings(record, self.manifest.layers[index], side).double()
        if (index, side) not in self._turns:
            self._basis(index)
        turn = self._turns[index, side]
        return raw if turn is None else raw @ turn

    def _basis(self, index: int) -> LayerBasis:
        return self.bases[self.manifest.layers[index].name]

    @property
    def bases(self) -> Bases:
        """The bases of all layers, each read once."""
        if not hasattr(self, "_bases"):
            positions = {spec.name: i for i, spec in enumerate(self.manifest.layers)}
            self._bases = Bases(list(positions), lambda name: self.stored_basis(positions[name]))
        return self._bases

    def _header(self, path: Path) -> Header:
        if path not in self._peer_headers:
            self._peer_headers[path] = read_header(path)
        return self._peer_headers[path]


class VloraStore(PeerStore):
    """The files of a vlora-dev subspace."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._files = open_files(manifest.path, read_index(manifest.path / VLORA_INDEX))

    def raw(self, index: int, side: str) -> Raw:
        spec = self.manifest.layers[index]
        k, width = spec.basis_shapes("flat")[side == "b"]
        numbers = self._files.numbers
        mean = torch.zeros(width)
        if f"{spec.name}.mean_{side}" in numbers.entries:  # older files have none
            mean = _tensor(numbers, f"{spec.name}.mean_{side}", (width,))
        values = torch.zeros(k)
        if f"{spec.name}.sv_{side}" in numbers.entries:
            stored = read_tensor(numbers, f"{spec.name}.sv_{side}").float().reshape(-1)[:k]
            values[: len(stored)] = stored
        if self._files.codes is None:
            rows = _tensor(numbers, f"{spec.name}.components_{side}", (k, width))
        else:
            rows = self._unpacked(self._files.codes, f"{spec.name}.{{}}_{side}", k, width)
        return Raw(rows, mean, values)

    def _unpacked(self, codes: Header, name: str, k: int, width: int) -> Tensor:
        """Rows (k, width) from NF4 codes, the high half of a byte first; levels of four digits."""
        packed = read_tensor(codes, name.format("packed")).reshape(-1)
        scales = read_tensor(codes, name.format("scales")).float().reshape(-1)
        both = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1).long()
        count = k * width
        levels = NF4_QUANT_TABLE.float().round(decimals=4)[both[:count]]
        return (levels * scales.repeat_interleave(self._files.block)[:count]).reshape(k, width)

    def raw_loadings(self, record: TaskRecord, spec: LayerSpec, side: str) -> Tensor:
        header = self._header(self.manifest.path / record.file)
        k = spec.k_a if side == "a" else spec.k_b
        return _tensor(header, f"{spec.name}.loadings_{side}", (k,))


class ShareStore(PeerStore):
    """The files of a lorashare checkpoint."""

    def raw(self, index: int, side: str) -> Raw:
        spec = self.manifest.layers[index]
        header = self._header(self.manifest.path / COMPONENTS_FILE)
        k, d = spec.basis_shapes("columns")[side == "b"]
        rows = _tensor(header, f"{spec.name}:{side.upper()}", (d, k)).T.contiguous()
        return Raw(rows, None, torch.zeros(k))

    def raw_loadings(self, record: TaskRecord, spec: LayerSpec, side: str) -> Tensor:
        header = self._header(self.manifest.path / record.file / LOADINGS_FILE)
        k = spec.k_a if side == "a" else spec.k_b
        names = [layer.name for layer in self.manifest.layers]
        rank = record.ranks[record.layers.index(names.index(spec.name))]
        return _tensor(header, f"{spec.name}:{side.upper()}", (k, rank)).T.contiguous()

    def rest(self, record: TaskRecord) -> dict[str, Tensor]:
        path = self.manifest.path / record.file / HEADS_FILE
        if not os.path.lexists(path):
            return {}
        header = self._header(path)
        return {name: read_tensor(header, name) for name in sorted(header.entries)}


class PeerTasks(TaskMap):
    """The tasks of a peer; what a record says of the norm is known once it is asked for."""

    def record(self, task_id: str) -> TaskRecord:
        """What is known of one task; see `TaskMap`."""
        record = super().record(task_id)
        if record.origin and not record.norm and task_id not in self._encoded:
            assert self._stored is not None  # noqa: S101  (what is not encoded is stored)
            norms = self._stored.task(record).norms.double()
            record = replace(record, norm=figure(float(norms.square().sum().sqrt())))
            self._records[task_id] = record
        return record

    def records(self) -> list[TaskRecord]:
        """What is known of every task; see `TaskMap`."""
        return [self.record(name) for name in self._records]


def store_of(manifest: Manifest) -> PeerStore:
    """The store that reads this peer's files."""
    return VloraStore(manifest) if manifest.peer == VLORA_DEV else ShareStore(manifest)


def open_peer(manifest: Manifest) -> BasisSpace:
    """Open a peer's subspace; it has no home, so that it is saved elsewhere."""
    store = store_of(manifest)
    space = BasisSpace(
        method=manifest.method,
        dtype=manifest.dtype,
        layers=list(manifest.layers),
        bases=store.bases,
        tasks=PeerTasks(store.storage, manifest.layers, store),
        base_model=manifest.base_model,
    )
    space.notes = [finding.what for finding in manifest.findings]
    return space


def orthonormalized(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Orthonormal rows (k, d) of the same span, and the matrix (k, k) that converts loadings.

    The matrix is None where the rows are orthonormal as they are.
    """
    if not len(rows):
        return rows, None
    wide = rows.double()
    off = (wide @ wide.T - torch.eye(len(rows), dtype=torch.float64)).abs().amax()
    if float(off) <= ORTHONORMAL:
        return rows, None
    q, r = torch.linalg.qr(wide.T)  # rows^T = q r, so that l @ rows = (l @ r^T) @ q^T
    return q.T.float().contiguous(), r.T


def _tensor(header: Header, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of exactly this shape as finite fp32.

    Raises:
        CorruptFileError: It is not there, has another shape or holds NaN.
    """
    if shape_of(header, name, len(shape)) != shape:
        raise unsound(
            header.path, f"{name!r} of shape {list(shape)}", f"{list(header.entries[name].shape)}"
        )
    tensor = read_tensor(header, name).float()
    if not bool(torch.isfinite(tensor).all()):
        raise unsound(header.path, f"finite numbers in {name!r}", "NaN or infinity")
    return tensor
