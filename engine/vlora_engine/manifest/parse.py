"""Read the index of a subspace directory, subspace.json. No torch.

Everything in the file is untrusted: names never become paths, counts are checked before use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, cast, get_args

from vlora_engine.adapters.model import Kind
from vlora_engine.compression_target import BASIS_METHODS, CODED_METHODS
from vlora_engine.errors import SubspaceError
from vlora_engine.manifest.coded_index import open_layers, open_tasks
from vlora_engine.manifest.coding import parse_coding
from vlora_engine.manifest.manifest import (
    BASIS_VERSION,
    FORMAT,
    INSIDE,
    VERSION,
    BasisFile,
    KeptTensor,
    LayerSpec,
    Manifest,
    OwnModule,
    SharedBasisFiles,
    TaskRecord,
)
from vlora_engine.quantization.packing import parse_quantization
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.json_reader import JsonFile, JsonObject, JsonValue, shown
from vlora_engine.utils.safetensors_file import FLOAT_DTYPES, ITEM_BYTES

T = TypeVar("T")

_TASK_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors$")
_COMPONENTS_FILE = re.compile(r"^components(-\d{5}-of-\d{5})?\.safetensors$")
_BASIS_FILE = re.compile(r"^basis(-\d{5}-of-\d{5})?\.safetensors$")


def parse_manifest(directory: Path, raw: bytes) -> Manifest:
    """Parse and check the bytes of a subspace.json.

    What was parsed last is kept: a command asks for its subspace several times, and 10,000 tasks
    take a second.

    Raises:
        CorruptFileError: It is not sound; the error names the place in the file.
        SubspaceError: It is of another version.
    """
    manifest = _parsed(directory, raw)
    return replace(manifest, tasks=dict(manifest.tasks))


@lru_cache(1)
def _parsed(directory: Path, raw: bytes) -> Manifest:
    index = _index_file(directory / SUBSPACE_INDEX).parse(raw).object()
    format_value = index.get("format")
    if format_value is None or format_value.value != FORMAT:
        raise index.error(f"the format {FORMAT}", "no vlora-subspace")
    version = _version(directory, index)
    coded = version != VERSION
    method = index["method"].one_of(CODED_METHODS if coded else BASIS_METHODS)
    dtype = index["dtype"].one_of(ITEM_BYTES)
    layers = tuple(
        (_parse_row(name, rest) for name, rest in open_layers(index))
        if coded
        else (_parse_layer(row.object(), method) for row in index["layers"].items())
    )
    base = index["base_model"]
    shared_basis = None
    if version == BASIS_VERSION:
        shared_basis = _parse_shared_basis(index["shared_basis"].object(), layers)
    return Manifest(
        path=directory,
        method=method,
        dtype=dtype,
        base_model=None if base.is_null else base.text(),
        layers=layers,
        basis=_parse_basis(index["basis"], len(layers), may_be_empty=coded),
        tasks=_parse_tasks(index, len(layers), shared_basis, coded=coded),
        engine=index.read("engine", JsonValue.text, ""),
        coding=parse_coding(index["coding"].object(), len(layers)) if coded else None,
        shared_basis=shared_basis,
        quantization=parse_quantization(index.get("quantization")),
        digest=hashlib.sha256(raw).hexdigest(),
    )


def _index_file(path: Path) -> JsonFile:
    return JsonFile(
        path,
        "The subspace's index is not sound.",
        "restore it from a copy, or compress the adapters again",
    )


def _version(directory: Path, index: JsonObject) -> int:
    version = index.get("version")
    found = None if version is None else version.value
    if type(found) is not int or not VERSION <= found <= BASIS_VERSION:
        raise SubspaceError(
            "The subspace is of another format version.",
            where=directory,
            expected=f"{VERSION} to {BASIS_VERSION}",
            found="None" if version is None else str(found) if type(found) is int else shown(found),
            remedy="open it with the version of vlora-tui that wrote it, or a newer one",
        )
    return found


def _parse_tasks(
    index: JsonObject, layers: int, shared_basis: SharedBasisFiles | None, *, coded: bool
) -> dict[str, TaskRecord]:
    tasks: dict[str, TaskRecord] = {}
    files: set[str] = set()
    for row, source in _task_rows(index, coded=coded):
        task = _parse_task(row, source, layers)
        if not _TASK_FILE.match(task.file) or task.file.lower() in files:
            raise row["file"].error("the name of a task's own file, such as a.safetensors")
        if task.in_basis and not (
            shared_basis and all(max(shared_basis.k[i]) for i in task.layers)
        ):
            raise row["loadings"].error("no loadings where there is no basis")
        if task.id in tasks:
            raise row["id"].error("a task of another name than the others")
        files.add(task.file.lower())
        tasks[task.id] = task
    return tasks


def _task_rows(index: JsonObject, *, coded: bool) -> Iterator[tuple[JsonObject, JsonObject]]:
    """Of every task its row, with what the file says once for several, and that of its source."""
    if not coded:
        for value in index["tasks"].items():
            row = value.object()
            yield row, row["source"].object()
        return
    shared = {key: index[key].items() for key in INSIDE}
    for row, source in open_tasks(index["tasks"].object()):
        values = dict(row.items())
        for key, name in INSIDE.items():
            number = row[name].natural()
            if number >= len(shared[key]):
                raise row[name].error(f"the number of one of {len(shared[key])} {key}")
            values[name] = shared[key][number]
        yield JsonObject(values, row.file, row.place), source


def _parse_shared_basis(row: JsonObject, layers: Sequence[LayerSpec]) -> SharedBasisFiles:
    """The shared basis beside coded tasks."""
    pairs = []
    for spec, value in zip(layers, row["k"].items(len(layers)), strict=True):
        k_a, k_b = value.naturals(2)
        if k_a > spec.d_in or k_b > spec.d_out or (k_a > 0) != (k_b > 0):
            raise value.error(f"at most {spec.d_in} and {spec.d_out} directions, or none")
        pairs.append((k_a, k_b))
    files = _parse_basis(row["files"], len(layers), pattern=_COMPONENTS_FILE)
    return SharedBasisFiles(_float_dtype(row["dtype"]), tuple(pairs), files)


def _parse_basis(
    value: JsonValue,
    layers: int,
    *,
    may_be_empty: bool = False,
    pattern: re.Pattern[str] = _BASIS_FILE,
) -> tuple[BasisFile, ...]:
    files, covered = [], 0
    for entry in value.items():
        row = entry.object()
        name = row["file"].text()
        if not pattern.match(name):
            raise row["file"].error("the name of a basis file, such as basis.safetensors")
        first, last = row["layers"].naturals(2)
        nbytes = row["bytes"].natural()
        files.append(BasisFile(name, row["sha256"].text(), nbytes, first, last))
        if first != covered or not first <= last <= layers:
            raise row["layers"].error(
                f"layers from {covered} up to {layers} at most", f"{[first, last]}"
            )
        covered = last
    if covered != layers and not (may_be_empty and not files):
        raise value.error(f"files that cover {layers} layers", f"{covered} layers")
    return tuple(files)


def _parse_layer(row: JsonObject, method: str) -> LayerSpec:
    k_a, k_b = row["k"].naturals(2)
    layer = LayerSpec(
        name=row["name"].text(),
        d_in=row["d_in"].natural(),
        d_out=row["d_out"].natural(),
        rank=row["rank"].natural(),
        k_a=k_a,
        k_b=k_b,
        kind=row.read("kind", _kind, "linear"),
        tail_a=tuple(row.read("tail_a", JsonValue.naturals, [])),
    )
    for k, width in layer.basis_shapes(method):
        if k > width:  # directions of a basis are orthonormal
            raise row["k"].error(f"at most {width} directions in rows of {width}")
    return layer


def _parse_row(name: str, rest: Sequence[JsonValue]) -> LayerSpec:
    """A layer of a coded collection: d_in, d_out, rank; of other kinds the kind and the tail."""
    if len(rest) not in (3, 5):
        raise rest[0].error("a name with three values or five", str(len(rest)))
    d_in, d_out, rank = (value.natural() for value in rest[:3])
    kind, tail = (_kind(rest[3]), rest[4].naturals()) if len(rest) > 3 else ("linear", [])
    return LayerSpec(name, d_in, d_out, rank, 0, 0, kind, tuple(tail))


def _parse_task(row: JsonObject, source: JsonObject, layer_count: int) -> TaskRecord:
    layers = _all_layers(layer_count)
    if (some := row.get("layers")) is not None:
        layers = tuple(some.naturals())
        if any(b <= a for a, b in pairwise(layers)) or any(i >= layer_count for i in layers):
            raise some.error(f"numbers below {layer_count} that rise")
    rest, rest_bytes = source["rest"].naturals(2)
    path = source["path"]
    return TaskRecord(
        id=row["id"].text(),
        file=row["file"].text(),
        sha256=row["sha256"].text(),
        nbytes=row["bytes"].natural(),
        digest=row["digest"].text(),
        layers=layers,
        ranks=_spread(row["ranks"], len(layers), JsonValue.natural),
        scales=_spread(row["scales"], len(layers), JsonValue.number),
        dtypes=_spread(row["dtypes"], len(layers), _float_dtype),
        norm=row["norm"].number(),
        error=row["error"].number(),
        rank=row["rank"].natural(),
        config=row["config"].raw_object(),
        own=tuple(map(_parse_own_module, row.list_of("own"))),
        rest=rest,
        rest_bytes=rest_bytes,
        source=None if path.is_null else path.text(),
        source_bytes=source["bytes"].natural(),
        factor_elements=source["elements"].natural(),
        measured=row.read("measured", JsonValue.flag, True),
        cluster=row.read("cluster", JsonValue.natural, 0),
        kept=tuple(map(_parse_kept_tensor, row.list_of("kept"))),
        origin=row.read("origin", JsonValue.text, ""),
        in_basis=row.read("loadings", JsonValue.flag, False),
    )


@lru_cache(1)
def _all_layers(count: int) -> tuple[int, ...]:
    """Every layer's index; one tuple for all tasks, which are many."""
    return tuple(range(count))


def _parse_own_module(value: JsonValue) -> OwnModule:
    name, scale, kind, tail = value.items(4)
    return OwnModule(name.text(), scale.number(), _kind(kind), tuple(tail.naturals()))


def _parse_kept_tensor(value: JsonValue) -> KeptTensor:
    key, dtype, shape = value.items(3)
    return key.text(), _dtype(dtype), tuple(shape.naturals())


def _kind(value: JsonValue) -> Kind:
    return cast(Kind, value.one_of(get_args(Kind)))


def _dtype(value: JsonValue) -> str:
    return value.one_of(ITEM_BYTES)


def _float_dtype(value: JsonValue) -> str:
    return value.one_of(sorted(FLOAT_DTYPES))


def _spread(value: JsonValue, count: int, read: Callable[[JsonValue], T]) -> tuple[T, ...]:
    """One value a module: a list of them, or one for all."""
    if value.is_list:
        return tuple(map(read, value.items(count)))
    return (read(value),) * count
