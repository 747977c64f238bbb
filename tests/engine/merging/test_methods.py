"""Every merge method: the identities it claims, and plain dense arithmetic in fp64 beside it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.merging.made import (
    DIMS,
    MIXED,
    WEIGHTS,
    assert_same_deltas,
    changed,
    deltas,
    make,
    regauged,
)
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.errors import ParameterError
from vlora_engine.merging import IDENTITIES, MERGE_METHODS, PEFT_METHODS, merge, task_arithmetic
from vlora_engine.merging.core_space import Change, CoreSpace
from vlora_engine.merging.operators import OPERATORS
from vlora_engine.merging.registry import MergeMethod

NAMES = list(MERGE_METHODS)
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "task_arithmetic": [{}],
    "ties": [{"density": 0.3}, {"density": 1.0}, {"density": 0.3, "normalize": False}],
    "dare": [{"drop_rate": 0.4, "seed": 3}, {"drop_rate": 0.0, "seed": 0}],
    "dare_ties": [{"drop_rate": 0.4, "seed": 3}, {"density": 0.7, "seed": 3, "normalize": False}],
    "della": [{"density": 0.5, "epsilon": 0.2, "seed": 1}],
    "della_linear": [{"density": 0.5, "epsilon": 0.2, "seed": 1}, {"density": 0.9, "epsilon": 0.1}],
    "breadcrumbs": [{"density": 0.7, "gamma": 0.1}, {"density": 0.9, "gamma": 0.5}],
    "breadcrumbs_ties": [{"density": 0.7, "gamma": 0.1}],
    "magnitude_prune": [{"density": 0.4}],
    "sce": [{"select_topk": 0.4}, {"select_topk": 1.0}],
    "slerp": [{}, {"t": 0.3}],
    "model_stock": [{}],
    "knots": [{"density": 0.5}],
    "tsv_m": [{}, {"keep": 0.5}],
    "iso_c": [{}],
    "cat": [{}],
}
for rows in SETTINGS.values():  # a drawn seed would not be the same twice
    for row in rows:
        if "epsilon" in row:
            row.setdefault("seed", 5)


def few(method: MergeMethod, adapters: list[Any]) -> list[Any]:
    """As many as the method takes."""
    return adapters[: method.adapters] if method.adapters else adapters


def run(
    method: MergeMethod,
    adapters: list[LoRAWeights],
    parameters: dict[str, Any],
    weights: list[float] | None = None,
) -> LoRAWeights:
    return merge(adapters, method.name, weights=weights, **parameters)


# ---- the registry -------------------------------------------------------------------------------


def test_every_method_is_a_frozen_spec_with_documented_parameters_and_one_operator():
    assert list(MERGE_METHODS) == list(OPERATORS) == list(SETTINGS)
    assert {"one", "copies"} <= MERGE_METHODS["ties"].identities
    for registry in (MERGE_METHODS, PEFT_METHODS):
        for name, method in registry.items():
            assert method.name == name
            assert method.summary
            assert method.acts_on
            assert method.identities <= IDENTITIES.keys()
            assert ("order" in method.identities) <= method.order_independent
            assert method.neutral.keys() <= {p.name for p in method.parameters}
            assert method.check({}) == {p.name: p.default for p in method.parameters}
            with pytest.raises(FrozenInstanceError):
                method.name = "other"  # type: ignore[misc]


def test_duplicate_names_fail():
    taken = MERGE_METHODS["ties"]
    for name, aliases in [("ties", ()), ("fresh", ("average",)), ("fresh", ("fresh",))]:
        with pytest.raises(ParameterError, match="same name"):
            MERGE_METHODS.add(replace(taken, name=name, aliases=aliases))
    with pytest.raises(ParameterError, match="identity"):
        MERGE_METHODS.add(replace(taken, name="x", aliases=(), identities=frozenset({"y"})))
    assert "fresh" not in MERGE_METHODS
    assert "x" not in MERGE_METHODS


def test_ranges_in_words():
    ranges = {p.name: p.range for m in MERGE_METHODS.values() for p in m.parameters}
    assert ranges == {
        "density": "(0, 1]",
        "drop_rate": "[0, 1)",
        "seed": "any integer",
        "epsilon": "[0, 0.5)",
        "gamma": "[0, 1)",
        "select_topk": "(0, 1]",
        "t": "[0, 1]",
        "keep": "(0, 1]",
    }


@pytest.mark.parametrize("alias", ["average", "linear", "weighted_sum", "task_arithmetic"])
def test_aliases_and_calling_the_spec_as_the_first_library_does(alias):
    expected = task_arithmetic(MIXED)
    assert_same_deltas(merge(MIXED, alias), expected, 0)
    assert_same_deltas(MERGE_METHODS[alias](MIXED), expected, 0)


def test_a_share_to_keep_is_one_minus_a_share_to_drop():
    """What PEFT and mergekit call density."""
    for name in ("dare", "dare_linear", "dare-ties"):
        one = merge(MIXED, name, density=0.7, seed=1)
        assert_same_deltas(one, merge(MIXED, name, drop_rate=1 - 0.7, seed=1), 0)
    with pytest.raises(ParameterError, match="both given"):
        merge(MIXED, "dare", density=0.5, drop_rate=0.5)
    with pytest.raises(ParameterError, match="drop_rate is out of range"):
        merge(MIXED, "dare", density=0.0)


# ---- identities ---------------------------------------------------------------------------------

CASES = [(m, i) for m in MERGE_METHODS.values() for i in sorted(m.identities)]


@pytest.mark.parametrize(("method", "identity"), CASES, ids=lambda v: getattr(v, "name", v))
def test_identity(method, identity):
    checks = {
        "one": one_is_itself,
        "copies": copies_give_the_copy,
        "gauge": gauge_is_without_effect,
        "order": order_is_without_effect,
        "scaling": scaling_scales,
        "linear": linear_in_weights,
    }
    checks[identity](method, MIXED, WEIGHTS)


adapter_parts = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.integers(1, 5),
        st.floats(0.1, 3),
        st.booleans(),
        st.sampled_from([None, ["layers.0.q"], ["layers.0.v", "layers.1.q"]]),
        st.sampled_from([False, False, False, True]),
        st.floats(0.1, 2),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(adapter_parts)
@pytest.mark.parametrize("name", NAMES)
def test_identities_hold_for_any_adapters(name, parts):
    """Mixed ranks, rsLoRA, modules that some lack, adapters whose B is zero."""
    method = MERGE_METHODS[name]
    adapters, weights = [], []
    for i, (seed, rank, scale, rslora, modules, zero, weight) in enumerate(few(method, parts)):
        adapter = make(seed + i, rank, scale, modules, use_rslora=rslora)
        if zero and i:
            adapter = changed(adapter, b=torch.zeros_like)
        adapters.append(adapter)
        weights.append(weight)
    for identity in method.identities - {"order", "linear"}:
        check = {
            "one": one_is_itself,
            "copies": copies_give_the_copy,
            "gauge": gauge_is_without_effect,
            "scaling": scaling_scales,
        }[identity]
        check(method, adapters, weights)
    if "order" in method.identities:
        for parameters in SETTINGS[name]:
            same_in_reverse(method, adapters, weights, parameters)


def one_is_itself(method, adapters, weights):
    for adapter, other in zip(adapters, adapters[1:] + adapters[:1], strict=True):
        beside = run(method, [adapter, other], method.neutral, [1.0, 0.0])
        assert_same_deltas(beside, adapter)
        if method.adapters is None:
            assert_same_deltas(run(method, [adapter], method.neutral), adapter)


def copies_give_the_copy(method, adapters, weights):
    for adapter in adapters:
        copies = few(method, [adapter, regauged(adapter), adapter, regauged(adapter, 6)])
        assert_same_deltas(run(method, copies, method.neutral), adapter)


def gauge_is_without_effect(method, adapters, weights):
    adapters, weights = few(method, adapters), few(method, weights)
    other = [regauged(adapter, i) for i, adapter in enumerate(adapters)]
    other[1] = changed(other[1], a=torch.neg, b=torch.neg)
    for parameters in SETTINGS[method.name]:
        expected = run(method, adapters, parameters, weights)
        assert_same_deltas(run(method, other, parameters, weights), expected, 1e-7)


def order_is_without_effect(method, adapters, weights):
    for parameters in SETTINGS[method.name]:
        if method.adapters == 2:
            if "t" not in parameters:  # which names the first and the second
                same_in_reverse(method, adapters[:2], [0.7, 0.2], parameters)
            continue
        expected = run(method, adapters, parameters, weights)
        for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
            shuffled = run(
                method, [adapters[i] for i in order], parameters, [weights[i] for i in order]
            )
            assert_same_deltas(shuffled, expected, 1e-8)


def same_in_reverse(method, adapters, weights, parameters):
    if "t" in parameters:
        return
    expected = run(method, adapters, parameters, weights)
    assert_same_deltas(run(method, adapters[::-1], parameters, weights[::-1]), expected, 1e-7)


def scaling_scales(method, adapters, weights):
    adapters, weights = few(method, adapters), few(method, weights)
    for parameters, c in product(SETTINGS[method.name], (3.0, -0.25)):
        merged = run(method, adapters, parameters, weights)
        expected = {m: c * d for m, d in deltas(merged).items()}
        scaled = [changed(adapter, scale=lambda s, c=c: c * s) for adapter in adapters]
        assert_same_deltas(run(method, scaled, parameters, weights), expected, 1e-8)


def linear_in_weights(method, adapters, weights):
    other = [0.1, 0.5, -0.3, 2.0]
    for parameters in SETTINGS[method.name]:
        parts = [deltas(run(method, adapters, parameters, w)) for w in (weights, other)]
        expected = {m: 2 * parts[0][m] - parts[1][m] for m in DIMS}
        combined = [2 * w - v for w, v in zip(weights, other, strict=True)]
        assert_same_deltas(run(method, adapters, parameters, combined), expected)


@pytest.mark.parametrize("name", NAMES)
def test_normalised_weights_matter_by_their_ratios_only(name):
    method = MERGE_METHODS[name]
    adapters, weights = few(method, MIXED), few(method, WEIGHTS)
    for normalise in (None, True, False):
        if normalise is False and not method.may_normalise:
            with pytest.raises(ParameterError, match="always normalises"):
                merge(adapters, name, weights=weights, normalize=False)
            continue
        parameters = {k: v for k, v in SETTINGS[name][0].items() if k != "normalize"}
        once, twice = (
            deltas(merge(adapters, name, weights=w, normalize=normalise, **parameters))
            for w in (weights, [2 * w for w in weights])
        )
        ratios = method.normalises_weights if normalise is None else normalise
        for module in DIMS:
            torch.testing.assert_close(twice[module], (1 if ratios else 2) * once[module])


# ---- beside plain arithmetic --------------------------------------------------------------------
# Methods that do not depend on coordinates are held against the dense dW, the others against the
# same steps on the dense cores. Nothing here is taken from the engine but the space itself.


def plain_sieve(name: str, core: Tensor, p: dict[str, float], module: str, place: int) -> Tensor:
    rows, columns = core.shape
    digest = hashlib.sha256(f"{p.get('seed')}\0{module}\0{place}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    draws = torch.rand(core.shape, dtype=torch.float64, generator=generator)
    by_size = sorted((abs(float(x)) for x in core.flatten()), reverse=True)
    kept = torch.zeros_like(core)
    for i, j in product(range(rows), range(columns)):
        x = float(core[i, j])
        if name in ("ties", "magnitude_prune"):
            least = by_size[max(1, round(p["density"] * len(by_size))) - 1]
            kept[i, j] = x if abs(x) >= least else 0.0
        elif name.startswith("dare"):
            rate = p["drop_rate"] if "drop_rate" in p else 1 - p["density"]
            kept[i, j] = x / (1 - rate) if float(draws[i, j]) >= rate else 0.0
        elif name.startswith("della"):
            smaller = sum(abs(float(y)) < abs(x) for y in core[i])
            share = smaller / (columns - 1) if columns > 1 else 0.5
            chance = p["density"] - p["epsilon"] + 2 * p["epsilon"] * share
            kept[i, j] = x / chance if float(draws[i, j]) < chance else 0.0
        else:  # breadcrumbs
            stay = round(p["density"] * len(by_size))
            top = min(round(p["gamma"] * len(by_size)), len(by_size) - stay)
            kept[i, j] = x if abs(x) in by_size[top : top + stay] else 0.0
    return kept


def plain_election(kept: list[Tensor], weights: list[float], mean: bool) -> Tensor:
    result = torch.zeros_like(kept[0])
    for i, j in product(range(result.shape[0]), range(result.shape[1])):
        votes = [w * float(k[i, j]) for w, k in zip(weights, kept, strict=True)]
        total = math.fsum(votes)
        agree = [(v, abs(w)) for v, w in zip(votes, weights, strict=True) if v * total > 0]
        if agree:
            result[i, j] = math.fsum(v for v, _ in agree)
            result[i, j] /= sum(w for _, w in agree) if mean else 1.0
    return result


def plain_core(name: str, cores: list[Tensor], weights: list[float], p: dict[str, Any], m: str):
    if name == "sce":
        variance = torch.stack(cores).var(dim=0, unbiased=False)
        count = round(p["select_topk"] * variance.numel())
        least = variance.flatten().sort(descending=True).values[count - 1]
        kept = [torch.where(variance >= least, core, 0.0) for core in cores]
        coefficients = [w * float((k**2).sum()) for w, k in zip(weights, kept, strict=True)]
        signs = sum(w * k for w, k in zip(weights, kept, strict=True)).sign()
        agree = [((w * k).sign() == signs).double() for w, k in zip(weights, kept, strict=True)]
        total = sum(c * k * a for c, k, a in zip(coefficients, kept, agree, strict=True))
        return total / sum(abs(c) * a for c, a in zip(coefficients, agree, strict=True))
    kept = [plain_sieve(name, core, p, m, place) for place, core in enumerate(cores)]
    if name in ("dare", "della_linear", "breadcrumbs", "magnitude_prune"):
        return sum(w * k for w, k in zip(weights, kept, strict=True))
    return plain_election(kept, weights, p.get("normalize", True))


def plain_dense(name: str, dense: list[Tensor], weights: list[float], p: dict[str, Any]) -> Tensor:
    count, top = len(dense), min(dense[0].shape)
    if name in ("task_arithmetic", "cat"):
        return sum(w * d for w, d in zip(weights, dense, strict=True))
    if name == "slerp":
        t = p.get("t", weights[1] / (weights[0] + weights[1]))
        angle = torch.acos((dense[0] * dense[1]).sum() / dense[0].norm() / dense[1].norm())
        first, second = torch.sin((1 - t) * angle), torch.sin(t * angle)
        return (first * dense[0] + second * dense[1]) / torch.sin(angle)
    if name == "model_stock":
        pairs = [
            float((a * b).sum() / a.norm() / b.norm())
            for i, a in enumerate(dense)
            for b in dense[:i]
        ]
        cosine = max(0.0, sum(pairs) / len(pairs))
        mean = sum(w * d for w, d in zip(weights, dense, strict=True)) / sum(weights)
        return count * cosine / (1 + (count - 1) * cosine) * mean
    if name == "knots":
        U, S, Vh = torch.linalg.svd(torch.cat(dense, dim=1), full_matrices=False)
        rank = int((1e-10 * S[0] < S).sum())
        parts = Vh[:rank].split(dense[0].shape[1], dim=1)
        kept = [plain_sieve("ties", part, p, "", 0) for part in parts]
        return U[:, :rank] * S[:rank] @ plain_election(kept, weights, True)
    if name == "tsv_m":
        left, values, right = [], [], []
        for weight, delta in zip(weights, dense, strict=True):
            U, S, Vh = torch.linalg.svd(delta)
            rank = int((1e-10 * S[0] < S).sum())
            rank = max(1, round(p.get("keep", 1.0) * rank))
            left.append(U[:, :rank])
            right.append(Vh[:rank].T)
            values.append(weight * S[:rank])
        polar = []
        for columns in (torch.cat(left, dim=1), torch.cat(right, dim=1)):
            P, _, Qh = torch.linalg.svd(columns, full_matrices=False)
            polar.append(P @ Qh)
        return polar[0] * torch.cat(values) @ polar[1].T
    total = sum(w * d for w, d in zip(weights, dense, strict=True))  # iso_c
    U, S, Vh = torch.linalg.svd(total, full_matrices=False)
    rank = int((1e-10 * S[0] < S).sum())
    assert rank <= top
    return S[:rank].mean() * U[:, :rank] @ Vh[:rank]


ON_DENSE = ("task_arithmetic", "cat", "slerp", "model_stock", "knots", "tsv_m", "iso_c")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, -0.7]])
def test_every_method_is_its_plain_arithmetic(name, weights):
    method = MERGE_METHODS[name]
    adapters = few(method, [MIXED[0], make(7, 2, 2.0), MIXED[3]])
    if name in ("slerp", "model_stock"):  # what they make of a common direction
        shared = make(9, 2)
        adapters = [task_arithmetic([shared, adapter], [2, 1]) for adapter in adapters]
        weights = [abs(weight) for weight in weights]
    weights = few(method, weights)
    for parameters in SETTINGS[name]:
        merged = run(method, adapters, parameters, weights)
        for module in DIMS:
            dense = [deltas(adapter)[module] for adapter in adapters]
            if name in ON_DENSE:
                expected = plain_dense(name, dense, weights, parameters)
            else:
                triples = [(a.lora_a[module], a.lora_b[module], a.scales[module]) for a in adapters]
                space = CoreSpace.of([Change.of(*triple) for triple in triples])
                cores = [space.U.T @ delta @ space.V for delta in dense]
                core = plain_core(name, cores, weights, parameters, module)
                expected = space.U @ core @ space.V.T
            assert float(expected.norm()) > 0.01
            torch.testing.assert_close(merged.delta(module), expected, rtol=1e-8, atol=1e-8)


def expectation_of(merged: Callable[[int], LoRAWeights], runs: int) -> dict[str, Tensor]:
    results = [deltas(merged(seed)) for seed in range(runs)]
    return {module: torch.stack([r[module] for r in results]) for module in DIMS}


def test_the_expectation_of_della_is_the_weighted_sum():
    adapters = [make(0), make(1)]
    drawn = expectation_of(
        lambda seed: merge(adapters, "della_linear", density=0.4, epsilon=0.3, seed=seed), 300
    )
    for module, expected in deltas(task_arithmetic(adapters)).items():
        spread = drawn[module].std(dim=0).norm() / math.sqrt(300)
        assert float((drawn[module].mean(dim=0) - expected).norm() / spread) < 1.7


def test_model_stock_of_what_has_nothing_in_common_stays_at_the_base():
    adapter = make(0)
    merged = merge([adapter, changed(adapter, b=torch.neg)], "model_stock")
    assert not any(float(d.norm()) for d in deltas(merged).values())


def test_slerp_keeps_the_length_between_two_of_one_length():
    one, other = make(0), make(1)
    for module in DIMS:
        for adapter in (one, other):
            adapter.lora_b[module] /= adapter.delta(module).norm()
    for t in (0.0, 0.25, 0.5, 1.0):
        for delta in deltas(merge([one, other], "slerp", t=t)).values():
            assert float(delta.norm()) == pytest.approx(1.0)


def test_slerp_of_opposites_or_of_one_that_is_missing_is_the_straight_line():
    adapter = make(0)
    merged = merge([adapter, changed(adapter, b=torch.neg)], "slerp", t=0.25)
    assert_same_deltas(merged, {m: 0.5 * d for m, d in deltas(adapter).items()})
    part = make(1, modules=["layers.0.q"])
    expected = {m: 0.75 * d for m, d in deltas(adapter).items() if m != "layers.0.q"}
    merged = deltas(merge([adapter, part], "slerp", t=0.25))
    for module, delta in expected.items():
        torch.testing.assert_close(merged[module], delta)


def test_iso_c_has_one_singular_value():
    for module, delta in deltas(merge(MIXED[:2], "iso_c")).items():
        S = torch.linalg.svdvals(delta)
        total = sum(deltas(adapter)[module] for adapter in MIXED[:2])
        expected = torch.linalg.svdvals(total)[:5]
        torch.testing.assert_close(S[:5], expected.mean().expand(5))


def test_tsv_m_leaves_orthogonal_adapters_alone():
    """Nothing interferes: their sum has orthogonal singular vectors already."""
    one, other = make(0, modules=["layers.0.q"]), make(1, modules=["layers.0.q"])
    for adapter, rows in ((one, slice(0, 4)), (other, slice(4, 8))):
        a, b = torch.zeros(2, 10).double(), torch.zeros(8, 2).double()
        a[:, rows] = adapter.lora_a["layers.0.q"][:, rows]
        b[rows] = adapter.lora_b["layers.0.q"][rows]
        adapter.lora_a, adapter.lora_b = {"layers.0.q": a}, {"layers.0.q": b}
    assert_same_deltas(merge([one, other], "tsv_m"), task_arithmetic([one, other], [1, 1]))
