"""subspace.json: what a subspace directory says of itself. Reading it needs no torch.

Everything in the file is untrusted: names never become paths, counts are checked before use.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlora_engine.adapters.model import Kind
from vlora_engine.errors import (
    CorruptFileError,
    NotFoundError,
    ParameterError,
    SubspaceError,
    VLoRAError,
)
from vlora_engine.findings import Finding
from vlora_engine.manifest.coded_index import (
    open_layers,
    open_tasks,
    pack_layers,
    pack_tasks,
)
from vlora_engine.manifest.coding import METHODS as CODED_METHODS
from vlora_engine.manifest.coding import Coding, parse_coding
from vlora_engine.quantization.packing import Quantization, parse_quantization
from vlora_engine.utils.files import is_being_replaced
from vlora_engine.utils.ranking import foremost
from vlora_engine.utils.safetensors_file import ITEM_BYTES

FORMAT = "vlora-subspace"
VERSION = 1
INDEX = "subspace.json"
METHODS = ("delta", "columns", "flat")
CODED_VERSION = 2  # of directories that hold coded numbers
_INSIDE = {"configs": "config", "kept": "kept"}  # what several tasks share: lists, and the key
_TASK_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors$")
_BASIS_FILE = re.compile(r"^basis(-\d{5}-of-\d{5})?\.safetensors$")

KeptTensor = tuple[str, str, tuple[int, ...]]


def core_is_dense(rank: Any, k_a: Any, k_b: Any) -> Any:
    """Whether a `delta` core of k_b x k_a is smaller than its two factors of this rank."""
    return k_a * k_b < rank * (k_a + k_b)


@dataclass(frozen=True)
class LayerSpec:
    """One shared module: its dimensions, how A lies on disk beyond them, and its k."""

    name: str
    d_in: int
    d_out: int
    rank: int
    k_a: int
    k_b: int
    kind: Kind = "linear"
    tail_a: tuple[int, ...] = ()

    def basis_elements(self, method: str) -> tuple[int, int]:
        """Numbers in the components of side a and of side b."""
        (k_a, width_a), (k_b, width_b) = self.basis_shapes(method)
        return k_a * width_a, k_b * width_b

    def basis_shapes(self, method: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the components of side a and of side b."""
        width = self.rank if method == "flat" else 1
        return (self.k_a, width * self.d_in), (self.k_b, width * self.d_out)

    def mean_elements(self, method: str) -> tuple[int, int]:
        """Numbers in the two means; none but for `flat`."""
        return (self.rank * self.d_in, self.rank * self.d_out) if method == "flat" else (0, 0)

    def loadings_elements(self, method: str, rank: int) -> int:
        """Numbers in the loadings of a task of this rank."""
        if method == "flat":
            return self.k_a + self.k_b
        if method == "delta" and core_is_dense(rank, self.k_a, self.k_b):
            return self.k_a * self.k_b
        return rank * (self.k_a + self.k_b)


@dataclass(frozen=True)
class OwnModule:
    """A module that the shared basis lacks; the task keeps its factors."""

    name: str
    scale: float
    kind: Kind = "linear"
    tail_a: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskRecord:
    """One task of a subspace.

    Args:
        file: Its file's name under ``tasks/``; sha256 and nbytes of that file.
        digest: The content hash of the adapter it was made from.
        layers: Indices of the shared modules that it has; ranks, scales and dtypes belong to
            them, one each.
        norm: ||dW|| of the adapter. error: relative error of dW as stored; ``measured`` is False
            where the adapter itself was not at hand and it is a bound.
        config: adapter_config.json as found.
        rank: The nominal rank.
        cluster: Of a coded collection: the number of the task's cluster, 0 for none of its own.
        kept: Of a coded collection: key, dtype and shape of its rest tensors, in their order.
        origin: The peer that the task was taken over from: norm and error count from what it held.
    """

    id: str
    file: str
    sha256: str
    nbytes: int
    digest: str
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dtypes: tuple[str, ...]
    norm: float
    error: float
    rank: int
    config: Mapping[str, Any] = field(repr=False, default_factory=dict)
    own: tuple[OwnModule, ...] = ()
    rest: int = 0
    source: str | None = None
    source_bytes: int = 0
    factor_elements: int = 0
    rest_bytes: int = 0
    measured: bool = True
    cluster: int = 0
    kept: tuple[KeptTensor, ...] = ()
    origin: str = ""

    def as_json(self, layer_count: int) -> dict[str, Any]:
        """The record in its compact form: what is the same for all modules is said once."""
        every = self.layers == tuple(range(layer_count))
        row: dict[str, Any] = {
            "id": self.id,
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.nbytes,
            "digest": self.digest,
            "rank": self.rank,
            "ranks": _squeeze(self.ranks),
            "scales": _squeeze(self.scales),
            "dtypes": _squeeze(self.dtypes),
            "norm": self.norm,
            "error": self.error,
            "source": {
                "path": self.source,
                "bytes": self.source_bytes,
                "elements": self.factor_elements,
                "rest": [self.rest, self.rest_bytes],
            },
            "config": self.config,
        }
        if not every:
            row["layers"] = list(self.layers)
        if self.own:
            row["own"] = [[o.name, o.scale, o.kind, list(o.tail_a)] for o in self.own]
        if not self.measured:
            row["measured"] = False
        if self.cluster:
            row["cluster"] = self.cluster
        if self.origin:
            row["origin"] = self.origin
        return row


@dataclass(frozen=True)
class BasisFile:
    """One shard of the basis: the layers from ``first`` up to ``last`` (exclusive)."""

    name: str
    sha256: str
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Manifest:
    """A subspace directory's index.

    Args:
        peer: Whose subspace it is, empty for ours; of a peer's no error is known.
        findings: What is remarkable about a peer's.
        digest: The sha256 of the file itself, as it was read; empty where it was not.
    """

    path: Path
    method: str
    dtype: str
    base_model: str | None
    layers: tuple[LayerSpec, ...]
    basis: tuple[BasisFile, ...]
    tasks: Mapping[str, TaskRecord]
    engine: str = ""
    coding: Coding | None = None
    quantization: Quantization | None = None
    peer: str = ""
    findings: tuple[Finding, ...] = ()
    digest: str = field(default="", compare=False, repr=False)

    def is_outdated(self) -> bool:
        """Whether the index on disk is another by now, or just about to be."""
        if not self.digest or is_being_replaced(self.path):
            return bool(self.digest)
        try:
            return hashlib.sha256(read_index(self.path)).hexdigest() != self.digest
        except OSError:
            return False

    @cached_property
    def nbytes(self) -> int:
        """Every byte of the directory, as it was when first asked."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @property
    def version(self) -> int:
        """Of the format."""
        return VERSION if self.coding is None else CODED_VERSION

    @property
    def input_bytes(self) -> int:
        return sum(task.source_bytes for task in self.tasks.values())

    @property
    def ratio(self) -> float:
        """Inputs as stored over every byte of the directory."""
        return self.input_bytes / self.nbytes

    @property
    def codec_ratio(self) -> float:
        """A and B of the inputs at 16 bit over all bytes but the rest tensors' payload."""
        factors = 2 * sum(task.factor_elements for task in self.tasks.values())
        rest = sum(task.rest_bytes for task in self.tasks.values())
        return factors / (self.nbytes - rest)

    @property
    def mean_error(self) -> float:
        return sum(task.error for task in self.tasks.values()) / max(1, len(self.tasks))

    @property
    def worst(self) -> TaskRecord | None:
        """The task that lost most."""
        return foremost(self.tasks.values(), lambda task: task.error, lambda task: task.id)

    @property
    def variance(self) -> float:
        """Captured share of ||dW||^2, mean over tasks."""
        count = max(1, len(self.tasks))
        return 1 - sum(task.error**2 for task in self.tasks.values()) / count

    def task(self, task_id: str) -> TaskRecord:
        """The record of one task.

        Raises:
            NotFoundError: There is no such task; the message names those that are there.
        """
        if task_id not in self.tasks:
            raise unknown_task(task_id, self.tasks, self.path)
        return self.tasks[task_id]

    def as_dict(self) -> dict[str, Any]:
        """What `info` shows, for JSON."""
        worst = self.worst
        known = not self.peer
        return {
            "path": str(self.path),
            "format": self.peer or FORMAT,
            "method": self.method,
            "dtype": self.dtype,
            "quantization": self.quantization.as_json() if self.quantization else None,
            "base_model": self.base_model,
            "engine": self.engine,
            "bytes": self.nbytes,
            "input_bytes": self.input_bytes if known else None,
            "ratio": self.ratio if known else None,
            "codec_ratio": self.codec_ratio,
            "mean_error": self.mean_error if known else None,
            "max_error": (worst.error if worst else 0.0) if known else None,
            "worst_task": worst.id if worst and known else None,
            "variance": self.variance if known else None,
            "layers": [
                {"name": x.name, "d_in": x.d_in, "d_out": x.d_out, "k_a": x.k_a, "k_b": x.k_b}
                for x in self.layers
            ],
            "tasks": [
                {
                    "id": t.id,
                    "rank": t.rank,
                    "alpha": t.config.get("lora_alpha"),
                    "modules": len(t.layers) + len(t.own),
                    "own_modules": len(t.own),
                    "rest_tensors": t.rest,
                    "norm": t.norm if known else None,
                    "error": t.error if known else None,
                    "measured": t.measured and known,
                    "origin": t.origin or None,
                    "bytes": t.nbytes,
                    "source": t.source,
                    "digest": t.digest,
                }
                for t in self.tasks.values()
            ],
            "coding": self.coding and self.coding.as_json(),
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def as_json(self) -> dict[str, Any]:
        """The content of subspace.json."""
        if self.coding is not None:
            return self._coded_json(self.coding)
        return {
            **self._head(),
            "layers": [_layer_json(layer) for layer in self.layers],
            "basis": self._basis_json(),
            "tasks": [task.as_json(len(self.layers)) for task in self.tasks.values()],
            "quantization": self.quantization.as_json() if self.quantization else None,
        }

    def _coded_json(self, coding: Coding) -> dict[str, Any]:
        """A shorter form, in which the index of small adapters is no large share of them."""
        rows = []
        said: dict[str, list[Any]] = {"configs": [], "kept": []}
        for task in self.tasks.values():
            row = task.as_json(len(self.layers))
            for key, value in (("configs", task.config), ("kept", list(map(list, task.kept)))):
                if value not in said[key]:
                    said[key].append(value)
                row[_INSIDE[key]] = said[key].index(value)
            rows.append(row)
        return {
            **self._head(),
            "coding": coding.as_json(),
            **pack_layers([_layer_row(layer) for layer in self.layers]),
            "basis": self._basis_json(),
            **said,
            "tasks": pack_tasks(rows),
        }

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "engine": self.engine,
            "method": self.method,
            "dtype": self.dtype,
            "base_model": self.base_model,
        }

    def _basis_json(self) -> list[dict[str, Any]]:
        return [
            {"file": b.name, "sha256": b.sha256, "bytes": b.nbytes, "layers": [b.first, b.last]}
            for b in self.basis
        ]


def unknown_task(task_id: str, tasks: Mapping[str, Any], where: Path | str | None) -> NotFoundError:
    """The error for a task that is not there."""
    names = ", ".join(list(tasks)[:12]) + (", ..." if len(tasks) > 12 else "")
    return NotFoundError(
        f"There is no task {task_id!r} in this subspace.", where=where, expected=names or "no task"
    )


def is_own_subspace(path: Path) -> bool:
    """Whether ``path`` is a directory whose subspace.json says that it is one of ours."""
    try:
        with (path / INDEX).open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(200)
    except OSError:
        return False


def parse_manifest(directory: Path, raw: bytes) -> Manifest:
    """The subspace in ``directory`` as ``raw``, the bytes of its subspace.json, describes it.

    Raises:
        CorruptFileError: The index is not sound.
        SubspaceError: It is of another version.
    """
    file = directory / INDEX
    try:
        parsed = _parse(directory, json.loads(raw))
        return replace(parsed, digest=hashlib.sha256(raw).hexdigest())
    except ParameterError as error:
        raise _unsound(file, f"{error.what} {error.found}") from None
    except VLoRAError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise _unsound(file, f"{type(error).__name__}: {error}") from None


def read_index(directory: Path) -> bytes:
    """The bytes of subspace.json; while a new directory takes the place of the old, a moment later.

    Raises:
        OSError: It cannot be read.
    """
    file = directory / INDEX
    while True:
        try:
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            # In this order: it may come between the two looks, and is there by the second.
            if not is_being_replaced(directory) and not file.is_file():
                raise
            time.sleep(0.001)


def _parse(directory: Path, index: Any) -> Manifest:
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise _unsound(directory / INDEX, "no vlora-subspace")
    if index.get("version") not in (VERSION, CODED_VERSION):
        raise SubspaceError(
            "The subspace is of another format version.",
            where=directory,
            expected=f"{VERSION} or {CODED_VERSION}",
            found=str(index.get("version")),
            remedy="open it with the version of vlora-tui that wrote it, or a newer one",
        )
    coded = index["version"] == CODED_VERSION
    methods = CODED_METHODS if coded else METHODS
    if index["method"] not in methods or index["dtype"] not in ITEM_BYTES:
        raise _unsound(directory / INDEX, f"method {index['method']!r}, dtype {index['dtype']!r}")
    layers = tuple(
        map(_parse_row, open_layers(index)) if coded else map(_parse_layer, index["layers"])
    )
    tasks: dict[str, TaskRecord] = {}
    files: set[str] = set()
    for row in open_tasks(index["tasks"]) if coded else index["tasks"]:
        said = (
            {own: index[key][_natural(row[own])] for key, own in _INSIDE.items()} if coded else {}
        )
        task = _parse_task({**row, **said}, len(layers))
        if not _TASK_FILE.match(task.file) or task.file.lower() in files:
            raise _unsound(directory / INDEX, f"the file name {task.file!r} of task {task.id!r}")
        if task.id in tasks:
            raise _unsound(directory / INDEX, f"two tasks named {task.id!r}")
        files.add(task.file.lower())
        tasks[task.id] = task
    basis = tuple(
        BasisFile(str(b["file"]), str(b["sha256"]), int(b["bytes"]), *map(_natural, b["layers"]))
        for b in index["basis"]
    )
    if not all(_BASIS_FILE.match(b.name) for b in basis):
        raise _unsound(directory / INDEX, "the file name of a basis")
    covered = [i for b in basis for i in range(b.first, min(b.last, 1 << 20))]
    if covered != list(range(len(layers))) and not (coded and not basis):
        raise _unsound(directory / INDEX, "basis files that do not cover the layers")
    base = index["base_model"]
    return Manifest(
        path=directory,
        method=index["method"],
        dtype=index["dtype"],
        base_model=None if base is None else str(base),
        layers=layers,
        basis=basis,
        tasks=tasks,
        engine=str(index.get("engine", "")),
        coding=parse_coding(index["coding"], len(layers)) if coded else None,
        quantization=parse_quantization(index.get("quantization")),
    )


def _parse_layer(row: Mapping[str, Any]) -> LayerSpec:
    return LayerSpec(
        name=str(row["name"]),
        d_in=_natural(row["d_in"]),
        d_out=_natural(row["d_out"]),
        rank=_natural(row["rank"]),
        k_a=_natural(row["k"][0]),
        k_b=_natural(row["k"][1]),
        kind=row.get("kind", "linear"),
        tail_a=tuple(map(_natural, row.get("tail_a", ()))),
    )


def _parse_row(row: Sequence[Any]) -> LayerSpec:
    name, d_in, d_out, rank, *rest = row
    kind: Any
    kind, tail = rest if rest else ("linear", ())
    numbers = (_natural(d_in), _natural(d_out), _natural(rank))
    return LayerSpec(str(name), *numbers, 0, 0, kind, tuple(map(_natural, tail)))


def _layer_row(layer: LayerSpec) -> list[Any]:
    row: list[Any] = [layer.name, layer.d_in, layer.d_out, layer.rank]
    return row if layer.kind == "linear" else [*row, layer.kind, list(layer.tail_a)]


def _layer_json(layer: LayerSpec) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": layer.name,
        "d_in": layer.d_in,
        "d_out": layer.d_out,
        "rank": layer.rank,
        "k": [layer.k_a, layer.k_b],
    }
    if layer.kind != "linear":
        row |= {"kind": layer.kind, "tail_a": list(layer.tail_a)}
    return row


def _parse_task(row: Mapping[str, Any], layer_count: int) -> TaskRecord:
    layers = tuple(map(_natural, row.get("layers", range(layer_count))))
    if list(layers) != sorted(set(layers)) or any(i >= layer_count for i in layers):
        raise ValueError(f"layers of task {row['id']!r}")
    source = row["source"]
    if not isinstance(row["config"], dict):
        raise TypeError(f"config of task {row['id']!r}")
    return TaskRecord(
        id=str(row["id"]),
        file=str(row["file"]),
        sha256=str(row["sha256"]),
        nbytes=_natural(row["bytes"]),
        digest=str(row["digest"]),
        layers=layers,
        ranks=tuple(_natural(r) for r in _spread(row["ranks"], len(layers))),
        scales=tuple(float(s) for s in _spread(row["scales"], len(layers))),
        dtypes=tuple(_dtype(d) for d in _spread(row["dtypes"], len(layers))),
        norm=float(row["norm"]),
        error=float(row["error"]),
        rank=_natural(row["rank"]),
        config=row["config"],
        own=tuple(
            OwnModule(str(n), float(s), k, tuple(map(_natural, t)))
            for n, s, k, t in row.get("own", ())
        ),
        rest=_natural(source["rest"][0]),
        rest_bytes=_natural(source["rest"][1]),
        source=None if source["path"] is None else str(source["path"]),
        source_bytes=_natural(source["bytes"]),
        factor_elements=_natural(source["elements"]),
        measured=bool(row.get("measured", True)),
        cluster=_natural(row.get("cluster", 0)),
        kept=tuple((str(k), _dtype(d), tuple(map(_natural, x))) for k, d, x in row.get("kept", ())),
        origin=str(row.get("origin", "")),
    )


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no count")
    return value


def _dtype(value: Any) -> str:
    if value not in ITEM_BYTES:
        raise ValueError(f"{value!r} is no dtype")
    return str(value)


def _squeeze(values: Sequence[Any]) -> Any:
    return values[0] if values and len(set(values)) == 1 else list(values)


def _spread(value: Any, count: int) -> list[Any]:
    spread = value if isinstance(value, list) else [value] * count
    if len(spread) != count:
        raise ValueError(f"{len(spread)} values for {count} modules")
    return spread


def _unsound(file: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        "The subspace's index is not sound.",
        where=file,
        found=found,
        remedy="restore it from a copy, or compress the adapters again",
    )
