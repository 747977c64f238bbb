"""From lorashare's tensors to a `SharedSubspace` in memory and back, and lorashare's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, LoRAWeights
from vlora_engine.formats.config import read_settings
from vlora_engine.interop.store import straight
from vlora_engine.linalg.low_rank import delta_norm2
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.subspace.basis import Bases, LayerBasis
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.loadings import Storage
from vlora_engine.subspace.tasks import TaskMap, TaskProjection
from vlora_engine.utils.naming import natural_key

Turns = Mapping[tuple[str, str], Tensor | None]


def share_loadings(task: TaskProjection) -> dict[str, Tensor]:
    """``{"<layer>:A": (k, r), "<layer>:B": (k, r)}`` of a task."""
    found = {}
    for name, a in task.loadings_a.items():
        found[f"{name}:A"], found[f"{name}:B"] = a.T, task.loadings_b[name].T
    return found


def in_memory(subspace: SharedSubspace) -> SharedSubspace:
    """The same without its files: a checkpoint may be replaced while its model is in use."""
    tasks = TaskMap(subspace.storage, subspace.layers)
    for record in subspace.tasks.records():
        tasks.put(record, subspace.tasks.encoded(record.id))
    space = BasisSpace(
        method=subspace.method,
        dtype=subspace.dtype,
        layers=subspace.layers,
        bases=Bases.of([subspace.bases.kept(name) for name in subspace.layer_names]),
        tasks=tasks,
        base_model=subspace.base_model,
        quantization=subspace.quantization,
    )
    return SharedSubspace(space)


def subspace_of(
    base_model: str | None,
    components: Mapping[str, Tensor],
    all_loadings: Mapping[str, Mapping[str, Tensor]],
    configs: Mapping[str, dict[str, Any]],
    heads: Mapping[str, dict[str, Tensor]],
) -> SharedSubspace:
    """From ``components`` (d, k) and loadings (k, r) of every adapter, keyed as lorashare does."""
    names = sorted({key.rpartition(":")[0] for key in components}, key=natural_key)
    specs, bases = [], []
    turns: dict[tuple[str, str], Tensor | None] = {}
    for name in names:
        basis, own_turns = _basis(name, components, list(all_loadings.values()))
        bases.append(basis)
        turns |= own_turns
        (k_a, d_in), (k_b, d_out) = basis.a.shape, basis.b.shape
        specs.append(LayerSpec(name, d_in, d_out, basis.rank, k_a, k_b))
    space = BasisSpace(
        method="columns",
        dtype="F32",
        layers=specs,
        bases=Bases.of(bases),
        tasks=TaskMap(Storage("columns", "F32"), specs),
        base_model=base_model,
    )
    for task, loadings in all_loadings.items():
        own = {side: _side(loadings, names, side, turns) for side in ("a", "b")}
        config = dict(configs.get(task, {}))
        space.tasks[task] = _projection(task, own["a"], own["b"], config, heads.get(task, {}))
    return SharedSubspace(space)


def _basis(
    name: str, components: Mapping[str, Tensor], all_loadings: list[Mapping[str, Tensor]]
) -> tuple[LayerBasis, dict[tuple[str, str], Tensor | None]]:
    """An orthonormal basis of one layer, and what turns loadings into it."""
    parts: dict[str, Any] = {}
    turns = {}
    members = [own for own in all_loadings if f"{name}:A" in own]
    for side in ("a", "b"):
        key = f"{name}:{side.upper()}"
        rows = components[key].float().T.contiguous()
        parts[side], turns[name, side] = straight(rows)
        parts[f"singular_values_{side}"] = torch.zeros(len(rows))
    rank = max((own[f"{name}:A"].shape[1] for own in members), default=1)
    return LayerBasis(name=name, rank=rank, **parts), turns


def _side(
    loadings: Mapping[str, Tensor], names: list[str], side: str, turns: Turns
) -> dict[str, Tensor]:
    """One side's loadings (r, k) of every layer that the adapter has."""
    found = {}
    for name in names:
        own = loadings.get(f"{name}:{side.upper()}")
        if own is not None:
            turn, rows = turns[name, side], own.T
            turned = rows.float() if turn is None else (rows.double() @ turn).float()
            found[name] = turned.contiguous()
    return found


def _projection(
    task: str,
    a: dict[str, Tensor],
    b: dict[str, Tensor],
    config: dict[str, Any],
    rest: Mapping[str, Tensor],
) -> TaskProjection:
    settings = read_settings(config, Path(task))
    scales = {name: settings.scale_of(name, own.shape[0]) for name, own in a.items()}
    norms = {
        # In orthonormal bases the loadings have the norm of dW.
        name: abs(scales[name])
        * float(delta_norm2(own[None].double(), b[name].T[None].double())[0]) ** 0.5
        for name, own in a.items()
    }
    return TaskProjection(
        task_id=task,
        loadings_a=a,
        loadings_b=b,
        scales=scales,
        rest=dict(rest),
        config=config,
        source_norms=norms,
    )


def explained(subspace: SharedSubspace, source: AdapterSource) -> Iterator[float]:
    """Per module and side the share of the factor's energy that the basis holds."""
    for name in source.modules:
        if name not in subspace.layer_names:
            yield 0.0
            continue
        a, b = source.read(name)
        basis = subspace.bases[name]
        for rows, components in ((a.double(), basis.a), (b.double().T, basis.b)):
            whole = float(rows.square().sum())
            inside = float((rows @ components.double().T).square().sum())
            yield inside / whole if whole > 1e-12 else 1.0


def factor_errors(original: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative errors of A and B apart, by key."""
    errors = {}
    for key, tensor in original.items():
        if key not in found:
            continue
        norm = float(tensor.double().norm())
        distance = float((tensor.double() - found[key].double()).norm())
        errors[key] = distance / norm if norm > 1e-12 else 0.0
    return errors


def deltas(original: LoRAWeights, own: LoRAWeights) -> Iterator[Any]:
    """Pairs of dW for `relative_error`; a module that is missing has none."""
    for name in original.layer_names:
        scaled = original.scales[name] * original.lora_b[name].double()
        meant = original.lora_a[name].double(), scaled
        if name in own.lora_a:
            yield meant, (own.lora_a[name].double(), own.scales[name] * own.lora_b[name].double())
        else:
            yield meant, (torch.zeros_like(meant[0]), torch.zeros_like(meant[1]))
