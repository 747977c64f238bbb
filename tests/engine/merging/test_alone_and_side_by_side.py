"""One adapter merged alone (negated, scaled), and cat; PEFT and the dense dW are witnesses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.merging.made import DIMS, MIXED, assert_same_deltas, deltas, make
from tests.witnesses import make as witness
from vlora_engine.catalog.open import load_adapter
from vlora_engine.errors import ParameterError
from vlora_engine.merging import MERGE_METHODS, merge, merge_with_report
from vlora_engine.targets.save import save_adapter

KEEPS = sorted(n for n, m in MERGE_METHODS.items() if m.normalises == "no")
CANCELS = sorted(n for n, m in MERGE_METHODS.items() if m.normalises == "sum" and not m.adapters)
AVERAGES = sorted(n for n, m in MERGE_METHODS.items() if m.normalises == "entry")


# ---- one adapter alone --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "cat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_negative_of_one_adapter_has_its_own_numbers(method, dtype):
    adapter = make(0, 3, 1.7, dtype=dtype)
    merged = merge([adapter], method, weights=[-1])
    assert merged.scales == adapter.scales
    for module in DIMS:
        assert torch.equal(merged.lora_a[module], -adapter.lora_a[module])
        assert torch.equal(merged.lora_b[module], adapter.lora_b[module])


@pytest.mark.parametrize("method", KEEPS)
@pytest.mark.parametrize("weight", [-1.0, 0.25, -3.0])
def test_a_weight_of_one_adapter_scales_its_change(method, weight):
    """Of every method that takes weights as they are, at the parameters that change nothing."""
    adapter = make(3, 2, 2.0)
    once = merge([adapter], method, **MERGE_METHODS[method].neutral)
    if method != "iso_c":  # which evens out the singular values
        assert_same_deltas(once, adapter)
    expected = {module: weight * delta for module, delta in deltas(once).items()}
    scaled = merge([adapter], method, weights=[weight], **MERGE_METHODS[method].neutral)
    assert_same_deltas(scaled, expected)


@pytest.mark.parametrize("method", CANCELS)
def test_a_weight_that_would_be_divided_by_itself_is_refused(method):
    with pytest.raises(ParameterError, match=r"of one adapter's -1 1 would be left") as refused:
        merge([make(0)], method, weights=[-1])
    assert "--method linear" in str(refused.value)
    merge([make(0)], method, weights=[1])


@pytest.mark.parametrize("method", AVERAGES)
def test_an_average_keeps_a_weights_sign_alone_and_says_so(method):
    adapter, neutral = make(0), MERGE_METHODS[method].neutral
    minus = {module: -delta for module, delta in deltas(adapter).items()}
    assert_same_deltas(merge([adapter], method, weights=[-1], **neutral), minus)
    with pytest.raises(ParameterError, match="would be left"):
        merge([adapter], method, weights=[-0.5], **neutral)
    with pytest.raises(ParameterError, match="would be left"):
        merge([adapter], method, layers={"*.q": [0.5]}, **neutral)
    if MERGE_METHODS[method].may_normalise:
        half = merge([adapter], method, weights=[-0.5], normalize=False, **neutral)
        assert_same_deltas(half, {module: delta / 2 for module, delta in minus.items()})


def test_peft_applies_the_negative(tmp_path: Path):
    """Patterns of rank and alpha, rsLoRA: what PEFT applies is minus what it applied."""
    fields = {"use_rslora": True, "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"q_proj": 2}}
    model = witness.peft_model(witness.tiny_llama(), ["q_proj", "v_proj"], **fields)
    model.save_pretrained(tmp_path / "a")
    save_adapter(merge([load_adapter(tmp_path / "a")], "linear", weights=[-1]), tmp_path / "minus")
    from peft import PeftModel

    negative = PeftModel.from_pretrained(witness.tiny_llama(), str(tmp_path / "minus"))
    count = 0
    for (name, one), (_, other) in zip(
        model.named_modules(), negative.named_modules(), strict=True
    ):
        if getattr(one, "lora_A", None):
            expected = -one.get_delta_weight("default")
            torch.testing.assert_close(other.get_delta_weight("default"), expected, msg=name)
            count += 1
    assert count == 4


def test_what_stands_beside_a_and_b_is_not_weighted_and_this_is_told():
    adapter = make(0)
    adapter.rest["base_model.model.score.weight"] = torch.ones(2, 3)
    merged, report = merge_with_report([adapter], "linear", weights=[-1])
    assert torch.equal(merged.rest["base_model.model.score.weight"], torch.ones(2, 3))
    assert [finding.code for finding in report.findings] == ["rest-unweighted"]


# ---- side by side -------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [None, "peft"])
@pytest.mark.parametrize("weights", [[0.7, 0.4], [0.7, -0.4], [1.0, 1.0]])
def test_cat_is_pefts(dialect, weights):
    """The same dW, the same rank, from ranks and scales that differ."""
    peft = pytest.importorskip("peft")
    base = witness.tiny_llama()
    first = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    model = peft.get_peft_model(base, peft.LoraConfig(**first))
    second = {"r": 3, "lora_alpha": 1, "target_modules": ["q_proj"]}
    model.add_adapter("other", peft.LoraConfig(**second))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ours = []
    for name in ("default", "other"):
        tensors = peft.get_peft_model_state_dict(model, adapter_name=name)
        keys = sorted({k.split(".lora_")[0] for k in tensors})
        a = {k.removeprefix("base_model.model."): tensors[f"{k}.lora_A.weight"] for k in keys}
        b = {k.removeprefix("base_model.model."): tensors[f"{k}.lora_B.weight"] for k in keys}
        config = model.peft_config[name]
        meta = {"r": config.r, "lora_alpha": config.lora_alpha}
        ours.append(witness.LoRAWeights(list(a), a, b, config.r, meta))
    model.add_weighted_adapter(["default", "other"], weights, "sum", combination_type="cat")
    given = None if weights == [1.0, 1.0] else weights  # 1 each is what it does by default
    merged, report = merge_with_report(ours, "cat", dialect=dialect, weights=given)
    assert report.weights == tuple(weights)
    found = 0
    for name, module in model.base_model.model.named_modules():
        if "sum" in getattr(module, "lora_A", {}):
            expected = module.get_delta_weight("sum").detach().double()
            torch.testing.assert_close(merged.delta(name), expected, rtol=0, atol=1e-6)
            rank = module.lora_A["sum"].weight.shape[0]
            assert report.ranks[name] == (rank if name.endswith("q_proj") else 2) <= rank == 5
            found += 1
    assert found == len(merged.layer_names) == 4


def test_cat_stacks_and_a_cut_of_its_rank_is_the_best_one():
    merged, report = merge_with_report(MIXED, "cat", weights=[0.7, -0.2, 1.5, 0.4])
    assert report.ranks["layers.0.q"] == sum(adapter.rank for adapter in MIXED)
    assert_same_deltas(merged, merge(MIXED, "linear", weights=[0.7, -0.2, 1.5, 0.4]))
    cut, report = merge_with_report(MIXED, "cat", rank=3)
    assert set(report.ranks.values()) == {3}
    assert_same_deltas(cut, merge(MIXED, "linear", weights=[1] * 4, rank=3))


def test_cat_says_that_it_is_no_average():
    _, report = merge_with_report(MIXED, "cat")
    (note,) = [finding for finding in report.findings if finding.code == "method"]
    assert note.severity == "note"
    assert "adds the adapters up" in note.what


def test_equal_scales_stay_and_so_do_the_numbers():
    pair = [make(0, scale=4.0, dtype=torch.float16), make(1, scale=4.0, dtype=torch.float16)]
    merged = merge(pair, "cat")
    for module in DIMS:
        stacked = torch.cat([adapter.lora_a[module] for adapter in pair])
        assert torch.equal(merged.lora_a[module], stacked)
        assert merged.scales[module] == 4.0


# ---- the name that was typed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "dialect", "label"),
    [
        ("linear", None, "linear"),
        ("average", None, "average"),
        ("task_arithmetic", None, "task_arithmetic"),
        ("dare-linear", None, "dare-linear"),
        ("knots_ties", None, "knots_ties"),
        ("average", "peft", "linear"),  # nobody typed that: it is the default of both
        ("cat", "peft", "cat"),
    ],
)
def test_a_report_names_the_method_as_it_was_asked_for(typed, dialect, label):
    pair = [make(0), make(1)]
    assert merge_with_report(pair, typed, dialect=dialect)[1].method == label


def test_an_error_does_too():
    with pytest.raises(ParameterError, match="Merging by nuslerp takes 2 adapters"):
        merge(MIXED, "nuslerp")
