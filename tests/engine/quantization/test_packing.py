"""Packed numbers: every bit of them, what they cost, and what is refused."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlora_engine import NF4_QUANT_TABLE
from vlora_engine.errors import ParameterError
from vlora_engine.quantization.packed import PackedRows, pack_numbers, pack_rows, unpack_numbers
from vlora_engine.quantization.packing import (
    GROUP_SIZE,
    NOISE,
    Packing,
    named_quantization,
    quantization,
)

KINDS = [("symmetric", 8), ("symmetric", 4), ("nf4", 4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels_of(packing: Packing) -> Tensor:
    """Every multiple of a scale that a code of this packing can stand for."""
    if packing.method == "nf4":
        return NF4_QUANT_TABLE
    return torch.arange(-8.0, 8.0) if packing.bits == 4 else torch.arange(-127.0, 128.0)


def by_hand(rows: PackedRows) -> list[float]:
    """The numbers that packed bytes stand for, read byte by byte."""
    packing, count = rows.packing, math.prod(rows.shape)
    data = bytes(rows.codes.tolist())
    nibbles = [half for byte in data for half in (byte >> 4, byte & 15)]
    codes = list(data) if packing.bits == 8 else nibbles
    if packing.method == "nf4":
        numbers = [float(NF4_QUANT_TABLE[code]) for code in codes[:count]]
    else:
        numbers = [float(code - (1 << (packing.bits - 1))) for code in codes[:count]]

    def single(value: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])

    scales = [float(scale) for scale in rows.scales]
    if packing.double_quant:
        steps = [float(step) for step in rows.steps]
        scales = [single(scale * steps[i // GROUP_SIZE]) for i, scale in enumerate(scales)]
    return [
        single(number * scales[i // packing.block_size]) * 2.0**rows.exponent
        for i, number in enumerate(numbers)
    ]


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    method, bits = draw(st.sampled_from(KINDS))
    block_size = draw(st.sampled_from([1, 2, 5, 16, 64, 1000]))
    return Packing(method, bits, block_size, draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(
    packings(),
    st.tuples(st.integers(0, 5), st.integers(0, 70)),
    st.integers(0, 2**30),
    st.sampled_from([1e-4, 1.0, 300.0]),
)
def test_what_is_packed_comes_back_bit_for_bit(
    packing: Packing, shape: tuple[int, int], seed: int, magnitude: float
) -> None:
    numbers = magnitude * normal(*shape, seed=seed)
    packed = pack_rows(numbers, packing)
    back = packed.dense()
    assert back.shape == shape
    assert back.dtype == torch.float32
    assert packed.nbytes == packing.nbytes(numbers.numel())
    assert back.flatten().tolist() == by_hand(packed)


@settings(max_examples=60, deadline=None)
@given(packings(), st.integers(1, 200), st.integers(0, 2**30))
def test_every_number_takes_the_nearest_level_of_its_scale(
    packing: Packing, count: int, seed: int
) -> None:
    numbers = normal(1, count, seed=seed)
    codes, scales, steps = pack_numbers(numbers, packing, search=True)
    back = unpack_numbers(packing, codes, scales, steps, count)[0]
    used = scales[0].float()
    if packing.double_quant:
        used = used * steps[0].repeat_interleave(GROUP_SIZE)[: len(used)]
    reachable = used.repeat_interleave(packing.block_size)[:count, None] * levels_of(packing)
    least = (reachable - numbers[0, :, None]).abs().amin(dim=1)
    assert torch.allclose((back - numbers[0]).abs(), least, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(packings(), st.integers(1, 300), st.integers(0, 2**30))
def test_packing_again_what_was_unpacked_changes_nothing(
    packing: Packing, count: int, seed: int
) -> None:
    if packing.double_quant:
        packing = Packing(packing.method, packing.bits, packing.block_size)
    once = pack_numbers(normal(1, count, seed=seed), packing, search=True)
    back = unpack_numbers(packing, *once, count)
    again = pack_numbers(back, packing, search=True)
    assert torch.equal(unpack_numbers(packing, *again, count), back)


@pytest.mark.parametrize(("method", "bits"), KINDS)
def test_the_best_of_several_scales_is_never_worse(method: str, bits: int) -> None:
    packing, numbers = Packing(method, bits), normal(1, 64 * 500)
    errors = []
    for search in (False, True):
        back = unpack_numbers(packing, *pack_numbers(numbers, packing, search=search), 64 * 500)
        errors.append((back - numbers).square().reshape(-1, 64).sum(1))
    assert (errors[1] <= errors[0] * 1.01).all()  # the scale of either is rounded to fp16
    share = float(errors[1].sum() / numbers.square().sum())
    name = "nf4" if method == "nf4" else f"int{bits}"
    assert share == pytest.approx(NOISE[name], rel=0.05)


@pytest.mark.parametrize("block_size", [16, 24, 128, 1024])
@pytest.mark.parametrize(("method", "bits"), KINDS)
def test_what_a_block_size_costs_is_about_known(method: str, bits: int, block_size: int) -> None:
    packing, count = Packing(method, bits, block_size), 1 << 17
    numbers = normal(1, count, seed=5)
    back = unpack_numbers(packing, *pack_numbers(numbers, packing, search=True), count)
    met = float((back - numbers).square().sum() / numbers.square().sum())
    assert packing.noise == pytest.approx(met, rel=0.07)


def test_nf4_has_the_levels_of_qlora() -> None:
    """Those of bitsandbytes, to the last digit that its source has."""
    above = "0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 \
        0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"
    below = "1.0 0.6961928009986877 0.5250730514526367 0.39491748809814453 0.28444138169288635 \
        0.18477343022833323 0.09105003625154495"
    meant = [*(-float(word) for word in below.split()), 0.0, *map(float, above.split())]
    packed = pack_rows(torch.tensor(meant), Packing("nf4", 4))
    assert packed.codes.tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert packed.scales.tolist() == [1.0]
    assert packed.dense().tolist() == torch.tensor(meant).tolist()


def test_whole_numbers_keep_their_bytes() -> None:
    eight = pack_rows(torch.tensor([-127.0, 0.0, 1.0, 127.0]), Packing("symmetric", 8))
    assert (eight.codes.tolist(), eight.scales.tolist()) == ([1, 128, 129, 255], [1.0])
    four = pack_rows(torch.tensor([-8.0, 7.0, 0.0, 1.0, 2.0]), Packing("symmetric", 4))
    assert (four.codes.tolist(), four.scales.tolist()) == ([0x0F, 0x89, 0xA0], [1.0])


def test_scales_of_eight_bits_cost_half_and_next_to_no_error() -> None:
    numbers = normal(64 * GROUP_SIZE * 3)
    single, double = (
        pack_rows(numbers, Packing("nf4", 4, double_quant=double)) for double in (False, True)
    )
    assert single.scales.dtype == torch.float16
    assert double.scales.dtype == torch.int8
    assert len(double.steps) == 3
    assert single.nbytes - double.nbytes == len(single.scales) - 4 * 3
    errors = [float((rows.dense() - numbers).norm()) for rows in (single, double)]
    assert errors[1] < 1.02 * errors[0]


def test_zeros_and_blocks_beside_huge_ones_survive() -> None:
    numbers = torch.cat([torch.zeros(64), 1e4 * normal(64), 1e-3 * normal(64, seed=1)])
    for method, bits in KINDS:
        for double in (False, True):
            back = pack_rows(numbers, Packing(method, bits, double_quant=double)).dense()
            assert torch.equal(back[:64], torch.zeros(64))
            assert float((back - numbers)[64:128].norm() / numbers[64:128].norm()) < 0.12
            assert bool(back.isfinite().all())


@pytest.mark.parametrize(
    ("method", "bits", "block_size"),
    [
        ("symmetric", 3, 64),
        ("symmetric", 16, 64),
        ("symmetric", 0, 64),
        ("nf4", 2, 64),
        ("nf5", 4, 64),
        ("symmetric", 8, 0),
        ("nf4", 4, -64),
        ("nf4", 4, 2**20 + 1),
    ],
)
def test_what_is_out_of_range_is_refused(method: str, bits: int, block_size: int) -> None:
    with pytest.raises(ParameterError) as caught:
        quantization(method, bits, block_size=block_size)
    assert caught.value.expected
    assert caught.value.found


def test_short_names() -> None:
    assert named_quantization("none") is None
    nf4 = named_quantization("nf4")
    assert nf4 is not None
    assert nf4.basis == Packing("nf4", 4, 64, double_quant=True)
    assert nf4.loadings == Packing("symmetric", 8, 64)
    with pytest.raises(ParameterError, match="int3"):
        named_quantization("int3")
