"""Write a subspace's directory, open it lazily, and check every byte read.

``basis.safetensors`` holds one pooled tensor of all components (layer after layer, side a before
side b), ``tasks/<slug>.safetensors`` one pooled tensor of a task's loadings; where each module
begins follows from the shapes in subspace.json. What is packed lies there as one pooled tensor of
bytes and one of scales.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from vlora_engine._version import __version__
from vlora_engine.errors import CorruptFileError, InputError, VLoRAError
from vlora_engine.manifest.manifest import BasisFile, LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.readme import model_card
from vlora_engine.quantization.packed import PackedBasis, PackedRows
from vlora_engine.quantization.packing import Packing
from vlora_engine.subspace import soundness
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.loadings import (
    EncodedTask,
    Loadings,
    Storage,
    decode_loadings,
    pack,
    unpack,
)
from vlora_engine.subspace.soundness import check_size
from vlora_engine.utils.file_names import BASIS_FILE, SUBSPACE_INDEX
from vlora_engine.utils.files import dump_json, sha256_file, write_file, write_json
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.safetensors_file import (
    ITEM_BYTES,
    Header,
    close_file,
    dtype_name,
    read_elements,
    read_header,
    read_tensor,
    torch_dtype,
    with_bytes,
    write_error,
)
from vlora_engine.utils.tensor_writer import TensorWriter

MAX_SHARD_BYTES = 4_000_000_000
Task = TypeVar("Task")  # a task in the form that one way of storing writes
_NUMBERED = "{}-{:05d}-of-{:05d}.safetensors"


def write_basis(
    directory: Path,
    storage: Storage,
    layers: Sequence[LayerSpec],
    bases: Iterable[LayerBasis | PackedBasis],
    file: str = BASIS_FILE,
) -> tuple[BasisFile, ...]:
    """Write the shared bases, layer by layer; shards break between layers.

    Args:
        file: The name of the file, where there is one.
    """
    ranges = _shards(storage, layers)
    waiting = iter(bases)
    files = []
    for i, (first, last) in enumerate(ranges):
        many = len(ranges) > 1
        name = _NUMBERED.format(Path(file).stem, i + 1, len(ranges)) if many else file
        sha256 = _write_shard(directory / name, storage, layers[first:last], waiting)
        files.append(BasisFile(name, sha256, (directory / name).stat().st_size, first, last))
    return tuple(files)


def _shards(storage: Storage, layers: Sequence[LayerSpec]) -> list[tuple[int, int]]:
    ranges, first, size = [], 0, 0
    for i, layer in enumerate(layers):
        counts, packing = layer.basis_elements(storage.method), storage.basis_packing
        if packing is None:
            layer_bytes = sum(counts) * ITEM_BYTES[storage.dtype]
        else:
            layer_bytes = sum(map(packing.nbytes, counts))
        if i > first and size + layer_bytes > MAX_SHARD_BYTES:
            ranges.append((first, i))
            first, size = i, 0
        size += layer_bytes
    return [*ranges, (first, len(layers))]


Layout = list[tuple[str, str, tuple[int, ...]]]


def _write_shard(
    path: Path,
    storage: Storage,
    layers: Sequence[LayerSpec],
    bases: Iterator[LayerBasis | PackedBasis],
) -> str:
    packs = storage.quantization is not None
    layout = _packed_layout(storage, layers) if packs else _plain_layout(storage, layers)
    small: dict[str, list[Tensor]] = {name: [] for name, _, _ in layout[1:]}
    with TensorWriter(path, layout) as writer:
        for _ in layers:
            basis = next(bases)
            # The components go straight to the disk; the rest is small and waits for its turn.
            if packs:
                components = _packed_tensors(basis, small)
            else:
                components = _plain_tensors(basis, storage.dtype, small)
            for tensor in components:
                writer.write(tensor)
        for tensors in small.values():
            for tensor in tensors:
                writer.write(tensor)
    return writer.sha256


def _plain_layout(storage: Storage, layers: Sequence[LayerSpec]) -> Layout:
    method, dtype = storage.method, storage.dtype
    layout: Layout = [
        ("components", dtype, (sum(sum(x.basis_elements(method)) for x in layers),)),
        ("singular_values", "F32", (sum(x.k_a + x.k_b for x in layers),)),
    ]
    if method == "flat":
        layout += [
            ("means", dtype, (sum(sum(x.mean_elements(method)) for x in layers),)),
            ("mean_exponents", "I8", (len(layers), 2)),
        ]
    return layout


def _plain_tensors(
    basis: LayerBasis | PackedBasis, dtype: str, small: dict[str, list[Tensor]]
) -> Iterator[Tensor]:
    assert isinstance(basis, LayerBasis)  # noqa: S101  (what is packed is not stored as numbers)
    small["singular_values"] += [basis.singular_values_a, basis.singular_values_b]
    for mean in (basis.mean_a, basis.mean_b):
        if mean is not None:
            rounded, powers = pack(mean.double().unsqueeze(0), dtype)
            small["means"].append(rounded[0])
            small["mean_exponents"].append(powers)
    return (side.to(torch_dtype(dtype)) for side in (basis.a, basis.b))


def _packed_layout(storage: Storage, layers: Sequence[LayerSpec]) -> Layout:
    quantization = storage.quantization
    assert quantization is not None  # noqa: S101
    counts = [count for x in layers for count in x.basis_elements(storage.method)]
    layout = [
        *_pool("", quantization.basis, counts),
        ("singular_values", "F32", (sum(x.k_a + x.k_b for x in layers),)),
    ]
    if storage.method == "flat":
        counts = [count for x in layers for count in x.mean_elements("flat")]
        layout += [
            *_pool("mean_", quantization.means, counts),
            ("mean_exponents", "I8", (len(layers), 2)),
        ]
    return layout


def _pool(prefix: str, packing: Packing, counts: Sequence[int]) -> Layout:
    """The tensors that packed numbers fill: sides of so many numbers each."""
    scale = "I8" if packing.double_quant else "F16"
    pool: Layout = [
        (f"{prefix}codes", "U8", (sum(map(packing.code_bytes, counts)),)),
        (f"{prefix}scales", scale, (sum(map(packing.blocks, counts)),)),
    ]
    if packing.double_quant:
        pool.append((f"{prefix}steps", "F32", (sum(map(packing.groups, counts)),)))
    return pool


def _packed_tensors(
    basis: LayerBasis | PackedBasis, small: dict[str, list[Tensor]]
) -> Iterator[Tensor]:
    packed = basis if isinstance(basis, PackedBasis) else basis.packed
    assert packed is not None  # noqa: S101  (a subspace is packed as a whole)
    small["singular_values"] += [packed.singular_values_a, packed.singular_values_b]
    for prefix, rows in [("", packed.a), ("", packed.b), *(("mean_", m) for m in packed.means)]:
        small[f"{prefix}scales"].append(rows.scales)
        if rows.packing.double_quant:
            small[f"{prefix}steps"].append(rows.steps)
        if prefix:
            small["mean_codes"].append(rows.codes)
            small["mean_exponents"].append(torch.tensor([rows.exponent], dtype=torch.int8))
    return iter((packed.a.codes, packed.b.codes))


def write_task(path: Path, task: EncodedTask) -> str:
    """Write one task's file; return its sha256."""
    tensors = {"loadings": task.values}
    if task.values.dtype == torch.uint8:
        tensors["scales"] = task.scales
    if task.values.dtype in (torch.uint8, torch.float16):
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


def write_tasks(
    directory: Path, tasks: Iterable[tuple[TaskRecord, Task]], write: Callable[[Path, Task], str]
) -> dict[str, TaskRecord]:
    """Write every task's file into ``directory``; the records by id, with checksums and sizes."""
    try:
        (directory / "tasks").mkdir()
    except OSError as error:
        raise write_error(directory, error) from None
    records: dict[str, TaskRecord] = {}
    for record, task in tasks:
        path = directory / "tasks" / record.file
        sha256 = write(path, task)
        records[record.id] = replace(record, sha256=sha256, nbytes=path.stat().st_size)
    return records


def write_subspace(
    directory: Path,
    *,
    storage: Storage,
    base_model: str | None,
    layers: Sequence[LayerSpec],
    bases: Iterable[LayerBasis | PackedBasis],
    tasks: Iterable[tuple[TaskRecord, EncodedTask]],
) -> Manifest:
    """Fill the empty ``directory``; ``tasks`` come in order, one in memory at a time."""
    basis = write_basis(directory, storage, layers, bases)
    manifest = Manifest(
        path=directory,
        method=storage.method,
        dtype=storage.dtype,
        base_model=base_model,
        layers=tuple(layers),
        basis=basis,
        tasks=write_tasks(directory, tasks, write_task),
        engine=__version__,
        quantization=storage.quantization,
    )
    require_readable(StoredSubspace(manifest, verify=False), manifest.tasks)
    write_index(manifest)
    return manifest


def require_readable(stored: Store, names: Iterable[str]) -> None:
    """Refuse to publish tasks that are larger than their files can vouch for.

    Reading would refuse them (`check_size`). Only those so large that this can be are read here.

    Raises:
        InputError: There is one.
    """
    records = (stored.manifest.tasks[name] for name in names)
    try:
        for record in [r for r in records if r.factor_elements > soundness.MOST_OF_A_TASK]:
            try:
                stored.task(record)
            except CorruptFileError as error:
                raise InputError(
                    f"The adapter {record.id!r} is so large, and so little is in it, that what is "
                    "stored of it could not be told from a damaged file.",
                    expected=error.expected,
                    found=error.found,
                    remedy="give it the rank that it needs first: vlora-tui resize ADAPTER "
                    "--energy 1 -o DIR",
                    adapter=record.id,
                ) from None
    finally:
        stored.close()


def write_index(manifest: Manifest) -> None:
    """Write the card, and subspace.json last."""
    write_file(manifest.path / "README.md", model_card(manifest))
    write_json(manifest.path / SUBSPACE_INDEX, manifest.as_json())


def index_digest(manifest: Manifest) -> str:
    """The sha256 of subspace.json as `write_index` writes it."""
    return hashlib.sha256(dump_json(manifest.as_json()).encode()).hexdigest()


def task_files(names: Sequence[str]) -> dict[str, str]:
    """A file name for every task: safe on every file system, no two alike."""
    return {name: f"{slug}.safetensors" for name, slug in slugs(names).items()}


def free_task_file(name: str, existing: Iterable[str]) -> str:
    """A file name for one more task."""
    used = {file.lower() for file in existing}
    slug = slugs([name])[name]
    candidates = (slug if i == 1 else f"{slug}-{i}" for i in range(1, len(used) + 2))
    return next(f"{c}.safetensors" for c in candidates if f"{c}.safetensors".lower() not in used)


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
        self._offsets = _offsets(manifest, self.storage)

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
        packs = self.storage.quantization is not None
        layout = _packed_layout if packs else _plain_layout
        for name, dtype, _ in layout(self.storage, self.manifest.layers[shard.first : shard.last]):
            entry = header.entries.get(name)
            if entry is not None and entry.dtype != dtype:
                del self._headers[shard.name]
                raise CorruptFileError(
                    f"Tensor {name!r} is not what subspace.json says.",
                    where=header.path,
                    expected=dtype,
                    found=entry.dtype,
                )
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
        dtype = torch.uint8 if packs else torch_dtype(self.manifest.dtype)
        values = _named(header, "loadings", dtype, (sum(form.elements for form in forms),))
        extra: dict[str, Any] = {"exponents": torch.zeros(modules, 2, dtype=torch.int8)}
        if packs or self.manifest.dtype == "F16":
            extra["exponents"] = _named(header, "exponents", torch.int8, (modules, 2))
        if packs:
            count = sum(form.scales for form in forms)
            extra["scales"] = _named(header, "scales", torch.float16, (count,))
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
            norms=_named(header, "norms", torch.float32, (modules,)),
            errors=_named(header, "errors", torch.float32, (modules,)),
            own=own,
            rest=rest,
            **extra,
        )


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


@dataclass(frozen=True)
class _Offsets:
    """Where one layer begins in the pooled tensors of its shard.

    Args:
        packed: In codes, scales and steps; packed_means likewise.
    """

    components: int = 0
    singular_values: int = 0
    means: int = 0
    packed: tuple[int, int, int] = (0, 0, 0)
    packed_means: tuple[int, int, int] = (0, 0, 0)

    def after(self, spec: LayerSpec, storage: Storage) -> _Offsets:
        """Where the next layer begins."""
        numbers, means = spec.basis_elements(storage.method), spec.mean_elements(storage.method)
        quantization = storage.quantization
        return _Offsets(
            self.components + sum(numbers),
            self.singular_values + spec.k_a + spec.k_b,
            self.means + sum(means),
            _behind(self.packed, quantization.basis, numbers) if quantization else self.packed,
            _behind(self.packed_means, quantization.means, means)
            if quantization
            else self.packed_means,
        )


def _behind(
    at: tuple[int, int, int], packing: Packing, counts: Sequence[int]
) -> tuple[int, int, int]:
    codes, scales, steps = at
    return (
        codes + sum(map(packing.code_bytes, counts)),
        scales + sum(map(packing.blocks, counts)),
        steps + sum(map(packing.groups, counts)),
    )


def _offsets(manifest: Manifest, storage: Storage) -> list[_Offsets]:
    offsets = []
    for shard in manifest.basis:
        here = _Offsets()
        for spec in manifest.layers[shard.first : shard.last]:
            offsets.append(here)
            here = here.after(spec, storage)
    return offsets


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
        at = _behind(at, packing, [count])
    return found


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
