"""The size of a base model and its adapters together, before and after compression."""

from __future__ import annotations

from typing import Any

from vlora_engine.errors import ParameterError
from vlora_engine.nn.host_modules import parameter_counts
from vlora_engine.subspace.space import Space


def full_stack(
    subspace: Space,
    base_model_params: int | None,
    base_model_bits: int,
    quantized_bits: int,
    base_model: Any = None,
) -> dict[str, Any]:
    """Bytes of base model and adapters before and after (`SharedSubspace.full_stack_compression`).

    Raises:
        ParameterError: A number below 1, or a model and its number of parameters.
    """
    stats = subspace.compression_stats()  # a coded collection has figures of its own
    before, after = stats["bytes_original"], stats["bytes_compressed"]
    adapters = {
        "adapter": stats,
        "adapter_bytes_compressed": after,
        "adapter_bytes_original": before,
    }
    for name, value in (
        ("base_model_params", base_model_params),
        ("base_model_bits", base_model_bits),
        ("quantized_bits", quantized_bits),
    ):
        if value is not None and value < 1:
            raise ParameterError(f"{name} is at least 1.", found=str(value))
    if base_model is not None:
        if base_model_params is not None:
            raise ParameterError("Give the base model or its number of parameters, not both.")
        base = _measured_base(base_model, base_model_bits, quantized_bits)
    elif base_model_params is not None:
        params = base_model_params
        base = _base(params, _bytes(params, base_model_bits), _bytes(params, quantized_bits))
    else:
        return adapters
    total_before = base["original_bytes"] + before
    total_after = base["quantized_bytes"] + after
    return adapters | {
        "base_model": base,
        "total_original_bytes": total_before,
        "total_compressed_bytes": total_after,
        "total_compression_ratio": total_before / total_after,
    }


def _bytes(params: int, bits: int) -> int:
    return -(-params * bits // 8)


def _base(params: int, original: int, quantized: int) -> dict[str, Any]:
    return {
        "params": params,
        "original_bytes": original,
        "quantized_bytes": quantized,
        "compression_ratio": original / quantized if quantized else 0.0,
    }


def _measured_base(model: Any, bits: int, quantized_bits: int) -> dict[str, Any]:
    """Bytes of a model at hand. A quantized one is measured as it is, another one as it was."""
    params, nbytes, packed = parameter_counts(model)
    if packed:
        return _base(params, _bytes(params, bits), nbytes) | {"measured": "quantized_bytes"}
    return _base(params, nbytes, _bytes(params, quantized_bits)) | {"measured": "original_bytes"}
