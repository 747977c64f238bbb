"""The weight change as one dense matrix a module, in fp64: what low-rank figures are held to."""

from __future__ import annotations

import math

from vlora_engine.adapters.model import LoRAWeights


def dense_error(original: LoRAWeights, approximation: LoRAWeights) -> float:
    """The relative error of dW over all modules; infinite where nothing became something."""
    missed = total = 0.0
    for name in original.layer_names:
        change = original.delta(name)
        missed += float((change - approximation.delta(name)).square().sum())
        total += float(change.square().sum())
    if total == 0:
        return 0.0 if missed == 0 else math.inf
    return math.sqrt(missed / total)
