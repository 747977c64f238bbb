"""Keeping an error target where packing costs more than was expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlora_engine.build import Plan, Targets


def within(targets: Targets, plan: Plan, errors: Mapping[str, float]) -> Targets | None:
    """None where measured ``errors`` keep the target; else what to aim at instead.

    What packing costs depends on how the numbers of the bases are distributed. Where it costs
    more than was expected, k is chosen again with the cost that was met.
    """
    quantization, choice = targets.quantization, plan.choice
    if quantization is None or choice is None or targets.budget is not None:
        return None
    values = list(errors.values())
    kept = (
        max(values) <= targets.max_error
        if targets.max_error is not None
        else sum(values) / len(values) <= targets.mean_error
        if targets.mean_error is not None
        else 1 - sum(e * e for e in values) / len(values) >= (targets.variance or 0.0) - 1e-9
    )
    if kept:
        return None
    expected = targets.noise if targets.noise is not None else quantization.noise
    # 1 - error^2 is what is captured times 1 - noise, both for what was expected and what was met.
    predicted = choice.prediction.task_errors
    left = min(
        (1 - e * e) / (1 - predicted[name] ** 2)
        for name, e in errors.items()
        if predicted[name] < 1
    )
    met = 1 - (1 - expected) * left
    return replace(targets, noise=max(met, expected) * 1.02)
