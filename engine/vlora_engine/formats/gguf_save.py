"""Write a GGUF adapter through the package ``gguf``, under llama.cpp's names and row order.

llama.cpp computes ``W x + alpha / rank * B (A x)`` with rank the one of the tensor; the file has
one alpha. For llama (mistral too) it rotates adjacent pairs of a head's rows, where transformers
rotates halves, so the rows of B of q and k are reordered as those of the base model are.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.errors import DependencyError
from vlora_engine.formats.config_fields import ALORA
from vlora_engine.formats.gguf_architectures import Architecture
from vlora_engine.formats.peft_save import cast
from vlora_engine.formats.provenance import KEY, Record, content_of, record_of
from vlora_engine.quantization.dtypes import Q8_0_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    from vlora_engine.formats.base_model_config import BaseConfig

HUB = "https://huggingface.co/"
ALORA_KEY = "adapter.alora.invocation_tokens"


def require_gguf() -> None:
    """Refuse where the package ``gguf`` is missing.

    Raises:
        DependencyError: The remedy names the extra.
    """
    if importlib.util.find_spec("gguf") is None:
        raise DependencyError(
            "Writing GGUF needs the package gguf, which is not installed.",
            remedy="pip install 'vlora-tui[gguf]'",
        )


def write_gguf(
    path: Path,
    weights: LoRAWeights,
    architecture: Architecture,
    base: BaseConfig,
    *,
    q8_0: bool = False,
) -> Record:
    """Write ``weights``, shaped for GGUF, to a new file at ``path``; returns where it comes from.

    With ``q8_0`` a factor whose rows are whole blocks of 32 numbers takes 8.5 bits a number; one
    whose rows are not (B of rank 8) is fp16, as llama.cpp's own converter has it. The head counts
    stand in the file too, under llama.cpp's keys, so that the row order can be undone by who reads
    it.
    """
    require_gguf()
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, architecture.name)
    writer.add_type("adapter")
    _name_base(writer, weights.metadata.get("base_model_name_or_path"))
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(weights.metadata["lora_alpha"]))
    tokens = weights.metadata.get(ALORA)
    if tokens:  # llama.cpp takes them as uint32 alone
        kind = GGUFValueType.ARRAY, GGUFValueType.UINT32
        writer.add_key_value(ALORA_KEY, tokens, *kind)
    if architecture.rotated:
        writer.add_head_count(base.heads)
        writer.add_head_count_kv(base.kv_heads)
    written: list[tuple[str, list[Any]]] = []
    for module in weights.layer_names:
        name = str(architecture.gguf_name(module))
        a, b = weights.lora_a[module], weights.lora_b[module]
        side = architecture.rotation_of(name)
        if side is not None:
            b = to_pairs(b, base.heads if side == "q" else base.kv_heads)
        for key, factor in ((f"{name}.weight.lora_a", a), (f"{name}.weight.lora_b", b)):
            written.append((key, [_add(writer, key, factor, q8_0=q8_0)]))
    record = record_of(weights, content_of(written))
    writer.add_string(KEY, record.text)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return record


def to_pairs(b: Tensor, heads: int) -> Tensor:
    """B (heads * d, r) with each head's rows i and i + d/2 side by side, as llama.cpp rotates."""
    half = b.shape[0] // heads // 2
    return b.reshape(heads, 2, half, b.shape[1]).transpose(1, 2).reshape(b.shape)


def to_halves(b: Tensor, heads: int) -> Tensor:
    """B (heads * d, r) back in transformers' order: what `to_pairs` undoes."""
    half = b.shape[0] // heads // 2
    return b.reshape(heads, half, 2, b.shape[1]).transpose(1, 2).reshape(b.shape)


def _name_base(writer: Any, base_model: Any) -> None:
    if not isinstance(base_model, str) or not base_model:
        return
    name = base_model.rstrip("/").rpartition("/")[2]
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, name)
    if base_model.count("/") == 1 and not base_model.startswith((".", "~", "/")):
        writer.add_base_model_organization(0, base_model.partition("/")[0])
        writer.add_base_model_repo_url(0, HUB + base_model)


def q8_0_rounded(tensor: Tensor) -> Tensor:
    """A factor as it comes back from a file in Q8_0, to measure what that costs."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if tensor.shape[-1] % Q8_0_BLOCK:
        return tensor.to(torch.float16)
    kind = GGMLQuantizationType.Q8_0
    rows = tensor.detach().cpu().float().contiguous().numpy()
    return torch.from_numpy(dequantize(quantize(rows, kind), kind))


def _add(writer: Any, name: str, tensor: Tensor, *, q8_0: bool) -> Any:
    """Add one tensor; returns its bytes as they will stand in the file."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    tensor = tensor.detach().cpu().contiguous()
    if q8_0 and tensor.shape[-1] % Q8_0_BLOCK == 0:
        raw = quantize(tensor.float().numpy(), GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.Q8_0)
        return raw
    tensor = cast(tensor, torch.float16, name) if q8_0 else tensor
    if tensor.dtype == torch.bfloat16:  # numpy has no such dtype: its bytes, and its name
        raw = tensor.view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.BF16)
    else:
        raw = tensor.numpy()
        writer.add_tensor(name, raw)
    return raw
