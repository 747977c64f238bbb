"""What llama.cpp computes, written down once more: a witness for GGUF adapters.

`base_weights` does to a model of transformers what convert_hf_to_gguf.py does (names, the order of
rows of q and k, the 1 that is added to Gemma's norms); `Model` runs it as the graphs in llama.cpp's
src/models do, a LoRA applied as its build_lora_mm does. Nothing here is taken from the engine.

`write_base` and `log_probabilities` are for llama.cpp itself, where its Python binding xllamacpp is
installed (it is not needed for the suite).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROTATES_ADJACENT = {"llama"}  # LLAMA_ROPE_TYPE_NORM; the others: NEOX, halves
GEMMA = ("gemma2", "gemma3")
GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NORMS = {
    "gpt2": {"ln_1": "attn_norm", "ln_2": "ffn_norm"},
    "gemma2": GEMMA_NORMS,
    "gemma3": GEMMA_NORMS,
}
USUAL_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py: LlamaModel.permute."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def base_weights(model: torch.nn.Module, arch: str) -> dict[str, Tensor]:
    """The tensors of the base model's GGUF file."""
    config = model.config
    found: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        module, _, kind = key.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        if module in OUTSIDE:
            name = OUTSIDE[module]
        else:
            _, _, number, leaf = module.split(".", 3)
            name = f"blk.{number}.{({**LINEAR, **NORMS.get(arch, USUAL_NORMS)})[leaf]}"
        array = tensor.detach().double().numpy()
        if arch == "gpt2" and ".c_" in key and kind == "weight":
            array = array.T  # Conv1D
        if arch in GEMMA and name.endswith("norm"):
            array = array + 1
        if arch in ROTATES_ADJACENT and name.endswith("attn_q"):
            array = permute(array, config.num_attention_heads)
        if arch in ROTATES_ADJACENT and name.endswith("attn_k"):
            array = permute(array, config.num_key_value_heads)
        found[f"{name}.{kind}"] = torch.from_numpy(array.copy())
    return found


@dataclass
class Lora:
    """The tensors and metadata of a GGUF adapter, by llama.cpp's rules."""

    alpha: float
    arch: str
    pairs: dict[str, tuple[Tensor, Tensor]]
    values: dict[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Lora:
        """Through the package gguf, as llama_adapter_lora_init_impl checks it."""
        from gguf import GGMLQuantizationType, GGUFReader

        reader = GGUFReader(path)
        values = {name: f.contents() for name, f in reader.fields.items()}
        assert values["general.type"] == "adapter"
        assert values["adapter.type"] == "lora"
        tensors: dict[str, Tensor] = {}
        for tensor in reader.tensors:
            data = torch.from_numpy(np.array(tensor.data))
            if tensor.tensor_type == GGMLQuantizationType.BF16:
                data = data.view(torch.bfloat16)
            shape = [int(n) for n in reversed(tensor.shape)]
            tensors[tensor.name] = data.reshape(shape).double()
        assert all(name.endswith((".lora_a", ".lora_b")) for name in tensors)
        stems = {name[: -len(".lora_a")] for name in tensors}
        pairs = {stem: (tensors[f"{stem}.lora_a"], tensors[f"{stem}.lora_b"]) for stem in stems}
        for a, b in pairs.values():
            assert a.shape[0] == b.shape[1]
        return cls(values["adapter.lora.alpha"], values["general.architecture"], pairs, values)

    def delta(self, name: str) -> Tensor:
        """What is added to a weight: llama_adapter_lora_weight::get_scale times B A."""
        a, b = self.pairs[name]
        return (self.alpha / a.shape[0] if self.alpha else 1.0) * (b @ a)


class Model:
    """A base model with, perhaps, an adapter."""

    def __init__(self, arch: str, model: torch.nn.Module, lora: Lora | None = None) -> None:
        self.arch, self.c, self.lora = arch, model.config, lora
        self.w = base_weights(model, arch)
        if lora is not None:
            assert lora.arch == arch, "model arch and LoRA arch mismatch"
            for name, (a, b) in lora.pairs.items():
                assert name in self.w, f"{name} does not exist in base model"
                assert self.w[name].shape == (b.shape[0], a.shape[1]), "incorrect shape"
        self.heads = self.c.num_attention_heads
        self.kv_heads = getattr(self.c, "num_key_value_heads", None) or self.heads
        self.dim = getattr(self.c, "head_dim", None) or self.c.hidden_size // self.heads

    def logits(self, tokens: Tensor) -> Tensor:
        """(1, n) tokens to (n, vocab)."""
        x = self.w["token_embd.weight"][tokens[0]]
        if self.arch == "gpt2":
            x = x + self.w["position_embd.weight"][: len(x)]
        if self.arch in GEMMA:
            x = x * math.sqrt(self.c.hidden_size)
        for n in range(self.c.num_hidden_layers):
            x = self.block(x, f"blk.{n}.")
        x = self.norm(x, "output_norm")
        tied = "output.weight" not in self.w
        y = x @ self.w["token_embd.weight"].T if tied else self.mm("output", x)
        cap = getattr(self.c, "final_logit_softcapping", None)
        return cap * torch.tanh(y / cap) if cap else y

    def block(self, x: Tensor, at: str) -> Tensor:
        y = self.attention(self.norm(x, f"{at}attn_norm"), at)
        if self.arch in GEMMA:
            y = self.norm(y, f"{at}post_attention_norm")
        x = x + y
        y = self.ffn(self.norm(x, f"{at}ffn_norm"), at)
        if self.arch in GEMMA:
            y = self.norm(y, f"{at}post_ffw_norm")
        return x + y

    def attention(self, x: Tensor, at: str) -> Tensor:
        wide = self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim
        if f"{at}attn_qkv.weight" in self.w:
            q, k, v = self.mm(f"{at}attn_qkv", x).split(wide, dim=-1)
        else:
            q, k, v = (self.mm(f"{at}attn_{side}", x) for side in "qkv")
        q, k, v = (t.reshape(len(x), -1, self.dim).transpose(0, 1) for t in (q, k, v))
        if f"{at}attn_q_norm.weight" in self.w:
            q, k = self.norm(q, f"{at}attn_q_norm"), self.norm(k, f"{at}attn_k_norm")
        if self.arch != "gpt2":
            theta = self.theta(int(at.split(".")[1]))
            q, k = self.rope(q, theta), self.rope(k, theta)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scalar = getattr(self.c, "query_pre_attn_scalar", None) or self.dim
        scores = q @ k.transpose(1, 2) / math.sqrt(scalar)
        cap = getattr(self.c, "attn_logit_softcapping", None)
        scores = cap * torch.tanh(scores / cap) if cap else scores
        later = torch.ones(len(x), len(x)).triu(1).bool()
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        return self.mm(f"{at}attn_output", (weights @ v).transpose(0, 1).reshape(len(x), -1))

    def ffn(self, x: Tensor, at: str) -> Tensor:
        up = self.mm(f"{at}ffn_up", x)
        if self.arch == "gpt2":
            return self.mm(f"{at}ffn_down", F.gelu(up, approximate="tanh"))
        if self.arch == "phi3":
            gate, up = up.chunk(2, -1)
        else:
            gate = self.mm(f"{at}ffn_gate", x)
        gate = F.gelu(gate, approximate="tanh") if self.arch in GEMMA else F.silu(gate)
        return self.mm(f"{at}ffn_down", gate * up)

    def mm(self, name: str, x: Tensor) -> Tensor:
        """build_lora_mm, and the bias."""
        y = x @ self.w[f"{name}.weight"].T
        if self.lora is not None and f"{name}.weight" in self.lora.pairs:
            a, b = self.lora.pairs[f"{name}.weight"]
            scale = self.lora.alpha / b.shape[1] if self.lora.alpha else 1.0
            y = y + scale * ((x @ a.T) @ b.T)
        bias = self.w.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.w[f"{name}.weight"]
        if self.arch == "gpt2":
            bias, eps = self.w[f"{name}.bias"], self.c.layer_norm_epsilon
            return F.layer_norm(x, weight.shape, weight, bias, eps)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c.rms_norm_eps) * weight

    def theta(self, layer: int) -> float:
        """Gemma 3: five layers of six look at a window, and turn faster."""
        told = self.c.rope_parameters
        if self.arch == "gemma3":
            return told["full_attention"]["rope_theta"] if layer % 6 == 5 else 10_000.0
        return told["rope_theta"]

    def rope(self, x: Tensor, base: float) -> Tensor:
        """x (heads, n, d): ggml_rope_ext, adjacent pairs or halves."""
        half = self.dim // 2
        rates = base ** (-torch.arange(half).double() / half)
        angles = torch.arange(x.shape[1]).double()[:, None] * rates
        cos, sin = angles.cos(), angles.sin()
        out = torch.empty_like(x)
        if self.arch in ROTATES_ADJACENT:
            first, second = slice(0, None, 2), slice(1, None, 2)
        else:
            first, second = slice(0, half), slice(half, None)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out


BYTES = 259  # three special tokens and one for each byte, as a vocabulary has to have


def write_base(path: Path, model: torch.nn.Module, arch: str) -> None:
    """The base model as a GGUF file that llama.cpp loads, with a made-up vocabulary."""
    from gguf import GGUFWriter

    c = model.config
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    out = GGUFWriter(path, arch)
    out.add_context_length(64)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(getattr(c, "intermediate_size", None) or 4 * c.hidden_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(getattr(c, "num_key_value_heads", None) or c.num_attention_heads)
    if arch == "gpt2":
        out.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        out.add_layer_norm_rms_eps(c.rms_norm_eps)
        told = c.rope_parameters
        out.add_rope_freq_base(told.get("full_attention", told)["rope_theta"])
        out.add_rope_dimension_count(dim)
        out.add_key_length(dim)
        out.add_value_length(dim)
    if arch == "gemma2":
        out.add_attn_logit_softcapping(c.attn_logit_softcapping)
        out.add_final_logit_softcapping(c.final_logit_softcapping)
    if arch in (*GEMMA, "phi3"):
        out.add_sliding_window(0 if arch == "phi3" else 32)
    words = [b"<unk>", b"<s>", b"</s>", *(f"<0x{n:02X}>".encode() for n in range(256))]
    words += [f"w{n}".encode() for n in range(c.vocab_size - BYTES)]
    out.add_vocab_size(c.vocab_size)
    out.add_tokenizer_model("llama")
    out.add_token_list(words)
    out.add_token_scores([0.0] * len(words))
    out.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(words) - BYTES))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)
    for name, tensor in base_weights(model, arch).items():
        out.add_tensor(name, tensor.float().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def log_probabilities(base: Path, adapter: Path, tokens: list[int], vocabulary: int) -> Tensor:
    """What llama.cpp itself says comes after ``tokens``; NaN where it is about to stop."""
    import xllamacpp as x

    settings = x.CommonParams()
    settings.model.path = str(base)
    settings.n_ctx, settings.n_parallel, settings.warmup = 64, 1, False
    settings.cpuparams.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = x.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.lora_adapters = [x.CommonAdapterLoraInfo(str(adapter), 1.0)]
    asked = {"prompt": tokens, "n_predict": 1, "n_probs": vocabulary, "temperature": 0.0}
    said = x.Server(settings).handle_completions({**asked, "cache_prompt": False})
    told = said["choices"][0]["logprobs"]
    found = torch.full((vocabulary,), math.nan, dtype=torch.float64)
    for row in told["content"][0]["top_logprobs"] if told else ():
        found[row["id"]] = row["logprob"]
    return found
