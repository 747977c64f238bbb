"""From checked adapters to a coded collection: rate tables, the coder, the files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vlora_engine.adapters.base_models import base_model_of
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.codec.forecast import Forecast, RateTables
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import SubspaceError, VLoRAError
from vlora_engine.manifest.coding import LETTERS, Coding
from vlora_engine.manifest.manifest import Manifest, TaskRecord
from vlora_engine.manifest.records import figure
from vlora_engine.subspace.coded.coder import Coded, Coder
from vlora_engine.subspace.coded.layer_parts import (
    FileParts,
    MemoryParts,
    Parts,
    TaskShare,
    partial_rate_tables,
)
from vlora_engine.subspace.coded.layout import bytes_around, overhead_bytes
from vlora_engine.subspace.coded.measure import FirstPass, measure
from vlora_engine.subspace.coded.store import CodedTask, write_coded
from vlora_engine.subspace.request import BuildReport, Collection, fingerprint_of
from vlora_engine.subspace.write import task_files
from vlora_engine.utils.outputs import MadeCheck, publish
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.unfinished import RESULT, keep_finished_layers


def rate_tables_of(
    collection: Collection,
    run: RunContext,
    *,
    groups: bool = True,
    aim: CompressionTarget | None = None,
    passed: FirstPass | None = None,
) -> RateTables:
    """The rate tables of a collection, with what it takes on disk beside the coded numbers.

    Further arguments: as of `measure`.
    """
    records = _records(collection, None)
    rate_tables = measure(
        collection.sources,
        collection.layers,
        collection.weights,
        run,
        groups=groups,
        aim=aim,
        overhead=coded_overhead(collection),
        passed=passed,
    )
    rate_tables.factor_bytes = 2 * sum(record.factor_elements for record in records.values())
    rate_tables.input_bytes = sum(record.source_bytes for record in records.values())
    rate_tables.digests = [digest for _, digest in collection.digests]
    return rate_tables


def coded_overhead(collection: Collection) -> int:
    """About the bytes of a coded collection that no choice changes, rest tensors apart."""
    return overhead_bytes(collection.sources, _records(collection, None), collection.layers)


def build_coded(
    partial: Path,
    out: Path,
    collection: Collection,
    targets: CompressionTarget,
    rate_tables: RateTables | None,
    run: RunContext,
    *,
    room: Callable[[int], None] | None = None,
    made: MadeCheck | None = None,
) -> BuildReport:
    """Code ``collection`` into the directory ``out``; ``partial`` is held by the caller.

    Raises: as `vlora_engine.compress.build.build_subspace`.
    """
    with keep_finished_layers(partial, out):
        tables = rate_tables
        if tables is None:
            tables = _partial_rate_tables(partial, collection, targets, run)
        _same_tasks(collection, tables)

        def parts(forecast: Forecast) -> Parts:
            sealed = fingerprint(collection, targets.method, forecast, run.device)
            return FileParts(partial, sealed, run.max_memory)

        coder = _coder(collection, targets, tables, parts, out, run)
        coder.room = room
        coded = coder.run()
        result, coding = partial / RESULT, coding_of(targets, coder.rate_tables, coded.forecast)
        result.mkdir()
        manifest = write_coded(
            result,
            method=targets.method,
            base_model=base_model_of(collection.sources),
            layers=collection.layers,
            coding=coding,
            shared=(coded.parts.shared(i)[group] for i, group in coding.units()),
            tasks=_tasks(collection, coder.rate_tables, coded, out),
        )
        report = _report(out, collection, manifest, coded)
        require_unchanged(collection.sources.values())
        if made is not None:
            made(result)
        publish(result, out, within=partial, force=run.force)
    return report


def code_in_memory(
    collection: Collection, targets: CompressionTarget, run: RunContext
) -> tuple[Coding, dict[tuple[int, int], bytes], list[tuple[TaskRecord, CodedTask]]]:
    """The same in memory: coding, what groups share by (layer, group), and the tasks."""
    rate_tables = rate_tables_of(collection, run, groups=targets.method == "auto", aim=targets)
    coder = _coder(collection, targets, rate_tables, lambda _: MemoryParts(), None, run)
    coded = coder.run()
    coding = coding_of(targets, coder.rate_tables, coded.forecast)
    units = {(i, g): coded.parts.shared(i)[g] for i, g in coding.units()}
    tasks = list(_tasks(collection, coder.rate_tables, coded, None))
    require_unchanged(collection.sources.values())
    return coding, units, tasks


def _coder(
    collection: Collection,
    targets: CompressionTarget,
    rate_tables: RateTables,
    parts: Callable[[Forecast], Parts],
    out: Path | None,
    run: RunContext,
) -> Coder:
    records = _records(collection, out)
    size = functools.partial(_size, collection, targets, rate_tables, records)
    return Coder(collection, rate_tables, targets, parts, size, run)


def _records(collection: Collection, out: Path | None) -> dict[str, TaskRecord]:
    files = task_files(list(collection.sources))
    return {name: collection.record(name, file=file, out=out) for name, file in files.items()}


def _size(
    collection: Collection,
    targets: CompressionTarget,
    rate_tables: RateTables,
    records: dict[str, TaskRecord],
    coded: Coded,
) -> int:
    """Bytes on disk that a coded collection will take, a few more at most."""
    coding = coding_of(targets, rate_tables, coded.forecast)
    most = coded.payload
    whole = most + rate_tables.rest_bytes + 10**5
    tasks = {
        name: replace(record, nbytes=whole, cluster=_cluster_of(rate_tables, name))
        for name, record in records.items()
    }
    base_model, rest = base_model_of(collection.sources), sum(r.rest_bytes for r in tasks.values())
    around = bytes_around(
        targets.method, base_model, collection.layers, coding, tasks, payload=most, file_bytes=whole
    )
    return around + rest + most


def coding_of(targets: CompressionTarget, rate_tables: RateTables, forecast: Forecast) -> Coding:
    """What the index says of how it was coded."""
    modes: dict[int, list[str]] = {}
    for i, layer in enumerate(forecast.modes):
        for mode in layer:
            row = modes.setdefault(mode.number, ["-"] * len(forecast.modes))
            row[i] = LETTERS[mode.kind]
    steps = forecast.steps[rate_tables.alive]
    step = float(np.exp(np.log(steps).mean())) if len(steps) else 0.0
    name, value = targets.goal
    target = {name: int(value) if name == "budget" else float(value)}
    return Coding(figure(step), target, {n: "".join(row) for n, row in sorted(modes.items())})


def _cluster_of(rate_tables: RateTables, name: str) -> int:
    index = rate_tables.tasks.index(name)
    return next((n for n, members in rate_tables.clusters.items() if n and index in members), 0)


def _tasks(
    collection: Collection, rate_tables: RateTables, coded: Coded, out: Path | None
) -> Iterator[tuple[TaskRecord, CodedTask]]:
    records = _records(collection, out)
    for name, shares in coded.parts.tasks(list(collection.sources)):
        source = collection.sources[name]
        norm = collection.check.adapters[name].norm
        error = (sum(s.residual for s in shares) ** 0.5 / norm) if norm > 0 else 0.0
        record = replace(records[name], error=figure(error), cluster=_cluster_of(rate_tables, name))
        yield record, coded_task(shares, source.read_rest())


def coded_task(shares: Sequence[TaskShare], rest: dict[str, torch.Tensor]) -> CodedTask:
    """A task from its share of every layer that it has."""
    energy = np.array([share.energy for share in shares])
    residual = np.array([share.residual for share in shares]).clip(0)
    missed = np.divide(residual, energy, out=np.zeros(len(energy)), where=energy > 0)
    norms, errors = (torch.from_numpy(np.sqrt(squares)).float() for squares in (energy, missed))
    return CodedTask([share.blob for share in shares], norms, errors, rest)


def fingerprint(collection: Collection, method: str, forecast: Forecast, device: str) -> str:
    """What coded layers must have in common to be used together."""
    return fingerprint_of(
        device,
        numpy=np.__version__,
        method=method,
        tasks=collection.digests,
        steps=[float(np.float32(step)) for step in forecast.steps],
        modes=[[(m.number, m.kind, m.members) for m in layer] for layer in forecast.modes],
    )


def _partial_rate_tables(
    partial: Path, collection: Collection, targets: CompressionTarget, run: RunContext
) -> RateTables:
    """The rate tables that an interrupted build left, or new ones."""
    file = partial_rate_tables(partial)
    if file.exists():
        try:
            rate_tables = RateTables.load(file)
            _same_tasks(collection, rate_tables)
            return rate_tables
        except VLoRAError:
            file.unlink(missing_ok=True)
    made = rate_tables_of(collection, run, groups=targets.method == "auto", aim=targets)
    made.save(file)
    return made


def _same_tasks(collection: Collection, rate_tables: RateTables) -> None:
    if rate_tables.tasks != list(collection.sources) or (
        rate_tables.digests and rate_tables.digests != [digest for _, digest in collection.digests]
    ):
        raise SubspaceError(
            "The tables of the codec were computed on other adapters.",
            remedy="compute the spectra again",
        )


def _report(out: Path, collection: Collection, manifest: Manifest, coded: Coded) -> BuildReport:
    layer_errors = {}
    for i, spec in enumerate(manifest.layers):
        _, energy, residual, _ = coded.parts.figures(i)
        share = np.divide(residual.clip(0), energy, out=np.zeros(len(energy)), where=energy > 0)
        layer_errors[spec.name] = float(np.sqrt(share).mean()) if len(share) else 0.0
    return collection.report(
        out,
        manifest,
        k={},
        layer_errors=layer_errors,
        reused_layers=coded.reused,
        coding=manifest.coding and manifest.coding.as_json(),
    )
