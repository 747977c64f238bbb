"""A few directions of many adapters, found with products in fp32, against dense fp64 arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.engine.test_shared_subspace import files
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from tests.witnesses.promises import METHODS, assert_true_errors, compress, stretched, top_k
from vlora_engine import SharedSubspace
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.adapters.stack import LayerStack, read_stack
from vlora_engine.compress.build import build_subspace
from vlora_engine.errors import AdapterError
from vlora_engine.linalg import grams
from vlora_engine.subspace.basis import LayerPlan, build_layer, reading_dtype

MODULE = "model.layers.0.q_proj"
WIDTHS = {MODULE: (160, 168)}  # smaller sides above 8 times the sample for k = 3
K = 3


def related(count: int = 60, noise: float = 0.4, **options: object) -> dict[str, LoRAWeights]:
    """Adapters of rank 4 that mix six directions a side, and noise."""
    common = make.weights(WIDTHS, rank=6, seed=99)
    generator = torch.Generator().manual_seed(7)
    strength = torch.logspace(0, -1, 6).unsqueeze(1)
    adapters = {}
    for i in range(count):
        own = make.weights(WIDTHS, rank=4, seed=i, **options)
        mix = torch.randn(2, 4, 6, generator=generator)
        a, b = own.lora_a[MODULE], own.lora_b[MODULE]
        a.mul_(noise).add_(mix[0] @ (strength * common.lora_a[MODULE]))
        b.mul_(noise).add_((mix[1] @ (strength * common.lora_b[MODULE].T)).T)
        adapters[f"t{i:02d}"] = own
    return adapters


def in_dtype(own: LoRAWeights, dtype: torch.dtype) -> LoRAWeights:
    for factors in (own.lora_a, own.lora_b):
        factors[MODULE] = factors[MODULE].to(dtype)
    return own


def stacks(adapters: dict[str, LoRAWeights], dtype: torch.dtype) -> LayerStack:
    sources = {name: MemorySource(own) for name, own in adapters.items()}
    weights = {n: 1 / float(own.delta(MODULE).norm()) for n, own in adapters.items()}
    return read_stack(MODULE, sources, weights, dtype=dtype)


def plan_of(method: str, k: int = K) -> LayerPlan:
    return LayerPlan(method, k, k, "F32")


def dtype_of(adapters: dict[str, LoRAWeights], plan: LayerPlan) -> torch.dtype:
    shapes = [MemorySource(own).modules[MODULE] for own in adapters.values()]
    return reading_dtype(plan, shapes)


def best_energy(stack: LayerStack, method: str, side: str, k: int) -> tuple[float, float]:
    """The most that k directions can hold of the row matrix, and all of it; by a dense SVD."""
    squares = torch.linalg.svdvals(stack.rows(method, side)).square()
    return float(squares[:k].sum()), float(squares.sum())


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sides whose directions were looked for in fp64 although the layer was read in fp32."""
    seen: list[str] = []
    rows = LayerStack.rows

    def counting(self: LayerStack, method: str, side: str) -> torch.Tensor:
        if not self.is_single:
            seen.append(side)
        return rows(self, method, side)

    monkeypatch.setattr(LayerStack, "rows", counting)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_directions_hold_what_the_best_do_and_errors_are_true(
    method: str, doubled: list[str]
) -> None:
    adapters, plan = related(), plan_of(method)
    assert dtype_of(adapters, plan) == torch.float32
    exact = stacks(adapters, torch.float64)
    built = build_layer(stacks(adapters, torch.float32), plan)
    assert doubled == []  # all of it in fp32
    for side in "ab":
        best, whole = best_energy(exact, method, side, K)
        components = built.basis.side(side).double()
        captured = float((exact.rows(method, side) @ components.T).square().sum())
        assert captured == pytest.approx(best, abs=2e-5 * (whole - best))
        identity = torch.eye(K, dtype=torch.float64)
        torch.testing.assert_close(components @ components.T, identity, rtol=0, atol=1e-6)
    torch.testing.assert_close(built.energy, exact.energy(), rtol=1e-6, atol=0)
    subspace = compress(adapters, method=method, num_components=K, dtype="fp32")
    assert_true_errors(adapters, subspace, abs_=1e-6)
    in_double = build_layer(exact, plan)
    shares = [(x.residual / exact.energy()).sqrt().mean() for x in (built, in_double)]
    assert float(shares[0]) == pytest.approx(float(shares[1]), abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_sixteen_bits_go_the_same_way(method: str, dtype: torch.dtype) -> None:
    adapters = {n: in_dtype(own, dtype) for n, own in related().items()}
    assert dtype_of(adapters, plan_of(method)) == torch.float32
    subspace = compress(adapters, method=method, num_components=K, dtype="fp32")
    in_double = build_layer(stacks(adapters, torch.float64), plan_of(method))
    exact = (in_double.residual / stacks(adapters, torch.float64).energy()).sqrt()
    reported = [subspace.errors()["tasks"][name]["error"] for name in adapters]
    assert sum(reported) / len(reported) == pytest.approx(float(exact.mean()), abs=2e-6)


def mixed_ranks(adapters: dict[str, LoRAWeights]) -> dict[str, LoRAWeights]:
    return {**adapters, "odd": make.weights(WIDTHS, rank=2, seed=500)}


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_are_read_in_fp64(method: str) -> None:
    """Mixed ranks, fp64 files, k near all there is, spectra and HOOI."""
    adapters = related()
    in_fp64 = {n: in_dtype(own, torch.float64) for n, own in related().items()}
    for other in (mixed_ranks(adapters), in_fp64):
        assert dtype_of(other, plan_of(method)) == torch.float64
    assert dtype_of(adapters, plan_of(method, top_k(adapters, method) - 1)) == torch.float64
    assert dtype_of(adapters, LayerPlan(method, K, K, "F32", exact=True)) == torch.float64
    assert dtype_of(adapters, LayerPlan(method, K, K, "F32", refine=2)) == torch.float64
    for other in (mixed_ranks(adapters), in_fp64):
        subspace = compress(other, method=method, num_components=K, dtype="fp32")
        assert_true_errors(other, subspace, abs_=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_k_is_exact(method: str) -> None:
    adapters = related()
    k = top_k(adapters, method)
    subspace = compress(adapters, method=method, num_components=k, dtype="fp32")
    assert subspace.errors()["max"] < 1e-6
    for name, own in adapters.items():
        assert dense_error(own, subspace.reconstruct(name)) < 1e-6


SCALES = {
    "1e-18": (1e-18, 1e-18),
    "1e18": (1e18, 1.0),
    "1e15": (1e15, 1e15),
    "a gauge of 1e36": (1e18, 1e-18),
    "1e-9 and 1": (1e-9, 1.0),
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("method", METHODS)
def test_scales_out_of_the_range_of_squares_in_fp32(
    method: str, scales: str, doubled: list[str]
) -> None:
    even = build_layer(stacks(related(), torch.float64), plan_of(method))
    adapters = {n: stretched(own, *SCALES[scales]) for n, own in related().items()}
    doubled.clear()
    built = build_layer(stacks(adapters, torch.float32), plan_of(method))
    assert sorted(doubled) == ["a", "b"]
    energy = stacks(adapters, torch.float64).energy()
    torch.testing.assert_close(built.energy, energy, rtol=1e-12, atol=0)
    share = (built.residual / built.energy).sqrt()
    torch.testing.assert_close(share, (even.residual / even.energy).sqrt(), rtol=1e-4, atol=1e-6)


def test_a_core_beyond_the_range_of_its_dtype_is_refused() -> None:
    adapters = {n: stretched(own, 1e18, 1e18) for n, own in related().items()}
    with pytest.raises(AdapterError, match="too large"):
        build_layer(stacks(adapters, torch.float32), plan_of("delta"))


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_of_another_scale_among_many(method: str) -> None:
    adapters = related()
    adapters["t05"] = stretched(adapters["t05"], 1e-18, 1e18)
    adapters["t06"] = stretched(adapters["t06"], 1e-12, 1e-9)
    adapters["t07"] = stretched(adapters["t07"], 0, 1)
    subspace = compress(adapters, method=method, num_components=K, dtype="fp32")
    assert_true_errors(adapters, subspace, abs_=1e-6)


@pytest.mark.parametrize("method", ["delta", "columns"])
def test_a_change_that_cancels_is_measured_in_fp64(method: str) -> None:
    """B A with rows of A that are nearly equal, and columns of B nearly opposite."""
    adapters = related()
    for own in adapters.values():
        a, b = own.lora_a[MODULE], own.lora_b[MODULE]
        a[1], b[:, 1] = a[0] * (1 + 1e-4), -b[:, 0]
        a[3], b[:, 3] = a[2] * (1 + 1e-4), -b[:, 2]
    assert not stacks(adapters, torch.float32).is_even
    subspace = compress(adapters, method=method, num_components=K, dtype="fp32")
    for name, own in adapters.items():
        reported = subspace.errors()["tasks"][name]["error"]
        true = dense_error(
            own, subspace.reconstruct(name)
        )  # of factors rounded to fp32, 1e-4 apart
        assert math.isclose(reported, true, abs_tol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_identical_adapters_lose_nothing(method: str, doubled: list[str]) -> None:
    one = related(1)["t00"]
    adapters = {f"t{i:02d}": one for i in range(60)}
    assert dtype_of(adapters, plan_of(method, 4)) == torch.float32
    subspace = compress(adapters, method=method, num_components=4, dtype="fp32")
    assert set(doubled) == {"a", "b"}
    assert subspace.errors()["max"] < 1e-6
    assert dense_error(one, subspace.reconstruct("t31")) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_adapters_that_are_nearly_the_same(method: str) -> None:
    """What is left out is small beside what is kept: the error is small, and true."""
    adapters = related(60, noise=0.0)
    one = adapters["t00"]
    for i, own in enumerate(adapters.values()):
        noise = make.weights(WIDTHS, rank=4, seed=1000 + i)
        own.lora_a[MODULE] = one.lora_a[MODULE] + 1e-3 * noise.lora_a[MODULE]
        own.lora_b[MODULE] = one.lora_b[MODULE] + 1e-3 * noise.lora_b[MODULE]
    subspace = compress(adapters, method=method, num_components=4, dtype="fp32")
    assert 0 < subspace.errors()["max"] < 0.1
    assert_true_errors(adapters, subspace, abs_=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_in_any_order_and_with_any_number_of_threads(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = related()
    sources = {name: MemorySource(own) for name, own in adapters.items()}
    build_subspace(sources, tmp_path / "one", method=method, k=K)
    turned = dict(reversed(sources.items()))
    for cores in (1, 3):
        monkeypatch.setattr("vlora_engine.utils.workers.cores", lambda cores=cores: cores)
        build_subspace(turned, tmp_path / str(cores), method=method, k=K)
        assert files(tmp_path / str(cores)) == files(tmp_path / "one")
    on_disk = SharedSubspace.load(tmp_path / "one")
    in_memory = compress(adapters, method=method, num_components=K)
    assert on_disk.errors() == in_memory.errors()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_block_krylov_space_finds_a_flat_spectrum(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    factors = torch.randn(50, 8, 300, generator=generator)
    roots = torch.randn(50, 8, 8, generator=generator, dtype=torch.float64)
    weights = roots @ roots.mT if weighted else None
    rows = factors.double() if weights is None else roots.mT @ factors.double()
    rows = rows.reshape(-1, 300)
    found = grams.sampled_basis_of_factors(factors, weights, 6)
    held = float((rows @ found.components.T).square().sum())
    squares = torch.linalg.svdvals(rows).square()
    assert held == pytest.approx(float(found.singular_values.square().sum()), rel=1e-6)
    assert held > 0.94 * float(squares[:6].sum())  # of noise alone, where no sample does well
    sampled = grams._sampled_basis(rows, 6)  # subspace iteration, as many products
    assert held > float((rows @ sampled.components.T).square().sum())
