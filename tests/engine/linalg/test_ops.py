"""The operations under the first library's names: right where that library is not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlora_engine.errors import InputError, ParameterError
from vlora_engine.linalg.ops import (
    compute_svd,
    explained_variance_ratio,
    gram_schmidt,
    incremental_svd_update,
    project_onto_subspace,
    reconstruct_from_subspace,
    select_num_components,
)


def random(n: int, d: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) + offset


def planted(n: int, d: int, rank: int, seed: int = 0) -> Tensor:
    """Rows in an affine subspace: a mean and ``rank`` directions."""
    return random(n, rank, seed) @ random(rank, d, seed + 1) + 3 * random(1, d, seed + 2)


def covariance(components: Tensor, values: Tensor) -> Tensor:
    return components.T @ (values.square()[:, None] * components)


# ---- compute_svd --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.booleans(), st.integers(0, 999))
def test_svd_reproduces_the_rows(n, d, center, seed):
    rows = random(n, d, seed, offset=2.0)
    components, values, mean = compute_svd(rows, center=center)
    assert components.shape == (min(n, d), d)
    assert values.shape == (min(n, d),)
    assert torch.equal(mean, rows.mean(dim=0) if center else torch.zeros(d).double())
    back = reconstruct_from_subspace(components, project_onto_subspace(rows - mean, components))
    torch.testing.assert_close(back + mean, rows)
    scatter = (rows - mean).T @ (rows - mean)
    torch.testing.assert_close(covariance(components, values), scatter)
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_svd_keeps_the_leading_components_and_the_dtype():
    rows = random(6, 20).float()
    full, cut = compute_svd(rows), compute_svd(rows, num_components=2)
    assert torch.equal(cut[0], full[0][:2])
    assert torch.equal(cut[1], full[1][:2])
    assert {t.dtype for t in cut} == {torch.float32}
    assert compute_svd(rows, 100)[0].shape == (6, 20)


def test_svd_in_fp64_sees_what_fp32_cannot():
    """Singular values under 1e-7 of the largest are noise in the first library's fp32."""
    u, v = (torch.linalg.qr(random(30, 2, seed))[0] for seed in (0, 1))
    rows = u @ torch.diag(torch.tensor([1.0, 1e-10], dtype=torch.float64)) @ v.T
    _, values, _ = compute_svd(rows, 2, center=False)
    assert float(values[1]) == pytest.approx(1e-10, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_svd_refuses_what_is_not_finite_or_no_matrix(bad):
    rows = random(3, 4)
    rows[1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        compute_svd(rows)
    with pytest.raises(ValueError, match="no matrix"):
        compute_svd(rows[0])
    with pytest.raises(ParameterError, match="num_components"):
        compute_svd(random(3, 4), 0)


# ---- projection ---------------------------------------------------------------------------------


def test_projection_takes_one_vector_or_many():
    basis = torch.linalg.qr(random(10, 3))[0].T
    rows = random(4, 10, 1)
    many = project_onto_subspace(rows, basis)
    torch.testing.assert_close(many, rows @ basis.T)
    torch.testing.assert_close(project_onto_subspace(rows[2], basis), many[2])
    torch.testing.assert_close(reconstruct_from_subspace(basis, many[2]), many[2] @ basis)
    torch.testing.assert_close(
        project_onto_subspace(reconstruct_from_subspace(basis, many), basis), many
    )


# ---- Gram-Schmidt -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gram_schmidt_leaves_the_basis_as_it_is(dtype):
    basis = torch.linalg.qr(random(12, 3))[0].T.to(dtype).contiguous()
    new = torch.cat(
        [
            random(2, 3, 1).to(dtype) @ basis,  # nothing new
            1e-9 * random(2, 12, 2).to(dtype),  # small, but new
            random(1, 12, 3).to(dtype),
        ]
    )
    new = torch.cat([new, new[-1:] + new[2:3]])  # a sum of vectors that are already in
    expanded = gram_schmidt(basis, new)
    assert expanded.dtype == dtype
    assert torch.equal(expanded[:3], basis)
    assert expanded.shape == (6, 12)
    eye = torch.eye(6, dtype=dtype)
    torch.testing.assert_close(expanded @ expanded.T, eye, rtol=0, atol=2e-6)
    rest = new - (new @ expanded.T) @ expanded
    assert (rest.norm(dim=1) <= 1e-5 * new.norm(dim=1)).all()


def test_gram_schmidt_stays_orthogonal_for_vectors_almost_inside():
    basis = torch.linalg.qr(random(50, 3))[0].T.contiguous()
    new = 1e3 * random(4, 3, 1) @ basis + 1e-9 * random(4, 50, 2)
    expanded = gram_schmidt(basis, new)
    eye = torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(expanded @ expanded.T, eye, rtol=0, atol=1e-13)


def test_gram_schmidt_stops_at_the_whole_space_and_starts_from_nothing():
    grown = gram_schmidt(torch.zeros(0, 4).double(), random(9, 4))
    torch.testing.assert_close(grown @ grown.T, torch.eye(4).double())
    assert torch.equal(gram_schmidt(grown, random(3, 4, 1)), grown)
    assert torch.equal(gram_schmidt(grown[:2], torch.zeros(2, 4).double()), grown[:2])


# ---- incremental --------------------------------------------------------------------------------


def fold(rows: Tensor, sizes: list[int], start: int, k: int | None = None, center: bool = True):
    state = (*compute_svd(rows[:start], k, center=center), start)
    for size in sizes:
        n = state[3]
        state = incremental_svd_update(*state, rows[n : n + size], k, center=center)
    assert state[3] == len(rows)
    return state


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans(), st.integers(0, 999))
def test_incremental_equals_batch(sizes, center, seed):
    rows = random(3 + sum(sizes), 7, seed, offset=1.5)
    components, values, mean, _ = fold(rows, sizes, 3, center=center)
    expected = compute_svd(rows, center=center)
    torch.testing.assert_close(mean, expected[2], rtol=0, atol=1e-10)
    full = covariance(expected[0], expected[1])
    torch.testing.assert_close(covariance(components, values), full, rtol=0, atol=1e-9)
    k = len(values)
    torch.testing.assert_close(values, expected[1][:k], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(components @ components.T, torch.eye(k).double())


def test_incremental_is_exact_with_as_many_components_as_the_data_have():
    """The case that costs the first library half of the variance (docs/mathematics.md#growing)."""
    rows = planted(60, 40, 6)
    components, values, mean, _ = fold(rows, [1] * 50, 10, k=6)
    expected = compute_svd(rows, 6)
    torch.testing.assert_close(values, expected[1])
    torch.testing.assert_close(mean, expected[2])
    torch.testing.assert_close(components.abs(), expected[0].abs(), rtol=0, atol=1e-7)
    centred = rows - mean
    lost = centred - (centred @ components.T) @ components
    assert float(lost.norm() / centred.norm()) < 1e-9


def test_incremental_from_nothing_and_with_nothing():
    rows = planted(9, 5, 2)
    empty = torch.zeros(0, 5).double(), torch.zeros(0).double(), torch.zeros(5).double(), 0
    components, values, mean, n = incremental_svd_update(*empty, rows)
    expected = compute_svd(rows, 2)
    assert n == 9
    assert len(values) == 2  # the directions there are, not min(N, D)
    torch.testing.assert_close(values, expected[1])
    torch.testing.assert_close(components, expected[0])
    same = incremental_svd_update(components, values, mean, n, rows[:0])
    assert same[0] is components
    assert same[3] == 9


def test_rows_that_bring_nothing_new_add_no_direction():
    rows = planted(12, 30, 3)
    state = (*compute_svd(rows[:8], 3), 8)
    components, values, _, _ = incremental_svd_update(*state, rows[8:])
    assert len(values) == 3
    torch.testing.assert_close(values, compute_svd(rows, 3)[1])
    torch.testing.assert_close(components @ components.T, torch.eye(3).double())


def test_rounding_does_not_become_a_direction_in_a_long_stream():
    rows = planted(60, 500, 3) + 1e4
    state = (*compute_svd(rows[:8], 3), 8)
    for row in rows[8:]:
        state = incremental_svd_update(*state, row[None])
    assert len(state[1]) == 3
    torch.testing.assert_close(state[1], compute_svd(rows, 3)[1], rtol=1e-8, atol=0)


def test_incremental_in_fp32_stays_fp32():
    rows = planted(20, 30, 4).float()
    components, values, mean, _ = fold(rows, [5, 5], 10, k=4)
    assert {t.dtype for t in (components, values, mean)} == {torch.float32}
    torch.testing.assert_close(values, compute_svd(rows, 4)[1], rtol=1e-5, atol=1e-4)


def test_incremental_refuses_what_does_not_fit():
    state = (*compute_svd(random(4, 6)), 4)
    with pytest.raises(InputError, match="dimension"):
        incremental_svd_update(*state, random(2, 5))
    with pytest.raises(InputError, match="NaN"):
        incremental_svd_update(*state, random(2, 6) * math.nan)
    with pytest.raises(ParameterError, match="max_components"):
        incremental_svd_update(*state, random(2, 6), 0)
    with pytest.raises(ParameterError, match="n_seen"):
        incremental_svd_update(*state[:3], -1, random(2, 6))


# ---- explained variance -------------------------------------------------------------------------


def test_explained_variance_of_a_full_and_of_a_cut_spectrum():
    values = torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(explained_variance_ratio(values), torch.tensor([9.0, 13, 14]) / 14)
    cut = explained_variance_ratio(values[:2], total=14.0)
    torch.testing.assert_close(cut, torch.tensor([9.0, 13.0]) / 14)
    assert explained_variance_ratio(torch.zeros(2)).tolist() == [0, 0]


def test_the_number_of_components_is_the_fewest_that_suffice():
    values = torch.tensor([3.0, 2.0, 1.0])
    chosen = [select_num_components(values, t) for t in (0.01, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)]
    assert chosen == [1, 1, 2, 2, 3, 3]
    assert select_num_components(values) == 1
    assert select_num_components(values, 0.6, total=20.0) == 2
    assert select_num_components(values, 0.9, total=100.0) == 3
    for threshold in (0.0, 1.5, math.nan):
        with pytest.raises(ParameterError):
            select_num_components(values, threshold)


# ---- the first library --------------------------------------------------------------------------


@pytest.mark.peers
def test_where_the_first_library_is_right_we_agree_with_it():
    theirs = pytest.importorskip("vlora.ops")
    rows = planted(9, 30, 4).float()
    for center in (True, False):
        ours, expected = compute_svd(rows, 3, center), theirs.compute_svd(rows, 3, center)
        torch.testing.assert_close(ours[1], expected[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours[2], expected[2])
        for i in range(3):
            assert abs(float(ours[0][i] @ expected[0][i])) == pytest.approx(1, abs=1e-4)
    basis, values, _ = compute_svd(rows, 3)
    loadings = theirs.project_onto_subspace(rows, basis)
    torch.testing.assert_close(project_onto_subspace(rows, basis), loadings)
    torch.testing.assert_close(
        reconstruct_from_subspace(basis, loadings),
        theirs.reconstruct_from_subspace(basis, loadings),
    )
    torch.testing.assert_close(
        explained_variance_ratio(values), theirs.explained_variance_ratio(values)
    )
    for threshold in (0.1, 0.6, 0.95, 1.0):
        assert select_num_components(values, threshold) == theirs.select_num_components(
            values, threshold
        )
    new = random(2, 30, 9).float()
    grown, expected = gram_schmidt(basis, new), theirs.gram_schmidt(basis, new)
    # the same span; the first library may turn the signs of the basis itself
    torch.testing.assert_close(grown.T @ grown, expected.T @ expected, rtol=0, atol=1e-5)
