"""Tensors that are no pairs: those that act are named, and no conversion loses them unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.witnesses import make
from vlora_engine.adapters.model import to_memory
from vlora_engine.catalog.open import open_adapter
from vlora_engine.convert.convert import convert, plan
from vlora_engine.doctor import diagnose, read_base
from vlora_engine.errors import ParameterError, UnsupportedAdapterError
from vlora_engine.formats.rest_tensors import effect_of
from vlora_engine.targets.save import save_adapter

MODULES = [f"diffusion_model.blocks.{i}.{part}" for i in range(2) for part in ("q", "ffn.0")]
DELTAS = {
    f"{MODULES[0]}.diff_b": (32,),
    "diffusion_model.blocks.0.norm3.diff": (32,),
    "diffusion_model.blocks.0.diff_m": (1, 6, 32),
    "diffusion_model.blocks.1.norm.w_norm": (32,),
}


def comfy(path: Path, size: float) -> dict[str, Tensor]:
    """A LoRA of a video model in ComfyUI's form, with deltas of this size beside the pairs."""
    draw = torch.Generator().manual_seed(0)
    tensors = {key: size * torch.randn(shape, generator=draw) for key, shape in DELTAS.items()}
    for module in MODULES:
        tensors[f"{module}.lora_down.weight"] = torch.randn(4, 32, generator=draw)
        tensors[f"{module}.lora_up.weight"] = torch.randn(32, 4, generator=draw)
        tensors[f"{module}.alpha"] = torch.tensor(2.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("blocks.0.norm.diff", "foreign"),
        ("blocks.0.q.diff_b", "foreign"),
        ("blocks.0.norm.b_norm", "foreign"),
        ("base_model.model.q_proj.lora_B.bias", "added"),
        ("base_model.model.q_proj.lora_B.default.bias", "added"),
        ("base_model.model.q_proj.base_layer.bias", "bias"),
        ("base_model.model.lm_head.base_layer.weight", "copy"),
        ("base_model.model.model.embed_tokens.weight", "embedding"),
        ("base_model.model.score.weight", "replaces"),
        ("base_model.model.different.weight", "replaces"),
    ],
)
def test_a_name_tells_what_a_tensor_does(key: str, effect: str) -> None:
    assert effect_of(key) == effect


def test_what_is_added_beside_the_pairs_is_named(tmp_path: Path) -> None:
    comfy(tmp_path / "a.safetensors", 1.0)
    told = {f.code: f for f in diagnose(tmp_path / "a.safetensors").all_findings}
    finding = told["foreign-tensors"]
    assert finding.severity == "warning"
    assert ".diff, .diff_b, .diff_m, .w_norm" in finding.what
    nbytes = 4 * sum(torch.zeros(shape).numel() for shape in DELTAS.values())
    assert f"{nbytes / 1000:.1f} kB" in finding.what
    comfy(tmp_path / "b.safetensors", 0.0)
    codes = [f.code for f in diagnose(tmp_path / "b.safetensors").all_findings]
    assert "foreign-tensors" not in codes  # zero in every entry: there is nothing to lose


@pytest.mark.parametrize("to", ["peft", "mlx"])
def test_a_conversion_loses_no_delta_unasked(to: str, tmp_path: Path) -> None:
    comfy(tmp_path / "a.safetensors", 1.0)
    adapters = {"a": open_adapter(tmp_path / "a.safetensors")}
    with pytest.raises(ParameterError, match=r"\.diff"):
        convert(plan(to, tmp_path / "out", adapters=adapters))
    with pytest.raises(UnsupportedAdapterError, match=r"\.diff"):
        save_adapter(to_memory(adapters["a"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_the_pairs_are_written_and_no_delta_that_nobody_reads(size: float, tmp_path: Path) -> None:
    source = comfy(tmp_path / "a.safetensors", size)
    adapters = {"a": open_adapter(tmp_path / "a.safetensors")}
    convert(plan("peft", tmp_path / "out", adapters=adapters), allow_loss=size > 0)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(written) == 2 * len(MODULES)
    back = open_adapter(tmp_path / "out")
    for module in MODULES:
        a, b = back.read(module)
        down, up = source[f"{module}.lora_down.weight"], source[f"{module}.lora_up.weight"]
        meant = 0.5 * up.double() @ down.double()
        torch.testing.assert_close(back.scales[module] * b.double() @ a.double(), meant)


def test_biases_of_pairs_come_along_for_peft(tmp_path: Path) -> None:
    tuned = make.peft_model(make.tiny_llama(), ["q_proj"], lora_bias=True)
    tuned.save_pretrained(tmp_path / "a")
    save_adapter(to_memory(open_adapter(tmp_path / "a")), tmp_path / "out")
    before, after = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("a", "out"))
    assert any(key.endswith("lora_B.bias") for key in before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    codes = {f.code for f in diagnose(tmp_path / "a", target="vllm").all_findings}
    assert {"vllm-bias", "vllm-heads"} <= codes


# ---- copies of the base


def with_embeddings(folder: Path, **more: Tensor) -> Path:
    """An adapter of a tiny Llama, saved with both of its embeddings as PEFT's option does."""
    model = make.tiny_llama(vocab_size=400, hidden_size=64)
    model.save_pretrained(folder / "base")
    tuned = make.peft_model(model, ["q_proj"])
    tuned.save_pretrained(folder / "a", save_embedding_layers=True)
    if more:
        file = folder / "a" / "adapter_model.safetensors"
        save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    return folder / "a"


def findings(adapter: Path, base: bool) -> Mapping[str, str]:
    facts = read_base(adapter.parent / "base") if base else None
    found = diagnose(adapter, base=facts).all_findings
    return {f.code: f"{f.what} {f.remedy} {f.fix}" for f in found}


def test_copies_of_the_base_are_told_from_trained_ones(tmp_path: Path) -> None:
    adapter = with_embeddings(tmp_path)
    alone, beside = findings(adapter, base=False), findings(adapter, base=True)
    assert "lm_head" in alone["whole-matrices"]
    assert "doctor --base" in alone["whole-matrices"]
    assert "98 % of the adapter" in beside["same-as-base"]
    assert "--target peft --drop-rest" in beside["same-as-base"]
    key = "base_model.model.lm_head.weight"
    trained = with_embeddings(tmp_path / "more", **{key: torch.randn(402, 64)})
    beside = findings(trained, base=True)
    assert "lm_head" in beside["other-than-base"]
    assert "embed_tokens" in beside["same-as-base"]
    assert "--drop-rest" not in beside["same-as-base"]  # the other one acts
