"""Merging: sums, TIES and DARE in detail, what comes out, bad requests, two other packages."""

from __future__ import annotations

import json
import math
from dataclasses import replace

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
from vlora_engine.adapters.model import LoRAWeights, MemorySource, ModuleShape, module_scales
from vlora_engine.catalog.open import load_adapter
from vlora_engine.errors import (
    AdapterError,
    CollectionError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.merging import (
    MERGE_METHODS,
    dare_merge,
    merge,
    merge_with_report,
    task_arithmetic,
    ties_merge,
)
from vlora_engine.merging.core_space import Change, CoreSpace
from vlora_engine.targets.save import save_adapter

# ---- the core space -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 10**6))
def test_cores_hold_every_change_without_loss(ranks, seed):
    changes, dense = [], []
    for i, rank in enumerate(ranks):
        adapter = make(seed + i, rank)
        a, b = adapter.lora_a["layers.0.q"], adapter.lora_b["layers.0.q"] * 10.0 ** (-4 * i)
        changes.append(Change.of(a, b, 1.0))
        dense.append(b @ a)
    space = CoreSpace.of(changes)
    assert space.U.shape[1] == min(8, sum(min(r, 8) for r in ranks))
    assert space.V.shape[1] == min(10, sum(min(r, 8) for r in ranks))
    for change, delta in zip(changes, dense, strict=True):
        core = space.core(change)
        loss = 1e-11 * float(delta.norm())  # of its own size, though they lie 1e16 apart
        torch.testing.assert_close(space.U @ core @ space.V.T, delta, rtol=0, atol=loss)
        back = space.change(core, change.norm)
        assert len(back.S) == len(change.S)
        torch.testing.assert_close(back.U * back.S @ back.V.T, delta, rtol=0, atol=loss)


def test_a_small_adapter_is_not_lost_beside_a_large_one():
    a, b = make(0).lora_a["layers.0.q"], make(0).lora_b["layers.0.q"]
    small, large = Change.of(a, b, 1e-9), Change.of(a.flip(1), b.flip(0), 1e9)
    space = CoreSpace.of([small, large])
    back = space.U @ space.core(small) @ space.V.T
    torch.testing.assert_close(back, 1e-9 * b @ a, rtol=0, atol=1e-20)


# ---- task arithmetic ----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(1, 5), st.floats(-3, 3), st.floats(-2, 2)),
        min_size=1,
        max_size=4,
    )
)
def test_task_arithmetic_is_the_dense_weighted_sum(parts):
    adapters = [make(seed, rank, scale) for seed, rank, scale, _ in parts]
    weights = [weight for *_, weight in parts]
    if not any(weights):
        weights[0] = 1.0
    expected = {
        m: sum(w * a.delta(m) for a, w in zip(adapters, weights, strict=True)) for m in DIMS
    }
    assert_same_deltas(task_arithmetic(adapters, weights), expected)


def test_default_weights_average_and_missing_modules_count_as_zero():
    expected = {m: sum(deltas(a)[m] for a in MIXED) / 4 for m in DIMS}
    merged, report = merge_with_report(MIXED, "average")
    assert_same_deltas(merged, expected)
    assert report.weights == (0.25,) * 4
    assert merged.layer_names == sorted(DIMS)
    (note,) = report.findings
    assert (note.code, note.where) == ("modules-missing", "adapter 2")


def test_the_rank_is_the_numerical_rank_or_the_one_asked_for():
    merged = task_arithmetic(MIXED)
    assert merged.lora_a["layers.0.v"].shape[0] == 6  # d_out; the ranks add up to 9
    assert task_arithmetic([MIXED[0], MIXED[0]]).rank == 2
    pair = [make(0, 2), make(1, 2)]
    cut, report = merge_with_report(pair, "linear", weights=[1, 1], rank=3)
    lost = total = 0.0
    for module, delta in deltas(task_arithmetic(pair, [1, 1])).items():
        U, S, Vh = torch.linalg.svd(delta)
        torch.testing.assert_close(cut.delta(module), U[:, :3] * S[:3] @ Vh[:3])
        lost, total = lost + float(S[3:].square().sum()), total + float(S.square().sum())
    assert report.cut_error == pytest.approx(math.sqrt(lost / total))
    assert report.ranks == dict.fromkeys(DIMS, 3)
    assert merge_with_report(pair, "linear", rank=100)[1].cut_error == 0


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_opposite_adapters_leave_a_loadable_nothing(method):
    adapter = make(0)
    pair = [adapter, regauged(changed(adapter, b=torch.neg))]  # equal up to rounding
    merged, report = merge_with_report(pair, method, **MERGE_METHODS[method].neutral)
    if method == "cat":  # keeps the rank of both whatever they are
        assert report.ranks == dict.fromkeys(DIMS, 4)
        assert_same_deltas(merged, {m: 0 * d for m, d in deltas(adapter).items()}, 1e-12)
        return
    assert report.ranks == dict.fromkeys(DIMS, 1)
    assert not any(t.any() for t in (*merged.lora_a.values(), *merged.lora_b.values()))


def test_twins_of_opposite_signs_are_one_adapter():
    """The first library's average of these two is zero."""
    adapter = make(0)
    twin = changed(adapter, a=torch.neg, b=torch.neg)
    assert_same_deltas(task_arithmetic([adapter, twin]), adapter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_result_has_the_inputs_dtype(dtype):
    adapters = [make(0, dtype=dtype), make(1, dtype=dtype)]
    merged = task_arithmetic(adapters)
    assert merged.lora_a["layers.0.q"].dtype == dtype
    expected = {m: (adapters[0].delta(m) + adapters[1].delta(m)) / 2 for m in DIMS}
    assert_same_deltas(merged, expected, 8 * torch.finfo(dtype).eps)
    both = task_arithmetic([make(0, dtype=torch.float16), make(1, dtype=torch.bfloat16)])
    assert both.lora_b["layers.0.q"].dtype == torch.float32


def test_sources_give_what_weights_give():
    expected = task_arithmetic(MIXED, WEIGHTS)
    assert_same_deltas(task_arithmetic([MemorySource(a) for a in MIXED], WEIGHTS), expected, 0)


# ---- TIES ---------------------------------------------------------------------------------------


def dense_ties(cores: list[Tensor], weights: list[float], density: float) -> Tensor:
    """TIES entry by entry, in plain Python."""
    trimmed = []
    for core in cores:
        magnitudes = sorted((abs(float(x)) for x in core.flatten()), reverse=True)
        least = magnitudes[max(1, round(density * len(magnitudes))) - 1]
        trimmed.append([float(x) if abs(float(x)) >= least else 0.0 for x in core.flatten()])
    result = []
    for entries in zip(*trimmed, strict=True):
        votes = [w * x for w, x in zip(weights, entries, strict=True)]
        total = math.fsum(votes)
        agree = [(v, abs(w)) for v, w in zip(votes, weights, strict=True) if v * total > 0]
        result.append(sum(v for v, _ in agree) / sum(w for _, w in agree) if agree else 0.0)
    return torch.tensor(result, dtype=torch.float64).reshape(cores[0].shape)


@pytest.mark.parametrize("density", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, 2.0, -1.0]])
def test_ties_is_ties_on_the_cores(density, weights):
    adapters = [MIXED[0], MIXED[1], MIXED[3]]
    merged = ties_merge(adapters, density, weights)
    for module in DIMS:
        changes = [
            Change.of(a.lora_a[module], a.lora_b[module], a.scales[module]) for a in adapters
        ]
        space = CoreSpace.of(changes)
        core = dense_ties([space.core(c) for c in changes], weights, density)
        torch.testing.assert_close(merged.delta(module), space.U @ core @ space.V.T)


def test_ties_of_an_adapter_with_itself_is_not_halved():
    adapter = make(0)
    assert_same_deltas(ties_merge([adapter, adapter], density=1.0), adapter)
    alone = ties_merge([adapter], density=0.2)
    assert_same_deltas(ties_merge([adapter, adapter, adapter], 0.2, [1, 2, 3]), alone)


def test_ties_of_separate_subspaces_does_not_count_rounding_as_a_vote():
    """Each entry belongs to one adapter alone: the mean over those that have it is that entry."""
    modules = ["layers.0.q"]
    one, other = make(0, 2, modules=modules), make(1, 2, modules=modules)
    for adapter, rows in ((one, slice(0, 4)), (other, slice(4, 8))):
        a, b = torch.zeros(2, 10).double(), torch.zeros(8, 2).double()
        a[:, rows] = adapter.lora_a[modules[0]][:, rows]
        b[rows] = adapter.lora_b[modules[0]][rows]
        adapter.lora_a, adapter.lora_b = {modules[0]: a}, {modules[0]: b}
    expected = task_arithmetic([one, other], [1, 1])
    assert_same_deltas(ties_merge([one, other], density=1.0), expected)


# ---- DARE ---------------------------------------------------------------------------------------


def test_dare_is_its_seed_and_leaves_torch_alone():
    state = torch.get_rng_state()
    first = dare_merge(MIXED, 0.5, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_deltas(dare_merge(MIXED, 0.5, seed=7), first, 0)
    for other in (dare_merge(MIXED, 0.5, seed=8), dare_merge(MIXED, 0.5)):
        assert (other.delta("layers.0.q") - first.delta("layers.0.q")).norm() > 0.1


def test_a_drawn_seed_is_reported():
    merged, report = merge_with_report(MIXED, "dare")
    assert_same_deltas(dare_merge(MIXED, seed=report.parameters["seed"]), merged, 0)
    json.dumps(report.as_dict(), allow_nan=False)


def test_dare_draws_do_not_depend_on_other_modules():
    alone = [make(i, modules=["layers.0.q"]) for i in (0, 1)]
    # the same factors of that module, among others
    among = [make(10), make(11)]
    for small, large in zip(alone, among, strict=True):
        for side in ("lora_a", "lora_b"):
            getattr(large, side)["layers.0.q"] = getattr(small, side)["layers.0.q"]
    one, other = (dare_merge(adapters, 0.5, seed=1) for adapters in (alone, among))
    assert torch.equal(one.delta("layers.0.q"), other.delta("layers.0.q"))


def test_dare_draws_anew_for_each_adapter_and_module():
    adapter = make(0, modules=["layers.0.q", "layers.1.q"])
    for factors in (adapter.lora_a, adapter.lora_b):
        factors["layers.1.q"] = factors["layers.0.q"]
    first, second = (
        dare_merge([adapter, adapter], 0.5, weights, seed=1) for weights in ([1, 0], [0, 1])
    )
    one = first.delta("layers.0.q")
    assert (first.delta("layers.1.q") - one).norm() > 0.1
    assert (second.delta("layers.0.q") - one).norm() > 0.1


def test_dare_drops_its_share_of_entries_and_rescales_the_others():
    g = torch.Generator().manual_seed(0)
    wide = LoRAWeights(
        ["m"],
        {"m": torch.randn(60, 60, generator=g).double()},
        {"m": torch.randn(60, 60, generator=g).double()},
        60,
    )
    (a, b) = wide.lora_a["m"], wide.lora_b["m"]
    change = Change.of(a, b, 1.0)
    space = CoreSpace.of([change])
    # the core of one adapter is diagonal; spread it over all entries by a second one
    other = replace(wide, lora_a={"m": b.T.contiguous()}, lora_b={"m": a.T.contiguous()})
    space = CoreSpace.of([change, Change.of(b.T, a.T, 1.0)])
    before = space.core(change)
    merged = dare_merge([wide, other], 0.3, [1.0, 0.0], seed=2)
    after = space.U.T @ merged.delta("m") @ space.V
    dropped = after.abs() < 1e-9
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(after[~dropped], before[~dropped] / 0.7)


def test_the_expectation_of_dare_is_the_weighted_sum():
    adapters = [make(0), make(1)]
    runs = [deltas(dare_merge(adapters, 0.5, seed=seed)) for seed in range(200)]
    for module, expected in deltas(task_arithmetic(adapters)).items():
        mean = sum(r[module] for r in runs) / len(runs)
        spread = torch.stack([r[module] for r in runs]).std(dim=0)
        assert float((mean - expected).norm() / (spread.norm() / math.sqrt(200))) < 1.7


# ---- what comes out -----------------------------------------------------------------------------


def test_the_config_gives_the_scales_it_says():
    merged = task_arithmetic(MIXED[::-1])  # rsLoRA first: a blind copy would carry it over
    ranks = {m: a.shape[0] for m, a in merged.lora_a.items()}
    assert set(ranks.values()) == {6, 8}  # so that a pattern is needed
    assert module_scales(merged.metadata, ranks) == dict.fromkeys(DIMS, 1.0)
    assert merged.scales == dict.fromkeys(DIMS, 1.0)
    config = merged.metadata
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert config["rank_pattern"] == {"layers.0.v": 6} == config["alpha_pattern"]
    assert merged.rank == 8
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "org/base")
    assert config["target_modules"] == ["q", "v"]
    json.dumps(config)


def test_patterns_hold_where_one_name_is_the_end_of_another():
    g = torch.Generator().manual_seed(0)
    ranks = {"q": 1, "x.q": 3, "y.q": 2, "v": 3}
    adapter = LoRAWeights(
        sorted(ranks),
        {m: torch.randn(r, 6, generator=g).double() for m, r in ranks.items()},
        {m: torch.randn(6, r, generator=g).double() for m, r in ranks.items()},
        3,
    )
    config = task_arithmetic([adapter]).metadata
    assert module_scales(config, ranks) == dict.fromkeys(ranks, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"target_modules": ["q"]}, {"target_modules": ["v"]}, ["q", "v"]),
        ({"target_modules": "all-linear"}, {}, sorted(DIMS)),
        ({"layers_to_transform": [0, 1]}, {}, sorted(DIMS)),
        ({"target_modules": ["elsewhere"]}, {"target_modules": ["q"]}, sorted(DIMS)),
        ({"target_modules": None}, {"target_modules": None}, ["q", "v"]),
    ],
)
def test_targets_are_the_union_and_reach_every_module(first, second, expected):
    merged = task_arithmetic([make(0, **first), make(1, **second)])
    assert merged.metadata["target_modules"] == expected


def test_rest_tensors_stay_only_where_all_agree_bit_for_bit(caplog):
    one, other = make(0, modules_to_save=["head", "score"]), make(1, modules_to_save=["head"])
    nan = torch.tensor([math.nan, 1.0])
    one.rest = {"a.score.weight": torch.ones(2), "a.head.weight": nan, "own": torch.ones(3)}
    other.rest = {"a.score.weight": torch.ones(2).half(), "a.head.weight": nan.clone()}
    with caplog.at_level("WARNING", logger="vlora_engine"):
        merged, report = merge_with_report([one, other], "average")
    assert sorted(merged.rest) == report.rest_kept == ["a.head.weight", "own"]
    assert report.rest_left_out == ["a.score.weight"]
    assert "a.score.weight" in caplog.text
    assert merged.metadata["modules_to_save"] == ["head"]
    assert torch.equal(merged.rest["a.head.weight"].isnan(), nan.isnan())


def test_modules_that_are_no_linear_maps_keep_their_kind():
    def conv(seed: int) -> LoRAWeights:
        g = torch.Generator().manual_seed(seed)
        return LoRAWeights(
            ["conv"],
            {"conv": torch.randn(2, 27, generator=g)},
            {"conv": torch.randn(5, 2, generator=g)},
            2,
            shapes={"conv": ModuleShape(2, 27, 5, "F32", "conv2d", (2, 3, 3, 3), (5, 2, 1, 1))},
        )

    shape = task_arithmetic([conv(0), conv(1)]).shapes["conv"]
    assert (shape.rank, shape.kind) == (4, "conv2d")
    assert (shape.shape_a, shape.shape_b) == ((4, 3, 3, 3), (5, 4, 1, 1))


def test_a_merge_of_mixed_ranks_survives_its_file(tmp_path):
    merged = task_arithmetic([changed(a, a=Tensor.float, b=Tensor.float) for a in MIXED])
    save_adapter(merged, tmp_path / "merged")
    assert_same_deltas(load_adapter(tmp_path / "merged"), merged, 0)


def test_different_base_models_are_a_warning():
    pair = [make(0), make(1, base_model_name_or_path="org/other")]
    (finding,) = merge_with_report(pair, "ties")[1].findings
    assert (finding.severity, finding.code) == ("warning", "base-models-differ")


# ---- bad requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: merge(MIXED, "tie"), "no such merge method"),
        (lambda: merge(MIXED, "ties", drop_rate=0.1), "no parameter 'drop_rate'"),
        (lambda: merge(MIXED, "average", density=0.1), "no parameter 'density'"),
        (lambda: ties_merge(MIXED, 0.0), "density is out of range"),
        (lambda: ties_merge(MIXED, 1.01), "density is out of range"),
        (lambda: ties_merge(MIXED, math.nan), "density is out of range"),
        (lambda: ties_merge(MIXED, True), "density is out of range"),
        (lambda: dare_merge(MIXED, 1.0), "drop_rate is out of range"),
        (lambda: dare_merge(MIXED, -0.1), "drop_rate is out of range"),
        (lambda: dare_merge(MIXED, "0.5"), "drop_rate is out of range"),
        (lambda: dare_merge(MIXED, seed=1.5), "seed is out of range"),
        (lambda: task_arithmetic(MIXED, [1.0]), "one weight"),
        (lambda: task_arithmetic(MIXED, [1, 1, 1, math.inf]), "no finite number"),
        (lambda: task_arithmetic(MIXED, [1, 1, 1, None]), "no finite number"),
        (lambda: task_arithmetic(MIXED, [0, 0, 0, 0]), "All weights are zero"),
        (lambda: task_arithmetic(MIXED, rank=0), "rank is out of range"),
        (lambda: task_arithmetic(MIXED, rank=2.0), "rank is out of range"),
        (lambda: task_arithmetic([make(0)], rank=1, space="factors"), "keeps the adapters' rank"),
        (lambda: task_arithmetic(MIXED, space="dense"), "two spaces"),
    ],
)
def test_a_parameter_out_of_range_is_refused(call, says):
    with pytest.raises(ParameterError, match=says):
        call()


def test_collections_that_do_not_fit_are_refused():
    with pytest.raises(CollectionError, match="no adapters"):
        task_arithmetic([])
    wide = make(1)
    wide.lora_a["layers.0.v"] = torch.zeros(2, 12).double()
    with pytest.raises(CollectionError) as caught:
        ties_merge([make(0), wide])
    for part in ("layers.0.v", "6 x 10", "6 x 12"):
        assert part in str(caught.value)
    with pytest.raises(CollectionError, match="cannot be merged apart"):
        task_arithmetic([make(0, 2), make(1, 3)], space="factors")
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        task_arithmetic([make(0), make(1, use_dora=True)])


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_nan_is_refused_and_placed(method):
    bad = make(1)
    bad.lora_a["layers.1.q"][0, 0] = math.nan
    with pytest.raises(AdapterError) as caught:
        merge([make(0), bad], method)
    assert "layers.1.q" in str(caught.value)
    assert "adapter 1" in str(caught.value)


# ---- witnesses ----------------------------------------------------------------------------------


def test_pefts_cat_is_the_same_sum():
    """PEFT is right with "cat"; its "linear" multiplies T copies by T."""
    peft = pytest.importorskip("peft")
    from torch import nn

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(10, 8, bias=False)

    model = peft.get_peft_model(Base(), peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q"]))
    model.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=1, target_modules=["q"]))
    layer = model.base_model.model.q
    ours = []
    for seed, name in enumerate(("default", "other")):
        torch.manual_seed(seed)
        nn.init.normal_(layer.lora_B[name].weight)
        config = model.peft_config[name]
        a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
        meta = {"r": config.r, "lora_alpha": config.lora_alpha}
        ours.append(LoRAWeights(["q"], {"q": a}, {"q": b}, config.r, meta))
    # PEFT takes the square root of weight * scale: positive weights only
    model.add_weighted_adapter(["default", "other"], [0.7, 0.4], "sum", combination_type="cat")
    expected = layer.get_delta_weight("sum").detach().double()
    merged = task_arithmetic(ours, [0.7, 0.4])
    torch.testing.assert_close(merged.delta("q"), expected, rtol=0, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {}),
        ("ties_merge", {"density": 0.5}),
        ("ties_merge", {"density": 0.13}),
        ("dare_merge", {"drop_rate": 0.3, "seed": 4}),
        ("dare_merge", {"drop_rate": 0.0, "seed": 4}),
    ],
)
@pytest.mark.parametrize("weights", [None, [0.2, 0.5, -0.1]])
def test_factor_space_is_the_first_librarys_arithmetic(method, parameters, weights):
    vlora = pytest.importorskip("vlora")
    theirs_module = pytest.importorskip("vlora.merge")
    import vlora_engine.merging as ours_module

    ours = [make(seed, dtype=torch.float32) for seed in range(3)]
    # one module that not all have: both leave it out
    del ours[1].lora_a["layers.1.q"]
    ours[1].layer_names.remove("layers.1.q")
    theirs = [vlora.LoRAWeights(a.layer_names, a.lora_a, a.lora_b, a.rank) for a in ours]
    with torch.random.fork_rng():
        expected = getattr(theirs_module, method)(theirs, weights=weights, **parameters)
    merged = getattr(ours_module, method)(ours, weights=weights, space="factors", **parameters)
    assert merged.layer_names == expected.layer_names == ["layers.0.q", "layers.0.v"]
    for module in merged.layer_names:
        torch.testing.assert_close(merged.lora_a[module], expected.lora_a[module])
        torch.testing.assert_close(merged.lora_b[module], expected.lora_b[module])


def test_factor_space_keeps_a_common_scale_and_says_when_it_cannot():
    pair = [make(0, scale=4.0), make(1, scale=4.0)]
    merged, report = merge_with_report(pair, "average", space="factors")
    assert merged.scales == dict.fromkeys(DIMS, 4.0)
    assert module_scales(merged.metadata, dict.fromkeys(DIMS, 2)) == merged.scales
    assert report.findings == []
    pair[1] = make(1, scale=1.0)
    merged, report = merge_with_report(pair, "average", space="factors")
    assert merged.scales == dict.fromkeys(DIMS, 1.0)
    assert [finding.code for finding in report.findings] == ["scales-ignored"]
