"""What every merge method takes: weights by layer, a scale, cuts, and PEFT's own arithmetic."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from tests.engine.merging.made import (
    DIMS,
    MIXED,
    WEIGHTS,
    assert_same_deltas,
    changed,
    deltas,
    make,
)
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.errors import CollectionError, ParameterError
from vlora_engine.findings import Finding
from vlora_engine.merging import PEFT_METHODS, merge, merge_with_report, task_arithmetic
from vlora_engine.merging.core_space import Change

# ---- weights and parameters by layer ------------------------------------------------------------


def test_a_pattern_gives_its_modules_other_weights_and_later_patterns_win():
    layers = {"layers.0.*": [1, 0, 0, 0], "*.v": {"weights": [0, 1, 0, 0]}}
    merged = deltas(merge(MIXED, "average", weights=WEIGHTS, layers=layers))
    expected = {
        "layers.0.q": deltas(MIXED[0])["layers.0.q"],
        "layers.0.v": deltas(MIXED[1])["layers.0.v"],
        "layers.1.q": deltas(task_arithmetic(MIXED, WEIGHTS))["layers.1.q"],
    }
    for module, delta in expected.items():
        torch.testing.assert_close(merged[module], delta)


def test_a_pattern_gives_its_modules_other_parameters():
    layers = {"layers.0.*": {"density": 1.0}, "*.q": [2, 1, 1, 1]}
    merged = deltas(merge(MIXED, "ties", density=0.3, layers=layers))
    for module in DIMS:
        density = 1.0 if module.startswith("layers.0") else 0.3
        weights = [2, 1, 1, 1] if module.endswith("q") else None
        alone = deltas(merge(MIXED, "ties", density=density, weights=weights))[module]
        torch.testing.assert_close(merged[module], alone)


def test_a_parameter_may_be_one_for_each_adapter():
    """The first keeps all, of the second only its largest entry is left."""
    pair = [make(0), make(1)]
    merged = merge(pair, "magnitude_prune", density=[1.0, 1e-9])
    rest = {m: 2 * d - deltas(pair[0])[m] for m, d in deltas(merged).items()}
    for module, delta in rest.items():
        singular = torch.linalg.svdvals(delta)
        assert float(singular[1]) < 1e-9 * float(singular[0])  # one entry of a core has rank 1
        assert float(singular[0]) < float(deltas(pair[1])[module].norm())
    same = merge(pair, "dare", density=[0.5, 0.5], seed=2)
    assert_same_deltas(same, merge(pair, "dare", drop_rate=0.5, seed=2), 0)


@pytest.mark.parametrize("method", ["ties", "slerp", "model_stock", "sce", "knots", "tsv_m"])
def test_modules_of_no_weight_at_all_are_left_alone(method):
    pair = [MIXED[0], task_arithmetic(MIXED[:2])]
    merged = deltas(merge(pair, method, layers={"*.v": [0, 0]}))
    assert float(merged["layers.0.v"].norm()) == 0
    assert float(merged["layers.0.q"].norm()) > 0.1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layers": {"nope.*": [1, 1, 1, 1]}}, "matches no module"),
        ({"layers": {"*": [1, 1]}}, "one weight"),
        ({"layers": {"*": [0, 0, 0, 0]}}, "All weights are zero"),
        ({"method": "ties", "layers": {"*": {"density": 2}}}, "density is out of range"),
        ({"method": "ties", "layers": {"*": {"gamma": 0.1}}}, "no parameter 'gamma'"),
        ({"method": "dare", "layers": {"*": {"seed": 1}}}, "one for the whole merge"),
        ({"method": "ties", "density": [0.5, 0.5]}, "one density for each"),
        ({"normalize": True, "weights": [1, -1, 1, -1]}, "cannot be normalised"),
        ({"scale": 0}, "scale is out of range"),
        ({"scale": math.inf}, "scale is out of range"),
        ({"energy": 0}, "energy is out of range"),
        ({"energy": 1.5}, "energy is out of range"),
        ({"energy": 0.5, "rank": 3}, "both given"),
        ({"method": "slerp"}, "takes 2 adapters"),
        ({"method": "sce", "space": "factors"}, "no sce"),
        ({"dialect": "kohya"}, "no such dialect"),
        ({"method": "ties", "dialect": "peft", "space": "factors"}, "leave space out"),
        ({"method": "ties", "dialect": "peft", "rank": 2}, "keeps the adapters' rank"),
        ({"method": "ties_svd", "dialect": "peft"}, "never formed here"),
        ({"method": "sce", "dialect": "peft"}, "no such merge method"),
        ({"method": "ties", "dialect": "peft", "majority_sign": "most"}, "total or frequency"),
    ],
)
def test_what_cannot_be_is_refused(settings, says):
    settings = {"method": "average"} | settings
    with pytest.raises(ParameterError, match=says):
        merge(MIXED, **settings)


class CountedSource(MemorySource):
    """Counts how often each module was read."""

    def __init__(self, weights: LoRAWeights) -> None:
        super().__init__(weights)
        self.reads: Counter[str] = Counter()

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        self.reads[module] += 1
        return super().read(module)


@pytest.mark.parametrize("how", [{}, {"rank": 1}, {"space": "factors"}, {"dialect": "peft"}])
def test_every_module_of_every_adapter_is_read_once(how):
    sources = [CountedSource(make(seed)) for seed in range(3)]
    merge(sources, "ties" if how.get("dialect") else "average", **how)
    assert [dict(source.reads) for source in sources] == [dict.fromkeys(DIMS, 1)] * 3


def test_a_module_is_cut_to_the_rank_once_however_many_adapters_there_are(monkeypatch):
    whole, cuts = Change.cut, Counter()

    def counted(change: Change, rank: int) -> Change:
        cuts[count] += 1
        return whole(change, rank)

    monkeypatch.setattr(Change, "cut", counted)
    for count in (2, 6):
        merge([make(seed) for seed in range(count)], "average", rank=1)
    assert cuts[2] == cuts[6] > 0


# ---- the result ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["average", "ties", "iso_c"])
def test_the_scale_is_that_of_the_result(method):
    plain = deltas(merge(MIXED, method))
    for scale in (2.5, -1.0):
        scaled = {m: scale * d for m, d in plain.items()}
        assert_same_deltas(merge(MIXED, method, scale=scale), scaled)


def test_energy_keeps_the_fewest_directions_that_hold_it():
    whole = deltas(task_arithmetic(MIXED))
    for energy in (0.3, 0.9, 0.999, 1.0):
        _, report = merge_with_report(MIXED, "average", energy=energy)
        for module, delta in whole.items():
            S2 = torch.linalg.svdvals(delta).square()
            rank = report.ranks[module]
            assert float(S2[:rank].sum()) >= (energy - 1e-12) * float(S2.sum())
            assert rank == 1 or float(S2[: rank - 1].sum()) < energy * float(S2.sum())
        assert report.cut_error <= math.sqrt(1 - energy) + 1e-9


def test_the_report_says_what_is_kept_of_each_adapter():
    _, report = merge_with_report([MIXED[0], changed(MIXED[1], b=torch.zeros_like)], "average")
    whole, nothing = report.kept
    assert (whole.cosine, whole.strength, whole.energy) == pytest.approx((1.0, 0.5, 1.0))
    assert (nothing.cosine, nothing.energy, nothing.worst_module) == (0.0, 0.0, "")


# ---- PEFT ---------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(10, 8, bias=False)
        self.v = nn.Linear(10, 6, bias=False)


def in_peft(count: int = 3, rank: int = 2, **fields: object):
    """A model with adapters ``0``, ``1``, ... by PEFT, and the same as ours."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=6, target_modules=["q", "v"], **fields)
    model = peft.get_peft_model(Base(), config, adapter_name="0")
    for i in range(1, count):
        # the last one lacks a module
        targets = ["q"] if i == count - 1 else ["q", "v"]
        fields_i = {"r": rank, "lora_alpha": 6 + i, **fields}
        model.add_adapter(str(i), peft.LoraConfig(target_modules=targets, **fields_i))
    ours = []
    for i in range(count):
        a, b, scales = {}, {}, {}
        for name in ("q", "v"):
            layer = getattr(model.base_model.model, name)
            if str(i) in layer.lora_A:
                torch.manual_seed(100 + 10 * i + len(a))
                nn.init.normal_(layer.lora_B[str(i)].weight)
                a[name] = layer.lora_A[str(i)].weight.detach().clone()
                b[name] = layer.lora_B[str(i)].weight.detach().clone()
                scales[name] = layer.scaling[str(i)]
        ours.append(LoRAWeights(sorted(a), a, b, rank, {"r": rank}, scales))
    return model, ours


def from_peft(model, ours, weights, kind, parameters, seed=None):
    names = [str(i) for i in range(len(ours))]
    majority = parameters.get("majority_sign", "total")
    if seed is not None:
        seed_the_draws(model.base_model, seed)
    model.add_weighted_adapter(
        names,
        weights,
        "sum",
        combination_type=kind,
        density=parameters.get("density"),
        majority_sign_method=majority,
    )
    return {n: getattr(model.base_model.model, n).get_delta_weight("sum") for n in ("q", "v")}


def seed_the_draws(tuner, seed: int) -> None:
    """Seed torch where PEFT begins to draw: before that it draws for the weights of a new LoRA."""
    merge_sides = tuner._generalized_task_arithmetic_weighted_adapter
    begun = []

    def seeded(*args):
        if not begun:
            begun.append(torch.manual_seed(seed))
        return merge_sides(*args)

    tuner._generalized_task_arithmetic_weighted_adapter = seeded


CASES = [
    ("linear", {}),
    ("ties", {"density": 0.4}),
    ("ties", {"density": 0.4, "majority_sign": "frequency"}),
    ("ties", {"density": 1.0}),
    ("magnitude_prune", {"density": 0.3}),
    ("dare_linear", {"density": 0.6}),
    ("dare_ties", {"density": 0.6, "majority_sign": "frequency"}),
    ("cat", {}),
    ("svd", {}),
]


@pytest.mark.parametrize(("kind", "parameters"), CASES, ids=str)
@pytest.mark.parametrize("weights", [[0.7, 0.3, 1.2], [0.7, -0.3, 1.2]])
def test_the_dialect_is_pefts_arithmetic(kind, parameters, weights):
    """Scales differ, one adapter lacks a module, weights may be negative."""
    model, ours = in_peft()
    drawn = {"seed": 11} if kind.startswith("dare") else {}
    with torch.random.fork_rng():
        expected = from_peft(model, ours, weights, kind, parameters, **drawn)
    merged = merge(ours, kind, dialect="peft", weights=weights, **parameters, **drawn)
    for name, delta in expected.items():
        found = merged.delta(name).float()
        torch.testing.assert_close(found, delta.detach(), rtol=0, atol=1e-5)
    assert {"linear", "cat", "svd"} <= PEFT_METHODS.keys()


def test_pefts_linear_of_copies_is_as_many_times_too_strong():
    """What our own sum does not do; the reason that the dialect is none by default."""
    adapter = make(0)
    four = [adapter] * 4
    assert_same_deltas(merge(four, "linear"), adapter)
    peft = merge(four, "linear", dialect="peft")
    assert_same_deltas(peft, {m: 4 * d for m, d in deltas(adapter).items()}, 1e-6)


def test_rslora_is_right_where_peft_takes_the_first_configs_scale():
    """PEFT writes alpha = r and keeps use_rslora: its own merge is sqrt(r) too strong."""
    model, ours = in_peft(2, rank=4, use_rslora=True)
    expected = from_peft(model, ours, [0.5, 0.5], "cat", {})
    exact = merge(ours, "cat", dialect="peft", weights=[0.5, 0.5])
    q = sum(0.5 * adapter.delta("q") for adapter in ours)
    torch.testing.assert_close(exact.delta("q"), q)
    strength = float(expected["q"].detach().norm() / q.norm())
    assert strength == pytest.approx(math.sqrt(8), rel=1e-4)


def test_the_dialect_needs_one_rank():
    with pytest.raises(CollectionError, match="cannot be merged apart"):
        merge([make(0, 2), make(1, 3)], "ties", dialect="peft")


def test_a_reports_findings_are_told_in_the_form_of_all_others():
    _, report = merge_with_report(MIXED, "breadcrumbs")
    rows = report.as_dict()["findings"]
    assert [Finding.from_json(row) for row in rows] == report.findings
    assert {row["where"] for row in rows if row["code"] == "caution"} == {"breadcrumbs"}
