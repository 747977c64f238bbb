"""Measure what a merge keeps of each adapter: cosine, strength and energy of its dW.

All of it comes from products of factors and is the same for every gauge
(docs/mathematics.md#what-a-merge-keeps):

- ``cosine`` of the adapter's dW and the result's;
- ``strength``, ``<dW_i, dW> / ||dW_i||^2``: 1 where the result moves along dW_i as far as the
  adapter itself does, 0 where it does not;
- ``energy``, ``||U U^T dW_i V V^T||^2 / ||dW_i||^2`` with U, V the result's singular directions:
  the share of the adapter in the spaces in which the result acts at all. It is 1 for a plain sum
  whose rank is not cut, and shows what a cut takes away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vlora_engine.linalg.low_rank import Factors, delta_norm2
from vlora_engine.merging.core_space import Change
from vlora_engine.utils.ranking import worst


@dataclass(frozen=True)
class ModuleRetention:
    """The products for one module of one adapter.

    Args:
        inner: ``<dW_i, dW>``.
        inside: ``||U U^T dW_i V V^T||^2``.
        norm2: ``||dW_i||^2``.
    """

    inner: float
    inside: float
    norm2: float


@dataclass(frozen=True)
class Retention:
    """What a merge keeps of one adapter, over all modules and in the worst of them.

    Args:
        cosine: Of dW_i and dW.
        strength: ``<dW_i, dW> / ||dW_i||^2``.
        energy: ``||U U^T dW_i V V^T||^2 / ||dW_i||^2``.
        worst_module: The module with the smallest cosine.
        worst_cosine: That cosine.
        worst_energy: The smallest energy of any module.
    """

    cosine: float
    strength: float
    energy: float
    worst_module: str
    worst_cosine: float
    worst_energy: float


def module_retention(change: Change, factors: Factors, scale: float) -> ModuleRetention:
    """The products for one module, from the result's change and an adapter's factors and scale."""
    a, b = factors[0].double(), factors[1].double() * scale
    left = change.U.T @ b  # [k, r]
    right = a @ change.V  # [r, k]
    inner = float((left.T * right * change.S).sum())
    # ||U^T B A V||^2 = sum((L^T L) * (R R^T)) with L = U^T B, R = A V
    inside = float(((left.T @ left) * (right @ right.T)).sum())
    return ModuleRetention(inner, max(0.0, inside), float(delta_norm2(a, b)))


def retention_of(modules: Mapping[str, ModuleRetention], norms2: Mapping[str, float]) -> Retention:
    """Sum the products of one adapter over its modules.

    Args:
        modules: The products for every module that it has.
        norms2: ``||dW||^2`` of the result by module.
    """
    nonzero = {name: module for name, module in modules.items() if module.norm2 > 0}
    size2 = math.fsum(module.norm2 for module in nonzero.values())
    merged2 = math.fsum(norms2.values())
    if not size2:
        return Retention(0.0, 0.0, 0.0, "", 0.0, 0.0)
    inner = math.fsum(module.inner for module in nonzero.values())
    cosines = {
        n: _share(module.inner, math.sqrt(module.norm2 * norms2[n]))
        for n, module in nonzero.items()
    }
    least = worst(cosines, largest=False) or ""
    return Retention(
        cosine=_share(inner, math.sqrt(size2 * merged2)),
        strength=inner / size2,
        energy=_share(math.fsum(module.inside for module in nonzero.values()), size2),
        worst_module=least,
        worst_cosine=cosines[least],
        worst_energy=min(_share(module.inside, module.norm2) for module in nonzero.values()),
    )


def retentions(
    count: int, modules: Mapping[str, Mapping[int, ModuleRetention]], norms2: Mapping[str, float]
) -> list[Retention]:
    """The retention of every adapter, in order, from the products by module and adapter."""
    return [
        retention_of(
            {name: by_adapter[i] for name, by_adapter in modules.items() if i in by_adapter}, norms2
        )
        for i in range(count)
    ]


def _share(part: float, whole: float) -> float:
    return max(-1.0, min(1.0, part / whole)) if whole > 0 else 0.0
