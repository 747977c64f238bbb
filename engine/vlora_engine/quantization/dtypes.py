"""The dtypes that bases and loadings are stored in, and the error that each adds."""

from __future__ import annotations

from collections.abc import Iterable

from vlora_engine.errors import ParameterError

STORAGE_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # in safetensors' words
DTYPE_WORDS = {stored: word for word, stored in STORAGE_DTYPES.items()}
# Of GGUF (ggml block_q8_0): an fp16 scale and 32 numbers of 8 bits.
Q8_0 = "Q8_0"
Q8_0_BLOCK, Q8_0_BYTES = 32, 34
AUTO_DTYPE = "auto"
DTYPES = (AUTO_DTYPE, *STORAGE_DTYPES)  # what may be asked for

# rho, what rounding to the storage dtype adds to a relative error: basis and loadings of both sides
# are rounded (measured at full k, d from 64 to 768: 3.6e-4 to 5.6e-4 in fp16, eight times that
# in bf16; docs/mathematics.md#rounding).
ROUNDING = {"F32": 1e-7, "F16": 7e-4, "BF16": 5.6e-3}


def storage_dtype(dtype: str, inputs: Iterable[str], *, lossy: bool = False) -> str:
    """The dtype to store in, under safetensors' name (``F32``, ``F16``, ``BF16``).

    ``auto`` is fp16 where every input has 16 bits, or where the target allows an error beside
    which rounding to fp16 is nothing (``lossy``); else fp32. Bases are orthonormal and loadings
    carry an exponent of their own, so fp16 keeps three bits more than bf16 and loses no range.

    Args:
        dtype: ``auto``, ``fp32``, ``fp16`` or ``bf16``.
        inputs: The dtypes of the input adapters, under safetensors' names.
        lossy: See `CompressionTarget.lossy`.

    Raises:
        ParameterError: ``dtype`` is none of auto, fp32, fp16, bf16.
    """
    if dtype == AUTO_DTYPE:
        return "F32" if {"F32", "F64"} & set(inputs) and not lossy else "F16"
    if dtype not in STORAGE_DTYPES:
        raise ParameterError(f"Unknown storage dtype {dtype!r}.", expected=", ".join(DTYPES))
    return STORAGE_DTYPES[dtype]
