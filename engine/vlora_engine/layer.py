"""Building one layer: its basis, the loadings of every task, and the error of what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora_engine.encode import (
    LoadingsForm,
    decode_loadings,
    encode_loadings,
    pack,
    round_to,
    unpack,
)
from vlora_engine.inner import delta_error2
from vlora_engine.linalg import (
    Basis,
    basis_from_vectors,
    full_basis,
    halves,
    range_basis,
    small_grams,
)
from vlora_engine.stack import LayerStack, flatten, unflatten

FINE = 1e-10  # relative squared error below which Gram arithmetic has too few digits left
CHUNK = 64


@dataclass(frozen=True)
class LayerPlan:
    """What to build on one layer.

    Args:
        refine: HOOI sweeps of `delta`.
        exact: Find the basis as the spectra did, not by a range finder.
    """

    method: str
    k_a: int
    k_b: int
    dtype: str
    refine: int = 0
    exact: bool = False


@dataclass
class LayerBasis:
    """The shared part of one layer, every number as it is stored, in fp32.

    Args:
        a: (k_a, d_in); `flat`: (k_a, r * d_in). b: (k_b, d_out); `flat`: (k_b, d_out * r).
        singular_values_a: (k_a,) of the row matrix; b likewise.
        mean_a: `flat` only: (r * d_in,); mean_b (d_out * r,).
        rank: The largest rank of the layer (`flat` is padded to it).
    """

    name: str
    a: Tensor
    b: Tensor
    singular_values_a: Tensor
    singular_values_b: Tensor
    rank: int
    mean_a: Tensor | None = None
    mean_b: Tensor | None = None

    def side(self, side: str) -> Tensor:
        return self.a if side == "a" else self.b

    def mean(self, side: str) -> Tensor | None:
        return self.mean_a if side == "a" else self.mean_b

    def project(self, method: str, side: str, factors: Tensor) -> Tensor:
        """Loadings of factors (N, r, d): (N, r, k), or (N, k) for `flat` (r the layer's)."""
        components = self.side(side).double().to(factors.device)
        if method != "flat":
            return factors @ components.T
        mean = self.mean(side)
        flat = flatten(factors, side)
        if mean is not None:
            flat = flat - mean.double().to(flat.device)
        return flat @ components.T

    def expand(self, method: str, side: str, loadings: Tensor) -> Tensor:
        """The factors (N, r, d) that loadings stand for, in fp64."""
        approx = loadings.double() @ self.side(side).double().to(loadings.device)
        if method != "flat":
            return approx
        mean = self.mean(side)
        if mean is not None:
            approx = approx + mean.double().to(loadings.device)
        return unflatten(approx, side, self.rank)


@dataclass
class BuiltLayer:
    """One layer, ready to be stored.

    Args:
        values: Per task (n,) its loadings in the storage dtype.
        exponents: (N, 2) int8.
        energy: (N,) ||dW_i||^2 of the layer; residual: (N,) what the stored form misses of it.
    """

    basis: LayerBasis
    tasks: list[str]
    ranks: list[int]
    values: list[Tensor]
    exponents: Tensor
    energy: Tensor
    residual: Tensor


def build_layer(
    stack: LayerStack, plan: LayerPlan, vectors: Mapping[str, Tensor] | None = None
) -> BuiltLayer:
    """Build one layer from all tasks' factors.

    Args:
        vectors: Eigenvectors per side that the spectra kept; without them, the first k
            directions are found by a seeded randomised range finder.
    """
    found = {
        side: _find_basis(stack, plan, side, vectors.get(side) if vectors else None)
        for side in ("a", "b")
    }
    if plan.method == "delta" and plan.refine:
        found = _refine(stack, plan, found)
    basis = _store_basis(stack, plan, found)
    values: list[Tensor] = [torch.empty(0)] * len(stack.tasks)
    exponents = torch.zeros(len(stack.tasks), 2, dtype=torch.int8)
    energy = stack.energy().cpu()
    residual = torch.zeros_like(energy)
    for rank in sorted(set(stack.ranks)):
        members = [i for i, r in enumerate(stack.ranks) if r == rank]
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            encoded, powers, error2 = encode_tasks(stack, plan, basis, rank, _span(rows))
            for i, row in enumerate(rows):
                values[row] = encoded[i]
            exponents[rows] = powers
            residual[rows] = error2
    return BuiltLayer(
        basis=basis,
        tasks=stack.tasks,
        ranks=stack.ranks,
        values=values,
        exponents=exponents,
        energy=energy,
        residual=residual,
    )


def _span(rows: list[int]) -> slice | list[int]:
    """``rows`` as a slice where they follow each other: a view instead of a copy."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def encode_tasks(
    stack: LayerStack, plan: LayerPlan, basis: LayerBasis, rank: int, rows: slice | list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loadings of the tasks in ``rows``, all of one rank: values, exponents, residual energy."""
    method, (a, bt) = plan.method, (stack.a[rows], stack.bt[rows])
    loads_a, loads_b = basis.project(method, "a", a), basis.project(method, "b", bt)
    form = LoadingsForm(method, rank, len(basis.a), len(basis.b))
    if method != "flat":
        loads_a, loads_b = loads_a[:, :rank], loads_b[:, :rank]
    values, exponents = encode_loadings(form, loads_a, loads_b, plan.dtype)
    stored_a, stored_b = (t.to(a.device) for t in decode_loadings(form, values, exponents))
    a, bt, scale = a[:, :rank], bt[:, :rank], stack.scale[rows]
    if method == "flat":
        hat_a = basis.expand(method, "a", stored_a)[:, :rank]
        hat_b = basis.expand(method, "b", stored_b)[:, :rank]
        cross = _inner(a, hat_a), _inner(bt, hat_b)
        square = small_grams(hat_a), small_grams(hat_b)
    else:
        # A^ = loadings @ C, so A A^^T = (A C^T) loadings^T: nothing of width d is formed again.
        cross = _inner(loads_a, stored_a), _inner(loads_b, stored_b)
        square = _gram_in(basis.a, stored_a), _gram_in(basis.b, stored_b)
    full = (stack.gram_a[rows] * stack.gram_b[rows]).sum((1, 2))
    approx = (square[0] * square[1]).sum((1, 2))
    error2 = (full - 2 * (cross[0] * cross[1]).sum((1, 2)) + approx).clamp_min(0)
    if method == "flat":
        error2[full == 0] = 0  # what has no effect comes back without one
    fine = (error2 < FINE * full).nonzero().flatten()
    if len(fine):
        hat_a = basis.expand(method, "a", stored_a[fine])[:, :rank]
        hat_b = basis.expand(method, "b", stored_b[fine])[:, :rank]
        error2[fine] = delta_error2(a[fine], bt[fine].transpose(1, 2), hat_a, hat_b.transpose(1, 2))
    return values, exponents, (error2 * scale.square()).cpu()


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x, y.transpose(1, 2))


def _gram_in(components: Tensor, loadings: Tensor) -> Tensor:
    """Gram matrices of ``loadings @ components``, whose rounded rows are not quite orthonormal."""
    metric = components.double().to(loadings.device)
    return torch.bmm(loadings @ (metric @ metric.T), loadings.transpose(1, 2))


def _find_basis(stack: LayerStack, plan: LayerPlan, side: str, vectors: Tensor | None) -> Basis:
    rows = stack.rows(plan.method, side)
    k = plan.k_a if side == "a" else plan.k_b
    if plan.method == "flat":
        k = min(k, len(stack.tasks) - 1)
    if vectors is not None:
        return basis_from_vectors(rows, vectors[:, :k].to(rows.device, torch.float64))
    if plan.exact or k >= min(rows.shape):
        return full_basis(rows)[0].cut(k)
    return range_basis(rows, k)


def _refine(stack: LayerStack, plan: LayerPlan, found: dict[str, Basis]) -> dict[str, Basis]:
    """HOOI sweeps (De Lathauwer et al. 2000): each side fitted to what the other side keeps."""
    best, best_kept = found, _kept(stack, found)
    current = found
    for _ in range(plan.refine):
        for side, other in (("b", "a"), ("a", "b")):
            inside = stack.side(other) @ current[other].components.T
            factor = halves(small_grams(inside)) * (stack.weight * stack.scale).view(-1, 1, 1)
            own = stack.side(side)
            rows = torch.bmm(factor.transpose(1, 2), own).reshape(-1, own.shape[2])
            current = {**current, side: full_basis(rows)[0].cut(len(found[side].components))}
        kept = _kept(stack, current)
        if kept <= best_kept * (1 + 1e-9):
            break
        best, best_kept = current, kept
    return best


def _kept(stack: LayerStack, found: dict[str, Basis]) -> float:
    """The weighted energy of dW between both bases."""
    a = small_grams(stack.a @ found["a"].components.T)
    b = small_grams(stack.bt @ found["b"].components.T)
    return float(((a * b).sum((1, 2)) * (stack.weight * stack.scale).square()).sum())


def _store_basis(stack: LayerStack, plan: LayerPlan, found: dict[str, Basis]) -> LayerBasis:
    means: dict[str, Tensor] = {}
    if plan.method == "flat":
        for side in ("a", "b"):
            mean = flatten(stack.side(side), side).mean(0, keepdim=True)
            means[f"mean_{side}"] = unpack(*pack(mean, plan.dtype))[0].float()
    return LayerBasis(
        name=stack.layer,
        a=round_to(found["a"].components, plan.dtype).float().cpu(),
        b=round_to(found["b"].components, plan.dtype).float().cpu(),
        singular_values_a=found["a"].singular_values.float().cpu(),
        singular_values_b=found["b"].singular_values.float().cpu(),
        rank=stack.rank,
        **means,
    )
