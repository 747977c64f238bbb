"""NF4 quantization: four bits a number, at QLoRA's levels for normally distributed weights.

A block of numbers shares one scale, its largest magnitude; every number becomes the nearest of 16
levels of it. Arithmetic is fp32, as in bitsandbytes, so that packing what was unpacked changes
nothing. (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3 and appendix E.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlora_engine.errors import InputError, ParameterError

__all__ = ["NF4_QUANT_TABLE", "nf4_pack", "nf4_quantize_dequantize", "nf4_unpack"]

# bitsandbytes' levels, to the last bit of fp32. Rounded to four digits, as vlora-dev has
# them, they are other numbers than those that QLoRA models were trained with.
NF4_QUANT_TABLE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=torch.float32,
)


def nf4_quantize_dequantize(
    tensor: Tensor,
    block_size: int = 64,
    double_quant: bool = False,
    double_quant_block_size: int = 256,
) -> Tensor:
    """Round a tensor to NF4 and back, as `nf4_unpack` of `nf4_pack` does.

    Args:
        tensor: Any shape, any floating dtype.
        block_size: Numbers that share a scale; the last block may be shorter.
        double_quant: Also round the scales, to 127 steps of the largest of their own block.
        double_quant_block_size: Scales that share a second-level scale.

    Returns:
        Same shape and dtype.

    Raises:
        ParameterError: A block size below 1.
        InputError: NaN or infinity in the tensor.
    """
    levels, scales = _quantize(tensor, block_size)
    if double_quant:
        _check_block("double_quant_block_size", double_quant_block_size)
        groups = _blocks(scales, double_quant_block_size)
        largest = groups.amax(dim=1, keepdim=True)
        steps = (groups / _divisor(largest) * 127).round()
        scales = (steps / 127 * largest).flatten()[: len(scales)]
    values = _dequantize(levels, scales, tensor.numel())
    return values.reshape(tensor.shape).to(tensor.dtype)


def nf4_pack(tensor: Tensor, block_size: int = 64) -> tuple[Tensor, Tensor, int]:
    """Quantize a tensor to NF4 and pack two levels into each byte.

    Args:
        tensor: Any shape, any floating dtype.
        block_size: Numbers that share a scale; the last block may be shorter.

    Returns:
        packed: uint8, (ceil(numel / 2),), the first of two levels in the high half.
        scales: fp32, (ceil(numel / block_size),), the largest magnitude of each block.
        numel: Numbers in the tensor.

    Raises:
        ParameterError: A block size below 1.
        InputError: NaN or infinity in the tensor.
    """
    levels, scales = _quantize(tensor, block_size)
    numel = tensor.numel()
    pairs = _blocks(levels.flatten()[:numel], 2)
    return (pairs[:, 0] << 4) | pairs[:, 1], scales, numel


def nf4_unpack(packed: Tensor, scales: Tensor, numel: int, block_size: int = 64) -> Tensor:
    """Unpack what `nf4_pack` packed: (numel,) fp32.

    Args:
        packed: uint8, at least ceil(numel / 2) bytes (more are padding).
        scales: fp32, one for each block.
        numel: How many numbers there are.
        block_size: As when packing.

    Raises:
        InputError: Too few bytes or scales for ``numel``.
        ParameterError: A block size below 1.
    """
    _check_block("block_size", block_size)
    blocks = -(-numel // block_size)
    if numel < 0 or 2 * packed.numel() < numel or scales.numel() < blocks:
        raise InputError(
            "The packed tensor does not hold what it should.",
            expected=f"{-(-numel // 2)} bytes and {blocks} scales for {numel} numbers",
            found=f"{packed.numel()} bytes and {scales.numel()} scales",
        )
    packed = packed.flatten()
    levels = torch.stack([packed >> 4, packed & 0x0F], dim=1).flatten()[:numel]
    return _dequantize(_blocks(levels, block_size), scales.flatten()[:blocks], numel)


def _quantize(tensor: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Level numbers (n, block_size) uint8, zero-padded, and scales (n,) fp32."""
    _check_block("block_size", block_size)
    flat = tensor.detach().float().flatten()
    if not bool(flat.isfinite().all()):
        raise InputError("A tensor with NaN or infinity cannot be quantized.")
    blocks = _blocks(flat, block_size)
    scales = blocks.abs().amax(dim=1) if len(blocks) else blocks.new_zeros(0)
    table = NF4_QUANT_TABLE.to(flat.device)
    middles = (table[:-1] + table[1:]) / 2
    levels = torch.bucketize(blocks / _divisor(scales)[:, None], middles)  # the nearest level
    return levels.to(torch.uint8), scales


def _dequantize(levels: Tensor, scales: Tensor, numel: int) -> Tensor:
    """The numbers (numel,) fp32 of level numbers (n, block_size) and scales (n,)."""
    table = NF4_QUANT_TABLE.to(levels.device)
    values = table[levels.long()] * scales[:, None]  # [n, block_size]
    return values.flatten()[:numel]


def _blocks(flat: Tensor, size: int) -> Tensor:
    """(n,) to (ceil(n / size), size), the last block filled up with zeros."""
    missing = -len(flat) % size
    return torch.nn.functional.pad(flat, (0, missing)).reshape(-1, size)


def _divisor(scales: Tensor) -> Tensor:
    """Scales to divide by: 1 for a block of zeros."""
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def _check_block(name: str, size: int) -> None:
    if size < 1:
        raise ParameterError(f"{name} is out of range.", expected=">= 1", found=str(size))
