"""The shared basis that a coded collection has beside its tasks, made from what is stored.

A coded task is decoded one module at a time, so that memory holds one layer of all tasks. The
basis is that of `delta` (docs/mathematics.md#shared-bases).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vlora_engine.adapters.needs import StackShape, building
from vlora_engine.adapters.stack import LayerStack
from vlora_engine.errors import ParameterError
from vlora_engine.linalg import grams
from vlora_engine.linalg.grams import Basis
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.subspace.basis import (
    Bases,
    LayerBasis,
    LayerPlan,
    captured_energy,
    encode_tasks,
    store_basis,
)
from vlora_engine.subspace.loadings import Storage
from vlora_engine.subspace.soundness import damaged
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.memory import room
from vlora_engine.utils.naming import percent_text
from vlora_engine.utils.run_context import RunContext

METHOD, DTYPE = "delta", "F16"  # what the tasks decode to has fewer digits than fp16 keeps
DEFAULT_VARIANCE = 0.99


@dataclass(frozen=True)
class BasisTarget:
    """What the basis of a coded collection is made for.

    Args:
        k: Directions a side of every layer, at most as many as there are; or by layer (k_a, k_b).
        variance: Else the least k of each layer that holds this share of its tasks' energy.
    """

    k: int | Mapping[str, tuple[int, int]] | None = None
    variance: float | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.variance is not None:
            raise ParameterError("A basis is made for k or for a variance, not for both.")
        if isinstance(self.k, int) and self.k < 1:
            raise ParameterError("k is at least 1.", found=str(self.k))
        if self.variance is not None and not 0 < self.variance <= 1:
            raise ParameterError(
                "A variance to keep lies above 0 and up to 1.", found=str(self.variance)
            )

    def of(self, layer: str) -> tuple[int, int] | None:
        """(k_a, k_b) of a layer, that of the widest one where it is new; None: by variance."""
        if self.k is None or isinstance(self.k, int):
            return None if self.k is None else (self.k, self.k)
        widest = max((max(pair) for pair in self.k.values()), default=1)
        return self.k.get(layer, (widest, widest))


@dataclass(frozen=True)
class BasisFigures:
    """What making a basis came to.

    Args:
        least_k, largest_k: Of any side of any layer. nbytes: What it takes on disk.
        variance: The share of the tasks' energy that it holds, every task counting alike:
            ``sum_i w_i^2 ||dW^_i||^2 / sum_i w_i^2 ||dW_i||^2``, w_i = 1 / ||dW_i||.
        seconds: What it took. clamped: Layers that have fewer directions than were asked for.
    """

    least_k: int
    largest_k: int
    nbytes: int
    variance: float
    seconds: float
    clamped: int = 0

    @property
    def error(self) -> float:
        """The relative error of dW that putting the tasks into the basis would cost, their RMS."""
        return math.sqrt(max(0.0, 1 - self.variance))

    def words(self) -> str:
        """All of it in one line."""
        k = f"{self.least_k} to {self.largest_k}"
        k = k if self.least_k != self.largest_k else str(self.largest_k)
        return (
            f"made a shared basis: k {k}, {self.nbytes:,} bytes, error {percent_text(self.error)} "
            f"({percent_text(self.variance)} of the tasks' energy), {self.seconds:.1f} s"
            + (f"; {self.clamped} modules have no more directions" if self.clamped else "")
        )


@dataclass(frozen=True, eq=False)
class SharedBasis:
    """The `delta` bases of a coded collection, beside its tasks.

    Args:
        k: (k_a, k_b) of the layers that have one. bases: By layer.
        figures: What making it came to; None where it was read.
    """

    k: Mapping[str, tuple[int, int]]
    bases: Bases
    dtype: str = DTYPE
    figures: BasisFigures | None = None

    @property
    def storage(self) -> Storage:
        """How loadings in it are stored."""
        return Storage(METHOD, self.dtype)

    def layers_of(self, layers: Sequence[LayerSpec]) -> list[LayerSpec]:
        """The layers of a collection with the k that each has here: 0 where it has no basis."""
        pairs = [self.k.get(spec.name, (0, 0)) for spec in layers]
        return [
            replace(spec, k_a=k_a, k_b=k_b) for spec, (k_a, k_b) in zip(layers, pairs, strict=True)
        ]

    def all_bases(self, layers: Sequence[LayerSpec]) -> Iterator[LayerBasis]:
        """The basis of every layer in order, an empty one where there is none."""
        for spec in layers:
            if spec.name in self.k:
                yield self.bases.numbers(spec.name).moved("cpu", torch.float32)
            else:
                yield _empty(spec)


class DecodedTasks(Protocol):
    """The interface of tasks that are decoded one layer at a time."""

    @property
    def layers(self) -> list[LayerSpec]: ...

    def records(self) -> list[TaskRecord]: ...

    def layer_factors(
        self, index: int, records: Sequence[TaskRecord]
    ) -> list[tuple[Tensor, Tensor]]:
        """A (r, d_in) and B (d_out, r), the scale in B, of one layer of tasks that have it."""
        ...


def make_basis(
    tasks: DecodedTasks, target: BasisTarget = BasisTarget(), run: RunContext = RunContext()
) -> SharedBasis:
    """The basis of a collection's tasks, layer by layer; the same again for the same tasks.

    Raises:
        MemoryLimitError: Memory does not hold one layer of all tasks.
        Cancelled: Stopped between two layers.
    """
    began = time.perf_counter()
    layers = tasks.layers
    by_layer: list[list[TaskRecord]] = [[] for _ in layers]
    for record in tasks.records():
        for index in record.layers:
            by_layer[index].append(record)
    energy = held = 0.0
    made: list[LayerBasis] = []
    clamped = 0
    for index, spec in enumerate(layers):
        run.stop_if_asked(f"Stopped at {index} of {len(layers)} modules (basis).")
        shape = StackShape(max(1, len(by_layer[index])), spec.rank, spec.d_in, spec.d_out)
        need = building(shape, METHOD, (0, 0), exact=True)
        room(run.max_memory).require(need, "the basis of one module", spec.name)
        stack = decoded_stack(tasks, index, by_layer[index])
        if stack is None:
            continue
        basis, residual = _layer(stack, spec, target)
        clamped += isinstance(target.k, int) and min(len(basis.a), len(basis.b)) < target.k
        made.append(basis)
        task_energy, weight2 = stack.energy(), stack.weight.square()
        energy += float((task_energy * weight2).sum())
        held += float(((task_energy - residual) * weight2).sum())
        run.report("basis", index + 1, len(layers), spec.name)
    k = {basis.name: (len(basis.a), len(basis.b)) for basis in made}
    ks = [side for pair in k.values() for side in pair]
    figures = BasisFigures(
        least_k=min(ks, default=0),
        largest_k=max(ks, default=0),
        nbytes=sum(2 * (b.a.numel() + b.b.numel()) + 4 * (len(b.a) + len(b.b)) for b in made),
        variance=held / energy if energy > 0 else 1.0,
        seconds=time.perf_counter() - began,
        clamped=clamped,
    )
    return SharedBasis(k, Bases.of(made), figures=figures)


def decoded_stack(
    tasks: DecodedTasks, index: int, records: Sequence[TaskRecord]
) -> LayerStack | None:
    """One layer of the tasks that have it, as they are stored; None where nothing is left of it.

    Raises:
        CorruptFileError: Scales or norms are none of what is stored.
    """
    pairs = tasks.layer_factors(index, records)
    rank = max((len(a) for a, _ in pairs), default=0)
    if not rank or not any(bool(a.any()) and bool(b.any()) for a, b in pairs):
        return None
    spec = tasks.layers[index]
    a = torch.zeros(len(pairs), rank, spec.d_in, dtype=torch.float64)
    bt = torch.zeros(len(pairs), rank, spec.d_out, dtype=torch.float64)
    for i, (of_task, b_of_task) in enumerate(pairs):
        a[i, : len(of_task)], bt[i, : len(of_task)] = of_task, b_of_task.T
    norms = torch.tensor([record.norm for record in records], dtype=torch.float64)
    stack = LayerStack(
        layer=spec.name,
        tasks=[record.id for record in records],
        ranks=[len(of_task) for of_task, _ in pairs],
        a=a,
        bt=bt,
        scale=torch.ones(len(pairs), dtype=torch.float64),
        weight=torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)),
    )
    if not bool((stack.energy() * stack.weight.square()).isfinite().all()):
        raise damaged(
            f"The tasks are too large on module {spec.name!r} for the norms that the index has.",
            None,
            "norms and scales of what is stored",
            SUBSPACE_INDEX,
            module=spec.name,
        )
    return stack


def _layer(stack: LayerStack, spec: LayerSpec, target: BasisTarget) -> tuple[LayerBasis, Tensor]:
    """The basis of one layer, and what it misses of each task: ||dW_i - dW^_i||^2."""
    full = {side: grams.full_basis(stack.rows(METHOD, side))[0] for side in ("a", "b")}
    found = _cut(stack, spec, full, target)
    plan = LayerPlan(METHOD, len(found["a"].components), len(found["b"].components), DTYPE)
    basis = store_basis(stack, plan, found)
    residual = torch.zeros(len(stack.tasks), dtype=torch.float64)
    for rank in sorted(set(stack.ranks)):
        rows = [i for i, own in enumerate(stack.ranks) if own == rank]
        residual[rows] = encode_tasks(stack, plan, basis, rank, rows)[1]
    return basis, residual


def _cut(
    stack: LayerStack, spec: LayerSpec, full: Mapping[str, Basis], target: BasisTarget
) -> dict[str, Basis]:
    k = target.of(spec.name)
    if k is not None:
        return {side: full[side].cut(of_side) for side, of_side in zip("ab", k, strict=True)}
    share = target.variance if target.variance is not None else DEFAULT_VARIANCE
    # A little more than that: rounding to fp16 takes its part again.
    wanted = min(1 - 1e-12, share * (1 + 1e-6)) * float(
        (stack.energy() * stack.weight.square()).sum()
    )
    low, high = 1, max(len(basis.components) for basis in full.values())
    while low < high:  # what nested bases hold grows with k
        middle = (low + high) // 2
        cut = {side: basis.cut(middle) for side, basis in full.items()}
        low, high = (low, middle) if captured_energy(stack, cut) >= wanted else (middle + 1, high)
    return {side: basis.cut(low) for side, basis in full.items()}


def _empty(spec: LayerSpec) -> LayerBasis:
    none = torch.zeros(0)
    return LayerBasis(
        spec.name, torch.zeros(0, spec.d_in), torch.zeros(0, spec.d_out), none, none, spec.rank
    )
