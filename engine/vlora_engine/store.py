"""A subspace on disk: writing it in one step, opening it lazily, checking every byte read.

``basis.safetensors`` holds one pooled tensor of all components (layer after layer, side a before
side b), ``tasks/<slug>.safetensors`` one pooled tensor of a task's loadings; where each module
begins follows from the shapes in subspace.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlora_engine._version import __version__
from vlora_engine.card import model_card
from vlora_engine.encode import EncodedTask, LoadingsForm, decode_loadings, pack, unpack
from vlora_engine.errors import CorruptFileError
from vlora_engine.files import sha256_file, write_file, write_json
from vlora_engine.layer import LayerBasis
from vlora_engine.manifest import INDEX, BasisFile, LayerSpec, Manifest, TaskRecord
from vlora_engine.naming import slugs
from vlora_engine.tensorfile import (
    ITEM_BYTES,
    Header,
    TensorWriter,
    close_file,
    dtype_name,
    read_elements,
    read_header,
    read_tensor,
    torch_dtype,
    write_error,
)

MAX_SHARD_BYTES = 4_000_000_000
_NUMBERED = "basis-{:05d}-of-{:05d}.safetensors"


def write_basis(
    directory: Path,
    method: str,
    dtype: str,
    layers: Sequence[LayerSpec],
    bases: Iterable[LayerBasis],
) -> tuple[BasisFile, ...]:
    """Write the shared bases, layer by layer; shards break between layers."""
    ranges = _shards(method, dtype, layers)
    waiting = iter(bases)
    files = []
    for i, (first, last) in enumerate(ranges):
        many = len(ranges) > 1
        name = _NUMBERED.format(i + 1, len(ranges)) if many else "basis.safetensors"
        sha256 = _write_shard(directory / name, method, dtype, layers[first:last], waiting)
        files.append(BasisFile(name, sha256, (directory / name).stat().st_size, first, last))
    return tuple(files)


def _shards(method: str, dtype: str, layers: Sequence[LayerSpec]) -> list[tuple[int, int]]:
    ranges, first, size = [], 0, 0
    for i, layer in enumerate(layers):
        own = sum(layer.basis_elements(method)) * ITEM_BYTES[dtype]
        if i > first and size + own > MAX_SHARD_BYTES:
            ranges.append((first, i))
            first, size = i, 0
        size += own
    return [*ranges, (first, len(layers))]


def _write_shard(
    path: Path, method: str, dtype: str, layers: Sequence[LayerSpec], bases: Iterator[LayerBasis]
) -> str:
    layout: list[tuple[str, str, tuple[int, ...]]] = [
        ("components", dtype, (sum(sum(x.basis_elements(method)) for x in layers),)),
        ("singular_values", "F32", (sum(x.k_a + x.k_b for x in layers),)),
    ]
    if method == "flat":
        layout += [
            ("means", dtype, (sum(sum(x.mean_elements(method)) for x in layers),)),
            ("mean_exponents", "I8", (len(layers), 2)),
        ]
    values, means, exponents = [], [], []
    with TensorWriter(path, layout) as writer:
        for _ in layers:
            basis = next(bases)
            for side in (basis.a, basis.b):
                writer.write(side.to(torch_dtype(dtype)))
            values += [basis.singular_values_a, basis.singular_values_b]
            for mean in (basis.mean_a, basis.mean_b):
                if mean is not None:
                    packed, powers = pack(mean.double().unsqueeze(0), dtype)
                    means.append(packed[0])
                    exponents.append(powers)
        for tensor in [*values, *means, *exponents]:
            writer.write(tensor)
    return writer.sha256


def write_task(path: Path, task: EncodedTask) -> str:
    """Write one task's file; return its sha256."""
    tensors = {"loadings": task.values}
    if task.values.dtype == torch.float16:
        tensors["exponents"] = task.exponents
    tensors |= {"norms": task.norms.float(), "errors": task.errors.float()}
    for name, (a, b) in sorted(task.own.items()):
        tensors |= {f"own/{name}/A": a, f"own/{name}/B": b}
    tensors |= {f"rest/{key}": tensor for key, tensor in sorted(task.rest.items())}
    layout = [(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()]
    with TensorWriter(path, layout) as writer:
        for tensor in tensors.values():
            writer.write(tensor)
    return writer.sha256


def write_subspace(
    directory: Path,
    *,
    method: str,
    dtype: str,
    base_model: str | None,
    layers: Sequence[LayerSpec],
    bases: Iterable[LayerBasis],
    tasks: Iterable[tuple[TaskRecord, EncodedTask]],
) -> Manifest:
    """Fill the empty ``directory``; ``tasks`` come in order, one in memory at a time."""
    basis = write_basis(directory, method, dtype, layers, bases)
    try:
        (directory / "tasks").mkdir()
    except OSError as error:
        raise write_error(directory, error) from None
    records: dict[str, TaskRecord] = {}
    for record, encoded in tasks:
        path = directory / "tasks" / record.file
        sha256 = write_task(path, encoded)
        records[record.id] = replace(record, sha256=sha256, nbytes=path.stat().st_size)
    manifest = Manifest(
        path=directory,
        method=method,
        dtype=dtype,
        base_model=base_model,
        layers=tuple(layers),
        basis=basis,
        tasks=records,
        engine=__version__,
    )
    write_index(manifest)
    return manifest


def write_index(manifest: Manifest) -> None:
    """Write the card, and subspace.json last."""
    write_file(manifest.path / "README.md", model_card(manifest))
    write_json(manifest.path / INDEX, manifest.as_json())


def task_files(names: Sequence[str]) -> dict[str, str]:
    """A file name for every task: safe on every file system, no two alike."""
    return {name: f"{slug}.safetensors" for name, slug in slugs(names).items()}


def free_task_file(name: str, taken: Iterable[str]) -> str:
    """A file name for one more task."""
    used = {file.lower() for file in taken}
    slug = slugs([name])[name]
    candidates = (slug if i == 1 else f"{slug}-{i}" for i in range(1, len(used) + 2))
    return next(f"{c}.safetensors" for c in candidates if f"{c}.safetensors".lower() not in used)


@dataclass
class StoredSubspace:
    """The tensor files behind a manifest. A file's checksum is verified when it is first read."""

    manifest: Manifest
    verify: bool = True

    def __post_init__(self) -> None:
        self._headers: dict[str, Header] = {}
        self._offsets = _component_offsets(self.manifest)

    def basis(self, index: int) -> LayerBasis:
        """The basis of the layer with this index."""
        manifest, spec = self.manifest, self.manifest.layers[index]
        shard = next(b for b in manifest.basis if b.first <= index < b.last)
        header = self._open(shard.name, shard.sha256, shard.nbytes)
        at_components, at_values, at_means = self._offsets[index]
        size_a, size_b = spec.basis_elements(manifest.method)
        both = read_elements(header, "components", at_components, size_a + size_b).float()
        values = read_elements(header, "singular_values", at_values, spec.k_a + spec.k_b)
        means: list[Tensor | None] = [None, None]
        if manifest.method == "flat":
            sizes = spec.mean_elements("flat")
            raw = read_elements(header, "means", at_means, sum(sizes))
            powers = read_elements(header, "mean_exponents", 2 * (index - shard.first), 2)
            means = [
                unpack(half.unsqueeze(0), powers[i : i + 1])[0].float()
                for i, half in enumerate(raw.split(sizes))
            ]
        return LayerBasis(
            name=spec.name,
            a=both[:size_a].reshape(spec.k_a, -1) if spec.k_a else _no_rows(spec, "a", manifest),
            b=both[size_a:].reshape(spec.k_b, -1) if spec.k_b else _no_rows(spec, "b", manifest),
            singular_values_a=values[: spec.k_a],
            singular_values_b=values[spec.k_a :],
            rank=spec.rank,
            mean_a=means[0],
            mean_b=means[1],
        )

    def task(self, record: TaskRecord) -> EncodedTask:
        """One task as it lies on disk."""
        header = self._open(f"tasks/{record.file}", record.sha256, record.nbytes)
        modules = len(record.layers)
        expected = sum(
            self.manifest.layers[i].loadings_elements(self.manifest.method, rank)
            for i, rank in zip(record.layers, record.ranks, strict=True)
        )
        values = _named(header, "loadings", torch_dtype(self.manifest.dtype), (expected,))
        exponents = torch.zeros(modules, 2, dtype=torch.int8)
        if self.manifest.dtype == "F16":
            exponents = _named(header, "exponents", torch.int8, (modules, 2))
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
            exponents=exponents,
            norms=_named(header, "norms", torch.float32, (modules,)),
            errors=_named(header, "errors", torch.float32, (modules,)),
            own=own,
            rest=rest,
        )

    def close(self) -> None:
        """Let go of the files."""
        for name in self._headers:
            close_file(self.manifest.path / name)

    def _open(self, name: str, sha256: str, nbytes: int) -> Header:
        if name not in self._headers:
            path = self.manifest.path / name
            header = read_header(path)
            if header.file_bytes != nbytes or (self.verify and sha256_file(path) != sha256):
                raise altered(path)
            self._headers[name] = header
        return self._headers[name]


def altered(path: Path) -> CorruptFileError:
    """The error for a file whose bytes are not those that subspace.json vouches for."""
    return CorruptFileError(
        "The file was changed after the subspace was written.",
        where=path,
        expected="the sha256 that subspace.json names",
        found="other bytes",
        remedy="restore the file from a copy, or compress the adapters again",
    )


def decode_task(
    manifest_layers: Sequence[LayerSpec], method: str, record: TaskRecord, task: EncodedTask
) -> Iterator[tuple[LayerSpec, Tensor, Tensor]]:
    """The loadings of every module: a (r, k_a) and b (r, k_b), or (k,) each for `flat`; fp64."""
    start = 0
    for i, (index, rank) in enumerate(zip(record.layers, record.ranks, strict=True)):
        spec = manifest_layers[index]
        form = LoadingsForm(method, rank, spec.k_a, spec.k_b)
        values = task.values[start : start + form.elements].unsqueeze(0)
        a, b = decode_loadings(form, values, task.exponents[i : i + 1])
        yield spec, a[0], b[0]
        start += form.elements


def relative_source(path: Path | None, out: Path) -> str | None:
    """Where a source lies, seen from the directory that holds the subspace; never absolute."""
    if path is None:
        return None
    return Path(os.path.relpath(path.absolute(), out.absolute().parent)).as_posix()


def _component_offsets(manifest: Manifest) -> list[tuple[int, int, int]]:
    """Where each layer's components, singular values and means begin in its shard."""
    offsets = []
    for shard in manifest.basis:
        components = values = means = 0
        for spec in manifest.layers[shard.first : shard.last]:
            offsets.append((components, values, means))
            components += sum(spec.basis_elements(manifest.method))
            values += spec.k_a + spec.k_b
            means += sum(spec.mean_elements(manifest.method))
    return offsets


def _no_rows(spec: LayerSpec, side: str, manifest: Manifest) -> Tensor:
    width = spec.rank if manifest.method == "flat" else 1
    return torch.zeros(0, width * (spec.d_in if side == "a" else spec.d_out))


def _named(header: Header, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    entry = header.entries.get(name)
    if entry is None or entry.shape != shape or torch_dtype(entry.dtype) != dtype:
        found = "no such tensor" if entry is None else f"{entry.dtype} {entry.shape}"
        raise CorruptFileError(
            f"Tensor {name!r} is not what subspace.json says.",
            where=header.path,
            expected=f"{dtype_name(dtype)} {shape}",
            found=found,
        )
    return read_tensor(header, name)
