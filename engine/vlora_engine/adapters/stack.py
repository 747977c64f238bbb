"""The factors of one module of all adapters, stacked for per-layer computations."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, read_module_into
from vlora_engine.linalg.grams import gram_roots, small_grams

LARGEST = 1e12  # of a row's squared norm, and its inverse the smallest, for sums in fp32
CANCELLED = 0.05  # share of its terms' magnitudes below which a sum in fp32 has too few digits
BLOCK = 16  # adapters whose B are transposed at once


@dataclass
class LayerStack:
    """The factors of one module over the N tasks that have it, padded with zero rows.

    The factors are in fp64, or in fp32 for a build that samples its directions; all else is fp64.

    Args:
        tasks: The task names, in the collection's order.
        ranks: (N,) the true rank of each.
        a: (N, r, d_in), r the largest rank.
        bt: (N, r, d_out): B transposed.
        scale: (N,).
        weight: (N,) 1 / ||dW_i|| over all modules of the task; 0 where that is 0.
    """

    layer: str
    tasks: list[str]
    ranks: list[int]
    a: Tensor
    bt: Tensor
    scale: Tensor
    weight: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def only(self, rows: Sequence[int], weight: Tensor) -> LayerStack:
        """The factors of some of the tasks, with other weights (n,); of all of them no copies."""
        if list(rows) == list(range(len(self.tasks))):
            return replace(self, weight=weight)
        at = torch.tensor(list(rows))
        return replace(
            self,
            tasks=[self.tasks[row] for row in rows],
            ranks=[self.ranks[row] for row in rows],
            a=self.a[at],
            bt=self.bt[at],
            scale=self.scale[at],
            weight=weight,
        )

    def side(self, side: str) -> Tensor:
        """The factor of one side, (N, r, d)."""
        return self.a if side == "a" else self.bt

    @property
    def is_single(self) -> bool:
        """Whether the factors are in fp32."""
        return self.a.dtype == torch.float32

    @property
    def in_double(self) -> LayerStack:
        """The same with factors in fp64."""
        return self._double if self.is_single else self  # not kept by itself: it would not end

    @cached_property
    def _double(self) -> LayerStack:
        return replace(self, a=self.a.double(), bt=self.bt.double().contiguous())

    @cached_property
    def gram_a(self) -> Tensor:
        """A A^T of every task, (N, r, r) fp64."""
        return small_grams(self.a).double()

    @cached_property
    def gram_b(self) -> Tensor:
        """B^T B of every task, (N, r, r) fp64."""
        return small_grams(self.bt).double()

    @cached_property
    def is_even(self) -> bool:
        """Whether Grams in fp32 hold the digits of every dW.

        Their squares are far from the ends of its range, and `<A A^T, B^T B>` does not cancel.
        """
        for factors, gram in ((self.a, self.gram_a), (self.bt, self.gram_b)):
            square = gram.diagonal(dim1=1, dim2=2).amax(1)  # (N,)
            if not bool((square < LARGEST).all()):  # nor NaN
                return False
            small = (square < 1 / LARGEST).nonzero().flatten().tolist()
            if any(bool(factors[row].any()) for row in small):
                return False
        products = self.gram_a * self.gram_b
        return bool((products.sum((1, 2)) >= CANCELLED * products.abs().sum((1, 2))).all())

    def energy(self) -> Tensor:
        """||dW_i||^2 of this module, (N,)."""
        return (self.gram_a * self.gram_b).sum((1, 2)).clamp_min(0) * self.scale.square()

    def inside(self) -> Tensor:
        """(N, r, 1): 1 where a row belongs to the task's own rank, 0 where it is padding."""
        ranks = torch.tensor(self.ranks, device=self.a.device).view(-1, 1, 1)
        return (torch.arange(self.rank, device=self.a.device).view(1, -1, 1) < ranks).double()

    def rows(self, method: str, side: str) -> Tensor:
        """The row matrix whose directions ``method`` shares on this side.

        ``columns``: the rows of A, or the columns of B, as they are: (N r, d).
        ``delta``: rows whose Gram is ``sum_i w_i^2 dW_i^T dW_i`` (side a) or
        ``sum_i w_i^2 dW_i dW_i^T`` (side b): (N r, d).
        ``flat``: the flattened factors less their mean: (N, r d), B in the order (d_out, r).
        """
        factors = self.side(side)
        if method == "columns":
            return factors.reshape(-1, factors.shape[2])
        if method == "delta":
            other = self.gram_b if side == "a" else self.gram_a
            factor = gram_roots(other) * (self.weight * self.scale).view(-1, 1, 1)
            return torch.bmm(factor.transpose(1, 2), factors).reshape(-1, factors.shape[2])
        flat = flatten(factors, side)
        mean = flat.mean(0)
        # B is copied when it is flattened; a second copy would be one too many at 1,000 tasks.
        return flat - mean if flat.data_ptr() == factors.data_ptr() else flat.sub_(mean)


def flatten(factors: Tensor, side: str) -> Tensor:
    """(N, r, d) to (N, r * d_in) for A, and to (N, d_out * r) for B, as A and B lie on disk."""
    rows = factors if side == "a" else factors.transpose(1, 2)
    return rows.reshape(len(factors), -1)


def unflatten(flat: Tensor, side: str, rank: int) -> Tensor:
    """The inverse of `flatten`: (N, r * d) to (N, r, d)."""
    if side == "a":
        return flat.reshape(len(flat), rank, -1)
    return flat.reshape(len(flat), -1, rank).transpose(1, 2)


class StackMemory(threading.local):
    """Memory for the factors of one layer after the other, one lot a thread.

    Fresh memory for every layer costs more than reading the layer does.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of a shape, in place of what was there under this name before."""
        count = math.prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or len(kept) < count:
            kept = self._kept[name, dtype] = torch.empty(count, dtype=dtype)
        return kept[:count].view(shape)


def read_stack(
    layer: str,
    sources: Mapping[str, AdapterSource],
    weights: Mapping[str, float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    *,
    transposed: bool = True,
    memory: StackMemory | None = None,
) -> LayerStack:
    """Read one module of every source that has it. Memory: one copy of the factors in ``dtype``.

    Args:
        transposed: Lay B transposed; without it ``bt`` is a view of B as it lies on disk.
        memory: Where to lay the factors, instead of in memory of their own.
    """
    tasks = [name for name, source in sources.items() if layer in source.modules]
    shapes = [sources[name].modules[layer] for name in tasks]
    rank = max(1, *(shape.rank for shape in shapes))  # a merge of nothing has rank 0
    new = memory or StackMemory()
    step = BLOCK if transposed else len(tasks)
    a = new.empty("a", (len(tasks), rank, shapes[0].d_in), dtype)
    block = new.empty("block", (min(step, len(tasks)), shapes[0].d_out, rank), dtype)
    bt = block.mT
    if transposed:
        bt = new.empty("bt", (len(tasks), rank, shapes[0].d_out), dtype)
    places_a, places_b = a.unbind(), block.unbind()
    for first in range(0, len(tasks), step):
        last = min(first + step, len(tasks))
        for i in range(first, last):
            own, place = shapes[i].rank, (places_a[i], places_b[i - first])
            if own < rank:
                place[0][own:] = 0
                place[1][:, own:] = 0
                place = (place[0][:own], place[1][:, :own])
            read_module_into(sources[tasks[i]], layer, *place)
        if transposed:
            bt[first:last] = block[: last - first].mT
    return LayerStack(
        layer=layer,
        tasks=tasks,
        ranks=[shape.rank for shape in shapes],
        a=a.to(device),
        bt=bt.to(device),
        scale=torch.tensor(
            [sources[name].scales[layer] for name in tasks], dtype=torch.float64, device=device
        ),
        weight=torch.tensor([weights[name] for name in tasks], dtype=torch.float64, device=device),
    )
