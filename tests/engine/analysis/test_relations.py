"""Relations of a collection: sums per family, duplicates, runs of checkpoints, kept in spectra."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.adapters.module_types import module_families
from vlora_engine.analysis.checkpoints import Step, runs_in, step_of
from vlora_engine.analysis.compare import (
    duplicates_among,
    find_duplicates,
    find_outliers,
    find_runs,
    runs_among,
)
from vlora_engine.analysis.duplicates import duplicates_in
from vlora_engine.analysis.outliers import outliers_in
from vlora_engine.analysis.relations import Relations, clusters_of, cosines_of
from vlora_engine.analysis.similarity import relate
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.errors import AdapterError
from vlora_engine.linalg.low_rank import module_grams
from vlora_engine.spectra.tables import Spectra

MODULES = {
    "layers.0.attn.q_proj": (9, 7),
    "layers.0.mlp.up": (9, 12),
    "layers.1.attn.q_proj": (9, 7),
    "layers.1.mlp.up": (9, 12),
}  # name: (d_in, d_out)
DOUBLE = torch.float64


def adapter(
    seed: int,
    rank: int = 3,
    *,
    scale: float = 1.0,
    modules: dict[str, tuple[int, int]] | None = None,
    start: int | None = None,
) -> LoRAWeights:
    """Random factors in fp64; A from the seed ``start`` where that is given."""
    named = MODULES if modules is None else modules
    own, first = (
        torch.Generator().manual_seed(s) for s in (seed, seed if start is None else start)
    )
    return LoRAWeights(
        layer_names=sorted(named),
        lora_a={m: torch.randn(rank, named[m][0], generator=first, dtype=DOUBLE) for m in named},
        lora_b={m: torch.randn(named[m][1], rank, generator=own, dtype=DOUBLE) for m in named},
        rank=rank,
        scales=dict.fromkeys(named, scale),
    )


def with_factors(like: LoRAWeights, change) -> LoRAWeights:
    """The same with every (A, B) changed."""
    pairs = {m: change(like.lora_a[m], like.lora_b[m]) for m in like.layer_names}
    return LoRAWeights(
        layer_names=like.layer_names,
        lora_a={m: a for m, (a, _) in pairs.items()},
        lora_b={m: b for m, (_, b) in pairs.items()},
        rank=like.rank,
        scales=dict(like.scales),
        rest=dict(like.rest),
    )


def other_gauge(like: LoRAWeights, seed: int = 0) -> LoRAWeights:
    g = torch.randn(like.rank, like.rank, generator=torch.Generator().manual_seed(seed)).double()
    g += 3 * torch.eye(like.rank, dtype=DOUBLE)
    return with_factors(like, lambda a, b: (torch.linalg.solve(g, a), b @ g))


def cast(like: LoRAWeights, dtype: torch.dtype) -> LoRAWeights:
    return with_factors(like, lambda a, b: (a.to(dtype), b.to(dtype)))


def dense(like: LoRAWeights, module: str) -> torch.Tensor:
    d_in, d_out = MODULES[module]
    if module not in like.lora_a:
        return torch.zeros(d_out, d_in, dtype=DOUBLE)
    return like.delta(module)


MIXED = [
    adapter(0, 2, scale=16 / math.sqrt(2)),  # rsLoRA's
    adapter(1, 4, scale=-0.5),
    adapter(2, 3, modules={"layers.0.attn.q_proj": (9, 7)}),
    adapter(3, 4, scale=0.0),
    adapter(4, 4, start=1),
]


# sums


def test_relations_are_those_of_dense_changes() -> None:
    found = relate(MIXED)
    family = {"attn.q_proj": "q_proj", "mlp.up": "up"}
    for name in family.values():
        own = [m for m in MODULES if m.endswith(name)]
        rows = torch.stack([torch.cat([dense(w, m).flatten() for m in own]) for w in MIXED])
        assert found.families[name] == pytest.approx((rows @ rows.T).numpy(), abs=1e-9)
        assert found.holders[name].tolist() == [any(m in w.lora_a for m in own) for w in MIXED]
    assert found.total == pytest.approx(sum(found.families.values()), abs=1e-9)
    for i, one in enumerate(MIXED):
        for j, other in enumerate(MIXED):
            pairs = [(dense(one, m), dense(other, m)) for m in MODULES]
            apart = [
                float((x - y).norm() / max(x.norm(), y.norm()))
                for x, y in pairs
                if x.any() or y.any()
            ]
            assert found.difference[i, j] == pytest.approx(max(apart, default=0), abs=2e-7)
            unit = [
                (x / x.norm() if x.any() else x, y / y.norm() if y.any() else y) for x, y in pairs
            ]
            turned = max(float((x - y).norm()) if x.any() or y.any() else 0.0 for x, y in unit)
            one_alone = any(bool(x.any()) != bool(y.any()) for x, y in pairs)
            expected = max(turned, math.sqrt(2)) if one_alone else turned
            assert found.turn[i, j] == pytest.approx(expected, abs=2e-7)
            starts = sum(
                float((one.lora_a[m] * other.lora_a[m]).sum())
                for m in MODULES
                if m in one.lora_a and m in other.lora_a and one.rank == other.rank
            )
            assert found.starts[i, j] == pytest.approx(starts, abs=1e-9)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [MemorySource(w) for w in MIXED if "layers.0.attn.q_proj" in w.lora_a]
    factors = [source.read("layers.0.attn.q_proj") for source in sources]
    whole = module_grams(factors)
    monkeypatch.setattr("vlora_engine.linalg.low_rank._GRAM_ROWS", 5)
    for expected, found in zip(whole, module_grams(factors), strict=True):
        # sums of at most 64 terms in another order: a rounding each, against the norms
        rounding = 64 * torch.finfo(torch.float64).eps * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=rounding)


def test_families_are_told_apart_by_as_little_of_their_names_as_needed() -> None:
    found = module_families(
        ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj", "h.11.mlp.c_proj", "lm_head"]
    )
    assert list(found.values()) == ["c_attn", "attn.c_proj", "mlp.c_proj", "mlp.c_proj", "lm_head"]
    assert module_families(["0", "1"]) == {"0": "0", "1": "1"}
    assert set(module_families(["a/b.0.c", "a.1.c"]).values()) == {"a_b.c", "a.c"}


def test_what_cannot_be_used_is_named_and_left_out_without_a_second_pass() -> None:
    bad = adapter(9)
    bad.lora_b["layers.1.mlp.up"][0, 0] = math.inf
    collected: dict[int, Exception] = {}
    found = relate([*MIXED[:2], bad, *MIXED[2:]], bad=collected)
    assert list(collected) == [2]
    assert "layers.1.mlp.up" in str(collected[2])
    kept = found.only([0, 1, 3, 4, 5])
    expected = relate(MIXED)
    for name in ("total", "starts", "difference", "turn"):
        assert getattr(kept, name) == pytest.approx(getattr(expected, name), abs=1e-9)
    with pytest.raises(AdapterError):
        relate([*MIXED, bad])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.floats(-1, 1))
def test_clusters_are_cliques_whatever_the_order(seed: int, n: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 3))
    cosines = cosines_of(rows @ rows.T)
    found = clusters_of(cosines, threshold)
    assert sorted(i for members in found for i in members) == list(range(n))
    for members in found:
        assert cosines[np.ix_(members, members)].min() >= threshold
    for a, one in enumerate(found):  # as large as they can be
        for other in found[:a]:
            both = one + other
            assert cosines[np.ix_(both, both)].min() < threshold
    order = rng.permutation(n)
    again = clusters_of(cosines[np.ix_(order, order)], threshold)
    assert sorted(sorted(order[members].tolist()) for members in again) == found


# outliers


def homogeneous(n: int) -> list[LoRAWeights]:
    members = []
    for seed in range(n):
        one, own = adapter(1000), adapter(seed)
        one.lora_b = {m: b + 0.3 * own.lora_b[m] for m, b in one.lora_b.items()}
        members.append(one)
    return members


def test_one_of_another_size_in_one_family_is_found_there_and_nowhere_else() -> None:
    adapters = homogeneous(10)
    for module in adapters[7].layer_names:
        if module.endswith("up"):
            adapters[7].scales[module] = 30.0
    assert find_outliers(homogeneous(10)) == []
    (found,) = find_outliers(adapters)
    assert (found["index"], found["family"], found["feature"]) == (7, "up", "norm")
    sizes = [
        math.sqrt(sum(float(dense(w, m).square().sum()) for m in MODULES if m.endswith("up")))
        for w in adapters
    ]
    assert found["value"] == pytest.approx(sizes[7])
    assert found["typical"] == pytest.approx(float(np.median(sizes[:7] + sizes[8:])))
    families = {reason["family"] for reason in found["reasons"]}
    assert families <= {"up", None}
    scores = [reason["score"] for reason in found["reasons"]]
    assert scores == sorted(scores, reverse=True)
    assert found["z_score"] == scores[0]


def test_among_five_the_odd_family_of_one_is_found_beside_its_own_strength() -> None:
    """With many families, few adapters are enough; who is strong everywhere is odd in none."""
    from tests.benchmarks.false_alarms import FAMILIES, KINDS, collection

    rng = np.random.default_rng(3)
    for planted in (10.0, 0.1):
        relations = collection(rng, KINDS[0], 5, planted)
        (found,) = outliers_in(relations)
        assert (found.index, found.reasons[0].family) == (0, FAMILIES[0])
        first = found.reasons[0]
        assert first.value == pytest.approx(math.sqrt(relations.families[FAMILIES[0]][0, 0]))
        assert first.value / first.typical == pytest.approx(planted, rel=0.8)
    strong = collection(rng, KINDS[0], 5)
    factors = np.array([1, 1, 1, 30, 1.0])
    scaled = {name: gram * np.outer(factors, factors) for name, gram in strong.families.items()}
    (found,) = outliers_in(Relations(sum(scaled.values()), scaled, strong.holders))
    assert [(r.family, r.feature) for r in found.reasons] == [(None, "norm")]
    assert found.index == 3


def test_one_that_points_elsewhere_in_one_family_is_found_there() -> None:
    adapters = homogeneous(10)
    for module in adapters[2].layer_names:
        if module.endswith("q_proj"):
            adapters[2].lora_b[module] = -adapters[2].lora_b[module]
    found = find_outliers(adapters)
    assert [row["index"] for row in found] == [2]
    assert (found[0]["family"], found[0]["feature"]) == ("q_proj", "similarity")
    assert found[0]["value"] < 0 < found[0]["typical"]


def test_a_second_outlier_does_not_hide_the_first() -> None:
    adapters = homogeneous(12)
    for i in (3, 8):
        adapters[i].scales = dict.fromkeys(MODULES, 20.0)
    assert [row["index"] for row in find_outliers(adapters)] == [3, 8]


def test_a_lower_threshold_only_adds() -> None:
    relations = relate([*homogeneous(8), adapter(9, scale=20.0)])
    counts = [
        sum(len(found.reasons) for found in outliers_in(relations, t)) for t in (3.0, 1.0, 0.01)
    ]
    assert counts == sorted(counts)
    assert counts[-1] > 0


@pytest.mark.parametrize("count", [4, 8, 20, 60])
def test_sound_collections_raise_an_alarm_as_rarely_as_the_score_says(count: int) -> None:
    """At the default threshold in 4.6 % of collections at most; 60 are not many, hence 5 of 60."""
    from tests.benchmarks.false_alarms import KINDS, collection

    rng = np.random.default_rng(count)
    alarms = [
        bool(outliers_in(collection(rng, kind, count))) for kind in KINDS[:3] for _ in range(20)
    ]
    assert sum(alarms) <= 5


# duplicates


def test_the_same_change_in_other_clothes_is_a_duplicate() -> None:
    one = cast(adapter(0), torch.float32)
    split = with_factors(one, lambda a, b: (a, b * 4))
    split.scales = {m: s / 4 for m, s in one.scales.items()}
    adapters = [
        one,
        adapter(1),
        cast(other_gauge(adapter(0)), torch.float32),
        split,
        cast(adapter(0), torch.float16),
    ]
    (found,) = find_duplicates(adapters)
    assert found["members"] == [0, 2, 3, 4]
    assert found["kind"] == "same change"
    worst = max(
        float((dense(x, m) - dense(y, m)).norm() / max(dense(x, m).norm(), dense(y, m).norm()))
        for x in adapters
        for y in adapters
        for m in MODULES
        if x is not adapters[1] and y is not adapters[1]
    )
    assert found["difference"] == pytest.approx(worst, rel=1e-3)
    assert found["factors"] == pytest.approx([1, 1, 1, 1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_near_copy_is_none(dtype: torch.dtype) -> None:
    """Not even where one module of many differs by little more than rounding."""
    near = cast(adapter(0), dtype)
    step = 10 * max(torch.finfo(dtype).eps, 1e-6)
    b = adapter(0).lora_b["layers.0.mlp.up"]
    near.lora_b["layers.0.mlp.up"] = (
        b + step * b.norm() * adapter(5).lora_b["layers.0.mlp.up"] / math.sqrt(b.numel())
    ).to(dtype)
    assert find_duplicates([cast(adapter(0), dtype), near]) == []


def test_the_same_bits_are_told_from_the_same_change() -> None:
    one, copy = adapter(0), adapter(0)
    head = with_factors(adapter(0), lambda a, b: (a, b))
    head.rest = {"score": torch.ones(2)}
    (found,) = find_duplicates([one, copy])
    assert (found["kind"], found["difference"]) == ("identical", 0.0)
    (found,) = find_duplicates([one, copy, head])
    assert (found["members"], found["kind"]) == ([0, 1, 2], "same change")


def test_one_change_at_other_strengths_is_told_with_its_factors() -> None:
    twice = with_factors(other_gauge(adapter(0)), lambda a, b: (a, 2 * b))
    against = with_factors(adapter(0), lambda a, b: (a, -b))
    uneven = adapter(0)
    uneven.scales["layers.0.mlp.up"] = 3.0
    (found,) = find_duplicates([adapter(0), twice, against, uneven])
    assert (found["members"], found["kind"]) == ([0, 1], "multiple")
    assert found["factors"] == pytest.approx([1, 2])


def test_adapters_without_effect_are_only_duplicates_bit_for_bit() -> None:
    nothing = [adapter(i, scale=0.0) for i in (0, 1, 1)]
    (found,) = find_duplicates([*nothing, adapter(5)])
    assert (found["members"], found["kind"]) == ([1, 2], "identical")


# runs of checkpoints


def trained(step: int, seed: int = 0) -> LoRAWeights:
    """A run: A drifts a little, B grows from zero along a bent way."""
    start, way, bend = adapter(seed), adapter(seed + 100), adapter(seed + 200)
    t = step / 1000
    return LoRAWeights(
        layer_names=start.layer_names,
        lora_a={m: a + 0.1 * t * way.lora_a[m] for m, a in start.lora_a.items()},
        lora_b={m: t * way.lora_b[m] + t * t * bend.lora_b[m] for m in start.layer_names},
        rank=start.rank,
        scales=dict(start.scales),
    )


def save(place: Path, weights: LoRAWeights) -> Path:
    tensors = {
        f"base_model.model.{m}.lora_{side}.weight": factor[m].float().contiguous()
        for side, factor in (("A", weights.lora_a), ("B", weights.lora_b))
        for m in weights.layer_names
    }
    names = sorted({m.rpartition(".")[2] for m in MODULES})
    config = make.config(
        r=3, lora_alpha=3, target_modules=names, fan_in_fan_out=False, base_model_name_or_path="m"
    )
    return make.write(place, tensors, config)


def test_checkpoints_are_found_by_their_names_in_the_order_of_their_steps(tmp_path: Path) -> None:
    places = [save(tmp_path / "one" / f"checkpoint-{s}", trained(s)) for s in (1000, 200, 90)] + [
        save(tmp_path / "other" / f"checkpoint-{s}", trained(s, 7)) for s in (50, 90)
    ]
    (first, second) = find_runs([open_adapter(p) for p in places])
    assert (first["members"], first["steps"]) == ([2, 1, 0], [90, 200, 1000])
    assert (first["kind"], first["ordered_by"], first["monotone"]) == ("run", "names", True)
    assert "names" in first["how"]
    assert first["cosine"] > 0.9
    assert (second["members"], second["monotone"]) == ([3, 4], None)


def test_trainer_state_tells_steps_and_the_folder_holds_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = []
    for name, step in (("late", 800), ("early", 100)):
        places.append(save(run / name, trained(step)))
        (places[-1] / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    places.append(save(run, trained(1000)))
    (found,) = find_runs([open_adapter(p) for p in places])
    assert (found["members"], found["steps"]) == ([1, 0, 2], [100, 800, None])
    assert found["ordered_by"] == "trainer_state"
    (places[0] / "trainer_state.json").write_text('{"global_step": true}')
    assert step_of(places[0]).number is None
    (places[0] / "trainer_state.json").write_text("[not json")
    assert step_of(places[0]).number is None


def test_without_names_a_run_is_told_by_growth_and_a_common_seed_is_not() -> None:
    shuffled = [trained(s) for s in (900, 100, 500, 300)]
    (found,) = find_runs([*shuffled, adapter(50)])
    assert (found["members"], found["ordered_by"]) == ([1, 3, 2, 0], "growth")
    one_seed = [adapter(60 + i, start=5) for i in range(4)]
    (found,) = find_runs([*one_seed, adapter(51)])
    assert (found["members"], found["kind"]) == ([0, 1, 2, 3], "start")
    assert (found["ordered_by"], found["steps"], found["monotone"]) == (None, None, None)


def test_copies_are_no_common_start() -> None:
    assert find_runs([adapter(0), adapter(0), adapter(1)]) == []


def test_two_places_of_one_step_do_not_make_a_run() -> None:
    sources = [MemorySource(trained(s)) for s in (100, 200)]
    relations = relate(sources)
    (found,) = runs_in(relations, [Step("r", 5, "names"), Step("r", 5, "names")])
    assert found.kind == "start"
    assert [run.as_dict() for run in runs_among(sources, relations)] == [found.as_dict()]


# in the spectra


@pytest.fixture
def collection(tmp_path: Path) -> dict[str, Path]:
    places = {f"a{i}": save(tmp_path / "in" / f"a{i}", w) for i, w in enumerate(homogeneous(6))}
    places["twin"] = save(tmp_path / "in" / "twin", homogeneous(6)[3])
    for step in (100, 300):
        name = f"checkpoint-{step}"
        places[name] = save(tmp_path / "in" / name, trained(step, 9))
    return places


def test_the_spectra_hold_the_same(collection: dict[str, Path], tmp_path: Path) -> None:
    sources = {
        name: open_adapter(path) for path, name in zip(collection.values(), collection, strict=True)
    }
    compute_spectra(sources, tmp_path / "spectra")
    spectra = Spectra.load(tmp_path / "spectra")
    ordered = [sources[task.name] for task in spectra.tasks]
    expected = relate(ordered)
    kept = spectra.relations
    assert kept is not None
    assert kept.total == pytest.approx(expected.total, rel=1e-12)
    assert kept.holders.keys() == kept.families.keys() == expected.families.keys()
    for name, gram in expected.families.items():
        assert kept.families[name] == pytest.approx(gram, rel=1e-5, abs=1e-5)
    for name in ("starts", "difference", "turn"):
        assert getattr(kept, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-5)
    dtypes, digests = zip(*((task.dtype, task.digest) for task in spectra.tasks), strict=True)
    told = [group.as_dict() for group in duplicates_in(kept, dtypes, digests)]
    assert told == [group.as_dict() for group in duplicates_among(ordered, expected)]
    assert [told[0]["kind"], len(told)] == ["identical", 1]
    runs = runs_in(kept, [step_of(task.path) for task in spectra.tasks])
    assert [run.steps for run in runs if run.kind == "run"] == [(100, 300)]
    seen = [found.index for found in outliers_in(kept)]
    assert seen == [found.index for found in outliers_in(expected)]


def test_spectra_of_another_version_still_tell_the_whole(
    collection: dict[str, Path], tmp_path: Path
) -> None:
    sources = {name: open_adapter(path) for name, path in collection.items()}
    compute_spectra(sources, tmp_path / "spectra")
    file = tmp_path / "spectra" / "similarity.safetensors"
    arrays = load_file(file)
    for version in (None, 1, 3):
        changed = {k: v for k, v in arrays.items() if k != "version"}
        if version is not None:
            changed["version"] = np.array([version], dtype=np.int32)
        save_file(changed, file)
        spectra = Spectra.load(tmp_path / "spectra")
        assert spectra.relations is not None
        assert spectra.inner is not None
        assert not spectra.relations.families
        assert not spectra.is_whole
        assert duplicates_in(spectra.relations, ["F32"] * len(spectra.tasks)) == []
        assert runs_in(spectra.relations, [None] * len(spectra.tasks)) == []
    assert Relations.of_arrays(arrays).families


# real adapters


def test_real_checkpoints_are_one_run_with_and_without_their_names(real_adapters: Path) -> None:
    places = sorted((real_adapters / "roberta-checkpoints").iterdir())
    sources = [open_adapter(place) for place in places]
    relations = relate(sources)
    (run,) = runs_among(sources, relations)
    assert (run.steps, run.monotone) == ((500, 2500, 4500, 6500, 8500), True)
    (grown,) = runs_in(relations, [None] * 5)
    assert (grown.members, grown.ordered_by) == (run.members, "growth")
    assert duplicates_among(sources, relations) == []
    assert outliers_in(relations) == []


def test_real_adapters_of_one_seed_are_no_run(real_adapters: Path) -> None:
    places = sorted((real_adapters / "gpt2-medical-sports-legal").iterdir())
    sources = [open_adapter(place) for place in places]
    relations = relate(sources)
    (start,) = runs_among(sources, relations)
    assert start.kind == "start"
    assert [places[i].name[:7] for i in start.members] == ["medical", "sports-"]
    (outlier,) = outliers_in(relations)
    assert places[outlier.index].name == "seqcls-gurvineet-run5"
    assert outlier.reasons[0].feature == "norm"
