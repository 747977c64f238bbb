"""Tiny models of families whose modules transformers has renamed, and PEFT as the witness.

Each has its old names as adapters of that time have them: before transformers 4.52.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.witnesses.make import PREFIX

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


@dataclass(frozen=True)
class Family:
    """A model class of transformers, the configs of its parts, and its old names of text layers.

    Args:
        head: The class.
        text: What its text part has besides `TEXT`.
        vision: The config of the other part.
        old: What stood before ``layers.0`` in the text part, now ``model.language_model.``.
    """

    head: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    old: str
    more: Mapping[str, Any]

    def model(self) -> torch.nn.Module:
        """The model with fixed random weights; skips where transformers has no such class."""
        import transformers

        cls = getattr(transformers, self.head, None)
        if cls is None:
            pytest.skip(f"transformers {transformers.__version__} has no {self.head}")
        torch.manual_seed(0)
        parts = {"text_config": {**TEXT, **self.text}, "vision_config": dict(self.vision)}
        model = cls(cls.config_class(**parts, **self.more))
        model.config.architectures = [self.head]
        return model.eval()


FAMILIES = {
    "qwen2-vl": Family(
        "Qwen2VLForConditionalGeneration",
        MROPE,
        {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        "model.",
        {},
    ),
    "qwen2.5-vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        MROPE,
        {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "num_heads": 2,
        },
        "model.",
        {},
    ),
    "llava": Family(
        "LlavaForConditionalGeneration",
        {"model_type": "llama"},
        {**VISION, "model_type": "clip_vision_model"},
        "language_model.model.",
        {"image_token_index": 3},
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        {"model_type": "gemma", "head_dim": 8},
        {**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
        "language_model.model.",
        {"image_token_index": 3, "projection_dim": 32},
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        {"head_dim": 8},
        {**VISION, "model_type": "siglip_vision_model"},
        "language_model.model.",
        {"mm_tokens_per_image": 1},
    ),
    "mllama": Family(
        "MllamaForConditionalGeneration",
        {"cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}},
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
            "max_num_tiles": 1,
        },
        "language_model.model.",
        {},
    ),
}


def tune(model: Any, folder: Path, targets: Any, **config: Any) -> dict[str, Tensor]:
    """Write an adapter of random factors for a model; its true dW by module, from PEFT."""
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **config}
    tuned = get_peft_model(model, LoraConfig(target_modules=targets, **config))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    tuned.save_pretrained(folder)
    return changes(tuned)


def changes(tuned: Any) -> dict[str, Tensor]:
    """dW of every module that PEFT adapts, under the module's own name."""
    return {
        name.removeprefix(PREFIX): module.get_delta_weight("default").detach().double()
        for name, module in tuned.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def applied(adapter: Path, model: Any) -> dict[str, Tensor]:
    """dW of every module that PEFT applies when it loads the adapter onto the model."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = changes(PeftModel.from_pretrained(model, adapter).eval())
    return {name: change for name, change in found.items() if change.any()}


def rename(adapter: Path, change: Callable[[str], str]) -> Path:
    """Give every tensor of an adapter another name."""
    file = adapter / "adapter_model.safetensors"
    tensors = {change(key): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return adapter


def reconfigure(adapter: Path, **fields: Any) -> Path:
    """Set fields of an adapter's config."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return adapter


def bits(adapter: Path) -> list[bytes]:
    """The bytes of all tensors, whatever they are called."""
    tensors = load_file(adapter / "adapter_model.safetensors").values()
    return sorted(tensor.numpy().tobytes() for tensor in tensors)
