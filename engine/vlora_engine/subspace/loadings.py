"""Encode loadings and means as the numbers on disk, and decode them.

fp16 keeps eleven bits but little range, so every factor is stored with a power of two of its own;
a power of two changes no digit. What is read back is what every reported error was measured on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlora_engine.manifest.manifest import LayerSpec, TaskRecord, core_is_dense
from vlora_engine.quantization.packed import pack_numbers, unpack_numbers
from vlora_engine.quantization.packing import Packing, Quantization
from vlora_engine.utils.safetensors_file import ITEM_BYTES, torch_dtype


@dataclass(frozen=True)
class LoadingsForm:
    """The shape of one task's loadings of one module: follows from method, rank and k.

    Args:
        packing: How they are packed; None where they are stored as numbers.
    """

    method: str
    rank: int
    k_a: int
    k_b: int
    packing: Packing | None = None

    @property
    def is_core(self) -> bool:
        """Whether a dense core (k_b, k_a) is stored instead of its two factors, being smaller."""
        return self.method == "delta" and bool(core_is_dense(self.rank, self.k_a, self.k_b))

    @property
    def is_nothing(self) -> bool:
        """Whether there is no direction that the module could have an effect in."""
        return self.method != "flat" and not (self.k_a and self.k_b)

    @property
    def sides(self) -> tuple[int, ...]:
        """Numbers in the factor of either side, or in the core."""
        if self.method == "flat":
            return self.k_a, self.k_b
        if self.is_core:
            return (self.k_a * self.k_b,)
        return self.rank * self.k_a, self.rank * self.k_b

    @property
    def elements(self) -> int:
        """Stored items: numbers, or bytes where they are packed."""
        if self.packing is None:
            return sum(self.sides)
        return sum(self.packing.code_bytes(count) for count in self.sides)

    @property
    def scales(self) -> int:
        """Scales of the packed numbers."""
        return sum(self.packing.blocks(count) for count in self.sides) if self.packing else 0


@dataclass(frozen=True)
class Storage:
    """How the numbers of a subspace are stored: method, dtype and packing."""

    method: str
    dtype: str
    quantization: Quantization | None = None

    @property
    def basis_packing(self) -> Packing | None:
        """How the bases are packed; None where they are stored as numbers."""
        return self.quantization.basis if self.quantization else None

    @property
    def loadings_packing(self) -> Packing | None:
        """How the loadings are packed; None where they are stored as numbers."""
        return self.quantization.loadings if self.quantization else None

    def form(self, rank: int, k_a: int, k_b: int) -> LoadingsForm:
        """The form of the loadings of a task of this rank."""
        return LoadingsForm(self.method, rank, k_a, k_b, self.loadings_packing)

    def payload_bytes(self, layers: Sequence[LayerSpec], tasks: Iterable[TaskRecord]) -> int:
        """The bytes of bases with their singular values, means and loadings."""
        item, total = ITEM_BYTES[self.dtype], 0
        for spec in layers:
            numbers, means = spec.basis_elements(self.method), spec.mean_elements(self.method)
            total += 4 * (spec.k_a + spec.k_b)
            if self.quantization is None:
                total += item * sum(numbers + means)
            else:
                total += sum(map(self.quantization.basis.nbytes, numbers))
                total += sum(map(self.quantization.means.nbytes, means))
        for task in tasks:
            for i, rank in zip(task.layers, task.ranks, strict=True):
                form = self.form(rank, layers[i].k_a, layers[i].k_b)
                total += form.elements * (1 if form.packing else item) + 2 * form.scales
        return total


@dataclass
class EncodedTask:
    """One task in its encoded form, as it is on disk.

    Args:
        values: (n,) all loadings, module after module, in the storage dtype; bytes where they are
            packed.
        exponents: (modules, 2) int8: the powers of two of each module's two factors (a core has
            one, in the first place).
        norms: (modules,) fp32 ||dW|| of each module of the source.
        errors: (modules,) fp32 relative error of each, measured on what is stored.
        own: Modules that the basis lacks, as factors (A, B).
        rest: Rest tensors, bit for bit.
        scales: (m,) fp16, of the blocks of packed loadings, in their order; else empty.
    """

    values: Tensor
    exponents: Tensor
    norms: Tensor
    errors: Tensor
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    scales: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float16))


class Loadings(NamedTuple):
    """Encoded loadings of N tasks (or of one: without the first dimension) of one module.

    Args:
        values: (N, elements). exponents: (N, 2) int8. scales: (N, scales) fp16.
    """

    values: Tensor
    exponents: Tensor
    scales: Tensor

    def of(self, i: int) -> Loadings:
        """The loadings of one task of the batch."""
        return Loadings(self.values[i], self.exponents[i], self.scales[i])


@dataclass
class TaskLayer:
    """One task's share of one built layer: its encoded loadings, ||dW||^2, and what they miss."""

    loadings: Loadings
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
    scaled, powers = scale_rows(x)
    return scaled.to(torch.float16).cpu(), powers


def scale_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every row (N, n) divided by a power of two so that its largest number is 1 to 2."""
    if not x.shape[1]:
        return x, torch.zeros(len(x), dtype=torch.int8)
    largest = x.abs().amax(dim=1)
    exact = torch.where(largest > 0, largest.log2().floor(), torch.zeros_like(largest))
    powers = exact.clamp(-126, 126)
    return x * torch.exp2(-powers).unsqueeze(1), powers.to(torch.int8).cpu()


def unpack(values: Tensor, exponents: Tensor) -> Tensor:
    """The inverse of `pack`, in fp64."""
    return values.double() * torch.exp2(exponents.double()).unsqueeze(1)


def encode_loadings(form: LoadingsForm, a: Tensor, b: Tensor, dtype: str) -> Loadings:
    """Encode the loadings of N tasks of one form.

    Args:
        a: (N, r, k_a), or (N, k_a) for `flat`; b likewise.
    """
    if form.is_core:
        sides = [torch.bmm(b.transpose(1, 2), a)]
    elif form.packing is not None and form.method != "flat":
        # Direction by direction: numbers of one size then share a scale.
        sides = [a.transpose(1, 2), b.transpose(1, 2)]
    else:
        sides = [a, b]
    values, exponents, scales = zip(
        *(_encode_side(form, side.flatten(1), dtype) for side in sides), strict=True
    )
    powers = exponents if len(sides) == 2 else (*exponents, torch.zeros_like(exponents[0]))
    return Loadings(torch.cat(values, 1), torch.stack(powers, 1), torch.cat(scales, 1))


def _encode_side(form: LoadingsForm, x: Tensor, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    if form.packing is None:
        return *pack(x, dtype), torch.empty(len(x), 0, dtype=torch.float16)
    scaled, exponents = scale_rows(x)
    codes, scales, _ = pack_numbers(scaled, form.packing)
    return codes, exponents, scales


def decode_loadings(form: LoadingsForm, loadings: Loadings) -> tuple[Tensor, Tensor]:
    """The inverse of `encode_loadings`: a (N, r, k_a), b (N, r, k_b) in fp64; `flat`: (N, k) each.

    A dense core comes back as balanced factors of its SVD, padded with zero rows to the rank.
    """
    a, b = decode_sides(form, loadings)
    if a is not None:
        return a, b
    n, core = len(b), b
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    root = s.sqrt().unsqueeze(2)
    a = torch.zeros(n, form.rank, form.k_a, dtype=torch.float64)
    b = torch.zeros(n, form.rank, form.k_b, dtype=torch.float64)
    keep = min(form.rank, s.shape[1])
    a[:, :keep] = (root * vh)[:, :keep]
    b[:, :keep] = (root * u.transpose(1, 2))[:, :keep]
    return a, b


def decode_sides(form: LoadingsForm, loadings: Loadings) -> tuple[Tensor | None, Tensor]:
    """`decode_loadings`, but what is stored as a core stays one: None and (N, k_b, k_a)."""
    n, sides = len(loadings.values), _numbers(form, loadings)
    if form.is_core:
        return None, sides[0].reshape(n, form.k_b, form.k_a)
    a, b = sides
    if form.method == "flat":
        return a, b
    if form.packing is not None:
        a, b = (
            x.reshape(n, k, form.rank).transpose(1, 2) for x, k in ((a, form.k_a), (b, form.k_b))
        )
    return a.reshape(n, form.rank, form.k_a), b.reshape(n, form.rank, form.k_b)


def join_loadings(storage: Storage, loadings: Sequence[Loadings]) -> dict[str, Any]:
    """One task's loadings of all its modules, as `EncodedTask` has them."""
    if not loadings:
        packed = storage.loadings_packing is not None
        return {
            "values": torch.zeros(0, dtype=torch.uint8 if packed else torch_dtype(storage.dtype)),
            "exponents": torch.zeros(0, 2, dtype=torch.int8),
        }
    return {
        "values": torch.cat([of_module.values for of_module in loadings]),
        "exponents": torch.stack([of_module.exponents for of_module in loadings]),
        "scales": torch.cat([of_module.scales for of_module in loadings]),
    }


def _numbers(form: LoadingsForm, loadings: Loadings) -> list[Tensor]:
    """The numbers of every side, (N, n) fp64."""
    values, exponents, scales = loadings
    sides, start, first = [], 0, 0
    for i, count in enumerate(form.sides):
        if form.packing is None:
            sides.append(unpack(values[:, start : start + count], exponents[:, i]))
            start += count
            continue
        end, last = start + form.packing.code_bytes(count), first + form.packing.blocks(count)
        steps = torch.empty(len(values), 0)
        numbers = unpack_numbers(
            form.packing, values[:, start:end], scales[:, first:last], steps, count
        )
        sides.append(unpack(numbers, exponents[:, i]))
        start, first = end, last
    return sides
