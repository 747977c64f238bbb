"""Write a coded collection to disk, read its tasks, and decode them module by module."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlora_engine._version import __version__
from vlora_engine.codec.algebra import product
from vlora_engine.codec.blobs import (
    NO_EFFECT,
    Columns,
    OpenedOwn,
    Share,
    Shared,
    SharedCore,
    decode_directions,
    halved,
    open_blob,
    open_groups,
    pack_floats,
)
from vlora_engine.codec.delta import orthonormal
from vlora_engine.codec.floats import MODULE_HEAD, open_floats
from vlora_engine.codec.tables import Array
from vlora_engine.errors import CorruptFileError
from vlora_engine.manifest.coding import Coding
from vlora_engine.manifest.manifest import (
    BasisFile,
    LayerSpec,
    Manifest,
    SharedBasisFiles,
    TaskRecord,
)
from vlora_engine.subspace.coded.basis import SharedBasis
from vlora_engine.subspace.coded.layout import shared_layout, task_layout
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.subspace.soundness import (
    damaged,
    distinct,
    not_as_said,
    nothing,
    require_held,
    stored_tensor,
)
from vlora_engine.subspace.store import CheckedFiles, StoredSubspace
from vlora_engine.subspace.write import require_readable, write_basis, write_index, write_tasks
from vlora_engine.subspace.write import write_task as write_loadings
from vlora_engine.utils.file_names import BASIS_FILE, COMPONENTS_FILE
from vlora_engine.utils.safetensors_file import (
    ITEM_BYTES,
    Header,
    read_elements,
    read_tensor,
    torch_dtype,
)
from vlora_engine.utils.tensor_writer import TensorWriter

_AT_ONCE = 32  # modules of a task that are decoded together
_CACHE_BYTES = 256 << 20  # of decoded groups: the next task asks for the same ones

Factors = tuple[Tensor, Tensor]  # A (r, d_in), B (d_out, r) with the scale folded in


@dataclass
class CodedTask:
    """A coded task: the bytes of its modules, their figures and its rest tensors.

    Args:
        blobs: Bytes of each of its modules. norms: (modules,) fp32 ||dW||.
        errors: (modules,) relative errors. rest: Rest tensors, bit for bit.
    """

    blobs: list[bytes]
    norms: Tensor
    errors: Tensor
    rest: dict[str, Tensor] = field(default_factory=dict)


class SharedBytes(Protocol):
    """The interface of what gives the bytes that groups share."""

    def shared(self, layer: int, group: int) -> bytes:
        """The bytes of one group on one layer."""


@dataclass
class MemoryShared:
    """`SharedBytes` in memory."""

    units: dict[tuple[int, int], bytes]

    def shared(self, layer: int, group: int) -> bytes:
        return self.units[layer, group]


class Decoder:
    """Decodes coded modules into factors, caching the groups used last."""

    def __init__(self, source: SharedBytes) -> None:
        self._source = source
        self._groups: OrderedDict[tuple[int, int], Shared] = OrderedDict()

    def factors(
        self, layers: Sequence[LayerSpec], record: TaskRecord, blobs: Sequence[bytes]
    ) -> dict[str, Factors]:
        """Every module of a task as A (r, d_in) and B (d_out, r) in fp64, padded to its rank.

        Raises:
            CorruptFileError: The bytes are not sound.
        """
        found = self.each(layers, record, blobs)
        return {
            name: pad_factors(a, b, rank)
            for (name, (a, b)), rank in zip(found, record.ranks, strict=True)
        }

    def each(
        self, layers: Sequence[LayerSpec], record: TaskRecord, blobs: Sequence[bytes]
    ) -> Iterator[tuple[str, Factors]]:
        """The same one by one, not padded, which takes less memory."""
        rows = list(zip(record.layers, record.ranks, blobs, strict=True))
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            opened = [(i, layers[i], rank, open_blob(raw)) for i, rank, raw in part]
            for (_, spec, _, _), factors in zip(opened, self._decoded(opened), strict=True):
                yield spec.name, _tensors(*factors)

    def of_layer(
        self, layers: Sequence[LayerSpec], index: int, coded: Sequence[tuple[int, bytes]]
    ) -> list[Factors]:
        """One layer of several tasks, from the rank and the bytes of each: A and B, not padded."""
        spec, out = layers[index], []
        for start in range(0, len(coded), _AT_ONCE):
            part = coded[start : start + _AT_ONCE]
            opened = [(index, spec, rank, open_blob(raw)) for rank, raw in part]
            out += [_tensors(a, b) for a, b in self._decoded(opened)]
        return out

    def _decoded(
        self, opened: Sequence[tuple[int, LayerSpec, int, Any]]
    ) -> list[tuple[Array, Array]]:
        """A (n, d_in) and B (d_out, n) of some modules of one task."""
        groups = self._take(
            {
                (i, blob.group): spec
                for i, spec, _, blob in opened
                if isinstance(blob, Share | SharedCore)
            }
        )
        coded = [
            ((i, blob.group) if isinstance(blob, SharedCore) else (i, -1), spec, blob)
            for i, spec, _, blob in opened
            if isinstance(blob, OpenedOwn | SharedCore)
        ]
        directions = iter(
            decode_directions([_widths(spec, blob, groups.get(key)) for key, spec, blob in coded])
        )
        out = []
        for i, spec, rank, blob in opened:
            if blob is None:
                out.append((np.zeros((0, spec.d_in)), np.zeros((spec.d_out, 0))))
            elif isinstance(blob, Share):
                out.append(_shared(groups[i, blob.group], blob))
            else:
                left, gains, right = next(directions)
                if isinstance(blob, SharedCore) and blob.dense:
                    left, gains, right = left[:rank], gains[:rank], right[:rank]
                if isinstance(blob, SharedCore):
                    columns = _columns(groups[i, blob.group])  # orthonormal by now
                    left, right = product(left, columns.b), product(right, columns.a)
                    gains = gains * blob.step
                b, a = halved(left, gains, right)
                out.append((a, b))
        return out

    def _take(self, wanted: Mapping[tuple[int, int], LayerSpec]) -> dict[tuple[int, int], Shared]:
        """Groups by (layer, number), decoded where they are not held yet."""
        missing = [key for key in wanted if key not in self._groups]
        raw = [(self._source.shared(*k), wanted[k].d_in, wanted[k].d_out) for k in missing]
        for key, part, found in zip(missing, raw, open_groups(raw), strict=True):
            if isinstance(found, Columns):
                # in rows: each task is multiplied by them, and would copy them first
                sides = [np.ascontiguousarray(orthonormal(x)) for x in (found.b, found.a)]
                found = Columns(*sides)
            else:
                spec = wanted[key]
                numbers = max(s.turn.shape[1] for s in found) * (spec.d_in + spec.d_out)
                require_held(numbers, len(part[0]))
            self._groups[key] = found
        out = {}
        for key in wanted:
            self._groups.move_to_end(key)
            out[key] = self._groups[key]
        cached_bytes = sum(map(_nbytes, self._groups.values()))
        while cached_bytes > _CACHE_BYTES:
            cached_bytes -= _nbytes(self._groups.popitem(last=False)[1])
        return out


def _widths(
    spec: LayerSpec, blob: OpenedOwn | SharedCore, group: Shared | None
) -> tuple[OpenedOwn | SharedCore, int, int]:
    """What is to be decoded, with the lengths of its left and right rows."""
    left, right = spec.d_out, spec.d_in
    if isinstance(blob, SharedCore):
        columns = _columns(group)
        left, right = len(columns.b), len(columns.a)
    if len(blob.gains) > max(1, min(left, right)):
        raise _unlike("more directions than there can be")
    return blob, left, right


def _columns(group: Shared | None) -> Columns:
    if not isinstance(group, Columns):
        raise _unlike("a group of another kind")
    return group


def _shared(sides: Shared, share: Share) -> tuple[Array, Array]:
    """A and B of a task from its place in a group's transform."""
    if isinstance(sides, Columns):
        raise _unlike("a group of another kind")
    if [len(m) for m in (share.mix_a, share.mix_b)] != [s.mix.shape[1] for s in sides]:
        raise _unlike("shares in other components")
    a = sides[0].factors(share.mix_a[None])[0]
    bt = sides[1].factors(share.mix_b[None])[0] * share.step
    return a, bt.T


def _nbytes(group: Shared) -> int:
    if isinstance(group, Columns):
        return int(group.a.nbytes + group.b.nbytes)
    return int(sum(side.rows.nbytes for side in group))


class CodedStore(CheckedFiles):
    """The tensor files behind a coded manifest; each is verified when it is first read."""

    def __init__(self, manifest: Manifest, verify: bool = True) -> None:
        assert manifest.coding is not None  # noqa: S101
        super().__init__(manifest, verify)
        self._positions: dict[tuple[int, int], tuple[int, int]] | None = None
        self._ends: dict[str, Array] = {}  # where the modules of a task's file begin and end

    @cached_property
    def of_basis(self) -> StoredSubspace:
        """The basis beside the tasks, and the tasks that are loadings in it."""
        return StoredSubspace(self.manifest.of_basis(), self.verify)

    def close(self) -> None:
        """Let go of the files."""
        super().close()
        if "of_basis" in vars(self):
            self.of_basis.close()

    def hold(self) -> None:
        """See `CheckedFiles.hold`; the basis beside the tasks, too."""
        super().hold()
        if self.manifest.shared_basis is not None:
            self.of_basis.hold()

    def _listed(self) -> Iterator[tuple[str, str, int]]:
        in_basis = {f"tasks/{r.file}" for r in self.manifest.tasks.values() if r.in_basis}
        return (row for row in super()._listed() if row[0] not in in_basis)

    def task(self, record: TaskRecord) -> CodedTask | EncodedTask:
        """Read one task from its file: coded, or loadings in the basis."""
        return self.of_basis.task(record) if record.in_basis else self.coded_task(record)

    def coded_task(self, record: TaskRecord) -> CodedTask:
        """Read one task that is coded."""
        header = self._open(f"tasks/{record.file}", record.sha256, record.nbytes)
        raw, modules = _bytes_of(header, "coded"), len(record.layers)
        head = MODULE_HEAD * modules
        sizes = _sizes(header, raw, modules, len(raw))
        self._check_size(record, [size > len(NO_EFFECT) for size in sizes])
        norms, errors = torch.from_numpy(open_floats(raw, 4 * modules, 2 * modules)).view(2, -1)
        ends = np.cumsum([head, *sizes]).tolist()
        blobs = [raw[a:b] for a, b in pairwise(ends)]
        return CodedTask(blobs, norms.float(), errors.float(), _rest(header, record))

    def blob(self, record: TaskRecord, position: int) -> bytes:
        """The bytes of one module of a coded task, by its position among the task's."""
        header = self._open(f"tasks/{record.file}", record.sha256, record.nbytes)
        _bytes_entry(header, "coded")
        if record.file not in self._ends:
            modules = len(record.layers)
            count = min(4 * modules, header.entries["coded"].nbytes)
            raw = read_elements(header, "coded", 0, count).numpy().tobytes()
            sizes = _sizes(header, raw, modules, header.entries["coded"].nbytes)
            self._ends[record.file] = np.cumsum([MODULE_HEAD * modules, *sizes])
        first, last = self._ends[record.file][position : position + 2].tolist()
        return read_elements(header, "coded", first, last - first).numpy().tobytes()

    def shared(self, layer: int, group: int) -> bytes:
        """The bytes of one group on one layer."""
        basis, coding = self.manifest.basis, self.manifest.coding
        assert coding is not None  # noqa: S101
        if not basis:
            raise _unlike("no shared part", self.manifest.path)
        header = self._open(basis[0].name, basis[0].sha256, basis[0].nbytes)
        if self._positions is None:
            units = coding.units()
            sizes = stored_tensor(header, "sizes", "U32", (len(units),)).tolist()
            ends = np.cumsum([0, *sizes]).tolist()
            self._positions = {u: (ends[i], sizes[i]) for i, u in enumerate(units)}
        if (layer, group) not in self._positions:
            raise _unlike(f"no group {group} on module {layer}", header.path)
        _bytes_entry(header, "coded")
        return read_elements(header, "coded", *self._positions[layer, group]).numpy().tobytes()


def write_coded(
    directory: Path,
    *,
    method: str,
    base_model: str | None,
    layers: Sequence[LayerSpec],
    coding: Coding,
    shared: Iterable[bytes],
    tasks: Iterable[tuple[TaskRecord, CodedTask | EncodedTask]],
    shared_basis: SharedBasis | None = None,
) -> Manifest:
    """Fill the empty ``directory``.

    Args:
        shared: The bytes of `Coding.units`, in their order. tasks: One in memory at a time.
        beside: The basis that is written beside the tasks.
    """
    basis = write_shared(directory, shared, len(layers))
    manifest = Manifest(
        path=directory,
        method=method,
        dtype="U8",
        base_model=base_model,
        layers=tuple(layers),
        basis=basis,
        tasks=write_tasks(directory, tasks, write_task),
        engine=__version__,
        coding=coding,
        shared_basis=None
        if shared_basis is None
        else write_shared_basis(directory, shared_basis, layers),
    )
    require_readable(CodedStore(manifest, verify=False), manifest.tasks)
    write_index(manifest)
    return manifest


def write_shared_basis(
    directory: Path, basis: SharedBasis, layers: Sequence[LayerSpec]
) -> SharedBasisFiles:
    """Write the files of the basis that a coded collection has beside its tasks."""
    specs = basis.layers_of(layers)
    files = write_basis(directory, basis.storage, specs, basis.all_bases(layers), COMPONENTS_FILE)
    return SharedBasisFiles(basis.dtype, tuple((spec.k_a, spec.k_b) for spec in specs), files)


def write_shared(directory: Path, shared: Iterable[bytes], layers: int) -> tuple[BasisFile, ...]:
    """Write the file of what groups share; no file where none do."""
    units = list(shared)
    if not units:
        return ()
    path = directory / BASIS_FILE
    layout = shared_layout(len(units), sum(map(len, units)))
    with TensorWriter(path, layout) as writer:
        writer.write_bytes(np.array([len(unit) for unit in units], dtype="<u4").tobytes())
        for unit in units:
            writer.write_bytes(unit)
    return (BasisFile(BASIS_FILE, writer.sha256, path.stat().st_size, 0, layers),)


def write_task(path: Path, task: CodedTask | EncodedTask) -> str:
    """Write one task's file; return its sha256."""
    if isinstance(task, EncodedTask):
        return write_loadings(path, task)
    rest = [task.rest[key] for key in sorted(task.rest)]
    rest_bytes = sum(t.numel() * t.element_size() for t in rest)
    layout = task_layout(len(task.blobs), sum(map(len, task.blobs)), rest_bytes)
    with TensorWriter(path, layout) as writer:
        for tensor in rest:
            writer.write(tensor)
        writer.write_bytes(np.array([len(b) for b in task.blobs], dtype="<u4").tobytes())
        for figures in (task.norms, task.errors):
            writer.write_bytes(pack_floats(figures.numpy()))
        for blob in task.blobs:
            writer.write_bytes(blob)
    return writer.sha256


def pad_factors(a: Tensor, b: Tensor, rank: int) -> Factors:
    """Factors A (n, d_in) and B (d_out, n) with rows of zeros up to ``rank``.

    Where there is nothing but zeros, they take no memory. Other zeros take none until they are
    copied: both are rows of an array that numpy has not touched yet, B as its transpose.
    """
    if rank <= len(a):
        return a, b
    if not len(a):
        return nothing((rank, a.shape[1]), a.dtype), nothing((len(b), rank), b.dtype)
    out = []
    for rows in (a, b.T):
        padded = np.zeros((rank, rows.shape[1]), dtype=rows.numpy().dtype)
        padded[: len(rows)] = rows.numpy()
        out.append(torch.from_numpy(padded))
    return out[0], out[1].T


def used_rows(a: Tensor, b: Tensor) -> int:
    """How many rows of A (r, d_in) and columns of B (d_out, r) come before there are but zeros."""
    if distinct(a) is not a and not bool(distinct(a).any()):
        return 0
    some = a.any(1) & b.any(0)
    return int(some.nonzero().max()) + 1 if bool(some.any()) else 0


def _tensors(a: Array, b: Array) -> Factors:
    return torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))


def _sizes(header: Header, raw: bytes, modules: int, nbytes: int) -> list[int]:
    """The bytes of each module, from the ``raw`` ones that a coded task of ``nbytes`` begins with.

    Raises:
        CorruptFileError: They do not fill the task.
    """
    if nbytes < MODULE_HEAD * modules:
        raise _unlike(f"{nbytes} bytes for {modules} modules", header.path)
    sizes: list[int] = np.frombuffer(raw, "<u4", modules).tolist()
    if sum(sizes) != nbytes - MODULE_HEAD * modules:
        raise _unlike(f"{nbytes} bytes for modules of {sum(sizes)}", header.path)
    return sizes


def _rest(header: Header, record: TaskRecord) -> dict[str, Tensor]:
    """The rest tensors of a task, which lie one after the other."""
    raw = bytearray(_bytes_of(header, "rest") if "rest" in header.entries else b"")
    sizes = [math.prod(shape) * ITEM_BYTES[dtype] for _, dtype, shape in record.kept]
    if sum(sizes) != len(raw):
        raise _unlike(f"{len(raw)} bytes for rest tensors of {sum(sizes)}", header.path)
    out, at = {}, 0
    for (key, dtype, shape), size in zip(record.kept, sizes, strict=True):
        whole = torch.zeros(shape, dtype=torch_dtype(dtype))
        if size:
            whole = torch.frombuffer(raw[at : at + size], dtype=whole.dtype).reshape(shape)
        out[key] = whole
        at += size
    return out


def _bytes_of(header: Header, name: str) -> bytes:
    _bytes_entry(header, name)
    return read_tensor(header, name).numpy().tobytes()


def _bytes_entry(header: Header, name: str) -> None:
    entry = header.entries.get(name)
    if entry is None or entry.dtype != "U8" or len(entry.shape) != 1:
        raise not_as_said(header, name, "no such bytes", "what was written")


def _unlike(found: str, where: Path | None = None) -> CorruptFileError:
    return damaged("Coded data do not fit.", found, "what was written", where)
