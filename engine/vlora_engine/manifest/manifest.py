"""The index of a subspace directory, subspace.json: its model, and how it is written. No torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlora_engine.adapters.model import Kind, form_word
from vlora_engine.compression_target import DEFAULT_BASIS_METHOD
from vlora_engine.errors import FileKindError, UnknownTaskError
from vlora_engine.findings import Finding
from vlora_engine.manifest.coded_index import pack_layers, pack_tasks
from vlora_engine.manifest.coding import Coding
from vlora_engine.quantization.packing import Quantization
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.partials import is_being_replaced
from vlora_engine.utils.ranking import foremost
from vlora_engine.utils.reading import open_file, read_file

FORMAT = "vlora-subspace"
VERSION = 1
CODED_VERSION = 2  # of directories that hold coded numbers
BASIS_VERSION = 3  # of coded tasks beside a shared basis
INSIDE = {"configs": "config", "kept": "kept"}  # what several tasks share: lists, and the key

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

    @property
    def fits(self) -> tuple[str, int, int]:
        """A key that is equal for modules of its kind and dimensions, as `ModuleShape.fits`."""
        return form_word(self.kind, self.tail_a), self.d_in, self.d_out

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
        return sum(self.loadings_sides(method, rank))

    def loadings_sides(self, method: str, rank: int) -> tuple[int, ...]:
        """The same of either side, or of the core where that is smaller."""
        if method == "flat":
            return self.k_a, self.k_b
        if method == "delta" and core_is_dense(rank, self.k_a, self.k_b):
            return (self.k_a * self.k_b,)
        return rank * self.k_a, rank * self.k_b


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
        in_basis: Of a coded collection: whether the task is loadings in the basis beside it.
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
    in_basis: bool = False

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
        if self.in_basis:
            row["loadings"] = True
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
class SharedBasisFiles:
    """The shared `delta` basis beside coded tasks.

    Args:
        dtype: Of its components, and of loadings in it. k: (k_a, k_b) of every layer, 0 where it
            has no basis. files: As those of a subspace with a basis.
    """

    dtype: str
    k: tuple[tuple[int, int], ...]
    files: tuple[BasisFile, ...]


@dataclass(frozen=True)
class Manifest:
    """A subspace directory's index.

    Args:
        shared_basis: Of a coded collection: its shared basis, where one was saved with it.
        peer: Whose subspace it is, empty for ours; of a peer's no error is known.
        findings: What is unusual about a peer's.
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
    shared_basis: SharedBasisFiles | None = None
    quantization: Quantization | None = None
    peer: str = ""
    findings: tuple[Finding, ...] = ()
    digest: str = field(default="", compare=False, repr=False)

    def is_outdated(self) -> bool:
        """Whether the index on disk has been replaced since it was read, or is being replaced."""
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
        """The version of the file format."""
        if self.coding is None:
            return VERSION
        return CODED_VERSION if self.shared_basis is None else BASIS_VERSION

    @property
    def files(self) -> tuple[BasisFile, ...]:
        """The files beside those of the tasks."""
        return (*self.basis, *(self.shared_basis.files if self.shared_basis else ()))

    def of_basis(self) -> Manifest:
        """The basis beside coded tasks, and the tasks that are loadings in it, as a subspace."""
        shared_basis = self.shared_basis
        assert shared_basis is not None  # noqa: S101  (asked for where there is one)
        pairs = zip(self.layers, shared_basis.k, strict=True)
        return replace(
            self,
            method=DEFAULT_BASIS_METHOD,
            dtype=shared_basis.dtype,
            layers=tuple(replace(spec, k_a=k_a, k_b=k_b) for spec, (k_a, k_b) in pairs),
            basis=shared_basis.files,
            tasks={task.id: task for task in self.tasks.values() if task.in_basis},
            coding=None,
            shared_basis=None,
        )

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
        """The index and its figures as `info` shows them, for JSON."""
        worst = self.worst
        is_measured = not self.peer
        return {
            "path": str(self.path),
            "format": self.peer or FORMAT,
            "method": self.method,
            "dtype": self.dtype,
            "quantization": self.quantization.as_json() if self.quantization else None,
            "base_model": self.base_model,
            "engine": self.engine,
            "bytes": self.nbytes,
            "input_bytes": self.input_bytes if is_measured else None,
            "ratio": self.ratio if is_measured else None,
            "codec_ratio": self.codec_ratio,
            "mean_error": self.mean_error if is_measured else None,
            "max_error": (worst.error if worst else 0.0) if is_measured else None,
            "worst_task": worst.id if worst and is_measured else None,
            "variance": self.variance if is_measured else None,
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
                    "norm": t.norm if is_measured else None,
                    "error": t.error if is_measured else None,
                    "measured": t.measured and is_measured,
                    "origin": t.origin or None,
                    "in_basis": t.in_basis or self.coding is None,
                    "bytes": t.nbytes,
                    "source": t.source,
                    "digest": t.digest,
                }
                for t in self.tasks.values()
            ],
            "coding": self.coding and self.coding.as_json(),
            "basis": self.shared_basis and shared_basis_figures(self, self.shared_basis),
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def as_json(self) -> dict[str, Any]:
        """The content of subspace.json."""
        if self.coding is not None:
            return self._coded_json(self.coding)
        return {
            **self._head(),
            "layers": [_layer_json(layer) for layer in self.layers],
            "basis": _files_json(self.basis),
            "tasks": [task.as_json(len(self.layers)) for task in self.tasks.values()],
            "quantization": self.quantization.as_json() if self.quantization else None,
        }

    def _coded_json(self, coding: Coding) -> dict[str, Any]:
        """A shorter form, in which the index of small adapters is no large share of them."""
        rows = []
        tables: dict[str, list[Any]] = {"configs": [], "kept": []}
        for task in self.tasks.values():
            row = task.as_json(len(self.layers))
            for key, value in (("configs", task.config), ("kept", list(map(list, task.kept)))):
                if value not in tables[key]:
                    tables[key].append(value)
                row[INSIDE[key]] = tables[key].index(value)
            rows.append(row)
        return {
            **self._head(),
            "coding": coding.as_json(),
            **pack_layers([_layer_row(layer) for layer in self.layers]),
            "basis": _files_json(self.basis),
            **tables,
            "tasks": pack_tasks(rows),
            **(
                {}
                if self.shared_basis is None
                else {"shared_basis": _shared_basis_json(self.shared_basis)}
            ),
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


def unknown_task(
    task_id: str, tasks: Mapping[str, Any], where: Path | str | None
) -> UnknownTaskError:
    """The error for a task that is not there."""
    names = ", ".join(list(tasks)[:12]) + (", ..." if len(tasks) > 12 else "")
    return UnknownTaskError(
        f"There is no task {task_id!r} in this subspace.", where=where, expected=names or "no task"
    )


def is_own_subspace(path: Path) -> bool:
    """Whether ``path`` is a directory with a subspace.json of this library."""
    try:
        with open_file(path / SUBSPACE_INDEX) as file:
            return f'"{FORMAT}"'.encode() in file.read(200)
    except FileKindError:  # whoever reads it says what it is
        return True
    except OSError:
        return False


def read_index(directory: Path) -> bytes:
    """The bytes of subspace.json; while a new directory takes the place of the old, a moment later.

    Raises:
        OSError: It cannot be read.
    """
    file = directory / SUBSPACE_INDEX
    while True:
        try:
            return read_file(file)
        except (FileNotFoundError, NotADirectoryError):
            # In this order: it may come between the two looks, and is there by the second.
            if not is_being_replaced(directory) and not file.is_file():
                raise
            time.sleep(0.001)


def _layer_row(layer: LayerSpec) -> list[Any]:
    row: list[Any] = [layer.name, layer.d_in, layer.d_out, layer.rank]
    return row if layer.kind == "linear" else [*row, layer.kind, list(layer.tail_a)]


def _files_json(files: Sequence[BasisFile]) -> list[dict[str, Any]]:
    return [
        {"file": b.name, "sha256": b.sha256, "bytes": b.nbytes, "layers": [b.first, b.last]}
        for b in files
    ]


def _shared_basis_json(shared_basis: SharedBasisFiles) -> dict[str, Any]:
    return {
        "dtype": shared_basis.dtype,
        "k": list(map(list, shared_basis.k)),
        "files": _files_json(shared_basis.files),
    }


def shared_basis_figures(manifest: Manifest, shared_basis: SharedBasisFiles) -> dict[str, Any]:
    """The basis beside coded tasks as `info` shows it."""
    sides = [side for pair in shared_basis.k for side in pair if side]
    return {
        "method": DEFAULT_BASIS_METHOD,
        "dtype": shared_basis.dtype,
        "bytes": sum(file.nbytes for file in shared_basis.files),
        "k": [min(sides, default=0), max(sides, default=0)],
        "layers": [
            {"name": spec.name, "k_a": k_a, "k_b": k_b}
            for spec, (k_a, k_b) in zip(manifest.layers, shared_basis.k, strict=True)
        ],
    }


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


def _squeeze(values: Sequence[Any]) -> Any:
    return values[0] if values and len(set(values)) == 1 else list(values)
