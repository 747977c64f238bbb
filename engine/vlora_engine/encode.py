"""How loadings and means become numbers on disk, and back.

fp16 keeps eleven bits but little range, so every factor is stored with a power of two of its own;
a power of two changes no digit. What is read back is what every reported error was measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlora_engine.manifest import core_is_dense
from vlora_engine.tensorfile import torch_dtype


@dataclass(frozen=True)
class LoadingsForm:
    """The shape of one task's loadings of one module: follows from method, rank and k."""

    method: str
    rank: int
    k_a: int
    k_b: int

    @property
    def is_core(self) -> bool:
        """A dense core (k_b, k_a) instead of its two factors, where that is smaller."""
        return self.method == "delta" and bool(core_is_dense(self.rank, self.k_a, self.k_b))

    @property
    def elements(self) -> int:
        if self.method == "flat":
            return self.k_a + self.k_b
        return self.k_a * self.k_b if self.is_core else self.rank * (self.k_a + self.k_b)


@dataclass
class EncodedTask:
    """One task as it lies on disk.

    Args:
        values: (n,) all loadings, module after module, in the storage dtype.
        exponents: (modules, 2) int8: the powers of two of each module's two factors (a core has
            one, in the first place).
        norms: (modules,) fp32 ||dW|| of each module of the source.
        errors: (modules,) fp32 relative error of each, measured on what is stored.
        own: Modules that the basis lacks, as factors (A, B).
        rest: Rest tensors, bit for bit.
    """

    values: Tensor
    exponents: Tensor
    norms: Tensor
    errors: Tensor
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TaskLayer:
    """One task's share of one built layer: its encoded loadings, ||dW||^2, and what they miss."""

    values: Tensor
    exponents: Tensor
    energy: float
    residual: float


def round_to(x: Tensor, dtype: str) -> Tensor:
    """``x`` in fp64 after rounding to the storage dtype."""
    return x.to(torch_dtype(dtype)).double()


def pack(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Scale every row (N, n) by a power of two and round: values (N, n), exponents (N,) int8."""
    if dtype != "F16" or not x.shape[1]:
        exponents = torch.zeros(len(x), dtype=torch.int8)
        return x.to(torch_dtype(dtype)).cpu(), exponents
    largest = x.abs().amax(dim=1)
    exact = torch.where(largest > 0, largest.log2().floor(), torch.zeros_like(largest))
    powers = exact.clamp(-126, 126)
    values = (x * torch.exp2(-powers).unsqueeze(1)).to(torch.float16)
    return values.cpu(), powers.to(torch.int8).cpu()


def unpack(values: Tensor, exponents: Tensor) -> Tensor:
    """The inverse of `pack`, in fp64."""
    return values.double() * torch.exp2(exponents.double()).unsqueeze(1)


def encode_loadings(form: LoadingsForm, a: Tensor, b: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Loadings of N tasks of one form: values (N, elements) and exponents (N, 2).

    Args:
        a: (N, r, k_a), or (N, k_a) for `flat`; b likewise.
    """
    if form.is_core:
        core = torch.bmm(b.transpose(1, 2), a)
        values, exponents = pack(core.flatten(1), dtype)
        return values, torch.stack([exponents, torch.zeros_like(exponents)], 1)
    values_a, exponents_a = pack(a.flatten(1), dtype)
    values_b, exponents_b = pack(b.flatten(1), dtype)
    return torch.cat([values_a, values_b], 1), torch.stack([exponents_a, exponents_b], 1)


def decode_loadings(form: LoadingsForm, values: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: a (N, r, k_a) and b (N, r, k_b) in fp64, or (N, k) each for `flat`.

    A dense core comes back as balanced factors of its SVD, padded with zero rows to the rank.
    """
    n = len(values)
    if form.is_core:
        core = unpack(values, exponents[:, 0]).reshape(n, form.k_b, form.k_a)
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        root = s.sqrt().unsqueeze(2)
        a = torch.zeros(n, form.rank, form.k_a, dtype=torch.float64)
        b = torch.zeros(n, form.rank, form.k_b, dtype=torch.float64)
        keep = min(form.rank, s.shape[1])
        a[:, :keep] = (root * vh)[:, :keep]
        b[:, :keep] = (root * u.transpose(1, 2))[:, :keep]
        return a, b
    split = form.k_a if form.method == "flat" else form.rank * form.k_a
    a = unpack(values[:, :split], exponents[:, 0])
    b = unpack(values[:, split:], exponents[:, 1])
    if form.method == "flat":
        return a, b
    return a.reshape(n, form.rank, form.k_a), b.reshape(n, form.rank, form.k_b)
