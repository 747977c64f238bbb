"""NF4: the exact levels, nearest by brute force, packing without loss."""

from __future__ import annotations

import math
import struct
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlora_engine.errors import InputError, ParameterError
from vlora_engine.quantization.nf4 import (
    NF4_QUANT_TABLE,
    nf4_pack,
    nf4_quantize_dequantize,
    nf4_unpack,
)

# The bits of the fp32 table of bitsandbytes' kernels.
GOLDEN = (
    "bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000 "
    "3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000"
)

sizes = st.integers(0, 200)
blocks = st.integers(1, 70)
scales = st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6])


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest(tensor: Tensor, block_size: int) -> Tensor:
    """Every number by comparing it with all sixteen levels of its block."""
    result = []
    flat = tensor.float().flatten()
    for block in flat.split(block_size) if len(flat) else ():
        scale = block.abs().max()
        levels = NF4_QUANT_TABLE * scale
        result.append(levels[(block[:, None] - levels).abs().argmin(dim=1)])
    return torch.cat(result) if result else flat


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


def test_the_levels_are_qloras_to_the_last_bit():
    assert [struct.pack(">f", level).hex() for level in NF4_QUANT_TABLE.tolist()] == GOLDEN.split()
    assert NF4_QUANT_TABLE.dtype == torch.float32


def test_the_levels_follow_from_their_definition():
    """Quantiles of a normal distribution, 8 above 0 and 7 below, relative to the largest."""
    offset = 0.9677083  # the mean of 1 - 1/32 and 1 - 1/30
    normal = NormalDist()
    up = [normal.inv_cdf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    down = [-normal.inv_cdf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    levels = torch.tensor(sorted([*up, *down, 0.0]), dtype=torch.float64)
    expected = levels / levels.max()
    torch.testing.assert_close(NF4_QUANT_TABLE.double(), expected, rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(sizes, blocks, scales, st.integers(0, 999))
def test_every_number_becomes_its_nearest_level(size, block, scale, seed):
    tensor = random(size, seed=seed, scale=scale)
    result = nf4_quantize_dequantize(tensor, block)
    expected = nearest(tensor, block)
    # a number in the very middle of two levels may go either way by a rounding of the division
    error, least = ((tensor - x).abs() for x in (result, expected))
    torch.testing.assert_close(error, least, rtol=1e-5, atol=0)


@settings(max_examples=50, deadline=None)
@given(sizes, blocks, scales, st.integers(0, 999))
def test_packing_loses_nothing_more(size, block, scale, seed):
    tensor = random(size, seed=seed, scale=scale)
    packed, scale_of, numel = nf4_pack(tensor, block)
    assert (packed.dtype, scale_of.dtype, numel) == (torch.uint8, torch.float32, size)
    assert packed.numel() == math.ceil(size / 2)
    assert scale_of.numel() == math.ceil(size / block)
    unpacked = nf4_unpack(packed, scale_of, numel, block)
    assert torch.equal(bits(unpacked), bits(nf4_quantize_dequantize(tensor, block)))
    again = nf4_pack(unpacked, block)
    assert torch.equal(again[0], packed)
    assert torch.equal(bits(again[1]), bits(scale_of))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 7), (0, 4), (64,), (65,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_dtype_stay(shape, dtype):
    tensor = random(*shape).to(dtype)
    result = nf4_quantize_dequantize(tensor)
    assert result.shape == tensor.shape
    assert result.dtype == dtype
    expected = nearest(tensor, 64).reshape(shape).to(dtype)
    assert torch.equal(result, expected)
    if tensor.ndim == 2:  # blocks run along the logical order, not along the memory
        columns = tensor.T.contiguous().T
        assert torch.equal(nf4_quantize_dequantize(columns), result)


def test_the_first_level_is_in_the_high_half_of_the_byte():
    packed, scale_of, numel = nf4_pack(torch.tensor([1.0, -1.0, 0.0]))
    assert packed.tolist() == [0xF0, 0x70]
    assert scale_of.tolist() == [1.0]
    assert numel == 3


def test_small_blocks_are_not_crushed():
    """The first library takes every scale below 1e-10 for 1e-10: these would come back zero."""
    tensor = 1e-14 * torch.tensor([1.0, -0.5, 0.25, 0.0])
    result = nf4_quantize_dequantize(tensor)
    assert float((result - tensor).norm() / tensor.norm()) < 0.1
    assert not nf4_quantize_dequantize(torch.zeros(70)).any()


def test_the_error_is_what_nf4_costs_a_normal_distribution():
    tensor = random(1 << 16)
    error = (nf4_quantize_dequantize(tensor) - tensor).norm() / tensor.norm()
    assert 0.085 < float(error) < 0.1


def test_double_quantization_costs_little_whatever_the_number_of_scales():
    """Padding of the last group must not count: scales of 0.01 beside a 1 would lose 7 bits."""
    tensor = random(64 * 3, scale=0.003)
    once = nf4_quantize_dequantize(tensor)
    twice = nf4_quantize_dequantize(tensor, double_quant=True)
    difference = float((twice - once).norm() / once.norm())
    assert 0 < difference < 0.01
    one_group = nf4_quantize_dequantize(tensor, double_quant=True, double_quant_block_size=1)
    torch.testing.assert_close(one_group, once)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nf4_pack(torch.ones(4), 0),
        lambda: nf4_quantize_dequantize(torch.ones(4), -1),
        lambda: nf4_quantize_dequantize(torch.ones(4), 2, True, 0),
        lambda: nf4_unpack(torch.zeros(2, dtype=torch.uint8), torch.ones(1), 4, 0),
    ],
)
def test_block_sizes_below_one_are_refused(call):
    with pytest.raises(ParameterError, match="out of range"):
        call()


def test_bad_data_are_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="NaN or infinity"):
            nf4_pack(torch.tensor([1.0, bad]))
    packed, scale_of, _ = nf4_pack(random(100))
    for arguments in [(packed[:-1], scale_of, 100), (packed, scale_of[:1], 100)]:
        with pytest.raises(InputError, match="does not hold"):
            nf4_unpack(*arguments)


@pytest.mark.peers
def test_call_forms_are_the_first_librarys():
    theirs = pytest.importorskip("vlora.ops")
    tensor = random(4, 64, seed=3)
    packed, scale_of, numel = nf4_pack(tensor, block_size=64)
    their_packed, their_scales, their_numel = theirs.nf4_pack(tensor, block_size=64)
    assert (packed.shape, packed.dtype) == (their_packed.shape, their_packed.dtype)
    assert torch.equal(scale_of, their_scales)
    assert numel == their_numel
    torch.testing.assert_close(NF4_QUANT_TABLE, theirs.NF4_QUANT_TABLE, rtol=0, atol=1e-4)
    # four digits of a level apart, but for numbers between two roundings of a boundary
    unpacked = nf4_unpack(their_packed, their_scales, their_numel, block_size=64)
    expected = theirs.nf4_unpack(their_packed, their_scales, their_numel, block_size=64)
    torch.testing.assert_close(unpacked, expected, rtol=0, atol=1e-4 * float(scale_of.max()))
