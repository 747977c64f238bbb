"""Merge A and B apart as PEFT's `add_weighted_adapter` does (``dialect="peft"``).

It is here to reproduce PEFT's results. Each side is weighted by ``sqrt(|weight * scale|)``, the
sign goes to A, and A and B are then merged apart: a product of sums, which holds all cross terms
``B_i A_j``. T copies at weights 1/T come back T times too strong by "linear" (4.000 for T = 4), and
trims and signs change with the gauge. "cat" and "svd" are exact sums of dW and need none of this.

Unlike PEFT the result says a scale of 1 whatever the first adapter's config says: PEFT carries
``use_rslora`` over, which makes its merge of rsLoRA adapters too strong by sqrt(r).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

Values = Mapping[str, Any]
# (A or B of each adapter, their weights of this side, parameters, generator) -> the merged side
Side = Callable[[Sequence[Tensor], Tensor, Values, Generator], Tensor]


def side_weights(weights: Sequence[float], scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The weights (T,) of A and of B: ``sqrt(|w s|)``, for A with the sign of ``w s``."""
    products = [w * s for w, s in zip(weights, scales, strict=True)]
    roots = torch.tensor([math.sqrt(abs(p)) for p in products])
    signs = torch.tensor([1.0 if p >= 0 else -1.0 for p in products])
    return roots * signs, roots


def _linear(sides: Sequence[Tensor], weights: Tensor, values: Values, g: Generator) -> Tensor:
    return _weighted(torch.stack(list(sides)), weights).sum(dim=0)


def _magnitude_prune(
    sides: Sequence[Tensor], weights: Tensor, values: Values, g: Generator
) -> Tensor:
    return _linear([_largest(side, values["density"]) for side in sides], weights, values, g)


def _dare_linear(sides: Sequence[Tensor], weights: Tensor, values: Values, g: Generator) -> Tensor:
    return _linear([_drawn(side, values["density"], g) for side in sides], weights, values, g)


def _ties(sides: Sequence[Tensor], weights: Tensor, values: Values, g: Generator) -> Tensor:
    trimmed = torch.stack([_largest(side, values["density"]) for side in sides])
    return _agreeing(trimmed, weights, values["majority_sign"])


def _dare_ties(sides: Sequence[Tensor], weights: Tensor, values: Values, g: Generator) -> Tensor:
    drawn = torch.stack([_drawn(side, values["density"], g) for side in sides])
    return _agreeing(drawn, weights, values["majority_sign"])


def _agreeing(entries: Tensor, weights: Tensor, majority: str) -> Tensor:
    """The weighted sum of the entries (T, ...) with the elected sign, over their number."""
    votes = entries.sum(dim=0) if majority == "total" else entries.sign().sum(dim=0)
    agrees = entries.sign() == torch.where(votes >= 0, 1, -1)
    return (_weighted(entries, weights) * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1.0)


def _weighted(stacked: Tensor, weights: Tensor) -> Tensor:
    return stacked * weights.view(-1, *[1] * (stacked.ndim - 1))


def _largest(side: Tensor, density: float) -> Tensor:
    if density >= 1:
        return side
    mask = torch.zeros_like(side).reshape(-1)
    mask[torch.topk(side.abs().reshape(-1), k=int(density * side.numel())).indices] = 1
    return side * mask.reshape(side.shape)


def _drawn(side: Tensor, density: float, generator: Generator) -> Tensor:
    if density >= 1:
        return side
    return side * torch.bernoulli(torch.full_like(side, density), generator=generator) / density


SIDES: Mapping[str, Side] = {
    "linear": _linear,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "magnitude_prune": _magnitude_prune,
}
