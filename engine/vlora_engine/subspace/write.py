"""Write a subspace's directory: the bases, a file for every task, and the index last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vlora_engine._version import __version__
from vlora_engine.errors import CorruptFileError, InputError
from vlora_engine.manifest.manifest import BasisFile, LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.readme import model_card
from vlora_engine.quantization.packed import PackedBasis
from vlora_engine.subspace import soundness
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.layout import basis_layout
from vlora_engine.subspace.loadings import EncodedTask, Storage, pack
from vlora_engine.subspace.store import Store, StoredSubspace
from vlora_engine.utils.file_names import BASIS_FILE, SUBSPACE_INDEX
from vlora_engine.utils.files import dump_json, write_file, write_json
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.safetensors_file import ITEM_BYTES, dtype_name, torch_dtype, write_error
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


def _write_shard(
    path: Path,
    storage: Storage,
    layers: Sequence[LayerSpec],
    bases: Iterator[LayerBasis | PackedBasis],
) -> str:
    packs = storage.quantization is not None
    layout = basis_layout(storage, layers)
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
