"""Pack bases and loadings as integer codes with a scale for each block, and unpack them.

Each block takes the scale that leaves the least squared error, where trying several pays (4 bits);
codes are chosen for the scale as it is stored. Unpacking is fp32 arithmetic, element by element, so
that it gives the same bits everywhere. The formats are in docs/mathematics.md#quantization.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlora_engine.quantization.nf4 import NF4_QUANT_TABLE
from vlora_engine.quantization.packing import GROUP_SIZE, Packing

STEPS = 127  # the largest multiple of its group's step that a packed scale can be
BLOCKS_AT_ONCE = 1 << 15

# Candidate scales, as shares of the one that just covers a block's largest number. A smaller one
# clips that number and is finer for all others. Negative: int4 reaches one step further below zero
# than above. What was unpacked finds its own scale among them, so packing it again changes nothing.
_NF4_SHARES = tuple(1 - 0.03 * i for i in range(10))
_INT4_SHARES = tuple(sign * (24 - i) / 21 for i in range(10) for sign in (1, -1))


@dataclass
class PackedRows:
    """The packed numbers of one side of a module: codes, and scales of one or two levels.

    Args:
        packing: How they are packed.
        shape: Of the unpacked numbers.
        codes: (bytes,) uint8; of two 4-bit numbers the first is in the high half.
        scales: (blocks,) fp16, or int8 multiples of ``steps`` where those are packed too.
        steps: (groups,) fp32, or empty.
        exponent: All unpacked numbers are multiplied by 2 to this power.
    """

    packing: Packing
    shape: tuple[int, ...]
    codes: Tensor
    scales: Tensor
    steps: Tensor
    exponent: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scales, self.steps))

    def dense(self) -> Tensor:
        """The numbers, fp32."""
        codes, scales, steps = (t.unsqueeze(0) for t in (self.codes, self.scales, self.steps))
        numbers = unpack_numbers(self.packing, codes, scales, steps, math.prod(self.shape))
        numbers = numbers[0].reshape(self.shape)
        return numbers * 2.0**self.exponent if self.exponent else numbers

    def to(self, device: torch.device | str | None) -> PackedRows:
        """The same on another device."""
        codes, scales, steps = (t.to(device=device) for t in (self.codes, self.scales, self.steps))
        return replace(self, codes=codes, scales=scales, steps=steps)


def pack_rows(rows: Tensor, packing: Packing, *, exponent: int = 0) -> PackedRows:
    """Pack a tensor of any shape, whose numbers were divided by ``2**exponent`` before."""
    codes, scales, steps = pack_numbers(rows.reshape(1, -1), packing, search=True)
    return PackedRows(packing, tuple(rows.shape), codes[0], scales[0], steps[0], exponent)


@dataclass
class PackedBasis:
    """The packed basis of one layer; unpacked it is `vlora_engine.subspace.basis.LayerBasis`."""

    name: str
    a: PackedRows
    b: PackedRows
    singular_values_a: Tensor
    singular_values_b: Tensor
    rank: int
    mean_a: PackedRows | None = None
    mean_b: PackedRows | None = None

    @property
    def means(self) -> list[PackedRows]:
        """The means of both sides, or none."""
        return [mean for mean in (self.mean_a, self.mean_b) if mean is not None]

    def to(self, device: torch.device | str | None) -> PackedBasis:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device=device) if isinstance(value, Tensor) else value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | PackedRows)
        }
        return replace(self, **moved)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(rows.nbytes for rows in (self.a, self.b, *self.means))


def pack_numbers(
    x: Tensor, packing: Packing, *, search: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Pack N rows of n numbers, each row by itself.

    Args:
        x: (N, n).
        packing: How to pack them.
        search: Try several scales a block where that pays.

    Returns:
        codes (N, bytes) uint8, scales (N, blocks) fp16 or int8, steps (N, groups) fp32, on the
        CPU.
    """
    n = x.shape[1]
    blocks = _blocks(x.float(), _block(packing, n))  # [N, blocks, block_size]
    scales, steps = _stored_scales(_best_scales(blocks, packing, search), packing)
    used = _used_scales(scales, steps)
    codes = torch.empty(blocks.shape, dtype=torch.uint8, device=x.device)
    flat, flat_codes, flat_used = blocks.flatten(0, 1), codes.flatten(0, 1), used.flatten()
    for part in _parts(len(flat)):
        flat_codes[part] = _codes(flat[part], flat_used[part], packing)
    numbers = codes.flatten(1)[:, :n]
    return _bytes(numbers, packing).cpu(), scales.cpu(), steps.cpu()


def unpack_numbers(
    packing: Packing, codes: Tensor, scales: Tensor, steps: Tensor, n: int
) -> Tensor:
    """The inverse of `pack_numbers`: (N, n) fp32."""
    if packing.bits == 4:
        codes = torch.stack([codes >> 4, codes & 0x0F], dim=2).flatten(1)
    levels = _levels(codes[:, :n], packing)
    scale = _used_scales(scales, steps).repeat_interleave(_block(packing, n), dim=1)[:, :n]
    return levels * scale


def _best_scales(blocks: Tensor, packing: Packing, search: bool) -> Tensor:
    """The scale of every block before it is rounded, (N, blocks) fp32; 4 bits may search."""
    if not blocks.numel():
        return blocks.new_zeros(blocks.shape[:2])
    largest = blocks.abs().amax(dim=2)
    shares: tuple[float, ...] = (1.0,)
    if packing.method == "nf4":
        covering, shares = largest, _NF4_SHARES if search else shares
    elif packing.bits == 8:
        return largest / 127
    else:
        covering = largest / (8 if search else 7)
        shares = _INT4_SHARES if search else shares
    if len(shares) == 1:
        return covering
    chosen = torch.empty_like(covering).flatten()
    flat, flat_covering = blocks.flatten(0, 1), covering.flatten()
    for part in _parts(len(flat)):
        least, best = None, flat_covering[part]
        for share in shares:
            scale = flat_covering[part] * share
            if not packing.double_quant:
                scale = scale.half().float()  # as it is stored
            levels = _levels(_codes(flat[part], scale, packing), packing)
            error = (levels * scale[:, None] - flat[part]).square_().sum(dim=1)  # ||x^ - x||^2
            better = error < least if least is not None else torch.ones_like(error).bool()
            least = error if least is None else torch.minimum(least, error)
            best = torch.where(better, scale, best)
        chosen[part] = best
    return chosen.reshape(covering.shape)


def _stored_scales(scales: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Round scales (N, blocks) to fp16, or to int8 multiples of steps (N, groups) fp32."""
    if not packing.double_quant:
        return scales.half(), scales.new_zeros(len(scales), 0)
    groups = _blocks(scales, GROUP_SIZE)  # [N, groups, GROUP_SIZE]
    steps = (
        groups.abs().amax(dim=2) / STEPS if groups.numel() else groups.new_zeros(groups.shape[:2])
    )
    multiples = (groups / _divisor(steps)[:, :, None]).round()
    # A scale rounded to 0 would lose its block; the smallest step keeps what it can of it.
    multiples = torch.where((multiples == 0) & (groups != 0), groups.sign(), multiples)
    return multiples.flatten(1)[:, : scales.shape[1]].to(torch.int8), steps


def _used_scales(scales: Tensor, steps: Tensor) -> Tensor:
    """The scales that codes are multiplied by, (N, blocks) fp32, from how they are stored."""
    if scales.dtype != torch.int8:
        return scales.float()
    return scales.float() * steps.repeat_interleave(GROUP_SIZE, dim=1)[:, : scales.shape[1]]


def _codes(blocks: Tensor, scales: Tensor, packing: Packing) -> Tensor:
    """The nearest level of every number for its block's scale, (B, block_size) uint8."""
    shares = blocks / _divisor(scales)[:, None]
    if packing.method == "nf4":
        table = NF4_QUANT_TABLE.to(blocks.device)
        return torch.bucketize(shares, (table[:-1] + table[1:]) / 2, out_int32=True).to(torch.uint8)
    low, high = (-8, 7) if packing.bits == 4 else (-127, 127)
    offset = 1 << (packing.bits - 1)
    return (shares.round().clamp(low, high) + offset).to(torch.uint8)


def _levels(codes: Tensor, packing: Packing) -> Tensor:
    """What every code stands for in units of the scale, fp32."""
    if packing.method == "nf4":
        return NF4_QUANT_TABLE.to(codes.device)[codes.int()]
    return codes.float() - (1 << (packing.bits - 1))


def _bytes(codes: Tensor, packing: Packing) -> Tensor:
    """Codes (N, n) as bytes (N, bytes), two 4-bit codes a byte."""
    if packing.bits == 8:
        return codes
    pairs = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).unflatten(1, (-1, 2))
    packed: Tensor = (pairs[:, :, 0] << 4) | pairs[:, :, 1]
    return packed


def _blocks(x: Tensor, size: int) -> Tensor:
    """Cut rows (N, n) into blocks (N, ceil(n / size), size), filled up with zeros."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % size))
    blocks: Tensor = padded.unflatten(1, (-1, size))
    return blocks


def _block(packing: Packing, n: int) -> int:
    """The length of a block: at most n, since a longer one would only be filled up."""
    return max(1, min(packing.block_size, n))


def _divisor(scales: Tensor) -> Tensor:
    """Scales to divide by: 1 for a block of zeros."""
    return torch.where(scales != 0, scales, torch.ones_like(scales))


def _parts(count: int) -> Iterator[slice]:
    """Slices of `BLOCKS_AT_ONCE` blocks, so that temporaries stay small."""
    return (slice(i, i + BLOCKS_AT_ONCE) for i in range(0, count, BLOCKS_AT_ONCE))
