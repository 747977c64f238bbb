"""The exact error surface of a collection as small tables, on disk and in memory; no torch.

For nested orthonormal bases, the energy of a task's dW that (k_a, k_b) captures is known for every
k at once (docs/mathematics.md#the-error-surface). A table holds what is *not* captured, the
residual energy, so that small errors keep their digits in fp32. Plots show these tables and k is
chosen on them; nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.analysis.relations import Relations, is_current, ratios_of
from vlora_engine.codec.forecast import OwnTable, RateTables, load_own_table
from vlora_engine.errors import (
    CorruptFileError,
    MissingPathError,
    NotFoundError,
    ParameterError,
    VLoRAError,
)
from vlora_engine.findings import Finding
from vlora_engine.quantization.dtypes import STORAGE_DTYPES
from vlora_engine.utils.array_file import Arrays, read_arrays
from vlora_engine.utils.file_names import SPECTRA_INDEX
from vlora_engine.utils.files import write_file, write_json
from vlora_engine.utils.json_reader import JsonFile, JsonObject, shown
from vlora_engine.utils.partials import how_to_put_back
from vlora_engine.utils.reading import read_file

Array = npt.NDArray[Any]

FORMAT = "vlora-spectra"
VERSION = 1
DENSE_DIAGONAL = 256  # every k up to here is in a table, ...
SPARSE_DIAGONAL = 64  # ... and 64 above, evenly spaced in the logarithm
GRID = 48  # k a side off the diagonal, at most
CODED = "coded"  # stands for a storage dtype where methods code


@dataclass
class MethodTable:
    """The residual energies of one method on one layer.

    Args:
        k: (K,) ascending, starting at 0: the k of the diagonal k_a = k_b = k (a side that has
            fewer directions stays at its maximum).
        residual: (N, K) fp32, ``||dW_i||^2 - captured_i(k, k)``.
        grid_a: (Ga,) the k_a of the off-diagonal grid.
        grid_b: (Gb,) the k_b of it.
        grid: (N, Gb, Ga) fp32 residual energies, or empty where only the diagonal exists.
        singular_values_a: (max_a,) of side a's row matrix.
        singular_values_b: (max_b,) of side b's.
    """

    k: Array
    residual: Array
    grid_a: Array
    grid_b: Array
    grid: Array
    singular_values_a: Array
    singular_values_b: Array

    @property
    def max_a(self) -> int:
        """The largest k of side a."""
        return len(self.singular_values_a)

    @property
    def max_b(self) -> int:
        """The largest k of side b."""
        return len(self.singular_values_b)

    def at(self, k_a: int, k_b: int) -> Array:
        """The residual energy (N,) at (k_a, k_b); between tabulated k, that of the lower."""
        max_a, max_b = self.max_a, self.max_b
        k_a, k_b = min(k_a, max_a), min(k_b, max_b)
        k = max(k_a, k_b)  # the one of the diagonal, if this is on it
        is_diagonal = k_a == min(k, max_a) and k_b == min(k, max_b)
        if is_diagonal or not self.grid.size:
            k = k if is_diagonal else min(k_a, k_b)
            return self.residual[:, int(self.k.searchsorted(k, "right")) - 1]
        i = max(0, int(np.searchsorted(self.grid_a, k_a, "right")) - 1)
        j = max(0, int(np.searchsorted(self.grid_b, k_b, "right")) - 1)
        return self.grid[:, j, i]

    def candidates(self) -> tuple[Array, Array, Array]:
        """All tabulated choices: k_a (C,), k_b (C,), residual (N, C)."""
        k_a, k_b = np.minimum(self.k, self.max_a), np.minimum(self.k, self.max_b)
        if not self.grid.size:
            return k_a, k_b, self.residual
        grid_b, grid_a = np.meshgrid(self.grid_b, self.grid_a, indexing="ij")
        return (
            np.concatenate([k_a, grid_a.ravel()]),
            np.concatenate([k_b, grid_b.ravel()]),
            np.concatenate([self.residual, self.grid.reshape(len(self.grid), -1)], axis=1),
        )


@dataclass
class LayerTable:
    """The tables of one layer, a module of the collection.

    Args:
        name: Of the layer.
        d_in: Its input dimension.
        d_out: Its output dimension.
        tasks: (N,) indices into the collection's tasks: those that have the module.
        ranks: (N,) of their modules.
        energy: (N,) ||dW_i||^2 of the module.
        methods: The table of each method.
    """

    name: str
    d_in: int
    d_out: int
    tasks: Array
    ranks: Array
    energy: Array
    methods: dict[str, MethodTable] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank."""
        return int(self.ranks.max(initial=0))


@dataclass
class TaskEntry:
    """What the choice of k needs to know about a task of the collection.

    Args:
        name: Of the task.
        digest: The sha256 of its content.
        norm: ||dW|| over all modules.
        nbytes: Its files as stored.
        factor_elements: Numbers in A and B.
        rest_bytes: Bytes of its rest tensors.
        dtype: Of its factors, under safetensors' name.
        path: Where it was read from.
    """

    name: str
    digest: str
    norm: float
    nbytes: int
    factor_elements: int
    rest_bytes: int
    dtype: str
    path: str | None = None


@dataclass
class Spectra:
    """The spectra and error surfaces of a collection.

    Args:
        tasks: In the order of all arrays over tasks.
        methods: Those that have tables.
        layer_names: All layers, also those that are not computed yet.
        layers: The tables of the computed layers.
        relations: How the tasks relate, where that was affordable; spectra of an earlier version
            hold only the inner products over all modules.
        findings: What was noticed about the inputs.
        skipped: The errors of adapters that were left out (`VLoRAError.as_json`).
        path: The directory that they were read from.
        overhead: By storage dtype the bytes of a subspace that no choice of k changes, rest tensors
            apart; by `CODED` those of a coded one, where that was asked for.
        vectors: By layer index the eigenvectors that form the bases again; spectra on disk keep
            them in files instead.
        reused_layers: How many a stopped run had computed before.
        codec: The codec's tables.
        own: By layer what coding each task by itself costs, while ``codec`` is still missing.
    """

    tasks: list[TaskEntry]
    methods: list[str]
    layer_names: list[str]
    layers: dict[str, LayerTable] = field(default_factory=dict)
    relations: Relations | None = None
    findings: list[Finding] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None
    overhead: dict[str, int] = field(default_factory=dict)
    vectors: dict[int, dict[str, Array]] = field(default_factory=dict, repr=False)
    reused_layers: int = 0
    codec: RateTables | None = field(default=None, repr=False)
    own: dict[str, OwnTable] = field(default_factory=dict, repr=False)
    is_coded: bool = field(default=False, repr=False)  # the codec's tables were seen on the disk
    _sizes: dict[str, int] = field(default_factory=dict, init=False, repr=False)  # of files read

    def refresh(self) -> bool:
        """Read what was written since the last call; True if there was anything."""
        if self.path is None:
            return False
        before = self.arrived
        self.is_coded = self.is_coded or rate_tables_file(self.path).exists()
        for i, layer in enumerate(_layers_of(_read_index(self.path))):
            self._refresh_layer(i, layer)
        similarity = similarity_file(self.path)
        if self.relations is None and similarity.exists():
            self.relations = _read_relations(similarity, len(self.tasks))
        return self.arrived > before

    def _refresh_layer(self, index: int, layer: _Layer) -> None:
        """Read a layer that is there by now, or has tables of more methods than before."""
        if self.path is None:
            return
        known = self.layers.get(layer.name)
        if known is None or not self._has_all_methods(known):
            nbytes = _size_of(layer_file(self.path, index))
            is_new = known is None or nbytes != self._sizes.get(layer.name)
            if nbytes is not None and is_new:
                file = layer_file(self.path, index)
                self.layers[layer.name] = _read_layer(file, layer, len(self.tasks))
                self._sizes[layer.name] = nbytes
        if not self.is_coded and layer.name not in self.own:
            file = own_file(self.path, index)
            if file.exists():
                self.own[layer.name] = load_own_table(
                    _file_of(file), layer.name, layer.d_in, layer.d_out, len(self.tasks)
                )

    def _has_all_methods(self, table: LayerTable) -> bool:
        return table.methods.keys() >= set(self.methods)

    @property
    def arrived(self) -> int:
        """Rises with everything that is read: layers, methods of them, the codec's tables."""
        methods = sum(len(table.methods) for table in self.layers.values())
        return methods + self.coding_arrived

    @property
    def coding_arrived(self) -> int:
        """Rises with all that decides on what coding costs."""
        return len(self.layers) + len(self.own) + self.is_coded

    def move(self, path: Path) -> bool:
        """Go on reading at another place, if what lies there is the same; else False."""
        index = _read_index(path)
        names = [layer.name for layer in _layers_of(index)]
        tasks = [task.object()["digest"].text() for task in index["tasks"].items()]
        if names != self.layer_names or tasks != [task.digest for task in self.tasks]:
            return False
        self.path = path
        return True

    @property
    def ready_methods(self) -> list[str]:
        """The methods that have a table of every layer that is computed."""
        if not self.layers:
            return []
        ready = set(self.methods).intersection(*(table.methods for table in self.layers.values()))
        return [method for method in self.methods if method in ready]

    def rate_tables(self) -> RateTables | None:
        """The tables that forecast the size of coding, once they are computed."""
        if self.codec is None and self.path is not None and self.has_rate_tables:
            self.codec = RateTables.load(rate_tables_file(self.path))
        return self.codec

    @property
    def has_rate_tables(self) -> bool:
        """Whether the tables that forecast the size of coding were there when it was last read.

        Not whether the disk has them by now: nobody would read again what seems to be whole.
        """
        return self.codec is not None or self.is_coded

    def vectors_of(self, index: int, method: str) -> dict[str, Array] | None:
        """The eigenvectors per side of one layer, or None where they were not kept."""
        kept = self.vectors.get(index)
        if kept is None and self.path is not None and vectors_file(self.path, index).exists():
            kept = read_arrays(_file_of(vectors_file(self.path, index)))
        return None if kept is None else {side: kept[f"{method}.{side}"] for side in ("a", "b")}

    @property
    def complete(self) -> bool:
        """Whether all layers are computed."""
        return len(self.layers) == len(self.layer_names)

    @property
    def has_all_tables(self) -> bool:
        """Whether all that this version computes of its methods is there."""
        related = self.relations is None or bool(self.relations.families)
        whole = all(self._has_all_methods(table) for table in self.layers.values())
        return self.complete and whole and related

    @property
    def is_whole(self) -> bool:
        """Whether that and the tables of the codec are there; else all is computed again."""
        return self.has_all_tables and self.has_rate_tables

    def rate_tables_so_far(self) -> RateTables | None:
        """The codec's tables; while they are measured, those of the layers that are there.

        These share nothing yet, and speak of the layers that they have as of the whole adapters;
        bytes are carried over to all layers by their numbers.
        """
        if self.is_coded or self.codec is not None:
            return self.rate_tables()
        names = [name for name in self.layer_names if name in self.own and name in self.layers]
        overhead = self.overhead.get(CODED)
        if not names or overhead is None:
            return None
        return RateTables(
            tasks=[task.name for task in self.tasks],
            layers=[self.own[name] for name in names],
            groups={},
            grid=np.ones(1),
            clusters={},
            overhead=overhead,
            rest_bytes=sum(task.rest_bytes for task in self.tasks),
            factor_bytes=2 * sum(task.factor_elements for task in self.tasks),
            input_bytes=sum(task.nbytes for task in self.tasks),
        )

    def measured_part(self, names: Iterable[str]) -> float:
        """The share of all numbers in A and B that lies in these layers, which are computed."""
        whole = sum(task.factor_elements for task in self.tasks)
        tables = (self.layers[name] for name in names)
        part = sum(int(t.ranks.sum()) * (t.d_in + t.d_out) for t in tables)
        return min(1.0, part / whole) if whole else 1.0

    def measured(self) -> Spectra:
        """The spectra restricted to computed layers, for figures while others are pending."""
        names = [name for name in self.layer_names if name in self.layers]
        return replace(self, layer_names=names)

    @property
    def weights(self) -> Array:
        """The tasks' weights ``w_i^2 = 1 / ||dW_i||^2`` (N,); 0 for a task without effect."""
        norms = np.array([task.norm for task in self.tasks])
        weights: Array = np.divide(1.0, norms**2, out=np.zeros(len(norms)), where=norms > 0)
        return weights

    def table(self, layer: str, method: str) -> MethodTable:
        """The table of one method on one layer.

        Raises:
            NotFoundError: The layer is unknown or not computed yet.
            ParameterError: The spectra were computed without that method.
        """
        if layer not in self.layers:
            raise NotFoundError(f"The spectra have no module {layer!r} yet.", where=self.path)
        methods = self.layers[layer].methods
        if method not in methods:
            raise ParameterError(
                f"The spectra have no surface of method {method!r}.",
                where=self.path,
                expected=", ".join(methods),
            )
        return methods[method]

    def variance(self, layer: str, method: str) -> tuple[Array, Array]:
        """The captured share of a layer's dW over k: k (K,) and share (K,), tasks by `weights`."""
        table, weights = self.table(layer, method), self.weights[self.layers[layer].tasks]
        total = float(weights @ self.layers[layer].energy)
        if total <= 0:
            return table.k, np.ones(len(table.k))
        return table.k, 1.0 - (weights @ table.residual) / total

    @classmethod
    def load(cls, path: str | Path) -> Spectra:
        """Read a spectra directory; layers that are not written yet are absent.

        Raises:
            NotFoundError: There is no spectra directory at ``path``.
            CorruptFileError: A file of it cannot be read.
        """
        directory = Path(path)
        index = _read_index(directory)
        overhead = index["overhead"].object()
        if not index.list_of("layers"):
            raise index.file.error("layers", "one layer or more", "none")
        spectra = cls(
            tasks=[_task_entry(task.object()) for task in index["tasks"].items()],
            methods=index["methods"].texts(),
            layer_names=[layer.name for layer in _layers_of(index)],
            findings=[Finding.from_json(row.raw_object()) for row in index["findings"].items()],
            skipped=[row.raw_object() for row in index["skipped"].items()],
            overhead={
                kind: overhead[kind].natural()
                for kind in (*STORAGE_DTYPES.values(), CODED)
                if kind != CODED or overhead.get(CODED) is not None
            },
            path=directory,
        )
        spectra.refresh()
        return spectra

    @property
    def inner(self) -> Array | None:
        """The inner products of dW (N, N), where they were affordable."""
        return None if self.relations is None else self.relations.total

    def cosines(self) -> Array | None:
        """The cosines of dW between tasks (N, N), if the spectra hold them; 0 for a zero dW."""
        return None if self.inner is None else ratios_of(self.inner)


def layer_file(directory: Path, index: int) -> Path:
    """The file of the tables of the layer with this index."""
    return directory / "layers" / f"{index:05d}.safetensors"


def similarity_file(directory: Path) -> Path:
    """The file of the relations between tasks."""
    return directory / "similarity.safetensors"


def rate_tables_file(directory: Path) -> Path:
    """The file of the codec's tables."""
    return directory / "codec.safetensors"


def own_file(directory: Path, index: int) -> Path:
    """The file of what coding each task by itself costs on a layer, until all layers are there."""
    return own_folder(directory) / f"{index:05d}.safetensors"


def own_folder(directory: Path) -> Path:
    """The folder of these files; gone where the codec's tables are there."""
    return directory / "codec"


def _size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def vectors_file(directory: Path, index: int) -> Path:
    """The file of the eigenvectors of the layer with this index, which a build uses."""
    return directory / "vectors" / f"{index:05d}.safetensors"


def write_index(
    directory: Path, spectra: Spectra, shapes: Mapping[str, Any], fingerprint: str
) -> None:
    """Write spectra.json: everything but the tables.

    Args:
        directory: Of the spectra.
        spectra: What to write.
        shapes: Layer to (d_in, d_out).
        fingerprint: Of inputs and settings: only layers of equal fingerprint are used together.
    """
    write_json(
        directory / SPECTRA_INDEX,
        {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": fingerprint,
            "methods": spectra.methods,
            "layers": [
                {"name": name, "d_in": shapes[name][0], "d_out": shapes[name][1]}
                for name in spectra.layer_names
            ],
            "tasks": [asdict(task) for task in spectra.tasks],
            "findings": [finding.as_json() for finding in spectra.findings],
            "skipped": spectra.skipped,
            "overhead": spectra.overhead,
        },
        indent=1,
    )


def finished_layers(directory: Path, fingerprint: str) -> dict[str, LayerTable]:
    """The finished layers of interrupted spectra, by name; none if the fingerprint differs.

    A layer that cannot be read counts as not finished.
    """
    try:
        index = _read_index(directory)
    except VLoRAError:
        return {}
    found: dict[str, LayerTable] = {}
    with suppress(CorruptFileError):
        if index["fingerprint"].text() != fingerprint:
            return {}
        tasks = len(index["tasks"].items())
        for i, layer in enumerate(_layers_of(index)):
            with suppress(NotFoundError, CorruptFileError):
                found[layer.name] = _read_layer(layer_file(directory, i), layer, tasks)
    return found


def write_layer(directory: Path, index: int, table: LayerTable) -> None:
    """Write the tables of one layer in one step, since others may be reading the directory."""
    arrays = {"tasks": table.tasks, "ranks": table.ranks, "energy": table.energy}
    for method, method_table in table.methods.items():
        for name, array in vars(method_table).items():
            arrays[f"{method}.{name}"] = array
    write_arrays(layer_file(directory, index), arrays)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write numpy arrays as safetensors, in one step."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))


def _read_index(directory: Path) -> JsonObject:
    path = directory / SPECTRA_INDEX
    file = JsonFile(path, "The spectra's index cannot be read.", "compute the spectra again")
    try:
        raw = read_file(path)
    except FileNotFoundError:
        raise MissingPathError(
            "There are no spectra here.",
            where=directory,
            expected=f"a directory with {SPECTRA_INDEX}",
            remedy=how_to_put_back(directory) or "make them with `vlora-tui spectra PATHS -o DIR`",
        ) from None
    except OSError as error:
        raise file.error("", "a file that can be read", str(error)) from None
    index = file.parse(raw).object()
    kind, version = index.get("format"), index.get("version")
    if kind is None or kind.value != FORMAT:
        raise CorruptFileError("The file is no index of spectra.", where=path)
    if version is None or version.value != VERSION:
        raise CorruptFileError(
            "The spectra are of another version.",
            where=path,
            expected=str(VERSION),
            found="None" if version is None else shown(version.value),
            remedy="compute them again",
        )
    return index


@dataclass(frozen=True)
class _Layer:
    """What the index says of a layer."""

    name: str
    d_in: int
    d_out: int


def _layers_of(index: JsonObject) -> list[_Layer]:
    rows = [value.object() for value in index["layers"].items()]
    return [_Layer(r["name"].text(), r["d_in"].natural(), r["d_out"].natural()) for r in rows]


def _task_entry(row: JsonObject) -> TaskEntry:
    path = row.get("path")
    return TaskEntry(
        name=row["name"].text(),
        digest=row["digest"].text(),
        norm=row["norm"].number(),
        nbytes=row["nbytes"].natural(),
        factor_elements=row["factor_elements"].natural(),
        rest_bytes=row["rest_bytes"].natural(),
        dtype=row["dtype"].text(),
        path=None if path is None or path.is_null else path.text(),
    )


def _file_of(path: Path) -> JsonFile:
    return JsonFile(path, "A file of the spectra cannot be read.", "compute the spectra again")


def _read_relations(path: Path, tasks: int) -> Relations:
    arrays = read_arrays(_file_of(path))
    arrays.numbers("inner", tasks, tasks)
    for name in arrays if is_current(arrays) else ():
        if name != "version":
            arrays.numbers(name, *((tasks,) if name.startswith("holders.") else (tasks, tasks)))
    return Relations.of_arrays(arrays)


def _read_layer(path: Path, layer: _Layer, tasks: int) -> LayerTable:
    arrays = read_arrays(_file_of(path))
    holders = arrays.indices("tasks", tasks)
    ranks = arrays.indices("ranks", 1 << 31)
    arrays.numbers("ranks", len(holders))
    methods = sorted({method for method, dot, _ in (k.partition(".") for k in arrays) if dot})
    return LayerTable(
        name=layer.name,
        d_in=layer.d_in,
        d_out=layer.d_out,
        tasks=holders,
        ranks=ranks,
        energy=arrays.shares("energy", len(holders)),
        methods={method: _method_table(arrays, method, len(holders)) for method in methods},
    )


def _method_table(arrays: Arrays, method: str, tasks: int) -> MethodTable:
    def numbers(name: str, *shape: int | None) -> Array:
        return arrays.numbers(f"{method}.{name}", *shape)

    k, grid_a, grid_b = (arrays.rising(f"{method}.{name}") for name in ("k", "grid_a", "grid_b"))
    return MethodTable(
        k=k,
        residual=arrays.shares(f"{method}.residual", tasks, len(k)),
        grid_a=grid_a,
        grid_b=grid_b,
        grid=arrays.shares(f"{method}.grid", tasks, len(grid_b), len(grid_a)),
        singular_values_a=numbers("singular_values_a", None),
        singular_values_b=numbers("singular_values_b", None),
    )


def diagonal_k(top: int) -> Array:
    """The tabulated k of a diagonal: 0 to 256, then at most 64 evenly spaced in the logarithm."""
    dense = np.arange(min(top, DENSE_DIAGONAL) + 1)
    if top <= DENSE_DIAGONAL:
        return dense
    sparse = np.geomspace(DENSE_DIAGONAL, top, SPARSE_DIAGONAL + 1)[1:].round().astype(np.int64)
    return np.unique(np.concatenate([dense, sparse]))


def grid_k(diagonal: Array, top: int, points: int) -> Array:
    """Choose at most ``points`` of the diagonal's k up to ``top``, denser where k is small."""
    if top <= 0:
        return np.zeros(1, dtype=np.int64)
    inside = diagonal[diagonal <= top]
    spaced = np.geomspace(1, top + 1, points) - 1
    return np.unique(inside[np.abs(inside[None, :] - spaced[:, None]).argmin(1)])


def grid_points(tasks: int, layers: int, methods: int, limit: int = 32_000_000) -> int:
    """How many k a side the off-diagonal grid may have, so that all tables fit in ``limit``."""
    return max(8, min(GRID, math.isqrt(limit // (4 * max(1, tasks * layers * methods)))))
