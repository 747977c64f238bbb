"""Inner products without dense matrices, against dense fp64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora_engine.adapters.collection import modules_of
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.errors import AdapterError, CollectionError
from vlora_engine.linalg.low_rank import (
    canonical_svd,
    canonical_svd_batch,
    delta_error2,
    delta_inner,
    delta_norm2,
    largest_entry_sign,
    module_grams,
    relative_error,
)

dims = st.integers(1, 12)
seeds = st.integers(0, 2**31)
EPS = torch.finfo(torch.float64).eps


def factors(r: int, d_in: int, d_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(r, d_in, generator=g, dtype=torch.float64)
    return a, torch.randn(d_out, r, generator=g, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(dims, dims, dims, dims, seeds)
def test_inner_norm_and_error_equal_dense_arithmetic(r1, r2, d_in, d_out, seed):
    a1, b1 = factors(r1, d_in, d_out, seed)
    a2, b2 = factors(r2, d_in, d_out, seed + 1)
    w1, w2 = b1 @ a1, b2 @ a2
    # A sum of products rounds by eps per step, against the factors' norms: dW itself may cancel.
    size1, size2 = (float(a.norm() * b.norm()) for a, b in ((a1, b1), (a2, b2)))
    rounding = 8 * (r1 + r2 + d_in + d_out) * EPS
    inner = float(delta_inner(a1, b1, a2, b2) - (w1 * w2).sum())
    assert abs(inner) <= rounding * size1 * size2
    norm2 = float(w1.square().sum())
    assert float(delta_norm2(a1, b1)) == pytest.approx(norm2, rel=0, abs=rounding * size1**2)
    error2, bound = float((w1 - w2).square().sum()), rounding * (size1 + size2) ** 2
    assert float(delta_error2(a1, b1, a2, b2)) == pytest.approx(error2, rel=0, abs=bound)


def test_batches_are_the_single_results():
    pairs = [factors(3, 7, 5, seed) for seed in range(4)]
    a, b = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
    a_hat, b_hat = a.clone(), b.clone()
    a_hat[1] += 1e-9  # only this one and the exact copies take the QR path
    a_hat[2] += 0.1
    batch = delta_error2(a, b, a_hat, b_hat)
    single = torch.stack([delta_error2(a[i], b[i], a_hat[i], b_hat[i]) for i in range(4)])
    # Through QR a norm keeps to eps ||B|| ||A||, times the steps of its sums: of a difference of
    # 1e-9 that leaves five digits or more; those that follow depend on the machine's kernels.
    size = a.norm(dim=(1, 2)) * b.norm(dim=(1, 2))
    rounding = (3 + 3 + 7 + 5) * EPS * size
    assert ((batch.sqrt() - single.sqrt()).abs() <= rounding).all()
    assert single[1].sqrt() > 1e4 * rounding[1]
    assert (single[[0, 3]].sqrt() <= rounding[[0, 3]]).all()
    torch.testing.assert_close(delta_inner(a, b, a, b), delta_norm2(a, b))


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12])
def test_small_errors_keep_their_digits(size):
    """Gram arithmetic alone is blind below 1e-8; a check that passes it would call loss none."""
    a, b = factors(8, 60, 50, 0)
    step_a, step_b = factors(8, 60, 50, 1)
    a_hat, b_hat = a + size * step_a, b + size * step_b
    # dW - dW^ = -(B dA + dB A + dB dA), exact in terms of the small steps
    step = (b_hat - b) @ a_hat + b @ (a_hat - a)
    expected = float(step.norm() / (b @ a).norm())
    assert relative_error([((a, b), (a_hat, b_hat))]) == pytest.approx(expected, rel=2e-3)


def test_exact_copies_have_no_error_in_any_gauge():
    a, b = factors(6, 40, 30, 3)
    assert relative_error([((a, b), (a, b))]) < 1e-15
    g = torch.linalg.qr(factors(6, 6, 6, 4)[0])[0] + 0.3 * torch.eye(6, dtype=torch.float64)
    assert relative_error([((a, b), (torch.linalg.solve(g, a), b @ g))]) < 1e-14
    assert relative_error([((a, b), (-a, -b))]) < 1e-15


def test_the_norm_of_a_change_far_smaller_than_its_factors():
    a, b = factors(2, 20, 15, 5)
    tiny_a, tiny_b = factors(2, 20, 15, 6)
    left, right = torch.cat([b, -b, 1e-7 * tiny_b], 1), torch.cat([a, a, 1e-5 * tiny_a])
    expected = float((1e-12 * tiny_b @ tiny_a).norm())
    assert math.sqrt(float(delta_norm2(right, left))) == pytest.approx(expected, rel=1e-2)


def test_relative_error_sums_over_modules_before_the_root():
    one, two = factors(2, 5, 4, 0), factors(3, 6, 7, 1)
    half = (two[0], two[1] / 2)
    norms = [float(delta_norm2(*p)) for p in (one, two)]
    expected = math.sqrt(0.25 * norms[1] / sum(norms))
    assert relative_error([(one, one), (two, half)]) == pytest.approx(expected, rel=1e-12)


def test_relative_error_of_adapters_without_effect():
    a, b = factors(2, 5, 4, 0)
    zero = (a, torch.zeros_like(b))
    assert relative_error([(zero, zero)]) == 0.0
    assert relative_error([(zero, (a, b))]) == math.inf
    assert relative_error([]) == 0.0


@settings(max_examples=40, deadline=None)
@given(dims, dims, dims, seeds, st.sampled_from([1.0, -0.5, 3.0]))
def test_canonical_svd_is_the_svd_of_the_dense_change(r, d_in, d_out, seed, scale):
    a, b = factors(r, d_in, d_out, seed)
    dense = scale * b @ a
    U, S, V = canonical_svd(a, b, scale)
    q = len(S)
    assert q == min(r, d_in, d_out)
    torch.testing.assert_close(U @ S.diag() @ V.T, dense, rtol=0, atol=1e-11)
    torch.testing.assert_close(S, torch.linalg.svdvals(dense)[:q], rtol=1e-9, atol=1e-11)
    eye = torch.eye(q, dtype=torch.float64)
    torch.testing.assert_close(U.T @ U, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(V.T @ V, eye, rtol=0, atol=1e-12)
    assert (largest_entry_sign(U) == 1).all()


def test_canonical_svd_does_not_depend_on_the_gauge():
    a, b = factors(4, 30, 20, 7)
    g = factors(4, 4, 4, 8)[0] + 2 * torch.eye(4, dtype=torch.float64)
    for left, right in zip(
        canonical_svd(a, b, 2.0), canonical_svd(torch.linalg.solve(g, a), b @ g, 2.0), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_canonical_svd_drops_what_is_not_there():
    a, b = factors(2, 30, 20, 9)
    doubled = canonical_svd(torch.cat([a, a]), torch.cat([b, b], 1))
    assert len(doubled[1]) == 2
    for zero in (canonical_svd(a, 0 * b), canonical_svd(a, b, 0.0), canonical_svd(0 * a, b)):
        assert zero[0].shape == (20, 0)
        assert zero[1].shape == (0,)
        assert zero[2].shape == (30, 0)


def test_canonical_svd_batch_zeroes_missing_directions_per_adapter():
    a, b = factors(3, 9, 8, 1)
    stack_a, stack_b = torch.stack([a, a, a]), torch.stack([b, 0 * b, b])
    U, S, V = canonical_svd_batch(stack_a, stack_b, torch.tensor([1.0, 1.0, -4.0]))
    assert not U[1].any()
    assert not S[1].any()
    assert not V[1].any()
    torch.testing.assert_close(S[2], 4 * S[0])
    torch.testing.assert_close(V[2], -V[0])


def test_signs_go_by_the_first_of_the_largest_entries():
    columns = torch.tensor([[1.0, -2.0, 0.0], [-1.0, 1.0, 0.0]]).double()
    assert largest_entry_sign(columns).tolist() == [1, -1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_canonical_svd_refuses_what_is_not_finite(bad):
    a, b = factors(2, 5, 4, 0)
    b[1, 1] = bad
    with pytest.raises(AdapterError, match="not finite"):
        canonical_svd(a, b)


@pytest.mark.parametrize("rows", [1, 5, 1024])
@pytest.mark.parametrize("ranks", [[3, 3, 3, 3], [1, 4, 2, 6, 3]])
def test_module_gram_equals_dense_for_any_blocking(monkeypatch, rows, ranks):
    monkeypatch.setattr("vlora_engine.linalg.low_rank._GRAM_ROWS", rows)
    pairs = [factors(r, 11, 7, i) for i, r in enumerate(ranks)]
    scales = [0.5, -2.0, 1.0, 3.0, 0.0][: len(ranks)]
    dense = torch.stack([s * (b @ a).flatten() for s, (a, b) in zip(scales, pairs, strict=True)])
    gram = module_grams(pairs, scales)[0]
    torch.testing.assert_close(gram, dense @ dense.T, rtol=0, atol=1e-11)
    assert torch.equal(gram, gram.T)
    half = module_grams([(a.half(), b.half()) for a, b in pairs], scales, dtype=torch.float32)[0]
    assert half.dtype == torch.float64
    torch.testing.assert_close(half, dense @ dense.T, rtol=0, atol=3e-2 * float(gram.max()))


def test_module_gram_of_nothing():
    assert module_grams([])[0].shape == (0, 0)


def test_modules_of_names_the_module_and_both_shapes():
    def adapter(**shapes: tuple[int, int]) -> MemorySource:
        return MemorySource(
            LoRAWeights(
                layer_names=list(shapes),
                lora_a={m: torch.zeros(2, d_in) for m, (_, d_in) in shapes.items()},
                lora_b={m: torch.zeros(d_out, 2) for m, (d_out, _) in shapes.items()},
                rank=2,
            )
        )

    table = modules_of([adapter(y=(4, 3)), adapter(x=(5, 6), y=(4, 3))])
    assert table == {"x": [1], "y": [0, 1]}
    with pytest.raises(CollectionError) as caught:
        modules_of([adapter(y=(4, 3)), adapter(y=(4, 8))])
    for part in ("'y'", "4 x 3", "4 x 8", "adapter 0", "adapter 1"):
        assert part in str(caught.value)
