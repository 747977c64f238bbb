"""Project an adapter into a subspace, and reconstruct tasks from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.check import CheckReport, check_adapter
from vlora_engine.adapters.model import AdapterSource, LoRAWeights, ModuleShape, form_word, padded
from vlora_engine.adapters.provenance import Origin, Provenance
from vlora_engine.adapters.stack import LayerStack, read_stack
from vlora_engine.errors import CollectionError, NotFoundError, ParameterError, SubspaceError
from vlora_engine.linalg.grams import cumulative_grams
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.subspace.basis import LayerPlan, encode_tasks
from vlora_engine.subspace.loadings import TaskLayer
from vlora_engine.subspace.request import Collection, assemble_task
from vlora_engine.subspace.soundness import MOST_OF_A_TASK, distinct, nothing, require_finite
from vlora_engine.subspace.space import Space
from vlora_engine.subspace.tasks import TaskProjection, decode_projection
from vlora_engine.utils.safetensors_file import dtype_name, torch_dtype


def project(space: Space, source: AdapterSource, task_id: str) -> TaskProjection:
    """Project an adapter into the bases of a space (`SharedSubspace.project`).

    Raises:
        CollectionError, ParameterError, SubspaceError: It does not fit the space.
        AdapterError: NaN or Inf.
    """
    check = check_adapter(task_id, source)
    if check.error is not None:
        raise check.error
    specs = shared_specs(space.layers, source, task_id)
    for spec in specs:
        check_fits(spec, source, space.method)
    collection = Collection({task_id: source}, CheckReport({task_id: check}), space.layers, "")
    shares = [_share(space, spec, task_id, source, check.weight) for spec in specs]
    record, encoded = assemble_task(collection, task_id, shares, file="", out=None)
    return decode_projection(space.storage, space.layers, record, encoded)


def shared_specs(
    layers: Sequence[LayerSpec], source: AdapterSource, task_id: str
) -> list[LayerSpec]:
    """The layers of a subspace that an adapter has, too.

    Raises:
        SubspaceError: There is none: it is made for another base model.
    """
    specs = [spec for spec in layers if spec.name in source.modules]
    if not specs:
        raise SubspaceError(
            "The adapter shares no module with the subspace.",
            where=source.path or task_id,
            expected=f"modules such as {layers[0].name}" if layers else None,
            found=next(iter(source.modules), "none"),
        )
    return specs


def check_fits(spec: LayerSpec, source: AdapterSource, method: str) -> None:
    """Raise unless the adapter's module can be expressed in this layer's basis."""
    shape = source.modules[spec.name]
    if shape.fits != (form_word(spec.kind, spec.tail_a), spec.d_in, spec.d_out):
        raise CollectionError(
            f"Module {spec.name!r} has other dimensions than the subspace.",
            where=source.path,
            expected=f"{spec.kind} {spec.d_in} -> {spec.d_out}",
            found=f"{shape.kind} {shape.d_in} -> {shape.d_out}",
        )
    if method == "flat" and shape.rank > spec.rank:
        raise ParameterError(
            f"A flat subspace of rank {spec.rank} cannot hold an adapter of a higher rank.",
            where=spec.name,
            found=f"rank {shape.rank}",
            remedy="absorb it (the basis is rebuilt), or use method delta",
        )


def padded_stack(
    spec: LayerSpec, name: str, source: AdapterSource, weight: float, method: str
) -> LayerStack:
    """One module of one adapter; for `flat` padded to the layer's rank."""
    stack = read_stack(spec.name, {name: source}, {name: weight})
    if method == "flat":
        stack.a, stack.bt = (padded(factor, spec.rank, 1) for factor in (stack.a, stack.bt))
    return stack


def _share(
    space: Space, spec: LayerSpec, name: str, source: AdapterSource, weight: float
) -> TaskLayer:
    stack = padded_stack(spec, name, source, weight, space.method)
    plan = LayerPlan(space.method, spec.k_a, spec.k_b, space.dtype, quantization=space.quantization)
    loadings, residual = encode_tasks(
        stack, plan, space.bases[spec.name], stack.ranks[0], slice(0, 1)
    )
    return TaskLayer(loadings.of(0), float(stack.energy()[0]), float(residual[0]))


def reconstruct(space: Space, projection: TaskProjection) -> LoRAWeights:
    """Reconstruct a task as an adapter (`SharedSubspace.reconstruct`)."""
    record = projection.record or space.tasks.record(projection.task_id)

    def factors(spec: LayerSpec, rank: int) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r), in fp64."""
        method, layer = space.method, spec.name
        if method != "flat" and not (spec.k_a and spec.k_b):
            shapes = (rank, spec.d_in), (spec.d_out, rank)
            return nothing(shapes[0], torch.float64), nothing(shapes[1], torch.float64)
        basis = space.bases[spec.name]
        a = basis.expand(method, "a", projection.loadings_a[layer].double()[None])[0, :rank]
        b = basis.expand(method, "b", projection.loadings_b[layer].double()[None])[0, :rank]
        # Whether the adapter's own dW was zero; of a blend that is not known.
        is_nothing = bool(record.digest) and projection.source_norms.get(layer) == 0
        if method == "flat" and is_nothing:
            b = torch.zeros_like(b)  # approximated factors of nothing would be something
        return a, b.T

    return assembled(space.layers, record, projection, factors)


def assembled(
    layers: Sequence[LayerSpec],
    record: TaskRecord,
    projection: TaskProjection,
    factors: Callable[[LayerSpec, int], tuple[Tensor, Tensor]],
    *,
    exact: bool = False,
) -> LoRAWeights:
    """The adapter of a task.

    Args:
        factors: A (r, d_in) and B (d_out, r) of a module and rank of the task.
        exact: In fp32, before anything is rounded to the task's own dtypes.
    """
    lora_a, lora_b, shapes = {}, {}, {}
    numbers = sum(
        rank * (layers[i].d_in + layers[i].d_out)
        for i, rank in zip(record.layers, record.ranks, strict=True)
    )
    for index, rank, stored_dtype in zip(record.layers, record.ranks, record.dtypes, strict=True):
        spec, dtype = layers[index], "F32" if exact else stored_dtype
        a, b = (
            _stored(x, torch_dtype(dtype), many=numbers > MOST_OF_A_TASK)
            for x in factors(spec, rank)
        )
        require_finite(spec.name, a, b)
        lora_a[spec.name], lora_b[spec.name] = a, b
        if spec.kind != "linear":
            shapes[spec.name] = shape_on_disk(spec.kind, spec.tail_a, rank, a, b.T, dtype)
    for module in record.own:
        a, b = lora_a[module.name], lora_b[module.name] = projection.own[module.name]
        if module.kind != "linear":
            dtype = dtype_name(a.dtype)
            shapes[module.name] = shape_on_disk(module.kind, module.tail_a, len(a), a, b.T, dtype)
    names = sorted(lora_a)
    return LoRAWeights(
        layer_names=names,
        lora_a=lora_a,
        lora_b=lora_b,
        rank=record.rank,
        metadata=dict(projection.config),
        scales={name: projection.scales[name] for name in names},
        rest=dict(projection.rest),
        shapes=shapes,
        provenance=_provenance(record),
    )


def _provenance(record: TaskRecord) -> Provenance:
    """The adapter that a task was made from, by its content, and what compression cost it."""
    hashes = {"content": record.digest} if record.digest else {}
    step = {"action": "reconstruct", "error": record.error if record.measured else None}
    return Provenance((Origin(record.id, None, hashes),), (step,))


def _stored(factor: Tensor, dtype: torch.dtype, *, many: bool) -> Tensor:
    """A factor in its dtype. Of a large adapter that which is nothing goes on to take no memory."""
    of_all = distinct(factor)
    if many and of_all is not factor:
        return of_all.to(dtype).expand(factor.shape)
    return of_all.to(dtype).expand(factor.shape).contiguous()


def shape_on_disk(
    kind: Any, tail: tuple[int, ...], rank: int, a: Tensor, b: Tensor, dtype: str
) -> ModuleShape:
    """The shapes on disk of a module that is no plain linear map; ``b``: (r, d_out)."""
    ones = (1,) * (len(tail) - 1) if kind == "conv2d" else ()
    return ModuleShape(
        rank=rank,
        d_in=a.shape[1],
        d_out=b.shape[1],
        dtype=dtype,
        kind=kind,
        shape_a=(rank, *tail) if tail else (rank, a.shape[1]),
        shape_b=(b.shape[1], rank, *ones),
    )


def surface(space: Space, layer: str) -> dict[str, Any]:
    """The errors of every task of a layer for every k_a and k_b (`SharedSubspace.surface`).

    Raises:
        NotFoundError: No task has the module.
    """
    spec, basis = next(s for s in space.layers if s.name == layer), space.bases[layer]
    names, rows = [], []
    steps_a, steps_b = torch.arange(spec.k_a + 1).numpy(), torch.arange(spec.k_b + 1).numpy()
    for name, task in space.tasks.items():
        if layer not in task.loadings_a:
            continue
        loadings_a = basis.orthonormal_loadings("a", task.loadings_a[layer].double())
        loadings_b = basis.orthonormal_loadings("b", task.loadings_b[layer].double())
        a = cumulative_grams(loadings_a[None], steps_a).at(steps_a)[:, 0]
        b = cumulative_grams(loadings_b[None], steps_b).at(steps_b)[:, 0]
        captured = b.flatten(1) @ a.flatten(1).T * task.scales[layer] ** 2
        energy = task.source_norms[layer] ** 2
        missed = energy * task.errors[layer] ** 2 + captured[-1, -1] - captured
        names.append(name)
        share = missed / energy if energy > 0 else torch.zeros_like(missed)
        # Where an error is only bounded (after an incremental update), so is the whole row.
        rows.append(share.clamp(0, 1).sqrt())
    if not rows:
        raise NotFoundError(f"No task has the module {layer!r}.")
    return {"tasks": names, "errors": torch.stack(rows)}
