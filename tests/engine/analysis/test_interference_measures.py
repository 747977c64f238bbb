"""Interference: every measure beside dense arithmetic, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import pytest
import torch
from torch import Tensor

import vlora_engine
from tests.engine.merging.made import DIMS, MIXED, changed, deltas, make, regauged
from vlora_engine.analysis import interference_measures
from vlora_engine.analysis.interference_measures import (
    MEASURES,
    Interference,
    interference,
    pair_interference,
)
from vlora_engine.errors import AdapterError, CollectionError


def plain(
    first: dict[str, Tensor], second: dict[str, Tensor], modules: Iterable[str] = DIMS
) -> dict[str, float]:
    """The measures of an ordered pair from dense matrices, in plain loops."""
    norm2 = sum(float(first[module].square().sum()) for module in modules)
    other2 = sum(float(second[module].square().sum()) for module in modules)
    inner = writes = reads = overlap = opposed = common = 0.0
    for module in modules:
        U, S, V = svd(first[module])
        X, T, Y = svd(second[module])
        inner += float((first[module] * second[module]).sum())
        writes += float((X.T @ first[module]).square().sum())
        reads += float((first[module] @ Y).square().sum())
        overlap += float((X.T @ first[module] @ Y).square().sum())
        for a, b in product(range(len(S)), range(len(T))):
            t = float(S[a] * T[b] * (U[:, a] @ X[:, b]) * (V[:, a] @ Y[:, b]))
            common += abs(t)
            opposed += max(0.0, -t)
    return {
        "cosine": inner / math.sqrt(norm2 * other2),
        "writes": writes / norm2,
        "reads": reads / norm2,
        "overlap": overlap / norm2,
        "sign_conflict": opposed / common if common else 0.0,
    }


def svd(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    kept = 1e-10 * S.max().clamp(min=1e-300) < S
    return U[:, kept], S[kept], Vh[kept].T


def assert_same(one: Interference, other: Interference, tol: float = 1e-9) -> None:
    for name in MEASURES:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=tol)


@pytest.mark.parametrize("rows", [512, 4])  # all in one block; one adapter a block
def test_every_measure_is_its_dense_arithmetic(rows, monkeypatch):
    """Mixed ranks, scales, rsLoRA, modules that one of them lacks."""
    monkeypatch.setattr(interference_measures, "_BLOCK_ROWS", rows)
    found = interference(MIXED)
    for i, j in product(range(4), range(4)):
        expected = plain(deltas(MIXED[i]), deltas(MIXED[j]))
        for name, value in expected.items():
            assert float(getattr(found, name)[i, j]) == pytest.approx(value, abs=1e-9), (i, j, name)
    norms = [math.sqrt(sum(float(d.square().sum()) for d in deltas(a).values())) for a in MIXED]
    assert found.norms.tolist() == pytest.approx(norms)


def test_a_pair_is_measured_in_every_module_that_both_have():
    for i, j in ((0, 1), (2, 0), (1, 3)):
        whole, modules = pair_interference(MIXED[i], MIXED[j])
        assert_same(whole, interference([MIXED[i], MIXED[j]]))
        assert set(modules) == set(MIXED[i].lora_a) & set(MIXED[j].lora_a)
        for module, found in modules.items():
            first, second = deltas(MIXED[i]), deltas(MIXED[j])
            there, back = plain(first, second, [module]), plain(second, first, [module])
            for name, value in there.items():
                assert float(getattr(found, name)[0, 1]) == pytest.approx(value, abs=1e-9)
            expected = max(there["overlap"], back["overlap"]) * there["sign_conflict"]
            assert float(found.contested[0, 1]) == pytest.approx(expected, abs=1e-9)


def test_neither_gauge_nor_size_nor_other_adapters_matter():
    pair = interference(MIXED[:2])
    gauges = [changed(regauged(MIXED[0]), a=torch.neg, b=torch.neg), regauged(MIXED[1], 7)]
    assert_same(interference(gauges), pair)
    assert_same(interference([changed(MIXED[0], scale=lambda s: 7 * s), MIXED[1]]), pair)
    among = interference(MIXED)
    for name in MEASURES:
        torch.testing.assert_close(getattr(among, name)[:2, :2], getattr(pair, name))


def test_twins_opposites_and_strangers():
    adapter = make(0)
    silent = changed(make(1), b=torch.zeros_like)
    upper, lower = make(2, modules=["layers.0.q"]), make(3, modules=["layers.0.q"])
    for one, rows in ((upper, slice(0, 4)), (lower, slice(4, 8))):
        b = torch.zeros(8, 2).double()
        b[rows] = one.lora_b["layers.0.q"][rows]
        one.lora_b = {"layers.0.q": b}
    found = interference([adapter, regauged(adapter), changed(adapter, b=torch.neg), silent])
    assert found.cosine[0].tolist() == pytest.approx([1, 1, -1, 0])
    assert found.overlap[0].tolist() == pytest.approx([1, 1, 1, 0])
    assert found.sign_conflict[0].tolist() == pytest.approx([0, 0, 1, 0])
    apart = interference([upper, lower])
    assert float(apart.writes[0, 1]) == pytest.approx(0, abs=1e-12)
    assert float(apart.reads[0, 1]) > 0.01
    assert float(apart.sign_conflict[0, 1]) == 0  # nothing is common: no rounding counts


def test_bad_collections_are_refused_and_placed():
    with pytest.raises(CollectionError, match="two adapters or more"):
        interference([make(0)])
    bad = make(1)
    bad.lora_a["layers.1.q"][0, 0] = math.nan
    with pytest.raises(AdapterError) as caught:
        interference([make(0), bad])
    assert "layers.1.q" in str(caught.value)


def test_the_package_exports_the_function():
    assert vlora_engine.interference is interference
