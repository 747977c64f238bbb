"""Change an adapter into the form that a target reads, with dW unchanged."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import LoRAWeights, padded
from vlora_engine.adapters.module_names import PREFIX
from vlora_engine.formats.peft_save import cast, fresh_config
from vlora_engine.formats.rest_tensors import is_base_layer, is_foreign
from vlora_engine.targets.fit import used_alpha
from vlora_engine.targets.registry import Target
from vlora_engine.utils.safetensors_file import dtype_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CONFIG_KEYS = ("base_model_name_or_path", "fan_in_fan_out", "revision", "task_type")


# What a config says of tensors besides A and B, and what it says where there are none.
_OF_REST = {
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
}


def without_rest(weights: LoRAWeights) -> LoRAWeights:
    """``weights`` without the tensors besides A and B, and a config that expects none."""
    stated = {name: plain for name, plain in _OF_REST.items() if weights.metadata.get(name)}
    return replace(weights, rest={}, metadata={**weights.metadata, **stated})


def without_foreign(weights: LoRAWeights) -> LoRAWeights:
    """``weights`` without the tensors that ComfyUI alone reads, under whatever name."""
    if not any(is_foreign(key) for key in weights.rest):
        return weights
    kept = {key: tensor for key, tensor in weights.rest.items() if not is_foreign(key)}
    return replace(weights, rest=kept)


def without_copies(weights: LoRAWeights) -> LoRAWeights:
    """``weights`` without the base's own weights under adapted modules, which servers pass over."""
    kept = {key: tensor for key, tensor in weights.rest.items() if not is_base_layer(key)}
    return replace(weights, rest=kept)


def rescaled_biases(
    rest: Mapping[str, Tensor], before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Tensor]:
    """``rest`` with the biases of B under other scales: PEFT adds scale * (B A x + bias).

    Args:
        before, after: The scale of every module.
    """
    changed = dict(rest)
    for module, scale in before.items():
        key = f"{PREFIX}{module}.lora_B.bias"
        if key in changed and scale != after[module]:
            bias = changed[key]
            changed[key] = (bias.double() * (scale / after[module])).to(bias.dtype)
    return changed


def shaped(weights: LoRAWeights, target: Target, dtype: torch.dtype | None = None) -> LoRAWeights:
    """``weights`` as ``target`` reads them; the dW of every module stays what it was.

    A uniform target gets every A (rank, d_in) and B (d_out, rank) of the largest rank, padded with
    zeros, one scale for all, and a config that says nothing else. What of a scale is not the
    common one goes into B: ``B * scale / common``, rounded once, to the dtype that is stored.

    Raises:
        ParameterError: A value does not fit the dtype.
    """
    stored = dtype or _stored(weights, target)
    if target.form == "gguf":
        return _one_alpha(weights, stored)
    if not target.uniform:
        return weights
    rank = max((a.shape[0] for a in weights.lora_a.values()), default=1) or 1
    scale = 1.0 if target.unit_scale else _common_scale(weights, rank)
    lora_a, lora_b = {}, {}
    for name in weights.layer_names:
        a, b = weights.lora_a[name], weights.lora_b[name]
        lora_a[name] = padded(_cast(a, stored or a.dtype, name), rank, 0)
        scaled = _folded(b, weights.scales[name] / scale, stored or b.dtype, name)
        lora_b[name] = padded(scaled, rank, 1)
    return replace(
        weights,
        lora_a=lora_a,
        lora_b=lora_b,
        rank=rank,
        metadata=_plain_config(weights, rank, scale),
        scales=dict.fromkeys(weights.layer_names, scale),
        shapes={},
    )


def _plain_config(weights: LoRAWeights, rank: int, scale: float) -> dict[str, Any]:
    carried = {name: weights.metadata[name] for name in _CONFIG_KEYS if name in weights.metadata}
    # Leaf names: servers take them as kinds of modules. Where PEFT finds more modules by them than
    # were trained, these start with a B of zeros and change nothing.
    leaf_names = sorted({name.rpartition(".")[2] for name in weights.layer_names})
    alpha = round(scale * rank)  # it is a whole number, by _common_scale
    stated = {"r": rank, "lora_alpha": alpha, "target_modules": leaf_names}
    return dict(sorted({**fresh_config(), **carried, **stated}.items()))


def _common_scale(weights: LoRAWeights, rank: int) -> float:
    """The scale of all modules if they have one and its alpha is a whole number, else 1."""
    scales = {float(weights.scales[name]) for name in weights.layer_names}
    if len(scales) != 1:
        return 1.0
    scale = scales.pop()
    alpha = round(scale * rank)
    return scale if alpha > 0 and alpha / rank == scale else 1.0


def _one_alpha(weights: LoRAWeights, stored: torch.dtype | None) -> LoRAWeights:
    """For GGUF, whose scale is alpha / rank of the tensor with one alpha for the whole file."""
    ranks = {name: max(1, weights.lora_a[name].shape[0]) for name in weights.layer_names}
    alpha = _as_float32(used_alpha(weights.scales, ranks))
    lora_a, lora_b = {}, {}
    for name, rank in ranks.items():
        a, b = weights.lora_a[name], weights.lora_b[name]
        factor = weights.scales[name] / (alpha / rank)
        # An alpha that is rounded to fp32 is no reason to touch B: 6e-8 of it.
        factor = 1.0 if abs(factor - 1) < 1e-6 else factor
        lora_a[name] = padded(_cast(a, stored or a.dtype, name), rank, 0)
        lora_b[name] = padded(_folded(b, factor, stored or b.dtype, name), rank, 1)
    metadata = {**weights.metadata, "lora_alpha": alpha}
    scales = {name: alpha / rank for name, rank in ranks.items()}
    return replace(weights, lora_a=lora_a, lora_b=lora_b, metadata=metadata, scales=scales)


def _as_float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _folded(b: Tensor, factor: float, dtype: torch.dtype, name: str) -> Tensor:
    if factor == 1.0:
        return _cast(b, dtype, name)
    return _cast(b.double() * factor, dtype, name)


def _cast(factor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    return factor if factor.dtype == dtype else cast(factor, dtype, name)


def _stored(weights: LoRAWeights, target: Target) -> torch.dtype | None:
    """None where every factor may keep its dtype, else the target's that rounds least."""
    import torch

    factors = [*weights.lora_a.values(), *weights.lora_b.values()]
    if all(dtype_name(factor.dtype) in target.dtypes for factor in factors):
        return None
    if "F32" in target.dtypes:
        return torch.float32
    # fp16 has three more bits than bf16, until a value is too large for it or too small.
    return min((torch.float16, torch.bfloat16), key=lambda dtype: _rounding(factors, dtype))


def _rounding(factors: Iterable[Tensor], dtype: torch.dtype) -> float:
    worst = 0.0
    for factor in factors:
        norm = factor.double().norm().item()
        if norm:
            lost = (factor.double() - factor.to(dtype).double()).norm().item() / norm
            worst = max(worst, lost if lost == lost else float("inf"))
    return worst
