"""Measure how much of an adapter the bases of a subspace can express."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, as_source, padded
from vlora_engine.analysis.similarity import Adapter, not_finite, scaled_factors
from vlora_engine.errors import CollectionError
from vlora_engine.linalg.low_rank import Factors, delta_error2, delta_norm2
from vlora_engine.subspace.space import Space


def subspace_coverage(subspace: Space, adapter: Adapter) -> dict[str, dict[str, float]]:
    """Measure how much of an adapter's weight change the bases of a subspace can express.

    Args:
        subspace: Any; of a coded collection the shared basis of its tasks counts.
        adapter: Any adapter of the same base model; it need not be a task of the subspace.

    Returns:
        For each module of the adapter, sorted, shares of ``||dW||^2`` from 0 to 1::

            coverage        with both sides projected: what a task of the subspace would keep
            coverage_a, _b  with only A, only B projected
            coverage_mean   the mean of these two (the first library's key)
            energy          ||dW||^2

        A module that the subspace lacks is covered by 0, one without effect by 1.

    Raises:
        CollectionError: The dimensions of a module differ, or its rank does not fit ``flat``.
    """
    source, subspace = as_source(adapter), subspace.in_basis()
    layer_names = set(subspace.layer_names)
    result = {}
    for module in source.modules:
        a, b = scaled_factors(source, module)
        energy = float(delta_norm2(a, b))
        if not math.isfinite(energy):
            raise not_finite(source, 0, module)
        if energy == 0:
            shares = [1.0, 1.0, 1.0]
        elif module not in layer_names:
            shares = [0.0, 0.0, 0.0]
        else:
            a_hat, b_hat = _projected(subspace, source, module)
            candidates = [(a_hat, b_hat), (a_hat, b), (a, b_hat)]
            errors = [float(delta_error2(a, b, *pair)) / energy for pair in candidates]
            shares = [min(1.0, max(0.0, 1.0 - error)) for error in errors]
        result[module] = {
            "coverage_a": shares[1],
            "coverage_b": shares[2],
            "coverage_mean": (shares[1] + shares[2]) / 2,
            "coverage": shares[0],
            "energy": energy,
        }
    return result


def coverage_total(coverage: Mapping[str, Mapping[str, float]], share: str = "coverage") -> float:
    """The share of an adapter's whole ``||dW||^2`` that is covered, from `subspace_coverage`.

    Args:
        share: ``coverage`` of both sides, or ``coverage_a`` or ``coverage_b`` of one.
    """
    energy = math.fsum(layer["energy"] for layer in coverage.values())
    if energy == 0:
        return 1.0
    return math.fsum(layer[share] * layer["energy"] for layer in coverage.values()) / energy


def _projected(subspace: Space, source: AdapterSource, module: str) -> Factors:
    """A and scale * B of one module as the subspace's bases reproduce them, fp64."""
    a, b = source.read(module)
    scale = source.scales[module]
    basis = subspace.bases[module]
    basis_a, basis_b = basis.a.double().cpu(), basis.b.double().cpu()
    if basis.mean_a is not None and basis.mean_b is not None:
        a_hat = _project_flat(a.double(), 0, basis_a, basis.mean_a, module)
        b_hat = _project_flat(b.double(), 1, basis_b, basis.mean_b, module)
        return a_hat, b_hat * scale
    for tensor, rows, side in ((a, basis_a, "in"), (b.T, basis_b, "out")):
        if tensor.shape[1] != rows.shape[1]:
            raise CollectionError(
                f"Module {module!r} has another dimension than the subspace's basis.",
                where=source.path,
                expected=f"d_{side} {rows.shape[1]}",
                found=f"d_{side} {tensor.shape[1]}",
            )
    a, b = a.double(), b.double() * scale
    return (a @ basis_a.T) @ basis_a, basis_b.T @ (basis_b @ b)


def _project_flat(factor: Tensor, axis: int, basis: Tensor, mean: Tensor, module: str) -> Tensor:
    """One factor, whose ranks lie along ``axis``, through a basis of flattened factors.

    Lower ranks than the basis was made of are filled up with zeros.
    """
    rank, d = factor.shape[axis], factor.shape[1 - axis]
    largest_rank = basis.shape[1] // d
    if largest_rank * d != basis.shape[1] or rank > largest_rank:
        raise CollectionError(
            f"Module {module!r} has another shape than the subspace's flat basis.",
            expected=f"a factor of {basis.shape[1]} entries",
            found=f"{tuple(factor.shape)}",
            remedy="a delta subspace holds adapters of any rank",
        )
    mean = mean.double().cpu()
    filled = padded(factor, largest_rank, axis)
    centred = filled.flatten() - mean
    # The filled-up rows may come back filled: cut there, as reconstruction does.
    projected = ((basis @ centred) @ basis + mean).reshape(filled.shape)
    return projected.narrow(axis, 0, rank)
