"""Similarity, clusters, differences, coverage and outliers, against dense fp64 arithmetic."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.analysis.compare import adapter_diff, diff_total, find_outliers, outliers_of
from vlora_engine.analysis.similarity import (
    compute_similarity_matrix,
    cosines,
    delta_grams,
    find_clusters,
)
from vlora_engine.errors import AdapterError, CollectionError, ParameterError
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.coverage import coverage_total, subspace_coverage

DIMS = {"layer.0.q": (7, 9), "layer.0.v": (6, 9), "layer.1.q": (7, 9)}  # (d_out, d_in)


def make(seed: int, rank: int = 3, scale: float = 1.0, modules: list[str] | None = None):
    g = torch.Generator().manual_seed(seed)
    names = sorted(modules or DIMS)
    return LoRAWeights(
        layer_names=names,
        lora_a={m: torch.randn(rank, DIMS[m][1], generator=g).double() for m in names},
        lora_b={m: torch.randn(DIMS[m][0], rank, generator=g).double() for m in names},
        rank=rank,
        scales=dict.fromkeys(names, scale),
    )


def dense(adapter: LoRAWeights) -> Tensor:
    """All of its dW end to end, zeros for the modules it lacks."""
    parts = [
        adapter.delta(m).flatten() if m in adapter.lora_a else torch.zeros(d_out * d_in).double()
        for m, (d_out, d_in) in sorted(DIMS.items())
    ]
    return torch.cat(parts)


def changed_gauge(adapter: LoRAWeights, seed: int = 0) -> LoRAWeights:
    g = torch.randn(adapter.rank, adapter.rank, generator=torch.Generator().manual_seed(seed))
    g = g.double() + 3 * torch.eye(adapter.rank).double()
    return LoRAWeights(
        layer_names=adapter.layer_names,
        lora_a={m: torch.linalg.solve(g, a) for m, a in adapter.lora_a.items()},
        lora_b={m: b @ g for m, b in adapter.lora_b.items()},
        rank=adapter.rank,
        scales=adapter.scales,
    )


MIXED = [
    make(0, rank=2, scale=0.5),
    make(1, rank=4, scale=-2.0),
    make(2, rank=1, modules=["layer.0.q"]),
    make(3, rank=3, scale=8.0, modules=["layer.0.v", "layer.1.q"]),
]


# ---- similarity ---------------------------------------------------------------------------------


def test_delta_grams_are_dense_inner_products_of_mixed_adapters():
    rows = torch.stack([dense(adapter) for adapter in MIXED])
    gram = delta_grams([MIXED[0], MemorySource(MIXED[1]), *MIXED[2:]])
    torch.testing.assert_close(gram, rows @ rows.T, rtol=1e-12, atol=1e-10)
    assert gram.dtype == torch.float64


def test_delta_grams_read_again_what_they_cannot_hold(monkeypatch):
    expected = delta_grams(MIXED)
    monkeypatch.setattr("vlora_engine.analysis.similarity._HELD_BYTES", 0)
    monkeypatch.setattr("vlora_engine.linalg.low_rank._GRAM_ROWS", 3)
    torch.testing.assert_close(delta_grams(MIXED), expected, rtol=1e-12, atol=1e-10)


def test_similarity_is_the_cosine_of_weight_changes():
    rows = torch.stack([dense(adapter) for adapter in MIXED])
    rows = rows / rows.norm(dim=1, keepdim=True)
    matrix = compute_similarity_matrix(MIXED)
    torch.testing.assert_close(matrix, (rows @ rows.T).float())
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(4))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_similarity_does_not_depend_on_the_gauge(seed, rank):
    adapter = make(seed, rank)
    twin = LoRAWeights(
        layer_names=adapter.layer_names,
        lora_a={m: -a for m, a in adapter.lora_a.items()},
        lora_b={m: -b for m, b in adapter.lora_b.items()},
        rank=rank,
    )
    matrix = compute_similarity_matrix([adapter, twin, changed_gauge(adapter, seed)])
    torch.testing.assert_close(matrix, torch.ones(3, 3))


def test_an_adapter_without_effect_is_like_no_other():
    zero = make(5)
    zero.lora_b = {m: torch.zeros_like(b) for m, b in zero.lora_b.items()}
    matrix = compute_similarity_matrix([make(1), zero, zero])
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_one_adapter_has_no_similarity():
    with pytest.raises(CollectionError, match="two adapters"):
        compute_similarity_matrix([make(0)])
    with pytest.raises(ParameterError, match="spaces"):
        compute_similarity_matrix(MIXED, space="A")


def test_nan_is_named_and_not_spread():
    bad = make(1, rank=2)
    bad.lora_b["layer.0.v"][0, 0] = math.nan
    with pytest.raises(AdapterError) as caught:
        delta_grams([make(0), bad, make(2, rank=4)])
    assert "layer.0.v" in str(caught.value)
    assert "adapter 1" in str(caught.value)


def test_different_dimensions_are_named():
    other = make(1)
    other.lora_a["layer.1.q"] = torch.zeros(3, 10).double()
    with pytest.raises(CollectionError, match=r"layer\.1\.q"):
        compute_similarity_matrix([make(0), other])


def test_factor_similarity_needs_equal_factors():
    with pytest.raises(CollectionError, match="entry by entry"):
        compute_similarity_matrix(MIXED, space="factors")


# ---- clusters -----------------------------------------------------------------------------------


def test_clusters_are_cliques_in_index_order():
    matrix = torch.eye(5)
    for i, j in [(0, 1), (1, 2), (3, 4)]:  # 0-1-2 is a chain: 0 and 2 are not alike
        matrix[i, j] = matrix[j, i] = 0.95
    assert find_clusters(matrix) == [[0, 1], [2], [3, 4]]
    assert find_clusters(matrix, threshold=-1) == [[0, 1, 2, 3, 4]]
    assert find_clusters(matrix, 0.99) == [[0], [1], [2], [3], [4]]
    assert find_clusters(torch.eye(0)) == []


@pytest.mark.parametrize(
    ("matrix", "threshold"),
    [(torch.zeros(2, 3), 0.9), (torch.eye(2) * math.nan, 0.9), (torch.eye(2), 1.5)],
)
def test_clusters_refuse_what_is_no_similarity(matrix, threshold):
    with pytest.raises(ParameterError):
        find_clusters(matrix, threshold)


# ---- differences --------------------------------------------------------------------------------


def test_diff_is_that_of_dense_changes_over_all_modules_of_either():
    one, other = MIXED[0], MIXED[3]
    diff = adapter_diff(one, other)
    assert list(diff) == sorted(DIMS)
    for module, measures in diff.items():
        d_out, d_in = DIMS[module]
        x, y = (
            a.delta(module) if module in a.lora_a else torch.zeros(d_out, d_in).double()
            for a in (one, other)
        )
        assert measures["norm_a"] == pytest.approx(float(x.norm()))
        assert measures["norm_b"] == pytest.approx(float(y.norm()))
        assert measures["l2_distance"] == pytest.approx(float((x - y).norm()))
        assert measures["relative_difference"] == pytest.approx(float((x - y).norm() / x.norm()))
        expected = float((x * y).sum() / (x.norm() * y.norm())) if y.any() else 0.0
        assert measures["cosine_sim"] == pytest.approx(expected)
    x, y = dense(one), dense(other)
    total = diff_total(diff)
    assert total["l2_distance"] == pytest.approx(float((x - y).norm()))
    assert total["cosine_sim"] == pytest.approx(float(x @ y / (x.norm() * y.norm())))
    assert total["relative_difference"] == pytest.approx(float((x - y).norm() / x.norm()))


def test_diff_sees_rounding_and_not_the_gauge():
    adapter = make(0)
    same = diff_total(adapter_diff(adapter, changed_gauge(adapter)))
    assert same["relative_difference"] < 1e-14
    rounded = make(0)
    rounded.lora_b = {m: b * (1 + 1e-10) for m, b in rounded.lora_b.items()}
    total = diff_total(adapter_diff(adapter, rounded))
    assert total["relative_difference"] == pytest.approx(1e-10, rel=1e-3)


def test_diff_from_nothing_is_finite():
    one, other = make(0, modules=["layer.0.q"]), make(1, modules=["layer.0.v"])
    diff = adapter_diff(one, other)
    assert diff["layer.0.v"]["norm_a"] == 0
    assert diff["layer.0.v"]["relative_difference"] == 1
    assert diff["layer.0.q"]["relative_difference"] == 1


def test_diff_names_nan():
    bad = make(1)
    bad.lora_a["layer.0.q"][0, 0] = math.inf
    with pytest.raises(AdapterError, match=r"layer\.0\.q"):
        adapter_diff(make(0), bad)


# ---- coverage -----------------------------------------------------------------------------------


def orthonormal(k: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=g).double())[0].T


def projecting(method: str, k_a: int, k_b: int, layers: list[str]) -> SimpleNamespace:
    a = {m: orthonormal(k_a, DIMS[m][1], 1) for m in layers}
    b = {m: orthonormal(k_b, DIMS[m][0], 2) for m in layers}
    return space_of(method, a, b)


def space_of(method: str, a: dict[str, Tensor], b: dict[str, Tensor], **means: Tensor):
    """What coverage reads of a subspace: a basis for each of its layers."""
    bases = {m: LayerBasis(m, a[m], b[m], torch.ones(0), torch.ones(0), 1, **means) for m in a}
    space = SimpleNamespace(
        method=method, layer_names=list(a), bases=bases, components_a=a, components_b=b
    )
    space.in_basis = lambda: space
    return space


@pytest.mark.parametrize("method", ["delta", "columns"])
def test_coverage_is_the_share_of_energy_that_projections_keep(method):
    subspace = projecting(method, 4, 3, ["layer.0.q", "layer.0.v"])
    adapter = make(4, rank=2, scale=3.0)
    coverage = subspace_coverage(subspace, adapter)
    kept = 0.0
    for module in subspace.layer_names:
        V, U = subspace.components_a[module], subspace.components_b[module]
        delta = adapter.delta(module)
        energy = float(delta.square().sum())
        both = float((U @ delta @ V.T).square().sum())
        kept += both
        assert coverage[module]["coverage"] == pytest.approx(both / energy)
        assert coverage[module]["coverage_a"] == pytest.approx(
            float((delta @ V.T).square().sum()) / energy
        )
        assert coverage[module]["coverage_b"] == pytest.approx(
            float((U @ delta).square().sum()) / energy
        )
    assert coverage["layer.1.q"]["coverage"] == 0.0
    assert coverage_total(coverage) == pytest.approx(kept / float(dense(adapter).square().sum()))


def test_a_full_basis_covers_everything_and_an_orthogonal_one_nothing():
    adapter = make(4, rank=2)
    full = projecting("delta", 9, 6, ["layer.0.v"])
    assert subspace_coverage(full, adapter)["layer.0.v"]["coverage"] == pytest.approx(1.0)
    module = "layer.0.v"
    _, _, Vh = torch.linalg.svd(adapter.delta(module), full_matrices=True)
    full.bases[module].a = Vh[2:]
    assert subspace_coverage(full, adapter)[module]["coverage"] == pytest.approx(0.0, abs=1e-12)


def test_flat_coverage_goes_through_the_mean_and_pads_lower_ranks():
    module, rank = "layer.0.q", 3
    d_out, d_in = DIMS[module]
    adapter = make(4, rank=2, scale=2.0)
    g = torch.Generator().manual_seed(9)
    mean_a = torch.randn(rank, d_in, generator=g).double()
    mean_b = torch.randn(d_out, rank, generator=g).double()
    a, b = torch.zeros(rank, d_in).double(), torch.zeros(d_out, rank).double()
    a[:2], b[:, :2] = adapter.lora_a[module], adapter.lora_b[module]
    along_a, along_b = a - mean_a, b - mean_b
    means = {"mean_a": mean_a.flatten(), "mean_b": mean_b.flatten()}
    directions_a = {module: (along_a / along_a.norm()).reshape(1, -1)}
    directions_b = {module: (along_b / along_b.norm()).reshape(1, -1)}
    subspace = space_of("flat", directions_a, directions_b, **means)
    covered = subspace_coverage(subspace, adapter)[module]
    assert covered["coverage"] == pytest.approx(1.0)
    subspace = space_of("flat", directions_a, {module: orthonormal(1, d_out * rank, 3)}, **means)
    b_hat = (
        b
        - along_b
        + ((c := subspace.components_b[module])[0] @ along_b.flatten()) * c.reshape(d_out, rank)
    )
    error2 = float((2 * b_hat[:, :2] @ a[:2] - adapter.delta(module)).square().sum())
    share = max(0.0, 1 - error2 / float(adapter.delta(module).square().sum()))
    covered = subspace_coverage(subspace, adapter)[module]
    assert covered["coverage"] == pytest.approx(share)
    assert covered["coverage_a"] == pytest.approx(1.0)
    with pytest.raises(CollectionError, match="flat basis"):
        subspace_coverage(subspace, make(1, rank=4))


@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_coverage_is_what_a_task_of_a_built_subspace_keeps(method):
    adapters = [make(seed, rank=2) for seed in range(6)]
    subspace = SharedSubspace.from_adapters(
        adapters, [str(i) for i in range(6)], num_components=3, method=method, dtype="fp32"
    )
    for i, adapter in enumerate(adapters):
        original, kept = dense(adapter), dense(subspace.reconstruct(str(i)))
        share = 1 - float((original - kept).square().sum() / original.square().sum())
        covered = coverage_total(subspace_coverage(subspace, adapter))
        assert covered == pytest.approx(share, abs=1e-6)


def test_coverage_names_a_module_that_does_not_fit():
    subspace = projecting("delta", 2, 2, ["layer.0.q"])
    subspace.bases["layer.0.q"].a = orthonormal(2, 12, 0)
    with pytest.raises(CollectionError) as caught:
        subspace_coverage(subspace, make(0))
    assert "d_in 12" in str(caught.value)
    assert "d_in 9" in str(caught.value)


def test_an_adapter_without_effect_is_covered():
    zero = make(5, scale=0.0)
    coverage = subspace_coverage(projecting("delta", 1, 1, ["layer.0.q"]), zero)
    assert coverage["layer.0.q"]["coverage"] == 1.0
    assert coverage_total(coverage) == 1.0


# ---- outliers -----------------------------------------------------------------------------------


def family(n: int, strength: float = 0.1) -> list[LoRAWeights]:
    """Adapters that share most of their change."""
    members = []
    for seed in range(n):
        base, own = make(1000), make(seed)
        base.lora_b = {m: b + strength * own.lora_b[m] for m, b in base.lora_b.items()}
        members.append(base)
    return members


def test_no_outliers_in_a_family_and_none_among_two():
    assert find_outliers(family(8)) == []
    assert find_outliers([make(0), make(1)]) == []


def test_a_stranger_stands_out_by_its_direction():
    adapters = family(6)
    stranger = make(77)
    ratio = float(dense(adapters[0]).norm() / dense(stranger).norm())
    stranger.scales = dict.fromkeys(stranger.layer_names, ratio)
    adapters.insert(2, stranger)
    (found,) = find_outliers(adapters)
    assert (found["index"], found["feature"]) == (2, "similarity")
    assert found["z_score"] > 2
    rows = torch.stack([dense(adapter) for adapter in adapters])
    assert found["distance"] == pytest.approx(float((rows[2] - rows.mean(0)).norm()))


@pytest.mark.parametrize("factor", [10.0, 0.1, 0.0])
def test_one_of_another_strength_stands_out_by_its_norm(factor):
    """With mean and deviation over all, three of four could never exceed a score of 1.5."""
    adapters = family(4)
    adapters[3].scales = dict.fromkeys(DIMS, factor)
    (found,) = find_outliers(adapters)
    assert found["index"] == 3
    assert found["norm"] == pytest.approx(float(dense(adapters[3]).norm()), rel=1e-12)
    if factor:  # a zero adapter is also unlike the others
        assert found["feature"] == "norm"
        assert found["typical"] == pytest.approx(found["norm"] / factor, rel=0.2)
    assert math.isfinite(found["z_score"])


def test_each_is_held_against_the_others_alone():
    norms = torch.tensor([1.0, 1.0, 10.0], dtype=torch.float64)
    (found,) = outliers_of(norms.square().diag())
    assert (found["index"], found["typical"], found["value"]) == (2, 1.0, 10.0)
    assert (found["family"], found["feature"]) == (None, "norm")
    assert found["z_score"] > 2


def test_identical_adapters_have_no_outliers_by_rounding():
    gram = torch.ones(5, 5).double() + 1e-13 * torch.randn(5, 5).double()
    assert outliers_of((gram + gram.T) / 2) == []
    assert outliers_of(torch.zeros(4, 4).double()) == []


def test_cosines_of_a_gram():
    matrix = cosines(torch.tensor([[4.0, 3.0], [3.0, 9.0]]).double())
    assert matrix.tolist() == [[1.0, 0.5], [0.5, 1.0]]


# ---- the first library --------------------------------------------------------------------------


@pytest.mark.peers
def test_factor_space_is_the_first_librarys_arithmetic():
    vlora = pytest.importorskip("vlora")
    analysis = pytest.importorskip("vlora.analysis")
    ours = [make(seed) for seed in range(4)]
    theirs = [
        vlora.LoRAWeights(layer_names=a.layer_names, lora_a=a.lora_a, lora_b=a.lora_b, rank=a.rank)
        for a in ours
    ]
    expected = analysis.compute_similarity_matrix(theirs)
    matrix = compute_similarity_matrix(ours, space="factors")
    torch.testing.assert_close(matrix, expected.float())
    plain = torch.block_diag(torch.full((2, 2), 0.95), torch.eye(1), torch.full((3, 3), 0.99))
    for threshold in (-1.0, 0.05, 0.97, 0.999):  # where only one grouping is possible
        assert find_clusters(plain, threshold) == analysis.find_clusters(plain, threshold)
    diff = adapter_diff(ours[0], ours[1], space="factors")
    for module, measures in analysis.adapter_diff(theirs[0], theirs[1]).items():
        for key, value in measures.items():
            assert diff[module][key] == pytest.approx(value)
    assert {"index", "distance", "z_score"} <= find_outliers([*family(4), make(9)])[0].keys()
