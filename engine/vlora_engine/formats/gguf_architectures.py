"""The architectures that GGUF adapters are written for, with llama.cpp's names of their modules.

Only those stand here whose files are proved by a test that runs the model as llama.cpp does. The
names are those of the PyPI package ``gguf`` (a test compares them); they stand here so that an
adapter can be judged, and a file read, where that package is not installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_SPLIT = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
HEAD = {"lm_head": "output"}  # the one module outside of blocks


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Args:
        name: llama.cpp's word, ``general.architecture``.
        models: transformers' model_type and class, of which it is the architecture.
        leaves: transformers' names of modules inside a block to llama.cpp's.
        block: What comes before them; ``{}`` is the number of the block.
        rotated: Modules whose rows llama.cpp orders for a rotation of adjacent pairs, where
            transformers rotates halves of a head: "q" has the heads, "k" the key-value heads.
        head: The output layer, where it can have a weight of its own.
    """

    name: str
    models: Mapping[str, str]
    leaves: Mapping[str, str] = field(default_factory=lambda: _SPLIT)
    block: str = "model.layers.{}."
    rotated: Mapping[str, str] = field(default_factory=dict)
    head: Mapping[str, str] = field(default_factory=lambda: HEAD)

    def gguf_name(self, module: str) -> str | None:
        """llama.cpp's name of a module, as in ``blk.3.attn_q``; None where it has none."""
        if module in self.head:
            return self.head[module]
        match = self._module.fullmatch(module)
        leaf = self.leaves.get(match[2]) if match else None
        return None if match is None or leaf is None else f"blk.{match[1]}.{leaf}"

    def module_name(self, gguf_name: str) -> str | None:
        """transformers' name of what llama.cpp calls ``gguf_name``; None where it has none."""
        for module, name in self.head.items():
            if gguf_name == name:
                return module
        match = re.fullmatch(r"blk\.(0|[1-9]\d{0,4})\.(\w+)", gguf_name)
        leaf = {to: leaf for leaf, to in self.leaves.items()}.get(match[2]) if match else None
        return None if match is None or leaf is None else self.block.format(match[1]) + leaf

    def block_of(self, module: str) -> int | None:
        """The number of the block that a module is in."""
        match = self._module.fullmatch(module)
        return None if match is None else int(match[1])

    def rotation_of(self, gguf_name: str) -> str | None:
        """Either "q" or "k", for a module whose rows have another order in llama.cpp."""
        return self.rotated.get(gguf_name.rpartition(".")[2])

    @cached_property
    def _module(self) -> re.Pattern[str]:
        number = "(0|[1-9][0-9]{0,4})"
        return re.compile(re.escape(self.block).replace(r"\{\}", number) + "(.+)")


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "llama",
            {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
            rotated={"attn_q": "q", "attn_k": "k"},
        ),
        Architecture("qwen2", {"qwen2": "Qwen2ForCausalLM"}),
        Architecture("qwen3", {"qwen3": "Qwen3ForCausalLM"}),
        Architecture("gemma2", {"gemma2": "Gemma2ForCausalLM"}, head={}),
        Architecture("gemma3", {"gemma3_text": "Gemma3ForCausalLM"}, head={}),
        Architecture("phi3", {"phi3": "Phi3ForCausalLM"}, leaves=_FUSED),
        Architecture("gpt2", {"gpt2": "GPT2LMHeadModel"}, leaves=_GPT2, block="transformer.h.{}."),
    )
}


def architecture_of(model_type: str, class_name: str | None) -> Architecture | None:
    """The architecture of a model of transformers, if it is one of those that are proved."""
    for architecture in ARCHITECTURES.values():
        expected_class = architecture.models.get(model_type)
        if expected_class is not None and class_name in (None, expected_class):
            return architecture
    return None
