"""Small adapters for tests: written by hand tensor by tensor, or by PEFT on tiny models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlora_engine.adapters.model import LoRAWeights

PREFIX = "base_model.model."
MODULES = {
    "transformer.h.0.attn.c_attn": (12, 36),
    "transformer.h.0.attn.c_proj": (12, 12),
    "transformer.h.1.attn.c_attn": (12, 36),
    "transformer.h.1.attn.c_proj": (12, 12),
}  # name: (d_in, d_out)


def config(**changes: Any) -> dict[str, Any]:
    """A config as PEFT writes it; a field given as None is null, as ... is left out."""
    fields: dict[str, Any] = {
        "alpha_pattern": {},
        "base_model_name_or_path": "gpt2",
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {},
        "target_modules": ["c_attn", "c_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def factors(
    modules: Mapping[str, tuple[int, int]] = MODULES,
    *,
    rank: int | Mapping[str, int] = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random A (r, d_in) and B (d_out, r) of every module, under PEFT's keys."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (d_in, d_out) in modules.items():
        r = rank if isinstance(rank, int) else rank[name]
        for side, shape in (("A", (r, d_in)), ("B", (d_out, r))):
            values = torch.randn(shape, generator=generator, dtype=torch.float32)
            tensors[f"{PREFIX}{name}.lora_{side}.weight"] = values.to(dtype)
    return tensors


def write(
    directory: Path,
    tensors: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    pickle: bool = False,
) -> Path:
    """A PEFT directory with these tensors and this config."""
    tensors = factors() if tensors is None else dict(tensors)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(settings or config()))
    if pickle:
        torch.save(tensors, directory / "adapter_model.bin")
    else:
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def weights(
    modules: Mapping[str, tuple[int, int]] = MODULES,
    *,
    rank: int | Mapping[str, int] = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> LoRAWeights:
    """The same in memory, with an alpha of twice the rank unless ``metadata`` says otherwise."""
    tensors = factors(modules, rank=rank, seed=seed, dtype=dtype)
    names = sorted(modules)
    nominal = rank if isinstance(rank, int) else max(rank.values())
    kwargs.setdefault("metadata", config(r=nominal, lora_alpha=2 * nominal))
    return LoRAWeights(
        layer_names=names,
        lora_a={name: tensors[f"{PREFIX}{name}.lora_A.weight"] for name in names},
        lora_b={name: tensors[f"{PREFIX}{name}.lora_B.weight"] for name in names},
        rank=nominal,
        **kwargs,
    )


def collection(
    directory: Path, count: int, *, shared: int = 3, noise: float = 0.05, **kwargs: Any
) -> list[Path]:
    """``count`` adapters whose updates mostly lie in ``shared`` common directions a side."""
    basis = factors(rank=shared, seed=10_000)
    paths = []
    for i in range(count):
        tensors = factors(seed=i + 1, **kwargs)
        mix = torch.Generator().manual_seed(20_000 + i)
        for key, own in tensors.items():
            common = basis[key]
            rank = own.shape[0] if "lora_A" in key else own.shape[1]
            if "lora_A" in key:
                common = torch.randn(rank, shared, generator=mix) @ common
            else:
                common = common @ torch.randn(shared, rank, generator=mix)
            tensors[key] = (common + noise * own).to(own.dtype)
        paths.append(write(directory / f"task{i:02d}", tensors))
    return paths


def tiny_gpt2(seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A GPT-2 of two layers from a config: Conv1D, so its weights are (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**{**shape, **changes})).eval()


def tiny_llama(seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A Llama of two layers from a config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 40,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


def peft_model(base: torch.nn.Module, targets: Sequence[str] | str, seed: int = 1, **fields: Any):
    """``base`` with a LoRA by PEFT whose B is random, so that it has an effect."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **fields})
    model = get_peft_model(base, settings).eval()
    randomise(model)
    return model


def randomise(model: torch.nn.Module) -> None:
    """Give every trainable tensor random values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn_like(parameter))


def logits(model: torch.nn.Module) -> Tensor:
    """What ``model`` says to a fixed sentence."""
    tokens = torch.arange(12).reshape(1, -1) % 40
    with torch.no_grad():
        return model(input_ids=tokens).logits
