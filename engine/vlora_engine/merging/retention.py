"""What a merge keeps of each adapter: how alike the two are, and how much of it is still there.

All of it is on dW, from products of factors, and the same for every gauge:

- ``cosine`` of the adapter's dW and the result's;
- ``strength``, ``<dW_i, dW> / ||dW_i||^2``: 1 where the result moves along dW_i as far as the
  adapter itself does, 0 where it does not;
- ``energy``, ``||U U^T dW_i V V^T||^2 / ||dW_i||^2`` with U, V the directions the result writes
  to and reads from: the share of the adapter that lies where the result acts at all. Without a cut
  of the rank it is 1 for a plain sum; what a cut takes away is seen here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vlora_engine.linalg.low_rank import Factors, delta_norm2
from vlora_engine.merging.core_space import Change
from vlora_engine.utils.ranking import worst


@dataclass(frozen=True)
class ModuleKept:
    """Of one module and one adapter: ``<dW_i, dW>``, the energy inside, ``||dW_i||^2``."""

    inner: float
    inside: float
    norm2: float


@dataclass(frozen=True)
class Kept:
    """What a merge keeps of one adapter, over all modules and in the worst of them.

    ``worst_module`` is the one of the smallest cosine; ``worst_energy`` the least energy of any.
    """

    cosine: float
    strength: float
    energy: float
    worst_module: str
    worst_cosine: float
    worst_energy: float


def module_kept(change: Change, factors: Factors, scale: float) -> ModuleKept:
    """The figures of one module, from the result's change and an adapter's factors and scale."""
    a, b = factors[0].double(), factors[1].double() * scale
    left = change.U.T @ b  # [k, r]
    right = a @ change.V  # [r, k]
    inner = float((left.T * right * change.S).sum())
    inside = float(((left.T @ left) * (right @ right.T)).sum())
    return ModuleKept(inner, max(0.0, inside), float(delta_norm2(a, b)))


def kept_of(modules: Mapping[str, ModuleKept], norms2: Mapping[str, float]) -> Kept:
    """The figures of one adapter.

    Args:
        modules: Those of every module that it has.
        norms2: ``||dW||^2`` of the result by module.
    """
    lively = {name: one for name, one in modules.items() if one.norm2 > 0}
    size2 = math.fsum(one.norm2 for one in lively.values())
    merged2 = math.fsum(norms2.values())
    if not size2:
        return Kept(0.0, 0.0, 0.0, "", 0.0, 0.0)
    inner = math.fsum(one.inner for one in lively.values())
    cosines = {n: _share(one.inner, math.sqrt(one.norm2 * norms2[n])) for n, one in lively.items()}
    module = worst(cosines, largest=False) or ""
    return Kept(
        cosine=_share(inner, math.sqrt(size2 * merged2)),
        strength=inner / size2,
        energy=_share(math.fsum(one.inside for one in lively.values()), size2),
        worst_module=module,
        worst_cosine=cosines[module],
        worst_energy=min(_share(one.inside, one.norm2) for one in lively.values()),
    )


def all_kept(
    count: int, modules: Mapping[str, Mapping[int, ModuleKept]], norms2: Mapping[str, float]
) -> list[Kept]:
    """The figures of every adapter, in order, from those of the modules by adapter."""
    return [
        kept_of({name: by[i] for name, by in modules.items() if i in by}, norms2)
        for i in range(count)
    ]


def _share(part: float, whole: float) -> float:
    return max(-1.0, min(1.0, part / whole)) if whole > 0 else 0.0
