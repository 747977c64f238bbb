"""The core space: small coordinates in which one module's weight changes merge without loss.

For adapters ``dW_i = U_i S_i V_i^T`` let the columns of U be an orthonormal basis of all U_i and
those of V of all V_i. Then ``M_i = U^T dW_i V`` has at most (sum r_i)^2 entries and
``dW_i = U M_i V^T`` exactly; whatever is done to the M_i entry by entry happens to the weight
changes themselves, in coordinates chosen by the adapters (Core Space, arXiv:2509.17786;
docs/mathematics.md#the-core-space).

Trims and sign elections depend on the choice of basis. This one is that of the singular vectors of
``[U_1 S_1, ..., U_T S_T]``, each adapter at unit norm, most important first (as KnOTS aligns
adapters, arXiv:2410.19735): it depends on the set of the dW_i alone, not on their gauges, nor
on their order, nor on their norms, up to signs that elementwise methods do not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlora_engine.linalg.low_rank import Factors, canonical_svd, delta_norm2, largest_entry_sign

EPS = torch.finfo(torch.float64).eps
ROUNDING = 1e-12  # of an adapter's norm: smaller entries of its core count as 0


@dataclass(frozen=True)
class Change:
    """One adapter's weight change in canonical form: U (d_out, q), S (q,), V (d_in, q), fp64."""

    U: Tensor
    S: Tensor
    V: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scale: float) -> Change:
        """The change ``scale * B A`` of factors A (r, d_in) and B (d_out, r)."""
        return cls(*canonical_svd(a, b, scale))

    @property
    def norm(self) -> float:
        """``||dW||``, the norm of S."""
        return float(torch.linalg.vector_norm(self.S))

    def times(self, factor: float) -> Change:
        """``factor * dW``; a negative factor flips the signs of U."""
        return Change(self.U * math.copysign(1.0, factor), self.S * abs(factor), self.V)

    def cut(self, rank: int) -> Change:
        """The best approximation of this rank (Eckart and Young 1936)."""
        return Change(self.U[:, :rank], self.S[:rank], self.V[:, :rank])

    def without_rounding(self, size: float) -> Change:
        """Drop directions that are only rounding of a sum whose terms have norm ``size``."""
        least = max(len(self.U), len(self.V)) * EPS * max(size, float(self.S[:1].sum()))
        return self.cut(int((least < self.S).sum()))


@dataclass(frozen=True)
class CoreSpace:
    """U (d_out, k_b) and V (d_in, k_a), orthonormal columns that span every change."""

    U: Tensor
    V: Tensor

    @classmethod
    def of(cls, changes: Sequence[Change]) -> CoreSpace:
        """The core space of one module's changes; empty where all of them are zero."""
        nonzero = [(change, change.S / change.norm) for change in changes if len(change.S)]
        if not nonzero:
            return cls(changes[0].U[:, :0], changes[0].V[:, :0])
        return cls(
            _range(torch.cat([change.U * s for change, s in nonzero], dim=1)),
            _range(torch.cat([change.V * s for change, s in nonzero], dim=1)),
        )

    def core(self, change: Change) -> Tensor:
        """``M = U^T dW V``, (k_b, k_a)."""
        return (self.U.T @ change.U * change.S) @ (self.V.T @ change.V).T

    def change(self, core: Tensor, size: float) -> Change:
        """The weight change ``U M V^T`` of a core M (k_b, k_a).

        Args:
            core: (k_b, k_a).
            size: The norm of the terms it was summed from, for rounding.
        """
        # M = P S Q^T: U M V^T = (U P) S (V Q)^T
        P, S, Qh = torch.linalg.svd(core, full_matrices=False)
        U, V = self.U @ P, self.V @ Qh.T
        sign = largest_entry_sign(U)
        return Change(U * sign, S, V * sign).without_rounding(size)


@dataclass(frozen=True)
class ModuleInputs:
    """What a method gets for one module: the adapters that have it, weights, and their core space.

    Changes, the space and cores are computed on demand: a plain sum needs none of them, and for
    many adapters cores are far larger than the factors.

    Args:
        module: Its name.
        factors: A (r_i, d_in) and B (d_out, r_i) of each adapter that has the module.
        scales: Those adapters' scales.
        weights: Their weights, already divided by their sum where the request normalises sums.
        positions: Those adapters' indices among all that are merged.
        mean: Whether agreeing entries are averaged, not summed.
        weights_of_all: The weights of all adapters, also of those that lack the module.
    """

    module: str
    factors: Sequence[Factors]
    scales: Sequence[float]
    weights: Sequence[float]
    positions: Sequence[int]
    mean: bool = True
    weights_of_all: Sequence[float] = ()

    @cached_property
    def changes(self) -> list[Change]:
        """The adapters' weight changes in canonical form."""
        pairs = zip(self.factors, self.scales, strict=True)
        return [Change.of(a, b, scale) for (a, b), scale in pairs]

    @cached_property
    def space(self) -> CoreSpace:
        """The core space of all of them."""
        return CoreSpace.of(self.changes)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (k_b, k_a) of a core."""
        return self.space.U.shape[1], self.space.V.shape[1]

    @property
    def size(self) -> float:
        """The norm of the terms that are summed, which bounds the rounding of a result."""
        size = sum(abs(w) * c.norm for w, c in zip(self.weights, self.changes, strict=True))
        return size / (sum(map(abs, self.weights)) or 1.0) if self.mean else size

    def core(self, i: int) -> Tensor:
        """The core M_i (k_b, k_a) of adapter i; entries that are rounding are 0, without a sign."""
        core = self.space.core(self.changes[i])
        return core.masked_fill_(core.abs() <= ROUNDING * self.changes[i].norm, 0.0)

    def zeros(self) -> Tensor:
        """A core of zeros (k_b, k_a)."""
        return self.space.U.new_zeros(self.shape)

    def combined(self, coefficients: Sequence[float]) -> Change:
        """The sum ``sum_i c_i dW_i``, exact, without the core space."""
        parts = zip(self.factors, self.scales, coefficients, strict=True)
        return summed([(a, b.double() * (s * c)) for (a, b), s, c in parts])

    def from_core(self, core: Tensor) -> Change:
        """The weight change of a merged core (k_b, k_a)."""
        return self.space.change(core, self.size)


def summed(factors: Sequence[Factors]) -> Change:
    """The exact sum ``sum_i B_i A_i = [B_1 .. B_T] [A_1; ..; A_T]``.

    Args:
        factors: A_i (r_i, d_in), B_i (d_out, r_i) with scales folded in.
    """
    a = torch.cat([pair[0].double() for pair in factors])  # [sum r, d_in]
    b = torch.cat([pair[1].double() for pair in factors], dim=1)  # [d_out, sum r]
    norm_sum = sum(float(delta_norm2(*pair)) ** 0.5 for pair in factors)
    return Change.of(a, b, 1.0).without_rounding(norm_sum)


def _range(columns: Tensor) -> Tensor:
    """The left singular vectors (d, k) of columns (d, m), the strongest first."""
    q, r = torch.linalg.qr(columns)
    P, S, _ = torch.linalg.svd(r, full_matrices=False)
    directions: Tensor = q @ P[:, max(columns.shape) * EPS * S[0] < S]
    return directions
