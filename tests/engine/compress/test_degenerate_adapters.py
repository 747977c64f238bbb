"""Adapters that change nothing, almost nothing, or very much, kept to the same promises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.dense import dense_error
from tests.witnesses.promises import (
    FIRST,
    METHODS,
    SECOND,
    WIDE,
    assert_true_errors,
    compress,
    only,
    plain,
    stretched,
    three,
    top_k,
    zeroed,
)
from vlora_engine import SharedSubspace
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.linalg.grams import range_basis, update_basis


def deficient(own: LoRAWeights) -> LoRAWeights:
    """Two equal rows of A, two equal columns of B."""
    for name in own.layer_names:
        own.lora_a[name][3] = own.lora_a[name][0]
        own.lora_b[name][:, 2] = own.lora_b[name][:, 1]
    return own


def mirrored(own: LoRAWeights) -> LoRAWeights:
    return stretched(own, -1, -1)


SMALL = {"m.x": (6, 5), "m.y": (5, 9)}


DEGENERATE = {
    "one adapter": lambda: {"x": plain(1)},
    "a module of one adapter": lambda: {"x": plain(1), "y": only(FIRST, 2)},
    "no module in common": lambda: {"x": only(SECOND, 1), "y": only(FIRST, 2)},
    "a module that is zero everywhere": lambda: {
        "x": zeroed(plain(1), names=[FIRST]),
        "y": zeroed(plain(2), names=[FIRST]),
    },
    "one without effect by B": lambda: {"x": zeroed(plain(1)), "y": plain(2), "z": plain(3)},
    "one without effect by A": lambda: {"x": zeroed(plain(1), "a"), "y": plain(2), "z": plain(3)},
    "one module without effect": lambda: {
        "x": zeroed(plain(1), names=[SECOND]),
        "y": plain(2),
        "z": plain(3),
    },
    "none with an effect": lambda: {"x": zeroed(plain(1)), "y": zeroed(plain(2), "a")},
    "rank-deficient factors": lambda: {"x": deficient(plain(1)), "y": deficient(plain(2))},
    "the same three times": lambda: {"x": plain(1), "y": plain(1), "z": plain(1)},
    "the same in another gauge": lambda: {"x": plain(1), "y": mirrored(plain(1))},
    "ranks above the dimensions": lambda: {
        "x": make.weights(SMALL, rank=12, seed=1),
        "y": make.weights(SMALL, rank=3, seed=2),
        "z": make.weights(SMALL, rank=7, seed=3),
    },
    "rank 0 in one adapter": lambda: {
        "x": make.weights(WIDE, rank={FIRST: 0, SECOND: 3}, seed=1),
        "y": plain(2),
    },
    "rank 0 everywhere": lambda: {
        "x": make.weights(WIDE, rank={FIRST: 0, SECOND: 3}, seed=1),
        "y": make.weights(WIDE, rank={FIRST: 0, SECOND: 2}, seed=2),
    },
    "alpha negative and zero": lambda: {
        "x": plain(1, metadata=make.config(lora_alpha=-8)),
        "y": plain(2, metadata=make.config(lora_alpha=0)),
        "z": plain(3),
    },
    "norms of 1e-20": lambda: three(1e-10, 1e-11),
    "norms of 1e20": lambda: three(1e10, 1e9),
    "a gauge of 1e20": lambda: three(1e10, 1e-10),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_adapters_keep_every_promise(kind: str, method: str, tmp_path: Path) -> None:
    adapters = DEGENERATE[kind]()
    goals = [
        {"num_components": top_k(adapters, method)},
        {"num_components": 1},
        {"max_error": 0.3, "dtype": "fp32"},
        {"variance_threshold": 0.8, "adaptive_k": True},
    ]
    for i, goal in enumerate(goals):
        compress(adapters, method=method, **goal).save(tmp_path / str(i))
        subspace = SharedSubspace.load(tmp_path / str(i))
        assert_true_errors(adapters, subspace, abs_=5e-6)
        worst = subspace.errors()["max"]
        assert math.isfinite(worst)
        if i == 0:
            assert worst < 1e-6  # the largest k is exact
        if "max_error" in goal:
            assert worst <= 0.3
    if "1e" in kind and method != "flat":
        assert worst > 0.1  # figures out of fp32's range are not answered by keeping everything


def test_a_strong_and_a_weak_adapter_lose_the_same_share() -> None:
    """delta weighs every task by 1 / ||dW||: a run that diverged does not push the others out."""
    even = {"x": plain(1), "y": plain(2), "z": plain(3)}
    odd = {"x": stretched(plain(1), 1e9, 1e9), "y": plain(2), "z": stretched(plain(3), 1, 1e-12)}
    errors = [
        [task["error"] for task in compress(own, num_components=5).errors()["tasks"].values()]
        for own in (even, odd)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gauge", [1.0, 1e4, 1e-4])
def test_sixteen_bit_adapters_come_back_in_their_dtype_within_its_rounding(
    dtype: torch.dtype, gauge: float, tmp_path: Path
) -> None:
    """The exponents of the store hold what fp16 alone cannot: factors of 1e4 and of 1e-4."""
    adapters = {
        name: stretched(plain(seed, dtype=dtype), gauge, 1 / gauge)
        for seed, name in enumerate("xyz")
    }
    for method in METHODS:
        out = tmp_path / method
        compress(adapters, method=method, num_components=top_k(adapters, method)).save(out)
        subspace = SharedSubspace.load(out)
        assert subspace.dtype == "F16"
        assert subspace.errors()["max"] < 1e-3
        for name, original in adapters.items():
            back = subspace.reconstruct(name)
            assert {t.dtype for t in [*back.lora_a.values(), *back.lora_b.values()]} == {dtype}
            assert dense_error(original, back) < (1e-3 if dtype == torch.float16 else 5e-3)


@pytest.mark.parametrize("exponent", [-30, -18, 0, 18, 30])
def test_the_range_finder_works_at_any_magnitude(exponent: int) -> None:
    """Its first power step is in fp32, where squares of 1e20 and of 1e-25 do not exist."""
    generator = torch.Generator().manual_seed(0)
    strengths = torch.logspace(0, -20, 300, dtype=torch.float64)
    left, right = (
        torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64)).Q
        for _ in range(2)
    )
    rows = (left * strengths) @ right * 10.0**exponent
    found = range_basis(rows, 5)
    exact = strengths[:5] * 10.0**exponent
    assert torch.allclose(found.singular_values, exact, rtol=2e-3, atol=0)
    gram = found.components @ found.components.T
    assert torch.allclose(gram, torch.eye(5, dtype=torch.float64), atol=1e-9)


def test_a_basis_of_nothing_can_grow() -> None:
    rows = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    empty = torch.zeros(0, 20, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    components, values = update_basis(*empty, rows, 5)
    assert torch.allclose(values, torch.linalg.svdvals(rows))
    assert torch.allclose(rows @ components.T @ components, rows)
    same, still = update_basis(components, values, torch.zeros_like(rows), 5)
    assert torch.allclose(still, values)
    assert torch.allclose(same, components)
