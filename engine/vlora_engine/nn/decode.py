"""Decode a task into its effect on every module, and cache the tasks used last.

Loadings of modules that are alike are decoded together, and moved to the model's device in one
piece: what a switch costs does not depend on how many tasks there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.stack import unflatten
from vlora_engine.errors import ParameterError
from vlora_engine.manifest.manifest import TaskRecord
from vlora_engine.nn.effects import Factors, Shared, TaskEffect
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.loadings import EncodedTask, Loadings, LoadingsForm, decode_sides
from vlora_engine.subspace.space import Space

CACHE_BYTES = 256 << 20  # of decoded tasks
SHARING = ("delta", "columns")  # methods whose tasks are small matrices in a basis of dW's sides
Target = tuple[torch.device, torch.dtype]
Targets = Callable[[str], Target | None]  # where a module computes; None: not wanted


@dataclass(frozen=True)
class Scaling:
    """The scale of each module: its own, unless the caller gave one scale or one alpha."""

    fixed: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("scaling", self.fixed), ("lora_alpha", self.alpha)):
            if value is not None and not math.isfinite(value):
                raise ParameterError(f"{name} is a finite number.", found=str(value))

    def of(self, scale: float, rank: int, config: Mapping[str, Any]) -> float:
        """The scale of a module whose own is ``own``; an alpha is divided as PEFT would."""
        if self.fixed is not None:
            return self.fixed
        if self.alpha is None:
            return scale
        rank = max(1, rank)
        return self.alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@dataclass(frozen=True)
class DecodedTask:
    """A decoded task: its effect on every module, and its rest tensors.

    Args:
        record: What the index said of it when it was decoded.
        effects: Per module. rest: Rest tensors under their full keys.
    """

    record: TaskRecord
    effects: Mapping[str, TaskEffect]
    rest: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        rest = sum(t.numel() * t.element_size() for t in self.rest.values())
        return rest + sum(effect.nbytes for effect in self.effects.values())


class TaskCache:
    """The tasks used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ParameterError("cache_bytes is not negative.", found=str(limit))
        self.limit, self.nbytes = limit, 0
        self._tasks: OrderedDict[str, DecodedTask] = OrderedDict()

    def get(self, task_id: str, record: TaskRecord) -> DecodedTask | None:
        """A task from the cache, if it is there and was decoded from this very record."""
        task = self._tasks.get(task_id)
        if task is None or task.record is not record:
            return None
        self._tasks.move_to_end(task_id)
        return task

    def put(self, task_id: str, task: DecodedTask) -> None:
        """Cache a task; drop those that were not used for the longest time."""
        self._drop(task_id)
        if task.nbytes > self.limit:
            return
        self._tasks[task_id] = task
        self.nbytes += task.nbytes
        while self.nbytes > self.limit:
            self._drop(next(iter(self._tasks)))

    def clear(self) -> None:
        """Empty the cache."""
        self._tasks.clear()
        self.nbytes = 0

    def _drop(self, task_id: str) -> None:
        gone = self._tasks.pop(task_id, None)
        self.nbytes -= gone.nbytes if gone is not None else 0


def decode(subspace: Space, task_id: str, scaling: Scaling, targets: Targets) -> DecodedTask:
    """Decode a task into effects, each on the device and in the dtype of its module.

    Raises:
        NotFoundError: There is no such task.
    """
    record = subspace.tasks.record(task_id)
    effects: dict[str, TaskEffect] = {}
    if subspace.method in SHARING:
        encoded = subspace.tasks.encoded(task_id)
        effects.update(_shared(subspace, record, encoded, scaling, targets))
        outside, scales, rest = encoded.own, {o.name: o.scale for o in record.own}, encoded.rest
    else:
        task = subspace.tasks.decoded(task_id)
        outside, scales, rest = task.own, task.scales, task.rest
        if subspace.method == "flat":
            effects.update(_flat(subspace, record, scaling, targets))
    for name, (a, b) in outside.items():
        target = targets(name)
        if target is not None:
            scale = scaling.of(scales[name], len(a), record.config)
            effects[name] = _factors(a.float(), b.T.float() * scale, target)
    return DecodedTask(record, effects, rest)


def on_cpu(module: str) -> Target:
    """Every module on the CPU, in fp32."""
    return torch.device("cpu"), torch.float32


def factors_of(subspace: Space, task_id: str, scaling: Scaling) -> Iterator[tuple[str, Factors]]:
    """Every module of a task as factors in fp32 on the CPU, the scale in B."""
    task = decode(subspace, task_id, scaling, on_cpu)
    for name, effect in task.effects.items():
        if isinstance(effect, Shared):
            effect = effect.factors(subspace.bases.numbers(name).moved("cpu", torch.float32))
        yield name, effect


@dataclass(frozen=True)
class _Piece:
    """Where one module's loadings lie in an encoded task."""

    name: str
    position: int
    values: slice
    scales: slice
    scale: float


def _shared(
    subspace: Space, record: TaskRecord, encoded: EncodedTask, scaling: Scaling, targets: Targets
) -> Iterator[tuple[str, Shared]]:
    groups: dict[tuple[LoadingsForm, Target], list[_Piece]] = {}
    start = first = 0
    storage, layers = subspace.storage, subspace.layers
    for position, (index, rank) in enumerate(zip(record.layers, record.ranks, strict=True)):
        spec = layers[index]
        form = storage.form(rank, spec.k_a, spec.k_b)
        end, last = start + form.elements, first + form.scales
        target = targets(spec.name)
        if target is not None and form.elements:
            scale = scaling.of(record.scales[position], rank, record.config)
            piece = _Piece(spec.name, position, slice(start, end), slice(first, last), scale)
            groups.setdefault((form, target), []).append(piece)
        start, first = end, last
    for (form, target), pieces in groups.items():
        yield from _alike(form, target, pieces, encoded)


def _alike(
    form: LoadingsForm, target: Target, pieces: list[_Piece], encoded: EncodedTask
) -> Iterator[tuple[str, Shared]]:
    """The modules of one form, M of them, at once."""
    device, dtype = target
    loadings = Loadings(
        torch.stack([encoded.values[p.values] for p in pieces]),
        encoded.exponents[[p.position for p in pieces]],
        torch.stack([encoded.scales[p.scales] for p in pieces]),
    )
    a, b = decode_sides(form, loadings)
    scale = torch.tensor([p.scale for p in pieces], dtype=torch.float64).view(-1, 1, 1)
    b = (b.mT if a is None else b) * scale  # a core becomes (k_a, k_b)
    lb = b.to(device, dtype).contiguous().unbind()
    la = a.to(device, dtype).contiguous().unbind() if a is not None else [None] * len(pieces)
    for piece, task_la, task_lb in zip(pieces, la, lb, strict=True):
        yield piece.name, Shared(task_la, task_lb)


def _flat(
    subspace: Space, record: TaskRecord, scaling: Scaling, targets: Targets
) -> Iterator[tuple[str, Factors]]:
    task = subspace.tasks.decoded(record.id)
    for position, (index, rank) in enumerate(zip(record.layers, record.ranks, strict=True)):
        spec = subspace.layers[index]
        target = targets(spec.name)
        if target is None or (record.digest and task.source_norms.get(spec.name) == 0):
            continue  # approximated factors of nothing would be something
        basis = subspace.bases.numbers(spec.name)
        a, bt = (
            flat_factor(basis, s, loadings[spec.name], spec.rank)[:rank]
            for s, loadings in (("a", task.loadings_a), ("b", task.loadings_b))
        )
        scale = scaling.of(record.scales[position], rank, record.config)
        yield spec.name, _factors(a, bt * scale, target)


def flat_factor(basis: LayerBasis, side: str, loadings: Tensor, rank: int) -> Tensor:
    """A (r, d_in), or B transposed (r, d_out), that loadings (k,) of `flat` stand for, in fp32."""
    rows, mean = basis.side(side), basis.mean(side)
    flat = loadings.float() @ rows.to(loadings.device, torch.float32)
    if mean is not None:
        flat = flat + mean.to(flat.device, torch.float32)
    return unflatten(flat.unsqueeze(0), side, rank)[0]


def _factors(a: Tensor, bt: Tensor, target: Target) -> Factors:
    device, dtype = target
    return Factors(a.to(device, dtype).contiguous(), bt.to(device, dtype).contiguous())
