"""Building a subspace, layer by layer: bounded memory, resumable, the same in memory and on disk.

A build on disk keeps its finished layers in a hidden sibling of the output until all are there;
an interrupted one finds them again and goes on. The output appears in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vlora_engine.adapters.address import relative_source
from vlora_engine.adapters.base_models import base_model_of
from vlora_engine.adapters.check import CheckReport
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.adapters.needs import StackShape, building
from vlora_engine.adapters.stack import StackMemory, read_stack
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import ParameterError, SubspaceError
from vlora_engine.findings import Finding
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.manifest.records import max_k, shared_layers
from vlora_engine.spectra.choose import choose, clamped, match_layers
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.basis import BuiltLayer, build_layer, reading_dtype
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.build import build_coded
from vlora_engine.subspace.coded.space import CodedSpace, code_collection
from vlora_engine.subspace.layer_parts import LayerParts
from vlora_engine.subspace.loadings import EncodedTask, Storage
from vlora_engine.subspace.request import (
    BuildReport,
    Collection,
    Plan,
    assemble_task,
    fingerprint_of,
    prepare,
)
from vlora_engine.subspace.tasks import collect_tasks
from vlora_engine.subspace.write import task_files, write_subspace
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.files import remove
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import MadeCheck, publish, sole_writer
from vlora_engine.utils.partials import partial_path
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.unfinished import RESULT, SPECTRA, keep_finished_layers
from vlora_engine.utils.workers import map_ordered


def make_plan(
    collection: Collection,
    targets: CompressionTarget,
    *,
    spectra: Spectra | None = None,
    compute: Callable[[], Spectra] | None = None,
) -> Plan:
    """Fix k for every layer. ``compute`` makes spectra if the targets need them.

    A k beyond what a layer has is clamped, with one line: a finding.

    Raises:
        TargetError: The target cannot be met.
    """
    targets = targets.checked()
    given, finding = clamped_k(targets, collection.layers, collection.sources)
    findings = [] if finding is None else [finding]
    pair = targets.fixed_pair
    if pair is None and spectra is None:
        if compute is None:
            raise ParameterError("This target needs spectra.")
        spectra = compute()
    if spectra is not None:
        _same_collection(collection, spectra)
    choice = None
    if pair is None:
        assert spectra is not None  # noqa: S101
        choice = choose(spectra, targets)
        given = choice.k
    exact = spectra is not None
    plans = {name: collection.layer_plan(targets, k, exact=exact) for name, k in given.items()}
    return Plan(plans, spectra, choice, findings)


def clamped_k(
    targets: CompressionTarget, layers: Sequence[LayerSpec], sources: Mapping[str, AdapterSource]
) -> tuple[dict[str, tuple[int, int]], Finding | None]:
    """The k that is given for layers, at most what each has; one line where that is less.

    Headers are enough for it. Where k is chosen, it is that of the layers that have their own.

    Raises:
        ParameterError: A pattern matches no layer, or its k is below 1.
    """
    if targets.is_coded:
        return {}, None
    wanted = match_layers([spec.name for spec in layers], targets.layers)
    if targets.fixed_pair is not None:
        wanted = {spec.name: targets.fixed_pair for spec in layers} | wanted
    limits = {spec.name: max_k(targets.method, spec, sources) for spec in layers}
    return clamped(wanted, limits)


def _same_collection(collection: Collection, spectra: Spectra) -> None:
    theirs = {task.name: task.digest for task in spectra.tasks}
    ours = dict(collection.digests)
    if theirs != ours:
        wrong = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        raise SubspaceError(
            "The spectra were computed on other adapters.",
            where=spectra.path,
            found=f"task {wrong[0]!r} is not the same",
            remedy="compute the spectra again",
        )


def build_space(
    collection: Collection, targets: CompressionTarget, run: RunContext
) -> BasisSpace | CodedSpace:
    """Compress a checked collection in memory.

    Raises:
        ParameterError, TargetError: k or the target cannot be met.
    """
    if targets.is_coded:
        return code_collection(collection, targets, run)

    def compute() -> Spectra:
        return _computed(collection, (targets.method,), run)

    storage = collection.storage(targets)
    aim: CompressionTarget | None = targets
    spectra: Spectra | None = None
    while aim is not None:
        plan = make_plan(collection, aim, spectra=spectra, compute=compute)
        built = build_layers(collection, plan, run)
        bases, specs, tasks = collect_tasks(storage, collection, built)
        errors = {record.id: record.error for record in tasks.records()}
        spectra, aim = plan.spectra, within(aim, plan, errors)
    space = BasisSpace(
        method=storage.method,
        dtype=storage.dtype,
        layers=specs,
        bases=bases,
        tasks=tasks,
        base_model=base_model_of(collection.sources),
        quantization=storage.quantization,
    )
    space.notes = [finding.what for finding in plan.findings]
    require_unchanged(collection.sources.values())
    return space


def build_whole(
    sources: Mapping[str, AdapterSource], method: str, run: RunContext, k: int | None = None
) -> BasisSpace:
    """Adapters in fp32 in bases of all the directions that they have, or of ``k``."""
    limit = max(max(max_k(method, spec, sources)) for spec in shared_layers(sources))
    target = CompressionTarget(method, k=k or limit, dtype="fp32").checked()
    space = build_space(prepare(sources, run, dtype="fp32", lossy=target.lossy), target, run)
    assert isinstance(space, BasisSpace)  # noqa: S101
    if k is None:
        space.notes.clear()  # all there is was asked for, not a k
    return space


def build_layers(
    collection: Collection, plan: Plan, run: RunContext, *, names: Sequence[str] | None = None
) -> Generator[BuiltLayer, None, None]:
    """Build the layers ``names`` (default: all) in order."""
    device, weights = pick_device(run.device), collection.weights
    indices = {spec.name: i for i, spec in enumerate(collection.layers)}
    memory = StackMemory()

    def work(name: str) -> BuiltLayer:
        layer_plan = plan.layers[name]
        shapes = [s.modules[name] for s in collection.sources.values() if name in s.modules]
        dtype = reading_dtype(layer_plan, shapes)
        transposed = layer_plan.method != "flat" or dtype != torch.float32
        sources = collection.sources
        stack = read_stack(
            name, sources, weights, device, dtype, transposed=transposed, memory=memory
        )
        stored = plan.spectra.vectors_of(indices[name], layer_plan.method) if plan.spectra else None
        vectors = {s: torch.from_numpy(v) for s, v in stored.items()} if stored else None
        return build_layer(stack, layer_plan, vectors)

    def need(name: str) -> int:
        layer = plan.layers[name]
        exact = layer.exact or plan.spectra is not None or bool(layer.refine)
        shape = StackShape.of(name, collection.sources.values())
        return building(shape, layer.method, (layer.k_a, layer.k_b), exact=exact)

    chosen = names if names is not None else list(indices)
    return map_ordered(work, chosen, run, stage="build", need=need, device=device)


def build_subspace(
    sources: Mapping[str, AdapterSource],
    out: Path,
    *,
    targets: CompressionTarget | None = None,
    spectra: Spectra | Path | None = None,
    check: CheckReport | None = None,
    skip_bad: bool = False,
    device: str = "auto",
    force: bool = False,
    resume: bool = True,
    job: str = "run",
    unfinished: Path | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
    max_memory: int | None = None,
    room: Callable[[int], None] | None = None,
    made: MadeCheck | None = None,
    **named_targets: Any,
) -> BuildReport:
    """Compress ``sources`` (by task name) into the directory ``out``.

    Args:
        targets: Method and k; or its fields as keywords (``method="delta", k=8``).
        spectra: The spectra on which k is (or was) chosen; computed where they are needed.
        skip_bad: Leave bad adapters out and report them.
        resume: Use the finished layers of an interrupted build of the same thing.
        job: Names the partial directory, so that two builds do not meet in one.
        unfinished: The partial directory, where it is not to be named after ``out``; on its disk.
        max_memory: Bytes that this process may hold meanwhile (see `RunContext`).
        room: Of methods `own` and `auto`: told about how many bytes it is going to take, before any
            is written; it may raise.
        made: Is shown the finished directory before it takes the place of ``out``; it may raise.

    Raises:
        CollectionError: Bad adapters. ParameterError, TargetError: k or the target.
        OutputExistsError: ``out`` is there and not ``force``.
        StorageError: The disk refused. Or another process is building the same output.
        MemoryLimitError: Memory does not hold even one layer of all adapters.
        Cancelled: Stopped between two layers.

    Finished layers are kept for ``resume`` whatever stops it, but for an input that is at fault;
    what was half written is removed.
    """
    run = RunContext(progress, cancelled, device, force, max_memory)
    wanted = (targets or CompressionTarget(**named_targets)).checked()
    check_output(out, force=force)
    for source in sources.values():
        relative_source(source.path, out)  # before all the work, where it cannot be told
    pick_device(device)
    collection = prepare(
        sources, run, dtype=wanted.dtype, lossy=wanted.lossy, skip_bad=skip_bad, check=check
    )
    loaded = Spectra.load(spectra) if isinstance(spectra, Path) else spectra
    partial = unfinished or partial_path(out, job)
    with sole_writer(partial, out):
        with keep_finished_layers(partial, out):
            for entry in [partial / RESULT] if resume else list(partial.iterdir()):
                remove(entry)
        if wanted.is_coded:
            rate_tables = loaded.rate_tables() if loaded else None
            return build_coded(
                partial, out, collection, wanted, rate_tables, run, room=room, made=made
            )
        return _build_in(partial, out, collection, wanted, loaded, run, made)


def _build_in(
    partial: Path,
    out: Path,
    collection: Collection,
    wanted: CompressionTarget,
    spectra: Spectra | None,
    run: RunContext,
    made: MadeCheck | None,
) -> BuildReport:
    def compute() -> Spectra:
        return _spectra_in(partial, collection, wanted.method, run)

    with keep_finished_layers(partial, out):
        targets: CompressionTarget | None = wanted
        while targets is not None:
            plan = make_plan(collection, targets, spectra=spectra, compute=compute)
            sealed = fingerprint(collection, plan, run.device)
            parts = LayerParts(partial, sealed, run.max_memory)
            reused = _build_parts(collection, plan, parts, run)
            storage = collection.storage(targets)
            remove(partial / RESULT)  # of an attempt that missed its target
            manifest = _assemble(partial / RESULT, out, collection, storage, parts)
            errors = {task.id: task.error for task in manifest.tasks.values()}
            spectra, targets = plan.spectra, within(targets, plan, errors)
        specs = enumerate(manifest.layers)
        report = collection.report(
            out,
            manifest,
            plan.findings,
            k={spec.name: (spec.k_a, spec.k_b) for spec in manifest.layers},
            layer_errors={spec.name: parts.layer_error(i) for i, spec in specs},
            reused_layers=reused,
            quantization=manifest.as_dict()["quantization"],
            choice=plan.choice,
            spectra=plan.spectra,
        )
        require_unchanged(collection.sources.values())
        if made is not None:
            made(partial / RESULT)
        publish(partial / RESULT, out, within=partial, force=run.force)
    return report


def _build_parts(collection: Collection, plan: Plan, parts: LayerParts, run: RunContext) -> int:
    """Build the layers that are not there yet; the number of those that were."""
    names = [spec.name for spec in collection.layers]
    missing = [name for i, name in enumerate(names) if not parts.has(i)]
    with closing(build_layers(collection, plan, run, names=missing)) as built:
        for layer in built:
            parts.write(names.index(layer.basis.name), layer)
    return len(names) - len(missing)


def fingerprint(collection: Collection, plan: Plan, device: str) -> str:
    """What layers must have in common to be used together: all that decides on their bytes."""
    layers = {name: asdict(layer_plan) for name, layer_plan in plan.layers.items()}
    return fingerprint_of(device, tasks=collection.digests, layers=layers)


def _spectra_in(partial: Path, collection: Collection, method: str, run: RunContext) -> Spectra:
    """The spectra of an interrupted build if they are complete, else new ones of the method."""
    directory = partial / SPECTRA
    if directory.exists():
        spectra = Spectra.load(directory)
        with suppress(SubspaceError):
            _same_collection(collection, spectra)
            if method in spectra.methods:
                return spectra
        remove(directory)
    return _computed(collection, (method,), run, directory)


def _computed(
    collection: Collection, methods: Sequence[str], run: RunContext, out: Path | None = None
) -> Spectra:
    return compute_spectra(
        collection.sources,
        out,
        methods=methods,
        device=run.device,
        check=CheckReport({n: collection.check.adapters[n] for n in collection.sources}),
        progress=run.progress,
        cancelled=run.cancelled,
        max_memory=run.max_memory,
    )


def _assemble(
    directory: Path, out: Path, collection: Collection, storage: Storage, parts: LayerParts
) -> Manifest:
    """Turn parts, layer by layer, into files, task by task; some tasks in memory at a time."""
    directory.mkdir()
    specs = [parts.spec(i, spec) for i, spec in enumerate(collection.layers)]
    files = task_files(list(collection.sources))

    def tasks() -> Iterator[tuple[TaskRecord, EncodedTask]]:
        for name, shares in parts.tasks(list(collection.sources)):
            yield assemble_task(collection, name, shares, file=files[name], out=out)

    return write_subspace(
        directory,
        storage=storage,
        base_model=base_model_of(collection.sources),
        layers=specs,
        bases=(parts.basis(i) for i in range(len(specs))),
        tasks=tasks(),
    )


def within(
    targets: CompressionTarget, plan: Plan, errors: Mapping[str, float]
) -> CompressionTarget | None:
    """None where measured ``errors`` keep the target; else what to aim at instead.

    What packing costs depends on how the numbers of the bases are distributed. Where it costs
    more than was expected, k is chosen again with the cost that was met.
    """
    quantization, choice = targets.quantization, plan.choice
    if quantization is None or choice is None or targets.budget is not None:
        return None
    values = list(errors.values())
    is_met = (
        max(values) <= targets.max_error
        if targets.max_error is not None
        else sum(values) / len(values) <= targets.mean_error
        if targets.mean_error is not None
        else 1 - sum(e * e for e in values) / len(values) >= (targets.variance or 0.0) - 1e-9
    )
    if is_met:
        return None
    expected = targets.noise if targets.noise is not None else quantization.noise
    # 1 - error^2 is what is captured times 1 - noise, both for what was expected and what was met.
    predicted = choice.prediction.task_errors
    left = min(
        (1 - e * e) / (1 - predicted[name] ** 2)
        for name, e in errors.items()
        if predicted[name] < 1
    )
    met = 1 - (1 - expected) * left
    return replace(targets, noise=max(met, expected) * 1.02)
