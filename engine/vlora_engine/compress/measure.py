"""Spectra of a collection: per layer the eigenbases of every method and their error surfaces."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlora_engine.adapters.check import CheckReport, check_adapters
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.adapters.needs import by_layer, measuring
from vlora_engine.adapters.stack import LayerStack, flatten, read_stack, unflatten
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.analysis.relations import RelationsSum
from vlora_engine.codec.forecast import OwnTable, save_own_table
from vlora_engine.compression_target import BASIS_METHODS
from vlora_engine.errors import CorruptFileError, ParameterError, VLoRAError
from vlora_engine.linalg.grams import cumulative_grams, full_basis, small_grams
from vlora_engine.linalg.low_rank import module_grams
from vlora_engine.manifest.manifest import TaskRecord
from vlora_engine.manifest.records import overhead_bytes, shared_layers, task_record
from vlora_engine.quantization.dtypes import STORAGE_DTYPES
from vlora_engine.spectra import tables
from vlora_engine.spectra.tables import LayerTable, MethodTable, Spectra, TaskEntry, write_layer
from vlora_engine.subspace.coded.build import coded_overhead, rate_tables_of
from vlora_engine.subspace.coded.measure import FirstPass, Seen
from vlora_engine.subspace.request import Collection, canonical_order, fingerprint_of
from vlora_engine.utils.array_file import read_arrays
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.files import remove
from vlora_engine.utils.json_reader import JsonFile
from vlora_engine.utils.naming import printable
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import publish, sole_writer
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.unfinished import keep_finished_layers, spectra_partial
from vlora_engine.utils.workers import map_ordered

if TYPE_CHECKING:
    from vlora_engine.codec.forecast import RateTables

logger = logging.getLogger(__name__)

SIMILARITY_LIMIT = 4096
VECTORS_LIMIT_BYTES = 1_000_000_000
CHUNK_ELEMENTS = 4_000_000


@dataclass
class LayerSpectrum:
    """One layer's table, and per "method.side" the eigenvectors that form its basis again.

    Args:
        grams: ``<dW_i, dW_j>`` and ``<A_i, A_j>`` of the layer's tasks, where they are affordable.
        seen: What the codec's first pass is to remember of it.
    """

    table: LayerTable
    vectors: dict[str, Tensor]
    grams: tuple[Tensor, Tensor] | None
    seen: Seen | None = None


def compute_spectra(
    sources: Mapping[str, AdapterSource],
    out: Path | None = None,
    *,
    methods: Sequence[str] = BASIS_METHODS,
    codec: bool = False,
    device: str = "auto",
    check: CheckReport | None = None,
    skip_bad: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
    force: bool = False,
    max_memory: int | None = None,
) -> Spectra:
    """The spectra of a collection, by task name; written to ``out`` as each layer is done.

    Args:
        methods: Of ``delta``, ``columns``, ``flat``; one pass over the data serves all.
        codec: Measure what coding would cost, too (methods `own` and `auto`): what each adapter
            costs by itself together with the first method, layer by layer; then what sharing
            would save; then the other methods.
        check: The verdict of `check_adapters`, where it is already known.
        skip_bad: Go on without bad adapters (they are named in ``skipped``).
        max_memory: Bytes that this process may hold meanwhile (see `RunContext`).

    Raises:
        CollectionError: Bad adapters, and not ``skip_bad``.
        OutputExistsError: ``out`` holds something else than spectra, and not ``force``.
        MemoryLimitError: Memory does not hold even one layer of all adapters.
        Cancelled: Stopped between two layers.

    Whatever stops it, the layers that are finished are kept beside ``out``; the next call for the
    same adapters goes on with them.
    """
    run = RunContext(progress, cancelled, device, force, max_memory)
    unknown = [m for m in methods if m not in BASIS_METHODS]
    if unknown:
        raise ParameterError(f"Unknown method {unknown[0]!r}.", expected=", ".join(BASIS_METHODS))
    if out is not None:
        check_output(out, force=force)
    check = check or check_adapters(
        sources, progress=progress, cancelled=cancelled, max_memory=max_memory
    )
    names = canonical_order(check, check.require(skip_bad=skip_bad))
    good = {name: sources[name] for name in names}
    spectra = _empty(good, check, methods)
    if codec:
        spectra.overhead[tables.CODED] = _coded_overhead(good, check)
    shapes = {spec.name: (spec.d_in, spec.d_out) for spec in shared_layers(good)}
    if out is None:
        _fill(spectra, good, check, None, run, spectra.methods)
        if codec:
            spectra.codec = _rate_tables(good, check, run)
        require_unchanged(good.values())
        return spectra
    partial = spectra_partial(out)
    with sole_writer(partial, out), keep_finished_layers(partial, out):
        common = _fingerprint(spectra, device)
        finished = tables.finished_layers(partial, common)
        for entry in list(partial.iterdir()) if not finished else []:
            remove(entry)
        tables.write_index(partial, spectra, shapes, common)
        _fill_on_disk(spectra, good, check, partial, run, finished, codec=codec)
        require_unchanged(good.values())
        publish(partial, out, force=force)
    spectra.path, spectra.is_coded, spectra.reused_layers = out, codec, len(finished)
    return spectra


def _fill_on_disk(
    spectra: Spectra,
    sources: Mapping[str, AdapterSource],
    check: CheckReport,
    out: Path,
    run: RunContext,
    finished: Mapping[str, LayerTable],
    *,
    codec: bool,
) -> None:
    """Compute every layer into ``out``, what a choice is made by first.

    With the codec that is the first method and what coding costs, layer by layer; then come groups
    that share, and the other methods last.
    """
    if not codec or tables.rate_tables_file(out).exists():
        remove(tables.own_folder(out))  # a run that was stopped while it removed this
        _fill(spectra, sources, check, out, run, spectra.methods, finished)
        return
    passed = FirstPass(list(sources))
    _fill(spectra, sources, check, out, run, spectra.methods[:1], finished, passed)
    _rate_tables(sources, check, run, passed).save(tables.rate_tables_file(out))
    remove(tables.own_folder(out))
    if spectra.methods[1:]:
        _fill(spectra, sources, check, out, run, spectra.methods, spectra.layers)


def _rate_tables(
    sources: Mapping[str, AdapterSource],
    check: CheckReport,
    run: RunContext,
    passed: FirstPass | None = None,
) -> RateTables:
    return rate_tables_of(_collection(sources, check), run, passed=passed)


def _collection(sources: Mapping[str, AdapterSource], check: CheckReport) -> Collection:
    return Collection(dict(sources), check, shared_layers(sources), "F32")


def _coded_overhead(sources: Mapping[str, AdapterSource], check: CheckReport) -> int:
    """About what a coded subspace takes beside coded numbers and rest tensors."""
    return coded_overhead(_collection(sources, check))


def _fingerprint(spectra: Spectra, device: str) -> str:
    """What layers must have in common to be used together: all that decides on their bytes."""
    return fingerprint_of(
        device,
        numpy=np.__version__,
        methods=spectra.methods,
        layers=spectra.layer_names,
        tasks=[(task.name, task.digest) for task in spectra.tasks],
    )


def _empty(
    sources: Mapping[str, AdapterSource], check: CheckReport, methods: Sequence[str]
) -> Spectra:
    layers = shared_layers(sources)
    records = {
        name: task_record(
            name,
            source,
            layers,
            file=f"{name}.safetensors",
            digest=check.adapters[name].digest,
            norm=check.adapters[name].norm,
            location="../../../" + printable(str(source.path.absolute())) if source.path else None,
        )
        for name, source in sources.items()
    }
    return Spectra(
        tasks=[_task_entry(record, sources[name]) for name, record in records.items()],
        methods=list(methods),
        layer_names=[spec.name for spec in layers],
        findings=list(check.findings),
        skipped=[error.as_json() for error in check.bad],
        overhead={
            dtype: overhead_bytes(sources, records, layers, dtype)
            for dtype in STORAGE_DTYPES.values()
        },
    )


def _task_entry(record: TaskRecord, source: AdapterSource) -> TaskEntry:
    return TaskEntry(
        name=record.id,
        digest=record.digest,
        norm=record.norm,
        nbytes=record.source_bytes,
        factor_elements=record.factor_elements,
        rest_bytes=record.rest_bytes,
        dtype="F32" if {"F32", "F64"} & set(record.dtypes) else min(record.dtypes),
        path=printable(str(source.path)) if source.path else None,
    )


def _fill(
    spectra: Spectra,
    sources: Mapping[str, AdapterSource],
    check: CheckReport,
    out: Path | None,
    run: RunContext,
    methods: Sequence[str],
    kept: Mapping[str, LayerTable] | None = None,
    passed: FirstPass | None = None,
) -> None:
    """Compute the tables of ``methods`` of every layer, but for those that are ``kept`` in ``out``.

    Args:
        passed: Shown every layer, too, and what it sees is written beside the layers.
    """
    names = {task.name: i for i, task in enumerate(spectra.tasks)}
    weights = {name: check.adapters[name].weight for name in sources}
    # As for all methods: a table is the same whether or not the others are measured with it.
    points = tables.grid_points(len(names), len(spectra.layer_names), len(BASIS_METHODS))
    device, finished = pick_device(run.device), dict(kept or {})
    related = spectra.relations is not None  # by an earlier pass
    own = _own_tables(spectra, out) if passed is not None and out is not None else {}

    def work(layer: str) -> LayerSpectrum:
        table = finished.get(layer)
        missing = [m for m in methods if table is None or m not in table.methods]
        compares = not related and (table is None or _is_comparable(len(table.tasks), table.rank))
        if table is not None and not missing and not compares and passed is None:
            return LayerSpectrum(table, {}, None)
        stack = read_stack(layer, sources, weights, device)
        found = LayerSpectrum(table, {}, None) if table is not None and not missing else None
        found = found or layer_spectrum(stack, names, missing, points, table)
        if compares and _is_comparable(len(stack.a), stack.rank):
            found.grams = _similarity(stack)
        if passed is not None:
            found.seen = passed.look(stack, own.get(layer))
        return found

    stage = "methods" if related else "spectra"
    need = by_layer(sources.values(), lambda shape: measuring(shape, methods))
    results = map_ordered(work, spectra.layer_names, run, stage=stage, need=need, device=device)
    relations: RelationsSum | None = RelationsSum(len(names), spectra.layer_names)
    room = VECTORS_LIMIT_BYTES
    with closing(results):
        for i, result in enumerate(results):
            table = result.table
            spectra.layers[table.name] = table
            if result.grams is None:
                relations = None
            elif relations is not None:
                relations.add(table.name, table.tasks.tolist(), *(g.numpy() for g in result.grams))
            if passed is not None and result.seen is not None:
                passed.add(result.seen)
                if out is not None and table.name not in own:
                    save_own_table(tables.own_file(out, i), result.seen[0])
            arrays = {key: v.cpu().numpy() for key, v in result.vectors.items()}
            if out is None:
                spectra.vectors[i] = arrays
                continue
            if table.name in finished:
                room = _room_after(tables.vectors_file(out, i), room)
            if arrays:
                room -= sum(array.nbytes for array in arrays.values())
                # Before the table: a finished layer without vectors says that there is no room.
                file = tables.vectors_file(out, i)
                if room >= 0:
                    before = _arrays_in(file) if table.name in finished else {}
                    tables.write_arrays(file, {**before, **arrays})
                else:
                    remove(out / "vectors")
                write_layer(out, i, table)
    if out is not None and room < 0:
        remove(out / "vectors")
    if relations is not None and not related:
        spectra.relations = relations.relations()
        if out is not None:
            tables.write_arrays(tables.similarity_file(out), spectra.relations.arrays())


def _own_tables(spectra: Spectra, out: Path) -> dict[str, OwnTable]:
    """What a stopped run had seen of the codec's first pass, by layer."""
    seen = replace(spectra, layers={}, own={}, path=out)
    with suppress(VLoRAError):
        seen.refresh()
    return seen.own


def _arrays_in(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a file, none where it cannot be read."""
    file = JsonFile(path, "A file of the spectra cannot be read.", "compute the spectra again")
    try:
        return dict(read_arrays(file))
    except (CorruptFileError, OSError):
        return {}


def _room_after(file: Path, room: int) -> int:
    """What of ``room`` the vectors in a file leave; less than nothing where they were too many."""
    try:
        with open_file(file) as opened:
            header = int.from_bytes(opened.read(8), "little")
        return room - (file.stat().st_size - 8 - header)
    except OSError:
        return -1


def layer_spectrum(
    stack: LayerStack,
    names: Mapping[str, int],
    methods: Sequence[str],
    points: int,
    known: LayerTable | None = None,
) -> LayerSpectrum:
    """The tables of all ``methods`` on one layer.

    Args:
        names: Task name to its index in the collection.
        points: How many k a side of the off-diagonal grid keeps.
        known: A table of the layer that has other methods already; it gets these, too.
    """
    tasks = np.array([names[task] for task in stack.tasks], dtype=np.int64)
    energy = stack.energy()
    table = LayerTable(
        name=stack.layer,
        d_in=stack.a.shape[2],
        d_out=stack.bt.shape[2],
        tasks=tasks,
        ranks=np.array(stack.ranks, dtype=np.int64),
        energy=energy.cpu().numpy(),
        methods={} if known is None else dict(known.methods),
    )
    vectors: dict[str, Tensor] = {}
    for method in methods:
        compute = _flat_table if method == "flat" else _nested_table
        table.methods[method], method_vectors = compute(stack, method, energy, points)
        vectors |= {f"{method}.{side}": v for side, v in method_vectors.items()}
    return LayerSpectrum(table, vectors, None)


def _is_comparable(tasks: int, rank: int) -> bool:
    """Whether the inner products of all tasks are affordable on a layer."""
    return tasks * rank <= SIMILARITY_LIMIT


def _similarity(stack: LayerStack) -> tuple[Tensor, Tensor]:
    """Inner products of dW and of A between the tasks of one layer, (n, n) each, on the CPU."""
    factors = [
        (a[:rank], bt[:rank].T) for a, bt, rank in zip(stack.a, stack.bt, stack.ranks, strict=True)
    ]
    change, start = module_grams(factors, stack.scale.tolist())
    return change.cpu(), start.cpu()


def _nested_table(
    stack: LayerStack, method: str, energy: Tensor, points: int
) -> tuple[MethodTable, dict[str, Tensor]]:
    """`delta` and `columns`: dW projected onto nested bases, so captured energies add up."""
    basis_a, vectors_a = full_basis(stack.rows(method, "a"))
    basis_b, vectors_b = full_basis(stack.rows(method, "b"))
    max_a, max_b = len(basis_a.components), len(basis_b.components)
    k = tables.diagonal_k(max(max_a, max_b))
    grid_a, grid_b = tables.grid_k(k, max_a, points), tables.grid_k(k, max_b, points)
    at_a, at_b = np.minimum(k, max_a), np.minimum(k, max_b)
    residual, grid, narrow = [], [], _table_dtype(energy)
    chunk = max(1, CHUNK_ELEMENTS // max(1, len(k) * stack.rank**2))
    for start in range(0, len(stack.tasks), chunk):
        part = slice(start, start + chunk)
        c_a = cumulative_grams(stack.a[part] @ basis_a.components.T, _union(at_a, grid_a))
        c_b = cumulative_grams(stack.bt[part] @ basis_b.components.T, _union(at_b, grid_b))
        scale2 = stack.scale[part].square()
        task_energy = energy[part]
        diagonal = (c_a.at(at_a) * c_b.at(at_b)).sum((2, 3)).T * scale2[:, None]
        residual.append((task_energy[:, None] - diagonal).clamp_min(0).to(narrow))
        left, right = (c.flatten(2).transpose(0, 1) for c in (c_b.at(grid_b), c_a.at(grid_a)))
        captured = torch.bmm(left, right.transpose(1, 2)) * scale2[:, None, None]
        grid.append((task_energy[:, None, None] - captured).clamp_min(0).to(narrow))
    table = MethodTable(
        k=k,
        residual=torch.cat(residual).cpu().numpy(),
        grid_a=grid_a,
        grid_b=grid_b,
        grid=torch.cat(grid).cpu().numpy(),
        singular_values_a=basis_a.singular_values.cpu().numpy(),
        singular_values_b=basis_b.singular_values.cpu().numpy(),
    )
    return table, {"a": vectors_a, "b": vectors_b}


def _table_dtype(energy: Tensor) -> torch.dtype:
    """fp32, unless an adapter is so strong or so weak that its squares leave fp32's range."""
    held = energy[energy > 0]
    inside = not len(held) or (float(held.min()) > 1e-26 and float(held.max()) < 1e36)
    return torch.float32 if inside else torch.float64


def _union(*arrays: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.unique(np.concatenate(arrays)).astype(np.int64)


def _flat_table(
    stack: LayerStack, method: str, energy: Tensor, points: int
) -> tuple[MethodTable, dict[str, Tensor]]:
    """`flat`: both factors are approximated, so dW's error is evaluated at each k of a grid."""
    tasks, top = len(stack.tasks), max(0, len(stack.tasks) - 1)
    k = _flat_grid(top)
    sides = {}
    for side in ("a", "b"):
        factors = stack.side(side)
        basis, vectors = full_basis(stack.rows(method, side))
        limit = min(top, len(basis.components))
        loadings = stack.rows(method, side) @ basis.components[:limit].T
        sides[side] = (factors, basis.cut(limit), loadings, vectors[:, :limit])
    cross: dict[str, list[Tensor]] = {"a": [], "b": []}
    square: dict[str, list[Tensor]] = {"a": [], "b": []}
    for side, (factors, basis, loadings, _) in sides.items():
        approx = flatten(factors, side).mean(0).repeat(tasks, 1)
        low = 0
        inside = stack.inside() if len(set(stack.ranks)) > 1 else None
        for high in np.minimum(k, len(basis.components)).tolist():
            approx += loadings[:, low:high] @ basis.components[low:high]
            low = high
            shaped = unflatten(approx, side, stack.rank)
            if inside is not None:
                shaped = shaped * inside
            cross[side].append(torch.bmm(factors, shaped.transpose(1, 2)))
            square[side].append(small_grams(shaped))
    residual, narrow = [], _table_dtype(energy)
    for i in range(len(k)):
        inner = (cross["a"][i] * cross["b"][i]).sum((1, 2))
        approx2 = (square["a"][i] * square["b"][i]).sum((1, 2))
        change = (approx2 - 2 * inner) * stack.scale.square()
        residual.append(torch.where(energy > 0, energy + change, 0.0).clamp_min(0).to(narrow))
    table = MethodTable(
        k=k,
        residual=torch.stack(residual, 1).cpu().numpy(),
        grid_a=np.zeros(0, dtype=np.int64),
        grid_b=np.zeros(0, dtype=np.int64),
        grid=np.zeros((tasks, 0, 0), dtype=np.float32),
        singular_values_a=sides["a"][1].singular_values.cpu().numpy(),
        singular_values_b=sides["b"][1].singular_values.cpu().numpy(),
    )
    return table, {side: of_side[3] for side, of_side in sides.items()}


def _flat_grid(top: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    if top <= 24:
        return np.arange(top + 1)
    sparse = np.geomspace(8, top, 12).round().astype(np.int64)
    return np.unique(np.concatenate([np.arange(9), sparse]))
