"""Merge A and B apart as vlora-dev does, ignoring scales (``space="factors"``).

It is here to reproduce that library's results. It is not a merge of weight
changes: ``mean(B) @ mean(A)`` holds all cross terms ``B_i A_j`` and 1/T of each ``B_i A_i``, and it
changes with the gauge: ``(A, B)`` and ``(-A, -B)`` are one adapter and average to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

Values = Mapping[str, Any]
# (A or B of one module of every adapter, weights, parameters, generator) -> the merged factor
FactorFunction = Callable[[Sequence[Tensor], Sequence[float], Values, Generator], Tensor]


def weighted_sum(
    factors: Sequence[Tensor], weights: Sequence[float], parameters: Values, generator: Generator
) -> Tensor:
    """The weighted sum ``sum_i w_i X_i`` of one side's factors."""
    total = torch.zeros_like(factors[0])
    for factor, weight in zip(factors, weights, strict=True):
        total = total + weight * factor
    return total


def ties(
    factors: Sequence[Tensor], weights: Sequence[float], parameters: Values, generator: Generator
) -> Tensor:
    """TIES on one side: trim, elect signs, then sum agreeing ``w_i X_i`` over how many agree.

    Each adapter has one vote whatever its weight, a tied vote is positive, and the weights stay
    in the sum though it is divided by a count: T copies at weights 1/T come back 1/T as strong.
    """
    density = parameters["density"]
    trimmed = torch.stack([_trimmed(factor, density) for factor in factors])  # [N, ...]
    votes = trimmed.sign().sum(dim=0)
    elected = torch.where(votes < 0, -1.0, 1.0).to(trimmed.dtype)
    agree = trimmed.sign() == elected
    weight = torch.tensor(list(weights), dtype=trimmed.dtype).view(-1, *[1] * (trimmed.ndim - 1))
    return (trimmed * weight * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def dare(
    factors: Sequence[Tensor], weights: Sequence[float], parameters: Values, generator: Generator
) -> Tensor:
    """DARE on one side: drop entries, rescale the others by 1 / (1 - p), and sum by weight.

    Draws in vlora-dev's order from a generator of its own, where that library reseeds
    torch's global one.
    """
    keep = 1.0 - parameters["drop_rate"]
    total = torch.zeros_like(factors[0])
    for factor, weight in zip(factors, weights, strict=True):
        if keep < 1:
            mask = torch.bernoulli(torch.full_like(factor, keep), generator=generator)
            factor = factor * mask * (1.0 / keep)
        total = total + weight * factor
    return total


def _trimmed(factor: Tensor, density: float) -> Tensor:
    """The ``floor(density n)`` largest entries of a factor, at least one; zeros elsewhere."""
    magnitude = factor.abs()
    count = max(1, int(density * factor.numel()))
    smallest_kept = magnitude.flatten().topk(count).values[-1]
    return factor.masked_fill(magnitude < smallest_kept, 0.0)
