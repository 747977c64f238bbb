"""Convert lorashare's tensors to a `SharedSubspace` and back, and compute lorashare's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, LoRAWeights, MemorySource
from vlora_engine.compress.build import build_whole
from vlora_engine.formats.config import read_settings
from vlora_engine.interop.store import orthonormalized
from vlora_engine.linalg.low_rank import delta_norm2
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.subspace.basis import Bases, LayerBasis
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.loadings import Storage
from vlora_engine.subspace.tasks import TaskMap, TaskProjection
from vlora_engine.utils.naming import natural_key
from vlora_engine.utils.run_context import RunContext

SHARED_METHODS = ("columns", "delta")  # whose bases and loadings lorashare has, too

Turns = Mapping[tuple[str, str], Tensor | None]


def share_loadings(task: TaskProjection) -> dict[str, Tensor]:
    """``{"<layer>:A": (k, r), "<layer>:B": (k, r)}`` of a task."""
    found = {}
    for name, a in task.loadings_a.items():
        found[f"{name}:A"], found[f"{name}:B"] = a.T, task.loadings_b[name].T
    return found


def in_memory(subspace: SharedSubspace) -> SharedSubspace:
    """Copy a subspace into memory: its checkpoint may be replaced while the model is in use.

    Of a method that is not lorashare's it becomes columns.
    """
    if subspace.method not in SHARED_METHODS:
        return in_columns(subspace)
    tasks = TaskMap(subspace.storage, subspace.layers)
    for record in subspace.tasks.records():
        tasks.put(record, subspace.tasks.encoded(record.id))
    space = BasisSpace(
        method=subspace.method,
        dtype=subspace.dtype,
        layers=subspace.layers,
        bases=Bases.of([subspace.bases.as_stored(name) for name in subspace.layer_names]),
        tasks=tasks,
        base_model=subspace.base_model,
        quantization=subspace.quantization,
    )
    return SharedSubspace(space)


def in_columns(subspace: SharedSubspace) -> SharedSubspace:
    """The tasks as they are stored in columns with all the directions they have, in fp32.

    Errors, sources and digests stay those of the tasks: nothing more is lost.
    """
    sources = {name: MemorySource(subspace.reconstruct(name)) for name in subspace.tasks}
    found = SharedSubspace(build_whole(sources, "columns", RunContext()))
    for record in subspace.tasks.records():
        made = found.tasks.record(record.id)
        kept = replace(
            made,
            error=record.error,
            measured=record.measured,
            source=record.source,
            digest=record.digest,
        )
        found.tasks.put(kept, found.tasks.encoded(record.id))
    return found


def subspace_of(
    base_model: str | None,
    components: Mapping[str, Tensor],
    all_loadings: Mapping[str, Mapping[str, Tensor]],
    configs: Mapping[str, dict[str, Any]],
    heads: Mapping[str, dict[str, Tensor]],
) -> SharedSubspace:
    """A subspace of ``components`` (d, k) and loadings (k, r) of adapters by lorashare's keys."""
    names = sorted({key.rpartition(":")[0] for key in components}, key=natural_key)
    specs, bases = [], []
    turns: dict[tuple[str, str], Tensor | None] = {}
    for name in names:
        basis, layer_turns = _basis(name, components, list(all_loadings.values()))
        bases.append(basis)
        turns |= layer_turns
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
        per_side = {side: _side(loadings, names, side, turns) for side in ("a", "b")}
        config = dict(configs.get(task, {}))
        space.tasks[task] = _projection(
            task, per_side["a"], per_side["b"], config, heads.get(task, {})
        )
    return SharedSubspace(space)


def _basis(
    name: str, components: Mapping[str, Tensor], all_loadings: list[Mapping[str, Tensor]]
) -> tuple[LayerBasis, dict[tuple[str, str], Tensor | None]]:
    """An orthonormal basis of one layer, and what turns loadings into it."""
    parts: dict[str, Any] = {}
    turns = {}
    members = [loadings for loadings in all_loadings if f"{name}:A" in loadings]
    for side in ("a", "b"):
        key = f"{name}:{side.upper()}"
        rows = components[key].float().T.contiguous()
        parts[side], turns[name, side] = orthonormalized(rows)
        parts[f"singular_values_{side}"] = torch.zeros(len(rows))
    rank = max((loadings[f"{name}:A"].shape[1] for loadings in members), default=1)
    return LayerBasis(name=name, rank=rank, **parts), turns


def _side(
    loadings: Mapping[str, Tensor], names: list[str], side: str, turns: Turns
) -> dict[str, Tensor]:
    """One side's loadings (r, k) of every layer that the adapter has."""
    found = {}
    for name in names:
        stored = loadings.get(f"{name}:{side.upper()}")
        if stored is not None:
            turn, rows = turns[name, side], stored.T
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
    scales = {name: settings.scale_of(name, rows.shape[0]) for name, rows in a.items()}
    norms = {
        # In orthonormal bases the loadings have the norm of dW.
        name: abs(scales[name])
        * float(delta_norm2(rows[None].double(), b[name].T[None].double())[0]) ** 0.5
        for name, rows in a.items()
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
    """Relative errors of the factors A and B, each by itself, by key."""
    errors = {}
    for key, tensor in original.items():
        if key not in found:
            continue
        norm = float(tensor.double().norm())
        distance = float((tensor.double() - found[key].double()).norm())
        errors[key] = distance / norm if norm > 1e-12 else 0.0
    return errors


def deltas(original: LoRAWeights, reconstructed: LoRAWeights) -> Iterator[Any]:
    """Pairs of dW for `relative_error`; a module that is missing has none."""
    for name in original.layer_names:
        scaled = original.scales[name] * original.lora_b[name].double()
        expected = original.lora_a[name].double(), scaled
        if name in reconstructed.lora_a:
            yield (
                expected,
                (
                    reconstructed.lora_a[name].double(),
                    reconstructed.scales[name] * reconstructed.lora_b[name].double(),
                ),
            )
        else:
            yield expected, (torch.zeros_like(expected[0]), torch.zeros_like(expected[1]))
