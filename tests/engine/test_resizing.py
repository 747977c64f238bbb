"""Another rank: the nearest adapter of it, and the same adapter where the rank suffices."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights, ModuleShape
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.errors import AdapterError, ParameterError
from vlora_engine.resizing import resize
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.sizing import cheapest
from vlora_engine.targets.verify import verify_adapter


def decaying(rank: int = 6, seed: int = 0, **kwargs) -> LoRAWeights:
    """Adapters whose directions matter less and less, as trained ones' do."""
    weights = make.weights(rank=rank, seed=seed, **kwargs)
    for i, name in enumerate(weights.layer_names):
        fade = (0.3 + 0.1 * i) ** torch.arange(rank, dtype=torch.float64)
        weights.lora_a[name] = (weights.lora_a[name].double() * fade[:, None]).to(
            weights.lora_a[name].dtype
        )
    return weights


def truncated(dW: torch.Tensor, rank: int) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(dW, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def error_of(one: LoRAWeights, other: LoRAWeights) -> float:
    lost = sum(float((one.delta(n) - other.delta(n)).square().sum()) for n in one.layer_names)
    return math.sqrt(lost / sum(float(one.delta(n).square().sum()) for n in one.layer_names))


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("rslora", [False, True])
def test_cutting_is_the_truncated_svd_of_dw(rank: int, rslora: bool) -> None:
    settings = make.config(r=6, lora_alpha=9, use_rslora=rslora)
    weights = decaying(metadata=settings)
    smaller, report = resize(weights, rank=rank)
    for name in weights.layer_names:
        meant = truncated(weights.delta(name), rank)
        torch.testing.assert_close(smaller.delta(name), meant, rtol=0, atol=2e-6)
        assert smaller.lora_a[name].shape[0] == rank
    assert report.error == pytest.approx(error_of(weights, smaller), rel=1e-6)
    worst, worst_error = report.worst
    assert worst_error == max(m.error for m in report.modules.values()) > 0
    assert report.modules[worst].error == worst_error
    assert smaller.metadata["r"] == rank
    assert smaller.metadata["use_rslora"] is rslora


def test_raising_a_rank_changes_no_bit_of_dw() -> None:
    weights = make.weights(rank=3, metadata=make.config(r=3, lora_alpha=5))
    larger, report = resize(weights, rank=8)
    for name in weights.layer_names:
        assert torch.equal(larger.lora_a[name][:3], weights.lora_a[name])
        assert torch.equal(larger.lora_b[name][:, :3], weights.lora_b[name])
        assert not larger.lora_a[name][3:].any()
        # zeros are added, perhaps in another order of the sums: a rounding of each summand
        a, b = weights.lora_a[name].double(), weights.lora_b[name].double()
        summed = weights.scales[name] * b.abs() @ a.abs()
        change = (larger.delta(name) - weights.delta(name)).abs()
        assert (change <= 8 * torch.finfo(torch.float64).eps * summed).all()
    assert (report.error, report.kept) == (0.0, 1.0)


def test_the_rank_that_is_there_keeps_every_bit() -> None:
    weights = make.weights(rank=4)
    same, report = resize(weights, rank=4)
    for name in weights.layer_names:
        assert torch.equal(same.lora_a[name], weights.lora_a[name])
        assert torch.equal(same.lora_b[name], weights.lora_b[name])
    assert same.scales == weights.scales
    assert report.error == 0


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_the_energy_asked_for_is_kept_and_no_direction_more(energy: float) -> None:
    weights = decaying()
    smaller, report = resize(weights, energy=energy)
    error = error_of(weights, smaller)
    assert 1 - error**2 >= energy - 1e-9
    assert report.kept == pytest.approx(1 - error**2, abs=1e-7)
    # Without the direction that gave least for its numbers it would be too little.
    last = [
        (float(torch.linalg.svdvals(smaller.delta(n))[m.new_rank - 1]) ** 2, sum(make.MODULES[n]))
        for n, m in report.modules.items()
        if m.new_rank > 1
    ]
    spared = min(last, key=lambda direction: direction[0] / direction[1], default=(1e9, 0))[0]
    total = sum(float(weights.delta(n).square().sum()) for n in weights.layer_names)
    assert report.kept - spared / total < energy
    assert sum(m.new_rank for m in report.modules.values()) < 6 * len(weights.layer_names)


def test_all_of_the_energy_is_everything_that_is_there() -> None:
    weights = decaying()
    for name in weights.layer_names:  # rank 6 on paper, 2 in truth
        weights.lora_b[name][:, 2:] = 0
    smaller, report = resize(weights, energy=1.0)
    assert report.ranks == (2, 2)
    assert error_of(weights, smaller) < 1e-6


@pytest.mark.parametrize(
    ("rule", "limit"), [("sv_ratio", 8.0), ("sv_fro", 0.97), ("sv_cumulative", 0.9)]
)
def test_kohyas_rules_hold_in_every_module(rule: str, limit: float) -> None:
    weights = decaying()
    _, report = resize(weights, dynamic=(rule, limit))
    for name, module in report.modules.items():
        s = torch.linalg.svdvals(weights.delta(name))[:6]
        k = module.new_rank
        if rule == "sv_ratio":
            assert s[0] / s[k - 1] <= limit < s[0] / s[k]
            assert module.sv_ratio == pytest.approx(float(s[0] / s[k - 1]), rel=1e-5)
        elif rule == "sv_fro":
            assert s[:k].norm() / s.norm() >= limit > s[: k - 1].norm() / s.norm()
            assert module.sv_fro == pytest.approx(float(s[:k].norm() / s.norm()), rel=1e-6)
        else:
            assert s[:k].sum() / s.sum() >= limit > s[: k - 1].sum() / s.sum()
            assert module.sv_cumulative == pytest.approx(float(s[:k].sum() / s.sum()), rel=1e-6)


def test_a_cap_is_kept_and_what_it_costs_is_said() -> None:
    _, report = resize(decaying(), energy=0.9999, rank=2)
    assert report.ranks[1] == 2
    assert "need more" in report.short
    assert report.kept < 0.9999


def test_for_vllm_one_rank_and_one_scale(tmp_path: Path) -> None:
    modules = {f"h.{i}.c_fc": (40, 24) for i in range(4)}
    names = list(modules)
    weights = make.weights(
        modules,
        rank=dict(zip(names, (3, 5, 9, 20), strict=True)),
        metadata=make.config(
            r=3,
            lora_alpha=6,
            rank_pattern=dict(zip(names[1:], (5, 9, 20), strict=True)),
            alpha_pattern={names[2]: 40},
        ),
    )
    served, report = resize(weights, target="vllm", rank=16)
    written = json.loads((save_adapter(served, tmp_path / "v") / "adapter_config.json").read_text())
    # What vLLM computes with: r and lora_alpha, whatever the patterns say.
    assert (written["r"], written["rank_pattern"], written["alpha_pattern"]) == (16, {}, {})
    scale = written["lora_alpha"] / written["r"]
    for name in names:
        meant = truncated(weights.delta(name), 16)
        found = scale * served.lora_b[name].double() @ served.lora_a[name].double()
        torch.testing.assert_close(found, meant, rtol=0, atol=1e-4)
    assert report.former_ranks == (3, 20)
    whole, report = resize(weights, target="vllm")
    assert whole.metadata["r"] == 20  # what is not above the limit stays
    assert report.error < 1e-7
    assert resize(weights, target="vllm", rank=64)[0].metadata["r"] == 20


def flat(rank: int, size: int) -> LoRAWeights:
    """An adapter of this rank whose singular values are all one size: every cut costs."""
    side = torch.linalg.qr(torch.randn(size, rank, generator=torch.Generator().manual_seed(0)))[0]
    weights = make.weights({"h.0.c_fc": (size, size)}, rank=rank)
    weights.lora_a["h.0.c_fc"], weights.lora_b["h.0.c_fc"] = side.T.contiguous(), side
    return weights


def test_a_servers_limit_cuts_only_what_is_above_it_and_only_if_it_costs_little() -> None:
    weights = flat(516, 520)
    lost = math.sqrt(4 / 516)  # four of 516 equal directions
    with pytest.raises(AdapterError) as refused:
        resize(weights, target="vllm")
    assert f"{100 * lost:.3g} %" in str(refused.value)
    assert "--rank 512" in str(refused.value)
    cut, report = resize(weights, target="vllm", max_error=0.1)
    assert cut.metadata["r"] == 512
    assert report.error == pytest.approx(lost, rel=1e-4)
    assert resize(weights, target="vllm", rank=512)[1].error == pytest.approx(lost, rel=1e-4)
    assert resize(weights, target="sglang")[0].metadata["r"] == 516
    # Of what is there in name alone nothing is lost.
    empty = flat(516, 520)
    empty.lora_b["h.0.c_fc"][:, 500:] = 0
    assert resize(empty, target="vllm")[1].error < 1e-6
    with pytest.raises(AdapterError, match="dW would change"):
        resize(flat(64, 80), rank=32, max_error=0.1)


def test_mixed_ranks_go_to_rank_pattern_and_peft_gives_the_delta_meant(tmp_path: Path) -> None:
    from peft import PeftModel

    base = make.tiny_llama()
    tuned = make.peft_model(make.tiny_llama(), ["q_proj", "down_proj"], r=6, use_rslora=True)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if "lora_A" in key:
                parameter *= (0.2 if "q_proj" in key else 0.8) ** torch.arange(6.0)[:, None]
    tuned.save_pretrained(tmp_path / "a")
    source = open_adapter(tmp_path / "a")
    smaller, report = resize(source, energy=0.98)
    assert report.ranks[0] < report.ranks[1]
    save_adapter(smaller, tmp_path / "b")
    assert verify_adapter(smaller, tmp_path / "b") < 1e-6
    before = {n: p.detach().clone().double() for n, p in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, tmp_path / "b").merge_and_unload()
    after = dict(merged.named_parameters())
    for name, module in report.modules.items():
        added = after[f"{name}.weight"].detach().double() - before[f"{name}.weight"]
        whole = load_adapter(tmp_path / "a").delta(name)
        meant = truncated(whole, module.new_rank)
        torch.testing.assert_close(added, meant, rtol=0, atol=3e-6)


def test_rest_tensors_convolutions_and_embeddings(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "base_model.model.conv.lora_A.weight": random(4, 3, 3, 3),
        "base_model.model.conv.lora_B.weight": random(8, 4, 1, 1),
        "base_model.model.embed.lora_embedding_A": random(4, 20),
        "base_model.model.embed.lora_embedding_B": random(10, 4),
        "base_model.model.score.weight": random(2, 8).half(),
    }
    make.write(tmp_path / "a", tensors, make.config(target_modules=["conv", "embed"]))
    smaller, report = resize(open_adapter(tmp_path / "a"), rank=2)
    save_adapter(smaller, tmp_path / "b")
    again = load_adapter(tmp_path / "b")
    assert again.shapes["conv"].shape_a == (2, 3, 3, 3)
    head = "base_model.model.score.weight"
    assert torch.equal(again.rest[head], tensors[head])
    for name in ("conv", "embed"):
        meant = truncated(load_adapter(tmp_path / "a").delta(name), 2)
        torch.testing.assert_close(again.delta(name), meant, rtol=0, atol=1e-5)
    assert 0 < report.error < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_include_the_rounding_of_the_stored_dtype(dtype: torch.dtype) -> None:
    weights = decaying(dtype=dtype)
    smaller, report = resize(weights, rank=4)
    assert all(t.dtype == dtype for t in (*smaller.lora_a.values(), *smaller.lora_b.values()))
    assert report.error == pytest.approx(error_of(weights, smaller), rel=1e-6)
    assert report.error**2 > 1 - report.kept


def test_a_module_without_effect_keeps_one_direction_of_nothing() -> None:
    weights = make.weights(rank=4)
    idle = weights.layer_names[0]
    weights.lora_b[idle].zero_()
    for rule in ({"rank": 2}, {"energy": 0.9}, {"dynamic": ("sv_fro", 0.9)}):
        smaller, report = resize(weights, **rule)
        assert not smaller.delta(idle).any()
        assert smaller.lora_a[idle].shape[0] >= 1
        assert report.modules[idle].error == 0


def test_a_negative_scale_keeps_its_sign() -> None:
    weights = decaying(metadata=make.config(r=6, lora_alpha=-3))
    smaller, _ = resize(weights, rank=3)
    for name in weights.layer_names:
        meant = truncated(weights.delta(name), 3)
        torch.testing.assert_close(smaller.delta(name), meant, rtol=0, atol=2e-6)


def test_what_cannot_be_is_refused() -> None:
    weights = make.weights()
    for wrong in (
        {},
        {"rank": 0},
        {"energy": 1.5},
        {"energy": 0.9, "dynamic": ("sv_fro", 0.9)},
        {"dynamic": ("sv_nothing", 0.9)},
        {"dynamic": ("sv_ratio", 0.5)},
        {"target": "no-server"},
        {"target": "vllm", "rank": 513},
        {"rank": 4, "max_error": -1.0},
    ):
        with pytest.raises(ParameterError):
            resize(weights, **wrong)
    weights.lora_a[weights.layer_names[1]][0, 0] = float("nan")
    with pytest.raises(AdapterError, match="not finite"):
        resize(weights, rank=2)


def test_of_equal_energies_the_one_of_fewer_numbers_is_kept() -> None:
    shapes = {"wide": ModuleShape(3, 900, 900, "F32"), "small": ModuleShape(3, 8, 8, "F32")}
    values = {"wide": [10.0, 1.0, 0.9], "small": [10.0, 1.0, 0.9]}
    total = 2 * (100 + 1 + 0.81)
    assert cheapest(shapes, values, (200 + 0.5) / total) == {"wide": 1, "small": 2}
    # 0.81 of the small one comes before 1 of the wide one: it costs a hundredth.
    assert cheapest(shapes, values, (200 + 1.5) / total) == {"wide": 1, "small": 3}
    assert cheapest(shapes, values, (200 + 2.5) / total) == {"wide": 2, "small": 3}
    assert cheapest(shapes, values, 1.0) == {"wide": 3, "small": 3}
