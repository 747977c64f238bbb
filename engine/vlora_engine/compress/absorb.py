"""Taking one more adapter into a subspace: rebuilding its bases, or turning them incrementally."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vlora_engine.adapters.check import check_adapter
from vlora_engine.adapters.model import AdapterSource, MemorySource
from vlora_engine.adapters.module_names import names_like
from vlora_engine.adapters.stack import LayerStack, flatten
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.catalog.originals import recorded_original
from vlora_engine.compress.build import build_layers, build_space
from vlora_engine.compression_target import DEFAULT_BASIS_METHOD, CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.linalg.grams import Basis as GramBasis
from vlora_engine.linalg.grams import full_basis, update_basis
from vlora_engine.linalg.low_rank import delta_error2
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.manifest.records import figure, max_k
from vlora_engine.quantization.dtypes import DTYPE_WORDS
from vlora_engine.subspace.basis import Bases, LayerBasis, LayerPlan, store_basis
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.basis import (
    DEFAULT_VARIANCE,
    BasisTarget,
    SharedBasis,
    decoded_stack,
    make_basis,
)
from vlora_engine.subspace.coded.space import CodedSpace
from vlora_engine.subspace.loadings import (
    EncodedTask,
    Storage,
    decode_loadings,
    encode_loadings,
    join_loadings,
    pack,
    round_to,
    unpack,
)
from vlora_engine.subspace.projection import check_fits, padded_stack
from vlora_engine.subspace.request import Plan, prepare
from vlora_engine.subspace.space import require_new
from vlora_engine.subspace.store import decode_task
from vlora_engine.subspace.tasks import TaskMap, TaskProjection, collect_tasks
from vlora_engine.utils.memory import room
from vlora_engine.utils.run_context import RunContext

logger = logging.getLogger(__name__)


def absorb(
    space: BasisSpace | CodedSpace,
    source: AdapterSource,
    task_id: str,
    run: RunContext = RunContext(),
    *,
    replacing: bool = False,
) -> list[str]:
    """Take one more adapter in: bases are recomputed with it; a coded one stands by itself.

    Args:
        replacing: A task of that name makes way.

    Returns:
        The ids of the tasks that had to be taken from their reconstructions.
    """
    require_new(space.tasks, task_id, replace=replacing)
    if isinstance(space, CodedSpace):
        space.add_task(space.project(source, task_id), replace=replacing)
        basis = space.tasks.basis
        if basis is not None:
            space.set_basis(make_basis(space.tasks, BasisTarget(basis.k), run))
        return []
    sources: dict[str, AdapterSource] = {}
    rebuilt = []
    named = {spec.name: spec.fits for spec in space.layers}
    for record in _others(space, task_id):
        try:
            sources[record.id] = names_like(recorded_original(record), named)
        except VLoRAError:
            rebuilt.append(record.id)
            require_held(record, run)
            sources[record.id] = MemorySource(space.reconstruct(record.id))
    sources[task_id] = source
    collection = prepare(sources, run, dtype=DTYPE_WORDS[space.dtype])
    specs = {spec.name: spec for spec in space.layers}
    plans = {}
    for spec in collection.layers:
        old = specs.get(spec.name)
        wanted = (old.k_a, old.k_b) if old else (space.num_components,) * 2
        limit = max_k(space.method, spec, collection.sources)
        k_a, k_b = (min(w, top) for w, top in zip(wanted, limit, strict=True))
        plans[spec.name] = LayerPlan(
            space.method, k_a, k_b, space.dtype, quantization=space.quantization
        )
    built = build_layers(collection, Plan(plans), run)
    before = {record.id: record for record in space.tasks.records()}
    old_tasks = space.tasks
    bases, layers, tasks = collect_tasks(space.storage, collection, built)
    require_unchanged(sources.values())
    space.bases, space.layers = bases, layers
    for name in rebuilt:
        _put_bounded(tasks, layers, before[name], old_tasks[name])
    space.tasks = tasks
    space.stored = None
    if rebuilt:
        logger.info("absorbed from reconstructions: %s", ", ".join(rebuilt))
    return rebuilt


def rebased(space: BasisSpace, target: BasisTarget, run: RunContext = RunContext()) -> BasisSpace:
    """The tasks of a subspace, as they are stored, in a `delta` basis made of them."""
    sources: dict[str, AdapterSource] = {}
    for name in space.tasks:
        require_held(space.tasks.record(name), run)
        sources[name] = MemorySource(space.reconstruct(name))
    by_k = isinstance(target.k, int)
    share = None if by_k else (target.variance or DEFAULT_VARIANCE)
    wanted = CompressionTarget(
        method=DEFAULT_BASIS_METHOD,
        k=target.k if isinstance(target.k, int) else None,
        variance=share,
        adaptive=not by_k,
        dtype=DTYPE_WORDS[space.dtype],
    ).checked()
    built = build_space(prepare(sources, run, dtype=wanted.dtype), wanted, run)
    assert isinstance(built, BasisSpace)  # noqa: S101  (delta has a basis)
    for name in sources:
        _put_bounded(built.tasks, built.layers, space.tasks.record(name), space.tasks[name])
    return built


def require_held(record: TaskRecord, run: RunContext) -> None:
    """Refuse to hold one more reconstruction where memory does not.

    Raises:
        MemoryLimitError: It does not.
    """
    what = "the reconstructions of tasks whose adapters are not at hand"
    room(run.max_memory).require(4 * record.factor_elements + record.rest_bytes, what, record.id)


def _put_bounded(
    tasks: TaskMap, layers: Sequence[LayerSpec], record: TaskRecord, task: TaskProjection
) -> None:
    """Say of a task that was rebuilt from its reconstruction what is known of it."""
    made, encoded = tasks.record(record.id), tasks.encoded(record.id)
    modules = [layers[i].name for i in made.layers]
    tasks.put(bounded(record, made), _bounded_layers(task, modules, encoded))


def bounded(old: TaskRecord, new: TaskRecord) -> TaskRecord:
    """What is known of a task that was rebuilt from its reconstruction (triangle inequality)."""
    share = new.norm / old.norm if old.norm > 0 else 0.0
    return replace(
        new,
        digest=old.digest,
        norm=old.norm,
        source=old.source,
        source_bytes=old.source_bytes,
        error=figure(old.error + new.error * share),
        measured=False,
        origin=old.origin,
    )


def _bounded_layers(old: TaskProjection, modules: Sequence[str], new: EncodedTask) -> EncodedTask:
    """The same module by module; one that the old basis lacked had lost nothing."""
    norms, errors = new.norms.tolist(), new.errors.tolist()
    for i, module in enumerate(modules):
        norm = old.source_norms.get(module, 0.0)
        if norm > 0:
            errors[i] = old.errors[module] + errors[i] * norms[i] / norm
            norms[i] = norm
    return replace(new, norms=torch.tensor(norms), errors=torch.tensor(errors))


def _others(space: BasisSpace, task_id: str) -> list[TaskRecord]:
    """The tasks of other names: the one of this name, if there is one, makes way."""
    return [record for record in space.tasks.records() if record.id != task_id]


def absorb_incremental(
    space: BasisSpace | CodedSpace, source: AdapterSource, task_id: str, *, replacing: bool = False
) -> None:
    """Turn the bases towards one more adapter; a coded one stands by itself beside them."""
    if isinstance(space, CodedSpace):
        _absorb_coded(space, source, task_id, replacing=replacing)
        return
    require_new(space.tasks, task_id, replace=replacing)
    check = check_adapter(task_id, source)
    if check.error is not None:
        raise check.error
    bases = {name: space.bases[name] for name in space.layer_names}
    specs, others = list(space.layers), _others(space, task_id)
    for i, spec in enumerate(specs):
        if spec.name not in source.modules:
            continue
        check_fits(spec, source, space.method)
        stack = padded_stack(spec, task_id, source, check.weight, space.method)
        count = sum(i in record.layers for record in others)
        basis = bases[spec.name] = _turned(space, spec, bases[spec.name], stack, count)
        rank = max(spec.rank, stack.ranks[0])
        specs[i] = replace(spec, k_a=len(basis.a), k_b=len(basis.b), rank=rank)
    tasks = TaskMap(space.storage, specs)
    for record in others:
        encoded = space.tasks.encoded(record.id)
        tasks.put(*reexpress(space, space.storage, specs, bases, record, encoded))
    space.bases, space.layers, space.tasks = Bases.of(bases.values()), specs, tasks
    space.stored = None
    space.add_task(space.project(source, task_id))


def _absorb_coded(
    space: CodedSpace, source: AdapterSource, task_id: str, *, replacing: bool
) -> None:
    """Code an adapter, and turn the basis towards it where there is one.

    The directions of a layer stay as many as they are. A layer that is new has none.
    """
    require_new(space.tasks, task_id, replace=replacing)
    space.add_task(space.project(source, task_id), replace=replacing)
    basis, record = space.tasks.basis, space.tasks.record(task_id)
    if basis is None:
        return
    turned = {name: basis.bases.numbers(name) for name in basis.k}
    for index in record.layers:
        spec = space.layers[index]
        stack = decoded_stack(space.tasks, index, [record]) if spec.name in basis.k else None
        if stack is None:
            continue
        layer_basis, found = turned[spec.name], {}
        for side, k in zip("ab", basis.k[spec.name], strict=True):
            values = getattr(layer_basis, f"singular_values_{side}").double()
            rows = stack.rows(basis.storage.method, side)
            components, values = update_basis(layer_basis.side(side).double(), values, rows, k)
            found[side] = GramBasis(components, values)
        sides = [len(found[side].components) for side in "ab"]
        plan = LayerPlan(basis.storage.method, sides[0], sides[1], basis.dtype)
        turned[spec.name] = store_basis(stack, plan, found)
    k_of = {name: (len(of_layer.a), len(of_layer.b)) for name, of_layer in turned.items()}
    space.set_basis(SharedBasis(k_of, Bases.of(turned.values()), basis.dtype))


def _turned(
    space: BasisSpace, spec: LayerSpec, basis: LayerBasis, stack: LayerStack, count: int
) -> LayerBasis:
    """The basis of one layer turned towards the rows of one more adapter."""
    packs = space.quantization is not None
    found: dict[str, Any] = {}
    for side in ("a", "b"):
        components = basis.side(side).double()
        values = getattr(basis, f"singular_values_{side}").double()
        if len(values) and not bool(values.any()):  # of a peer, which keeps none
            values = _loaded(space, spec.name, side, len(components))
        if packs:  # packing has bent what was orthonormal
            straight = full_basis(values.unsqueeze(1) * components)[0]
            components, values = straight.components, straight.singular_values
        k = spec.k_a if side == "a" else spec.k_b
        mean = basis.mean(side)
        if mean is None:
            rows = stack.rows(space.method, side)
        else:
            new, old = flatten(stack.side(side), side), mean.double()
            rows = (count / (count + 1)) ** 0.5 * (old - new)
            moved = (count * old + new) / (count + 1)
            rounded = moved if packs else unpack(*pack(moved, space.dtype))
            found[f"mean_{side}"] = rounded[0].float()
        turned, values = update_basis(components, values, rows, k)
        found[side] = (turned if packs else round_to(turned, space.dtype)).float()
        found[f"singular_values_{side}"] = values.float()
    turned_basis = LayerBasis(name=spec.name, rank=max(spec.rank, stack.rank), **found)
    if space.quantization is None:
        return turned_basis
    return turned_basis.packed_as(space.quantization)


def _loaded(space: BasisSpace, layer: str, side: str, k: int) -> torch.Tensor:
    """How strongly the tasks load each direction: what singular values are of what is stored."""
    energy = torch.zeros(k, dtype=torch.float64)
    for task in space.tasks.values():
        loadings = task.loadings_a if side == "a" else task.loadings_b
        if layer in loadings:
            energy += loadings[layer].double().cpu().reshape(-1, k).square().sum(0)
    return energy.sqrt()


def reexpress(
    space: BasisSpace,
    storage: Storage,
    specs: Sequence[LayerSpec],
    bases: Mapping[str, LayerBasis],
    record: TaskRecord,
    encoded: EncodedTask,
    original: AdapterSource | None = None,
) -> tuple[TaskRecord, EncodedTask]:
    """A task's reconstruction in new bases and another storage, and its error.

    Without its original the error is a bound: what is lost now is added to what was lost before
    (triangle inequality), per layer.
    """
    method = space.method
    loadings, errors, missed2 = [], [], 0.0
    decoded = decode_task(space.storage, space.layers, record, encoded)
    for i, (spec, a, b) in enumerate(decoded):
        rank, new_spec = record.ranks[i], specs[record.layers[i]]
        old_basis, new_basis = space.bases[spec.name], bases[spec.name]
        old_a = old_basis.expand(method, "a", a[None])
        old_b = old_basis.expand(method, "b", b[None])
        form = storage.form(rank, new_spec.k_a, new_spec.k_b)
        loadings_a = new_basis.project(method, "a", old_a)
        loadings_b = new_basis.project(method, "b", old_b)
        new = encode_loadings(form, loadings_a, loadings_b, storage.dtype)
        new_a, new_b = decode_loadings(form, new)
        hat_a = new_basis.expand(method, "a", new_a)[:, :rank]
        hat_b = new_basis.expand(method, "b", new_b)[:, :rank]
        norm = float(encoded.norms[i])
        if original is None:
            meant = old_a[:, :rank], old_b[:, :rank].transpose(1, 2)
            before = float(encoded.errors[i])
        else:
            own_a, own_b = original.read(spec.name)
            meant, before = (own_a.double()[None], own_b.double()[None]), 0.0
        lost2 = delta_error2(*meant, hat_a, hat_b.transpose(1, 2))
        lost = abs(record.scales[i]) * float(lost2[0]) ** 0.5
        # What has no effect comes back without one.
        missed = before * norm + lost if norm > 0 or original is None else 0.0
        errors.append(missed / norm if norm > 0 else 0.0)
        missed2 += missed**2
        loadings.append(new.of(0))
    bound = missed2**0.5 / record.norm if record.norm > 0 else 0.0
    record = replace(record, error=figure(bound), measured=original is not None)
    return record, replace(encoded, errors=torch.tensor(errors), **join_loadings(storage, loadings))
