"""A coded collection on disk: writing it, reading one task of it, decoding one module at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlora_engine._version import __version__
from vlora_engine.codec.blobs import (
    Columns,
    OpenedOwn,
    Share,
    SharedCore,
    decode_core,
    decode_own,
    halved,
    open_blob,
    open_group,
)
from vlora_engine.codec.coding import Coding
from vlora_engine.codec.delta import orthonormal
from vlora_engine.codec.layout import shared_layout, task_layout
from vlora_engine.codec.tables import Array
from vlora_engine.errors import CorruptFileError
from vlora_engine.files import sha256_file
from vlora_engine.manifest import BasisFile, LayerSpec, Manifest, TaskRecord
from vlora_engine.store import altered, write_index
from vlora_engine.tensorfile import (
    Header,
    TensorWriter,
    close_file,
    dtype_name,
    read_elements,
    read_header,
    read_tensor,
    write_error,
)

SHARED_FILE = "basis.safetensors"
_KEPT = 4  # decoded groups that are held: a task's modules ask for one after the other

Factors = tuple[Tensor, Tensor]  # A (r, d_in), B (d_out, r) with the scale folded in


@dataclass
class CodedTask:
    """One task as it lies on disk.

    Args:
        blobs: Bytes of each of its modules. norms: (modules,) fp32 ||dW||.
        errors: (modules,) relative errors. rest: Rest tensors, bit for bit.
    """

    blobs: list[bytes]
    norms: Tensor
    errors: Tensor
    rest: dict[str, Tensor] = field(default_factory=dict)


class SharedBytes(Protocol):
    """Where what groups share is had from."""

    def shared(self, layer: int, group: int) -> bytes:
        """The bytes of one group on one layer."""


@dataclass
class MemoryShared:
    """`SharedBytes` in memory."""

    units: dict[tuple[int, int], bytes]

    def shared(self, layer: int, group: int) -> bytes:
        return self.units[layer, group]


class Decoder:
    """Turns coded modules back into factors."""

    def __init__(self, source: SharedBytes) -> None:
        self._source = source
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def factors(
        self, layers: Sequence[LayerSpec], record: TaskRecord, blobs: Sequence[bytes]
    ) -> dict[str, Factors]:
        """Every module of a task as A (r, d_in) and B (d_out, r) in fp64, padded to its rank.

        Raises:
            CorruptFileError: The bytes are not sound.
        """
        specs = [layers[i] for i in record.layers]
        opened = [open_blob(raw) for raw in blobs]
        own = [
            (blob, spec.d_out, spec.d_in)
            for blob, spec in zip(opened, specs, strict=True)
            if isinstance(blob, OpenedOwn)
        ]
        if any(len(blob.gains) > max(1, min(d_out, d_in)) for blob, d_out, d_in in own):
            raise _unlike("more directions than the module has")
        decoded = iter(decode_own(own))
        found: dict[str, Factors] = {}
        for index, spec, rank, blob in zip(record.layers, specs, record.ranks, opened, strict=True):
            if blob is None:
                b, a = np.zeros((spec.d_out, 0)), np.zeros((0, spec.d_in))
            elif isinstance(blob, OpenedOwn):
                b, a = next(decoded)
            elif isinstance(blob, Share):
                b, a = self._share(index, spec, blob)
            else:
                b, a = self._core(index, spec, blob)
            found[spec.name] = _padded(a, b, rank)
        return found

    def _share(self, index: int, spec: LayerSpec, share: Share) -> tuple[Array, Array]:
        sides = self._group(index, spec, share.group)
        if isinstance(sides, Columns) or sides[0].turn.shape[1] != sides[1].turn.shape[1]:
            raise _unlike("a group of another kind")
        if [len(m) for m in (share.mix_a, share.mix_b)] != [s.mix.shape[1] for s in sides]:
            raise _unlike("shares in other components")
        a = sides[0].factors(share.mix_a[None])[0]
        bt = sides[1].factors(share.mix_b[None])[0] * share.step
        return bt.T, a

    def _core(self, index: int, spec: LayerSpec, core: SharedCore) -> tuple[Array, Array]:
        columns = self._group(index, spec, core.group)
        if not isinstance(columns, Columns):
            raise _unlike("a group of another kind")
        q_b, q_a = columns.b, columns.a  # orthonormal by now
        left, gains, right = decode_core(core, len(q_b), len(q_a))
        return halved(left @ q_b, gains * core.step, right @ q_a)

    def _group(self, index: int, spec: LayerSpec, group: int) -> Any:
        if (index, group) not in self._groups:
            found = open_group(self._source.shared(index, group), spec.d_in, spec.d_out)
            if isinstance(found, Columns):
                found = Columns(orthonormal(found.b), orthonormal(found.a))
            self._groups[index, group] = found
        self._groups.move_to_end((index, group))
        while len(self._groups) > _KEPT:
            self._groups.popitem(last=False)
        return self._groups[index, group]


class CodedStore:
    """The tensor files behind a coded manifest; each is verified when it is first read."""

    def __init__(self, manifest: Manifest, verify: bool = True) -> None:
        assert manifest.coding is not None  # noqa: S101
        self.manifest = manifest
        self._verify = verify
        self._headers: dict[str, Header] = {}
        self._places: dict[tuple[int, int], tuple[int, int]] | None = None

    def task(self, record: TaskRecord) -> CodedTask:
        """One task as it lies on disk."""
        header = self._open(f"tasks/{record.file}", record.sha256, record.nbytes)
        sizes = _named(header, "sizes", (len(record.layers),)).tolist()
        figures = _named(header, "figures", (2, len(record.layers)))
        raw = read_tensor(header, "coded").numpy().tobytes()
        if sum(sizes) != len(raw):
            raise _unlike(f"{len(raw)} bytes for modules of {sum(sizes)}", header.path)
        ends = np.cumsum([0, *sizes]).tolist()
        rest = {
            name.removeprefix("rest/"): read_tensor(header, name)
            for name in header.entries
            if name.startswith("rest/")
        }
        blobs = [raw[a:b] for a, b in pairwise(ends)]
        return CodedTask(blobs, figures[0], figures[1], rest)

    def shared(self, layer: int, group: int) -> bytes:
        """The bytes of one group on one layer."""
        basis, coding = self.manifest.basis, self.manifest.coding
        assert coding is not None  # noqa: S101
        if not basis:
            raise _unlike("no shared part", self.manifest.path)
        header = self._open(basis[0].name, basis[0].sha256, basis[0].nbytes)
        if self._places is None:
            units = coding.units()
            sizes = _named(header, "sizes", (len(units),)).tolist()
            ends = np.cumsum([0, *sizes]).tolist()
            self._places = {u: (ends[i], sizes[i]) for i, u in enumerate(units)}
        if (layer, group) not in self._places:
            raise _unlike(f"no group {group} on layer {layer}", header.path)
        return read_elements(header, "coded", *self._places[layer, group]).numpy().tobytes()

    def close(self) -> None:
        """Let go of the files."""
        for name in self._headers:
            close_file(self.manifest.path / name)

    def _open(self, name: str, sha256: str, nbytes: int) -> Header:
        if name not in self._headers:
            path = self.manifest.path / name
            header = read_header(path)
            if header.file_bytes != nbytes or (self._verify and sha256_file(path) != sha256):
                raise altered(path)
            self._headers[name] = header
        return self._headers[name]


def write_coded(
    directory: Path,
    *,
    method: str,
    base_model: str | None,
    layers: Sequence[LayerSpec],
    coding: Coding,
    shared: Iterable[bytes],
    tasks: Iterable[tuple[TaskRecord, CodedTask]],
) -> Manifest:
    """Fill the empty ``directory``.

    Args:
        shared: The bytes of `Coding.units`, in their order. tasks: One in memory at a time.
    """
    basis = write_shared(directory, coding, shared, len(layers))
    try:
        (directory / "tasks").mkdir()
    except OSError as error:
        raise write_error(directory, error) from None
    records: dict[str, TaskRecord] = {}
    for record, task in tasks:
        path = directory / "tasks" / record.file
        sha256 = write_task(path, task)
        records[record.id] = replace(record, sha256=sha256, nbytes=path.stat().st_size)
    manifest = Manifest(
        path=directory,
        method=method,
        dtype="U8",
        base_model=base_model,
        layers=tuple(layers),
        basis=basis,
        tasks=records,
        engine=__version__,
        coding=coding,
    )
    write_index(manifest)
    return manifest


def write_shared(
    directory: Path, coding: Coding, shared: Iterable[bytes], layers: int
) -> tuple[BasisFile, ...]:
    """Write what groups share, if any do."""
    units = list(shared)
    if not units:
        return ()
    path = directory / SHARED_FILE
    layout = shared_layout(len(units), sum(map(len, units)))
    with TensorWriter(path, layout) as writer:
        writer.write_bytes(np.array([len(unit) for unit in units], dtype="<u4").tobytes())
        for unit in units:
            writer.write_bytes(unit)
    return (BasisFile(SHARED_FILE, writer.sha256, path.stat().st_size, 0, layers),)


def write_task(path: Path, task: CodedTask) -> str:
    """Write one task's file; return its sha256."""
    rest = {key: (dtype_name(t.dtype), tuple(t.shape)) for key, t in task.rest.items()}
    layout = task_layout(len(task.blobs), sum(map(len, task.blobs)), rest)
    with TensorWriter(path, layout) as writer:
        writer.write_bytes(np.array([len(b) for b in task.blobs], dtype="<u4").tobytes())
        writer.write(torch.stack([task.norms.float(), task.errors.float()]))
        for key in sorted(task.rest):
            writer.write(task.rest[key])
        for blob in task.blobs:
            writer.write_bytes(blob)
    return writer.sha256


def pad_factors(a: Tensor, b: Tensor, rank: int) -> Factors:
    """Factors A (n, d_in) and B (d_out, n) with rows of zeros up to ``rank``."""
    missing = rank - a.shape[0]
    if missing <= 0:
        return a, b
    return (
        torch.nn.functional.pad(a, (0, 0, 0, missing)),
        torch.nn.functional.pad(b, (0, missing)),
    )


def _padded(a: Array, b: Array, rank: int) -> Factors:
    return pad_factors(
        torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b)), rank
    )


def _named(header: Header, name: str, shape: tuple[int, ...]) -> Tensor:
    entry = header.entries.get(name)
    if entry is None or entry.shape != shape:
        raise _unlike("no such tensor" if entry is None else f"{entry.shape}", header.path, name)
    return read_tensor(header, name)


def _unlike(found: str, where: Path | None = None, name: str = "") -> CorruptFileError:
    return CorruptFileError(
        f"Tensor {name!r} is not what subspace.json says." if name else "Coded data do not fit.",
        where=where,
        expected="what was written",
        found=found,
        remedy="restore the file from a copy, or compress the adapters again",
    )
