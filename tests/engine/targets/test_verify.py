"""Reading back what was written, and another alpha for the same weight change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import load_adapter
from vlora_engine.errors import ParameterError, StorageError
from vlora_engine.linalg import low_rank
from vlora_engine.resizing import resize
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.verify import verify_adapter, with_alpha

HEAD = "base_model.model.score.weight"


@pytest.fixture
def meant() -> LoRAWeights:
    return make.weights(rest={HEAD: torch.arange(24.0).reshape(2, 12)})


def deltas(weights: LoRAWeights) -> dict[str, torch.Tensor]:
    return {name: weights.delta(name).double() for name in weights.layer_names}


def test_what_was_written_reads_back(meant: LoRAWeights, tmp_path: Path) -> None:
    save_adapter(meant, tmp_path / "a")
    assert verify_adapter(meant, tmp_path / "a") == 0


def test_the_same_numbers_are_verified_without_arithmetic(
    meant: LoRAWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(meant, tmp_path / "a")
    monkeypatch.setattr(low_rank, "relative_error", None)
    assert verify_adapter(meant, tmp_path / "a") == 0


def test_numbers_that_are_not_finite_are_never_right(meant: LoRAWeights, tmp_path: Path) -> None:
    save_adapter(meant, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = meant.layer_names[0]
    (key,) = (key for key in tensors if "lora_B" in key and name in key)
    tensors[key][0, 0] = meant.lora_b[name][0, 0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(StorageError, match="does not read back"):
        verify_adapter(meant, tmp_path / "a")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_rounding_of_a_dtype_is_allowed_for(
    meant: LoRAWeights, tmp_path: Path, dtype: str
) -> None:
    save_adapter(meant, tmp_path / "a", dtype=dtype)
    assert 1e-5 < verify_adapter(meant, tmp_path / "a") < 1e-2


def alter(folder: Path, how: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    match how:
        case "value":
            tensors[key][0, 0] += 0.01
        case "head":
            tensors[HEAD][0, 0] += 1
        case "no head":
            del tensors[HEAD]
        case "no module":
            for side in "AB":
                del tensors[key.replace("lora_B", f"lora_{side}")]
        case "scale":
            config = json.loads((folder / "adapter_config.json").read_text())
            config["lora_alpha"] += 1
            (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, file)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize("how", ["value", "head", "no head", "no module", "scale", "cut"])
def test_a_difference_is_found(meant: LoRAWeights, tmp_path: Path, how: str) -> None:
    save_adapter(meant, tmp_path / "a")
    alter(tmp_path / "a", how)
    with pytest.raises(StorageError, match="does not read back"):
        verify_adapter(meant, tmp_path / "a")


def test_another_alpha_leaves_the_weight_change(meant: LoRAWeights) -> None:
    other = with_alpha(meant, 32)
    assert other.metadata["lora_alpha"] == 32
    assert set(other.scales.values()) == {8.0}  # 32 / rank 4, from 2.0
    for name, delta in deltas(meant).items():
        torch.testing.assert_close(deltas(other)[name], delta, rtol=1e-12, atol=1e-12)
    assert meant.metadata["lora_alpha"] == 8  # the original is as it was


def test_an_alpha_that_was_never_known_is_news() -> None:
    weights = make.weights(metadata=make.config(lora_alpha=...))
    assert set(weights.scales.values()) == {1.0}
    told = with_alpha(weights, 16)
    for name, delta in deltas(weights).items():
        torch.testing.assert_close(deltas(told)[name], 4 * delta)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_an_alpha_is_positive(meant: LoRAWeights, alpha: float) -> None:
    with pytest.raises(ParameterError, match="positive"):
        with_alpha(meant, alpha)


@pytest.mark.parametrize("change", ["alpha", "one scale"])
def test_the_bias_of_b_keeps_its_effect_under_another_scale(tmp_path: Path, change: str) -> None:
    """PEFT adds scale * (B A x + bias): a bias that stayed would act more, or less."""
    peft = pytest.importorskip("peft")
    fields = {"lora_bias": True, "alpha_pattern": {"layers.1.self_attn.q_proj": 30}}
    model = make.peft_model(make.tiny_llama(), ["q_proj"], **fields)
    make.randomise(model)
    model.save_pretrained(tmp_path / "in")
    adapter = load_adapter(tmp_path / "in")
    if change == "alpha":
        changed = with_alpha(adapter, 24)
    else:
        changed, _ = resize(adapter, target="llamacpp")
    out = save_adapter(changed, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(make.tiny_llama(), out)
    torch.testing.assert_close(make.logits(again), make.logits(model), rtol=1e-5, atol=1e-5)
