"""The factors of one module of all adapters, stacked for per-layer computations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.linalg.grams import gram_roots, small_grams


@dataclass
class LayerStack:
    """The factors of one module over the N tasks that have it, padded with zero rows.

    Args:
        tasks: The task names, in the collection's order.
        ranks: (N,) the true rank of each.
        a: (N, r, d_in) fp64, r the largest rank.
        bt: (N, r, d_out) fp64: B transposed.
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

    @cached_property
    def gram_a(self) -> Tensor:
        """A A^T of every task, (N, r, r)."""
        return small_grams(self.a)

    @cached_property
    def gram_b(self) -> Tensor:
        """B^T B of every task, (N, r, r)."""
        return small_grams(self.bt)

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


def read_stack(
    layer: str,
    sources: Mapping[str, AdapterSource],
    weights: Mapping[str, float],
    device: torch.device | str = "cpu",
) -> LayerStack:
    """Read one module of every source that has it. Memory: two fp64 copies of the factors."""
    tasks = [name for name, source in sources.items() if layer in source.modules]
    shapes = [sources[name].modules[layer] for name in tasks]
    rank = max(1, *(shape.rank for shape in shapes))  # a merge of nothing has rank 0
    a = torch.zeros(len(tasks), rank, shapes[0].d_in, dtype=torch.float64)
    bt = torch.zeros(len(tasks), rank, shapes[0].d_out, dtype=torch.float64)
    for i, (name, shape) in enumerate(zip(tasks, shapes, strict=True)):
        a_of_task, b_of_task = sources[name].read(layer)
        a[i, : shape.rank] = a_of_task
        bt[i, : shape.rank] = b_of_task.T
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
