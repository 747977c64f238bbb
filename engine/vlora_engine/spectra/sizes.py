"""Bytes on disk of a choice of k: exact for the payload, an upper estimate for the index."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.manifest.manifest import core_is_dense
from vlora_engine.quantization.packing import Packing, Quantization
from vlora_engine.spectra.tables import LayerTable, Spectra
from vlora_engine.utils.files import dump_json
from vlora_engine.utils.safetensors_file import ITEM_BYTES

Array = npt.NDArray[Any]

SINGULAR_VALUE_BYTES = 4
ENTRY_BYTES = 88  # a tensor's entry in the header of a safetensors file, at most
CARD_BYTES = 64  # by which the card of a packed subspace is longer, at most


def basis_elements(method: str, layer: LayerTable, k_a: Any, k_b: Any) -> Any:
    """The number of numbers in the basis of one layer, with the means of `flat`."""
    if method == "flat":
        return layer.rank * ((k_a + 1) * layer.d_in + (k_b + 1) * layer.d_out)
    return k_a * layer.d_in + k_b * layer.d_out


def loadings_elements(method: str, ranks: Array, k_a: Any, k_b: Any) -> Any:
    """The number of numbers in the loadings of all tasks of one layer, given their ranks."""
    if method == "flat":
        return len(ranks) * (k_a + k_b)
    total: Any = 0
    for rank, count in _counted(ranks):
        factors = rank * (k_a + k_b)
        numbers = np.minimum(factors, k_a * k_b) if method == "delta" else factors
        total = total + count * numbers
    return total


def _counted(ranks: Array) -> list[tuple[int, int]]:
    """Each rank and how often it occurs; without sorting in the usual case of one rank."""
    first = int(ranks[0]) if len(ranks) else 0
    if (ranks == first).all():
        return [(first, len(ranks))]
    values, counts = np.unique(ranks, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def layer_bytes(
    method: str,
    layer: LayerTable,
    k_a: Any,
    k_b: Any,
    dtype: str,
    quantization: Quantization | None = None,
) -> Any:
    """Payload of one layer in bytes: basis, its singular values, and the loadings of all tasks.

    Args:
        method: ``delta``, ``columns`` or ``flat``.
        layer: The layer's table.
        k_a: A number, or an array of them.
        k_b: The same.
        dtype: What is stored unpacked, under safetensors' name.
        quantization: How basis and loadings are packed, if they are.
    """
    item, singular_values = ITEM_BYTES[dtype], SINGULAR_VALUE_BYTES * (k_a + k_b)
    if quantization is None:
        basis = basis_elements(method, layer, k_a, k_b) * item
    else:
        basis = _packed_basis_bytes(method, layer, k_a, k_b, quantization)
    if quantization is None or quantization.loadings is None:
        loadings = loadings_elements(method, layer.ranks, k_a, k_b) * item
    else:
        loadings = _packed_loadings_bytes(method, layer.ranks, k_a, k_b, quantization.loadings)
    return basis + loadings + singular_values


def _packed_basis_bytes(
    method: str, layer: LayerTable, k_a: Any, k_b: Any, quantization: Quantization
) -> Any:
    packing, means = quantization.basis, quantization.means
    if method != "flat":
        return packing.nbytes(k_a * layer.d_in) + packing.nbytes(k_b * layer.d_out)
    width_a, width_b = layer.rank * layer.d_in, layer.rank * layer.d_out
    components = packing.nbytes(k_a * width_a) + packing.nbytes(k_b * width_b)
    return components + means.nbytes(width_a) + means.nbytes(width_b)


def _packed_loadings_bytes(method: str, ranks: Array, k_a: Any, k_b: Any, packing: Packing) -> Any:
    if method == "flat":
        return len(ranks) * (packing.nbytes(k_a) + packing.nbytes(k_b))
    total: Any = 0
    for rank, count in _counted(ranks):
        nbytes = packing.nbytes(rank * k_a) + packing.nbytes(rank * k_b)
        if method == "delta":
            nbytes = np.where(core_is_dense(rank, k_a, k_b), packing.nbytes(k_a * k_b), nbytes)
        total = total + count * nbytes
    return total


def overhead_bytes(spectra: Spectra, dtype: str, quantization: Quantization | None = None) -> int:
    """Bytes that are neither payload nor rest tensors: index, headers, norms, errors, card."""
    if quantization is None or quantization.loadings is None:
        return spectra.overhead[dtype] + packing_overhead(quantization, len(spectra.tasks))
    # Packed loadings carry exponents as those in fp16 do.
    return spectra.overhead["F16"] + packing_overhead(quantization, len(spectra.tasks))


def packing_overhead(quantization: Quantization | None, tasks: int) -> int:
    """By how many bytes index, card and headers grow when numbers are packed; an upper bound."""
    if quantization is None:
        return 0
    entries = 4 + (tasks if quantization.loadings else 0)
    return len(dump_json(quantization.as_json())) + CARD_BYTES + ENTRY_BYTES * entries


def input_bytes(spectra: Spectra) -> int:
    """The bytes of all inputs as stored."""
    return sum(task.nbytes for task in spectra.tasks)


def factor_bytes_16(spectra: Spectra) -> int:
    """The bytes that A and B of all inputs take at 16 bit: what codec ratios are measured by."""
    return 2 * sum(task.factor_elements for task in spectra.tasks)


def rest_bytes(spectra: Spectra) -> int:
    """The bytes of all rest tensors, which no choice of k changes."""
    return sum(task.rest_bytes for task in spectra.tasks)
