"""Weighted sums of tasks as one task: exact on dW wherever tasks are small matrices in a basis."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from vlora_engine.linalg.low_rank import delta_error2, delta_norm2
from vlora_engine.nn.decode import SHARING, Scaling, TaskCache, decode, on_cpu
from vlora_engine.nn.effects import Factors, Shared, TaskEffect
from vlora_engine.subspace.space import Space
from vlora_engine.subspace.tasks import TaskProjection
from vlora_engine.utils.naming import percent_text

BLENDED = "__routed__"
_MODULE_SCALES = Scaling()


def blend_tasks(
    subspace: Space,
    task_ids: Sequence[str],
    weights: Tensor,
    task_id: str = BLENDED,
    cache: TaskCache | None = None,
) -> TaskProjection:
    """One task that is the weighted sum of others; gradients flow back to the weights.

    With `delta` and `columns` the sum is one of dW, scales folded in, and exact: the rank of a
    module is at most min(sum r, k). Of a coded collection it is that of its tasks projected into
    its basis; ``errors`` and ``error`` of the result, and a warning, say what the blend loses
    (`VLoRAModel.set_blend` blends what is stored). With `flat` it is one of the loadings, so it is
    exact in the space of the factors only, not in dW, as the first library's is.

    Args:
        weights: (T,), one per task.
        cache: Keeps what coded tasks decode to for the next blend, which then does not warn.

    Raises:
        UnknownTaskError: There is no such task.
    """
    if subspace.method == "flat":
        return _flat(subspace, task_ids, weights, task_id)
    if subspace.method not in SHARING:
        return _projected(subspace, task_ids, weights, task_id, cache or TaskCache(0))
    tasks = [decode(subspace, name, _MODULE_SCALES, on_cpu) for name in task_ids]
    weights = weights.to("cpu", torch.float32)
    blended = TaskProjection(task_id, {}, {})
    for module in sorted({name for task in tasks for name in task.effects}):
        having = [
            (task.effects[module], i) for i, task in enumerate(tasks) if module in task.effects
        ]
        parts, part_weights = [part for part, _ in having], weights[[i for _, i in having]]
        blended.scales[module] = 1.0
        if all(isinstance(part, Shared) for part in parts):
            la, lb = _in_basis(parts, part_weights)
            blended.loadings_a[module], blended.loadings_b[module] = la, lb
        else:
            blended.own[module] = _whole(subspace, module, parts, part_weights)
    return blended


def _projected(
    subspace: Space, task_ids: Sequence[str], weights: Tensor, task_id: str, cache: TaskCache
) -> TaskProjection:
    """The blend of coded tasks in the collection's basis, and what it misses of the exact one."""
    of_basis = subspace.in_basis()
    blended = blend_tasks(of_basis, task_ids, weights, task_id)
    is_first = not cache.nbytes
    exact = [_decoded(subspace, name, cache) for name in task_ids]
    shares = weights.detach().to("cpu", torch.float32)
    for module in blended.scales:
        having = [(task[module], i) for i, task in enumerate(exact) if module in task]
        a = torch.cat([part.a for part, _ in having]).double()
        b = torch.cat([shares[i] * part.bt for part, i in having]).double().T
        norm2, lost2 = float(delta_norm2(a, b)), 0.0
        if module in blended.loadings_a:
            basis = of_basis.bases.numbers(module).moved("cpu", torch.float64)
            la = blended.loadings_a[module].detach().double() @ basis.a
            lb = blended.loadings_b[module].detach().double() @ basis.b
            lost2 = float(delta_error2(a, b, la, lb.T))
        blended.source_norms[module] = norm2**0.5
        blended.errors[module] = (lost2 / norm2) ** 0.5 if norm2 > 0 else 0.0
    if is_first:
        warnings.warn(
            f"The blend loses {percent_text(blended.error)} of its dW in the basis of the "
            "collection.",
            stacklevel=3,
        )
    return blended


def _decoded(subspace: Space, task_id: str, cache: TaskCache) -> dict[str, Factors]:
    """A coded task as factors by module, the scale in B."""
    record = subspace.tasks.record(task_id)
    task = cache.get(task_id, record)
    if task is None:
        task = decode(subspace, task_id, _MODULE_SCALES, on_cpu)
        cache.put(task_id, task)
    return {name: part for name, part in task.effects.items() if isinstance(part, Factors)}


def _in_basis(parts: Sequence[TaskEffect], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Loadings la (r, k_a) and lb (r, k_b) of the sum, r at most min(sum r, k_a, k_b)."""
    sides = [part.whole() for part in parts if isinstance(part, Shared)]
    las = [side.la for side in sides if side.la is not None]
    la = torch.cat(las)
    lb = torch.cat([w * side.lb for w, side in zip(weights, sides, strict=True)])
    k_a, k_b = la.shape[1], lb.shape[1]
    if len(la) <= min(k_a, k_b):
        return la, lb
    core = lb.T @ la  # (k_b, k_a): its own factor beside an identity
    if k_b <= k_a:
        return core, torch.eye(k_b)
    return torch.eye(k_a), core.T


def _whole(
    subspace: Space, module: str, parts: Sequence[TaskEffect], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """A (r, d_in) and B (d_out, r) of the sum, where a task has the module outside the basis."""
    rows = []
    for part in parts:
        if isinstance(part, Shared):
            basis = subspace.bases.numbers(module).moved("cpu", torch.float32)
            part = part.factors(basis)
        assert isinstance(part, Factors)  # noqa: S101  (that is what is left)
        rows.append(part)
    bt = torch.cat([w * part.bt for w, part in zip(weights, rows, strict=True)])
    return torch.cat([part.a for part in rows]), bt.T.contiguous()


def _flat(
    subspace: Space, task_ids: Sequence[str], weights: Tensor, task_id: str
) -> TaskProjection:
    """Weighted sums of loadings and of scales over the tasks that have a module."""
    tasks = [subspace.tasks.decoded(name) for name in task_ids]
    blended = TaskProjection(task_id, {}, {})
    for module in sorted({name for task in tasks for name in task.loadings_a}):
        having = [i for i, task in enumerate(tasks) if module in task.loadings_a]
        task_weights = weights[having]
        for side in ("loadings_a", "loadings_b"):
            stack = torch.stack([getattr(tasks[i], side)[module] for i in having])
            getattr(blended, side)[module] = task_weights.to(stack) @ stack
        scales = [tasks[i].scales[module] for i in having]
        blended.scales[module] = float(task_weights.detach().cpu() @ torch.tensor(scales))
    return blended


def similarities(subspace: Space, task_ids: Sequence[str]) -> Tensor:
    """Cosines (T, T) between the dW of tasks in the basis; between loadings with `flat`."""
    subspace = subspace.in_basis()
    gram = torch.zeros(len(task_ids), len(task_ids), dtype=torch.float64)
    rows = [_vectors(subspace, name) for name in task_ids]
    for module in sorted({module for vectors in rows for module in vectors}):
        having = [i for i, vectors in enumerate(rows) if module in vectors]
        stack = torch.stack([rows[i][module] for i in having]).double()
        at = torch.tensor(having)
        gram[at.unsqueeze(1), at] += stack @ stack.T
    norms = gram.diagonal().clamp_min(1e-300).sqrt()
    return (gram / norms / norms.unsqueeze(1)).float()


def _vectors(subspace: Space, task_id: str) -> dict[str, Tensor]:
    """Per module a vector whose inner products are those of dW (of loadings, with `flat`)."""
    if subspace.method == "flat":
        task = subspace.tasks.decoded(task_id)
        return {
            name: torch.cat([task.loadings_a[name], task.loadings_b[name]])
            for name in task.loadings_a
        }
    decoded = decode(subspace, task_id, _MODULE_SCALES, on_cpu)
    found = {}
    for name, part in decoded.effects.items():
        if isinstance(part, Shared):
            whole = part.whole()
            assert whole.la is not None  # noqa: S101  (that is what whole means)
            found[name] = (whole.la.T @ whole.lb).flatten()
    return found
