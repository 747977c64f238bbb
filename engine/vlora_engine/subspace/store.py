"""Open a subspace's directory lazily, and check every byte read.

``basis.safetensors`` holds one pooled tensor of all components (layer after layer, side a before
side b), ``tasks/<slug>.safetensors`` one pooled tensor of a task's loadings; where each module
begins follows from the shapes in subspace.json. What is packed lies there as one pooled tensor of
bytes and one of scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vlora_engine.errors import CorruptFileError, VLoRAError
from vlora_engine.manifest.manifest import BasisFile, LayerSpec, Manifest, TaskRecord
from vlora_engine.quantization.packed import PackedBasis, PackedRows
from vlora_engine.quantization.packing import Packing
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.layout import basis_layout, behind, offsets_of
from vlora_engine.subspace.loadings import EncodedTask, Loadings, Storage, decode_loadings, unpack
from vlora_engine.subspace.soundness import check_size, damaged, not_as_said, stored_tensor
from vlora_engine.utils.files import sha256_file
from vlora_engine.utils.safetensors_file import (
    Header,
    close_file,
    read_elements,
    read_header,
    read_tensor,
    with_bytes,
)

_TASK_TENSORS = ({"loadings", "norms", "errors"}, {"coded"})


def unlisted_task_files(manifest: Manifest) -> list[Path]:
    """Files of tasks that no index names: what a command that was killed had written, or dropped.

    Files of others are none, whatever their names.
    """
    listed = {record.file for record in manifest.tasks.values()}
    files = sorted((manifest.path / "tasks").glob("*.safetensors"))
    return [file for file in files if file.name not in listed and _is_task_file(file)]


def _is_task_file(path: Path) -> bool:
    try:
        tensors = set(read_header(path).entries)
    except CorruptFileError:
        return True  # the writing was cut short
    except VLoRAError:
        return False
    return any(names <= tensors for names in _TASK_TENSORS)


class Store(Protocol):
    """The interface of what reads tasks from a subspace's directory."""

    manifest: Manifest
    verify: bool

    def task(self, record: TaskRecord) -> Any:
        """One task as it lies on disk, in the form of this way of storing."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...

    def hold(self) -> None:
        """Read all files into memory, as they are, so that they may be deleted."""
        ...


class CheckedFiles:
    """The tensor files of a manifest; a file's checksum is verified when it is first read."""

    def __init__(self, manifest: Manifest, verify: bool = True) -> None:
        self.manifest, self.verify = manifest, verify
        self._headers: dict[str, Header] = {}

    def close(self) -> None:
        """Let go of the files."""
        for name in self._headers:
            close_file(self.manifest.path / name)

    def hold(self) -> None:
        """Read all files into memory, as they are, so that they may be deleted.

        Raises:
            VLoRAError: One of them is not sound, or cannot be read; it is left where it is.
        """
        for name, sha256, nbytes in self._listed():
            self._headers[name] = with_bytes(self._open(name, sha256, nbytes))

    def _listed(self) -> Iterator[tuple[str, str, int]]:
        """Name, sha256 and bytes of every file that is read here."""
        yield from ((basis.name, basis.sha256, basis.nbytes) for basis in self.manifest.basis)
        for record in self.manifest.tasks.values():
            yield f"tasks/{record.file}", record.sha256, record.nbytes

    def _check_size(self, record: TaskRecord, holds: Sequence[bool]) -> None:
        """Refuse a task that is said to be larger than its files can stand for.

        Args:
            holds: Of each of its modules: whether any number is stored of it.
        """
        path, task = self.manifest.path, self.manifest.path / "tasks" / record.file
        files = [task, *(path / basis.name for basis in self.manifest.files)]
        check_size(record, self.manifest.layers, holds, files, task)

    def _open(self, name: str, sha256: str, nbytes: int) -> Header:
        if name not in self._headers:
            path = self.manifest.path / name
            header = read_header(path)
            if header.file_bytes != nbytes or (self.verify and sha256_file(path) != sha256):
                raise altered(path)
            self._headers[name] = header
        return self._headers[name]


class StoredSubspace(CheckedFiles):
    """Bases and tasks of a subspace on disk."""

    def __init__(self, manifest: Manifest, verify: bool = True) -> None:
        super().__init__(manifest, verify)
        self.storage = Storage(manifest.method, manifest.dtype, manifest.quantization)
        self._offsets = offsets_of(manifest, self.storage)

    def basis(self, index: int) -> LayerBasis:
        """The basis of the layer with this index, as numbers."""
        stored = self.stored_basis(index)
        return stored if isinstance(stored, LayerBasis) else LayerBasis.unpacked(stored)

    def stored_basis(self, index: int) -> LayerBasis | PackedBasis:
        """The basis of the layer with this index as it lies on disk."""
        spec = self.manifest.layers[index]
        shard = next(b for b in self.manifest.basis if b.first <= index < b.last)
        header = self._shard(shard)
        values = read_elements(
            header, "singular_values", self._offsets[index].singular_values, spec.k_a + spec.k_b
        )
        read = self._plain_rows if self.storage.quantization is None else self._packed_rows
        return read(
            header,
            index,
            index - shard.first,
            name=spec.name,
            singular_values_a=values[: spec.k_a],
            singular_values_b=values[spec.k_a :],
            rank=spec.rank,
        )

    def _shard(self, shard: BasisFile) -> Header:
        """A file of the basis whose tensors hold the kind of numbers that they should."""
        if shard.name in self._headers:
            return self._headers[shard.name]
        header = self._open(shard.name, shard.sha256, shard.nbytes)
        layers = self.manifest.layers[shard.first : shard.last]
        for name, dtype, _ in basis_layout(self.storage, layers):
            entry = header.entries.get(name)
            if entry is not None and entry.dtype != dtype:
                del self._headers[shard.name]
                raise not_as_said(header, name, entry.dtype, dtype)
        return header

    def _plain_rows(self, header: Header, index: int, position: int, **fields: Any) -> LayerBasis:
        spec, method, at = self.manifest.layers[index], self.manifest.method, self._offsets[index]
        size_a, size_b = spec.basis_elements(method)
        both = read_elements(header, "components", at.components, size_a + size_b).float()
        means: dict[str, Any] = {}
        if method == "flat":
            sizes = spec.mean_elements("flat")
            raw = read_elements(header, "means", at.means, sum(sizes)).split(sizes)
            powers = read_elements(header, "mean_exponents", 2 * position, 2)
            for i, name in enumerate(("mean_a", "mean_b")):
                means[name] = unpack(raw[i].unsqueeze(0), powers[i : i + 1])[0].float()
        shape_a, shape_b = spec.basis_shapes(method)
        return LayerBasis(
            a=both[:size_a].reshape(shape_a), b=both[size_a:].reshape(shape_b), **means, **fields
        )

    def _packed_rows(self, header: Header, index: int, position: int, **fields: Any) -> PackedBasis:
        quantization, spec = self.storage.quantization, self.manifest.layers[index]
        assert quantization is not None  # noqa: S101
        at, method = self._offsets[index], self.manifest.method
        rows: dict[str, Any] = dict(
            zip(
                "ab",
                _read_packed(
                    header, "", quantization.basis, at.packed, spec.basis_shapes(method), (0, 0)
                ),
                strict=True,
            )
        )
        if method == "flat":
            powers = read_elements(header, "mean_exponents", 2 * position, 2).tolist()
            shapes = [(size,) for size in spec.mean_elements("flat")]
            means = _read_packed(
                header, "mean_", quantization.means, at.packed_means, shapes, powers
            )
            rows |= dict(zip(("mean_a", "mean_b"), means, strict=True))
        return PackedBasis(**rows, **fields)

    def task(self, record: TaskRecord) -> EncodedTask:
        """One task as it lies on disk."""
        modules = len(record.layers)
        forms = [
            self.storage.form(rank, self.manifest.layers[i].k_a, self.manifest.layers[i].k_b)
            for i, rank in zip(record.layers, record.ranks, strict=True)
        ]
        self._check_size(record, [not form.is_nothing for form in forms])
        header = self._open(f"tasks/{record.file}", record.sha256, record.nbytes)
        packs = self.storage.loadings_packing is not None
        dtype = "U8" if packs else self.manifest.dtype
        values = stored_tensor(header, "loadings", dtype, (sum(form.elements for form in forms),))
        extra: dict[str, Any] = {"exponents": torch.zeros(modules, 2, dtype=torch.int8)}
        if packs or self.manifest.dtype == "F16":
            extra["exponents"] = stored_tensor(header, "exponents", "I8", (modules, 2))
        if packs:
            count = sum(form.scales for form in forms)
            extra["scales"] = stored_tensor(header, "scales", "F16", (count,))
        own = {
            o.name: (read_tensor(header, f"own/{o.name}/A"), read_tensor(header, f"own/{o.name}/B"))
            for o in record.own
        }
        rest = {
            name.removeprefix("rest/"): read_tensor(header, name)
            for name in header.entries
            if name.startswith("rest/")
        }
        return EncodedTask(
            values=values,
            norms=stored_tensor(header, "norms", "F32", (modules,)),
            errors=stored_tensor(header, "errors", "F32", (modules,)),
            own=own,
            rest=rest,
            **extra,
        )


def altered(path: Path) -> CorruptFileError:
    """The error for a file whose bytes are not those that subspace.json vouches for."""
    what = "The file was changed after the subspace was written."
    return damaged(what, "other bytes", "the sha256 that subspace.json names", path)


def decode_task(
    storage: Storage,
    layers: Sequence[LayerSpec],
    record: TaskRecord,
    task: EncodedTask,
    only: int | None = None,
) -> Iterator[tuple[LayerSpec, Tensor, Tensor]]:
    """The loadings of every module: a (r, k_a) and b (r, k_b), or (k,) each for `flat`; fp64.

    Args:
        only: The one module that is wanted, by its position among the task's.
    """
    start = first = 0
    for i, (index, rank) in enumerate(zip(record.layers, record.ranks, strict=True)):
        spec = layers[index]
        form = storage.form(rank, spec.k_a, spec.k_b)
        end, last = start + form.elements, first + form.scales
        if only in (None, i):
            values, scales = task.values[start:end], task.scales[first:last]
            a, b = decode_loadings(
                form, Loadings(values[None], task.exponents[i : i + 1], scales[None])
            )
            yield spec, a[0], b[0]
        start, first = end, last


def _read_packed(
    header: Header,
    prefix: str,
    packing: Packing,
    at: tuple[int, int, int],
    shapes: Sequence[tuple[int, ...]],
    exponents: Sequence[int],
) -> list[PackedRows]:
    """The packed sides of one layer, one after the other."""
    found = []
    for shape, exponent in zip(shapes, exponents, strict=True):
        count = math.prod(shape)
        steps = torch.empty(0)
        if packing.double_quant:
            steps = read_elements(header, f"{prefix}steps", at[2], packing.groups(count))
        codes = read_elements(header, f"{prefix}codes", at[0], packing.code_bytes(count))
        scales = read_elements(header, f"{prefix}scales", at[1], packing.blocks(count))
        found.append(PackedRows(packing, shape, codes, scales, steps, exponent))
        at = behind(at, packing, [count])
    return found
