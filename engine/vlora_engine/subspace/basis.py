"""Build one layer: its basis, the loadings of every task, and the error of what is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import ModuleShape
from vlora_engine.adapters.stack import LayerStack, flatten, unflatten
from vlora_engine.errors import AdapterError
from vlora_engine.linalg import grams
from vlora_engine.linalg.grams import Basis
from vlora_engine.linalg.low_rank import delta_error2
from vlora_engine.quantization.packed import PackedBasis, pack_rows
from vlora_engine.quantization.packing import Quantization
from vlora_engine.subspace.loadings import (
    Loadings,
    LoadingsForm,
    Storage,
    decode_loadings,
    decode_sides,
    encode_loadings,
    pack,
    round_to,
    scale_rows,
    unpack,
)

# Relative squared error below which Gram arithmetic has too few digits left.
FINE = {torch.float64: 1e-10, torch.float32: 1e-2}
SMALL = 1e-2  # share of the energy of the rows below which what a basis misses drowns in fp32
SINGLE = frozenset({"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})  # dtypes that fp32 holds
CHUNK = 64


@dataclass(frozen=True)
class LayerPlan:
    """The settings that one layer is built with.

    Args:
        refine: HOOI sweeps of `delta`.
        exact: Find the basis as the spectra did, not by a range finder.
        quantization: How the basis and the loadings are packed, if they are.
    """

    method: str
    k_a: int
    k_b: int
    dtype: str
    refine: int = 0
    exact: bool = False
    quantization: Quantization | None = None

    @property
    def storage(self) -> Storage:
        return Storage(self.method, self.dtype, self.quantization)


@dataclass
class LayerBasis:
    """The shared part of one layer, every number as it is stored, in fp32.

    Args:
        a: (k_a, d_in); `flat`: (k_a, r * d_in). b: (k_b, d_out); `flat`: (k_b, d_out * r).
        singular_values_a: (k_a,) of the row matrix; b likewise.
        mean_a: `flat` only: (r * d_in,); mean_b (d_out * r,).
        rank: The largest rank of the layer (`flat` is padded to it).
        packed: What all these were unpacked from. Such a basis is not orthonormal any more.
    """

    name: str
    a: Tensor
    b: Tensor
    singular_values_a: Tensor
    singular_values_b: Tensor
    rank: int
    mean_a: Tensor | None = None
    mean_b: Tensor | None = None
    packed: PackedBasis | None = None

    @classmethod
    def unpacked(cls, packed: PackedBasis) -> LayerBasis:
        """The basis that a packed one stands for."""
        return cls(
            name=packed.name,
            a=packed.a.dense(),
            b=packed.b.dense(),
            singular_values_a=packed.singular_values_a,
            singular_values_b=packed.singular_values_b,
            rank=packed.rank,
            mean_a=packed.mean_a.dense() if packed.mean_a is not None else None,
            mean_b=packed.mean_b.dense() if packed.mean_b is not None else None,
            packed=packed,
        )

    def packed_as(self, quantization: Quantization) -> LayerBasis:
        """The same basis packed; its numbers are those that unpacking gives."""
        means: dict[str, Any] = {}
        for side in ("a", "b"):
            if (mean := self.mean(side)) is not None:
                scaled, powers = scale_rows(mean.double().unsqueeze(0))
                power = int(powers[0])
                means[f"mean_{side}"] = pack_rows(scaled[0], quantization.means, exponent=power)
        return LayerBasis.unpacked(
            PackedBasis(
                name=self.name,
                a=pack_rows(self.a, quantization.basis),
                b=pack_rows(self.b, quantization.basis),
                singular_values_a=self.singular_values_a,
                singular_values_b=self.singular_values_b,
                rank=self.rank,
                **means,
            )
        )

    def moved(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LayerBasis:
        """The same on another device, or in another dtype."""
        if device is None and dtype is None:
            return self
        tensors: dict[str, Any] = {
            name: value.to(device=device, dtype=dtype)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def side(self, side: str) -> Tensor:
        return self.a if side == "a" else self.b

    def mean(self, side: str) -> Tensor | None:
        return self.mean_a if side == "a" else self.mean_b

    def project(self, method: str, side: str, factors: Tensor) -> Tensor:
        """Loadings of factors (N, r, d): (N, r, k), or (N, k) for `flat` (r the layer's)."""
        return self.fit(side, self.inner(method, side, factors))

    def fit(self, side: str, inner: Tensor) -> Tensor:
        """The loadings of least squares from inner products (..., k) with the components.

        Of an orthonormal basis they are the same; of a packed one, whose rows are not orthonormal,
        a linear system is solved. As dW is linear in the factors of either side, this is the least
        error of dW, too (not of `flat`).
        """
        return inner if self.packed is None else inner @ self._metrics[side].to(inner.device)

    def orthonormal_loadings(self, side: str, loadings: Tensor) -> Tensor:
        """Loadings (r, k) in the orthonormal basis whose first j directions span those of ours."""
        if self.packed is None:
            return loadings
        turn = torch.linalg.qr(self.side(side).double().cpu().T, mode="r").R
        turned: Tensor = loadings @ turn.T.to(loadings.device)
        return turned

    @cached_property
    def _metrics(self) -> dict[str, Tensor]:
        """Per side the inverse of the Gram matrix of the components, (k, k) fp64."""
        found = {}
        for side in ("a", "b"):
            rows = self.side(side).double()
            gram = rows @ rows.T
            factor, failed = torch.linalg.cholesky_ex(gram)
            singular = bool(failed) or (len(gram) and float(factor.diagonal().min()) < 1e-4)
            if singular:
                found[side] = torch.linalg.pinv(gram, hermitian=True, rtol=1e-6)
            else:
                found[side] = torch.cholesky_inverse(factor)
        return found

    def inner(self, method: str, side: str, factors: Tensor) -> Tensor:
        """Inner products of factors (N, r, d) with the components: (N, r, k) or (N, k) fp64."""
        components = self.side(side).to(factors)
        if method != "flat":
            return (factors @ components.T).double()
        mean = self.mean(side)
        flat = flatten(factors, side)
        if mean is not None:
            flat = flat - mean.to(flat)
        return (flat @ components.T).double()

    def expand(
        self, method: str, side: str, loadings: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """The factors (N, r, d) that loadings stand for, computed in ``dtype``."""
        loadings = loadings.to(dtype)
        approx = loadings @ self.side(side).to(loadings)
        if method != "flat":
            return approx
        mean = self.mean(side)
        if mean is not None:
            approx += mean.to(loadings)
        return unflatten(approx, side, self.rank)


class Bases(Mapping[str, LayerBasis]):
    """The bases of all layers by name, looked up when they are asked for.

    What is packed stays packed: of such bases only the last one asked for is kept as numbers.
    """

    def __init__(
        self,
        names: Sequence[str],
        look_up: Callable[[str], LayerBasis | PackedBasis],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._names, self._look_up, self._dtype = dict.fromkeys(names), look_up, dtype
        self._loaded: dict[str, LayerBasis | PackedBasis] = {}
        self._last: LayerBasis | None = None

    @classmethod
    def of(cls, bases: Iterable[LayerBasis | PackedBasis]) -> Bases:
        """The bases given, in memory; of packed ones the unpacked numbers are dropped."""
        by_name = {b.name: b.packed or b if isinstance(b, LayerBasis) else b for b in bases}
        return cls(list(by_name), by_name.__getitem__)

    def __getitem__(self, name: str) -> LayerBasis:
        if name not in self._names:
            raise KeyError(name)
        last = self._last
        if last is not None and last.name == name:
            return last
        basis = self.as_stored(name)
        if isinstance(basis, LayerBasis):
            return basis
        self._last = unpacked = LayerBasis.unpacked(basis).moved(dtype=self._dtype)
        return unpacked

    def as_stored(self, name: str) -> LayerBasis | PackedBasis:
        """A basis in the form that it is stored in: packed, or as numbers."""
        if name not in self._loaded:
            self._loaded[name] = self._look_up(name)
        return self._loaded[name]

    def numbers(self, name: str) -> LayerBasis:
        """A basis as numbers for a caller that stores them itself; they are not cached here."""
        basis = self._loaded.get(name) or self._look_up(name)
        if isinstance(basis, LayerBasis):
            return basis
        return LayerBasis.unpacked(basis).moved(dtype=self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def moved(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Bases:
        """The same on another device, or in another dtype; packed ones when they are asked for."""

        def look_up(name: str) -> LayerBasis | PackedBasis:
            basis = self.as_stored(name)
            if isinstance(basis, PackedBasis):
                return basis.to(device)
            return basis.moved(device, dtype)

        return Bases(list(self), look_up, dtype or self._dtype)


@dataclass
class BuiltLayer:
    """One layer, ready to be stored.

    Args:
        loadings: Of every task, encoded.
        energy: (N,) ||dW_i||^2 of the layer; residual: (N,) what the stored form misses of it.
    """

    basis: LayerBasis
    tasks: list[str]
    ranks: list[int]
    loadings: list[Loadings]
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
    if stack.is_single and not stack.is_even:
        stack = stack.in_double
    found = {
        side: _find_basis(stack, plan, side, vectors.get(side) if vectors else None)
        for side in ("a", "b")
    }
    if plan.method == "delta" and plan.refine:
        found = _refine(stack, plan, found)
    basis = store_basis(stack, plan, found)
    loadings: dict[int, Loadings] = {}
    energy = stack.energy().cpu()
    residual = torch.zeros_like(energy)
    for rank in sorted(set(stack.ranks)):
        members = [i for i, r in enumerate(stack.ranks) if r == rank]
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            encoded, error2 = encode_tasks(stack, plan, basis, rank, _span(rows))
            of_tasks = zip(*(part.unbind() for part in encoded), strict=True)
            loadings.update(zip(rows, map(Loadings._make, of_tasks), strict=True))
            residual[rows] = error2
    return BuiltLayer(
        basis=basis,
        tasks=stack.tasks,
        ranks=stack.ranks,
        loadings=[loadings[i] for i in range(len(stack.tasks))],
        energy=energy,
        residual=residual,
    )


def reading_dtype(plan: LayerPlan, shapes: Sequence[ModuleShape]) -> torch.dtype:
    """The dtype that a layer is read in: fp32 where a few directions out of many are sampled.

    Args:
        shapes: The module's, of every task that has it.
    """
    ranks = {shape.rank for shape in shapes}
    held = all(shape.dtype in SINGLE for shape in shapes)
    if plan.exact or plan.refine or len(ranks) > 1 or not held:
        return torch.float64
    n, rank = len(shapes), max(ranks)
    for k, d in ((plan.k_a, shapes[0].d_in), (plan.k_b, shapes[0].d_out)):
        few = 2 * k < n if plan.method == "flat" else grams.is_sampled(n * rank, d, k)
        if not few:
            return torch.float64
    return torch.float32


def _span(rows: list[int]) -> slice | list[int]:
    """``rows`` as a slice where they follow each other: a view instead of a copy."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def encode_tasks(
    stack: LayerStack, plan: LayerPlan, basis: LayerBasis, rank: int, rows: slice | list[int]
) -> tuple[Loadings, Tensor]:
    """Loadings of the tasks in ``rows``, all of one rank, and the residual energy (N,)."""
    method, (a, bt) = plan.method, (stack.a[rows], stack.bt[rows])
    inner_a, inner_b = basis.inner(method, "a", a), basis.inner(method, "b", bt)
    form = plan.storage.form(rank, len(basis.a), len(basis.b))
    if method != "flat":
        inner_a, inner_b = inner_a[:, :rank], inner_b[:, :rank]
    loadings = encode_loadings(form, basis.fit("a", inner_a), basis.fit("b", inner_b), plan.dtype)
    a, bt, scale = a[:, :rank], bt[:, :rank], stack.scale[rows]
    if method == "flat":
        stored = (t.to(a.device) for t in decode_loadings(form, loadings))
        hat_a, hat_b = (
            basis.expand(method, side, loadings_of_side, a.dtype)[:, :rank]
            for side, loadings_of_side in zip("ab", stored, strict=True)
        )
        cross = (_inner(a, hat_a) * _inner(bt, hat_b)).double().sum((1, 2))
        square = grams.small_grams(hat_a).double(), grams.small_grams(hat_b).double()
        approx = (square[0] * square[1]).sum((1, 2))
    else:
        cross, approx = _overlap(form, basis, loadings, inner_a, inner_b)
    full = (stack.gram_a[rows] * stack.gram_b[rows]).sum((1, 2))
    error2 = (full - 2 * cross + approx).clamp_min(0)
    if not bool(error2.isfinite().all()):
        raise AdapterError(
            "A weight change is too large for the dtype that it would be stored in.",
            where=basis.name,
            expected=f"numbers that {plan.dtype} can hold",
            found="loadings that are not finite",
            remedy="leave the adapter out, or lower its scale",
        )
    if method == "flat":
        error2[full == 0] = 0  # what has no effect comes back without one
    fine = (error2 < FINE[a.dtype] * full).nonzero().flatten()
    if len(fine):
        at = fine.cpu()
        stored_a, stored_b = decode_loadings(form, Loadings(*(part[at] for part in loadings)))
        hat_a = basis.expand(method, "a", stored_a.to(a.device))[:, :rank]
        hat_b = basis.expand(method, "b", stored_b.to(a.device))[:, :rank]
        error2[fine] = delta_error2(a[fine], bt[fine].transpose(1, 2), hat_a, hat_b.transpose(1, 2))
    return loadings, (error2 * scale.square()).cpu()


def _overlap(
    form: LoadingsForm, basis: LayerBasis, loadings: Loadings, inner_a: Tensor, inner_b: Tensor
) -> tuple[Tensor, Tensor]:
    """``<dW, dW^>`` and ``||dW^||^2`` (N,) of what loadings stand for, nothing of width d formed.

    Args:
        inner_a: A C^T (N, r, k_a) fp64 of the tasks' factors; inner_b likewise.
    """
    stored_a, stored_b = decode_sides(form, loadings)
    if stored_a is None:  # dW^ = C_b^T K C_a
        core = stored_b.to(inner_a.device)
        turned = (core @ _metric(basis.a, core)) * (_metric(basis.b, core) @ core)
        projected = torch.bmm(inner_b.transpose(1, 2), inner_a)
        return (core * projected).sum((1, 2)), turned.sum((1, 2))
    # A^ = loadings @ C, so A A^^T = (A C^T) loadings^T.
    stored_a, stored_b = stored_a.to(inner_a.device), stored_b.to(inner_a.device)
    cross = _inner(inner_a, stored_a) * _inner(inner_b, stored_b)
    square = _gram_in(basis.a, stored_a) * _gram_in(basis.b, stored_b)
    return cross.sum((1, 2)), square.sum((1, 2))


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x, y.transpose(1, 2))


def _gram_in(components: Tensor, loadings: Tensor) -> Tensor:
    """Gram matrices of ``loadings @ components``, whose rounded rows are not quite orthonormal."""
    return torch.bmm(loadings @ _metric(components, loadings), loadings.transpose(1, 2))


def _metric(components: Tensor, like: Tensor) -> Tensor:
    """The Gram matrix of ``components`` (k, d) in fp64: (k, k), where ``like`` is."""
    rows = components.to(like.device, torch.float64)
    return rows @ rows.T


def _find_basis(stack: LayerStack, plan: LayerPlan, side: str, vectors: Tensor | None) -> Basis:
    k = plan.k_a if side == "a" else plan.k_b
    if plan.method == "flat":
        k = min(k, len(stack.tasks) - 1)
    if stack.is_single:
        basis, energy = _find_in_single(stack, plan.method, side, k)
        if energy - float(basis.singular_values.square().sum()) > SMALL * energy:
            return basis
    rows = stack.in_double.rows(plan.method, side)
    if vectors is not None:
        return grams.basis_from_vectors(rows, vectors[:, :k].to(rows.device, torch.float64))
    if plan.exact or k >= min(rows.shape):
        return grams.full_basis(rows)[0].cut(k)
    return grams.range_basis(rows, k)


def _find_in_single(stack: LayerStack, method: str, side: str, k: int) -> tuple[Basis, float]:
    """The basis of one side by products in fp32, and the energy of its row matrix."""
    if method == "flat":
        return grams.gram_basis_of_rows(stack.rows(method, side), k)
    factors, own = stack.side(side), stack.gram_a if side == "a" else stack.gram_b
    if method == "columns":
        energy = own.diagonal(dim1=1, dim2=2).sum()
        return grams.sampled_basis_of_factors(factors, None, k), float(energy)
    other = stack.gram_b if side == "a" else stack.gram_a
    weights = other * (stack.weight * stack.scale).square().view(-1, 1, 1)
    if not bool(weights.any()):
        return Basis(factors.new_zeros(0, factors.shape[2]), factors.new_zeros(0)), 0.0
    return grams.sampled_basis_of_factors(factors, weights, k), float((weights * own).sum())


def _refine(stack: LayerStack, plan: LayerPlan, found: dict[str, Basis]) -> dict[str, Basis]:
    """HOOI sweeps (De Lathauwer et al. 2000): each side fitted to what the other side keeps."""
    best, best_captured = found, captured_energy(stack, found)
    current = found
    for _ in range(plan.refine):
        for side, other in (("b", "a"), ("a", "b")):
            inside = stack.side(other) @ current[other].components.T
            factor = grams.gram_roots(grams.small_grams(inside)) * (
                stack.weight * stack.scale
            ).view(-1, 1, 1)
            factors = stack.side(side)
            rows = torch.bmm(factor.transpose(1, 2), factors).reshape(-1, factors.shape[2])
            current = {**current, side: grams.full_basis(rows)[0].cut(len(found[side].components))}
        captured = captured_energy(stack, current)
        if captured <= best_captured * (1 + 1e-9):
            break
        best, best_captured = current, captured
    return best


def captured_energy(stack: LayerStack, found: Mapping[str, Basis]) -> float:
    """The weighted energy of dW between both bases: sum_i w_i^2 ||Pb dW_i Pa||^2."""
    a = grams.small_grams(stack.a @ found["a"].components.T)
    b = grams.small_grams(stack.bt @ found["b"].components.T)
    return float(((a * b).sum((1, 2)) * (stack.weight * stack.scale).square()).sum())


def store_basis(stack: LayerStack, plan: LayerPlan, found: Mapping[str, Basis]) -> LayerBasis:
    """The directions ``found`` for either side as they are stored: rounded, or packed."""
    packs = plan.quantization is not None
    means: dict[str, Any] = {}
    if plan.method == "flat":
        for side in ("a", "b"):
            mean = flatten(stack.side(side), side).mean(0, keepdim=True)
            means[f"mean_{side}"] = (mean if packs else unpack(*pack(mean, plan.dtype)))[0].float()
    basis = LayerBasis(
        name=stack.layer,
        a=(found["a"].components if packs else round_to(found["a"].components, plan.dtype)).float(),
        b=(found["b"].components if packs else round_to(found["b"].components, plan.dtype)).float(),
        singular_values_a=found["a"].singular_values.float().cpu(),
        singular_values_b=found["b"].singular_values.float().cpu(),
        rank=stack.rank,
        **means,
    )
    if plan.quantization is not None:
        return basis.packed_as(plan.quantization)
    return replace(basis, a=basis.a.cpu(), b=basis.b.cpu())
