"""vlora-dev's three merge functions, under its names and with its arguments in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.merging.merge_adapters import Adapters, Space, merge
from vlora_engine.merging.methods import MERGE_METHODS


def task_arithmetic(
    adapters: Adapters,
    weights: Sequence[float] | None = None,
    *,
    space: Space = "delta",
    rank: int | None = None,
) -> LoRAWeights:
    """Merge by the exact sum ``dW = sum_i w_i dW_i`` (Ilharco et al. 2023, arXiv:2212.04089).

    Args:
        adapters: At least one; ranks, scales and module sets may differ. A module that an adapter
            lacks counts as zero with its weight as given.
        weights: One for each adapter, as they are; the average by default.
        space: ``"factors"`` averages A and B apart, as vlora-dev does.
        rank: Cut each module of the result to its best approximation of this rank; by default
            it has its numerical rank, at most the sum of the adapters'.

    Returns:
        The merged adapter: scale 1, ``lora_alpha = r``, without rsLoRA.

    Raises:
        ParameterError: Weights of the wrong number or not finite, a rank below 1.
        CollectionError: No adapters, or a module's dimensions differ.
    """
    return merge(adapters, "task_arithmetic", weights=weights, space=space, rank=rank)


def ties_merge(
    adapters: Adapters,
    density: float = 0.5,
    weights: Sequence[float] | None = None,
    *,
    space: Space = "delta",
    rank: int | None = None,
) -> LoRAWeights:
    """Merge by TIES: trim, elect signs, average what agrees (Yadav et al. 2023, arXiv:2306.01708).

    On the cores of the weight changes: per adapter and module the largest ``density`` of the
    entries stay, the sign of their weighted sum is elected entry by entry, and the weighted mean
    of the entries with that sign is taken. Where the sum cancels, nothing is elected and the
    result is 0. Only the weights' ratios matter; T copies give what one of them gives.

    Args:
        adapters: As for `task_arithmetic`.
        density: Share of entries to keep, in (0, 1].
        weights: Equal by default.
        space: ``"factors"`` works on A and B apart, as vlora-dev does.
        rank: As for `task_arithmetic`.

    Raises:
        ParameterError: Also for a density outside (0, 1].
        CollectionError: No adapters, or a module's dimensions differ.
    """
    return merge(adapters, "ties", weights=weights, space=space, rank=rank, density=density)


def dare_merge(
    adapters: Adapters,
    drop_rate: float = 0.5,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    *,
    space: Space = "delta",
    rank: int | None = None,
) -> LoRAWeights:
    """Merge by DARE: drop entries at random, rescale, sum (Yu et al. 2024, arXiv:2311.03099).

    On the cores of the weight changes, so that the expectation is exactly `task_arithmetic`.
    What is dropped is drawn per (seed, module, position of the adapter): it depends neither on
    the other modules nor on the number of adapters, but on their order.

    Args:
        adapters: As for `task_arithmetic`.
        drop_rate: Probability of dropping an entry, in [0, 1).
        weights: The average by default.
        seed: Same seed, same result; a fresh one by default. torch's own state is not touched.
        space: ``"factors"`` works on A and B apart, as vlora-dev does.
        rank: As for `task_arithmetic`.

    Raises:
        ParameterError: Also for a drop rate outside [0, 1).
        CollectionError: No adapters, or a module's dimensions differ.
    """
    return merge(
        adapters, "dare", weights=weights, space=space, rank=rank, drop_rate=drop_rate, seed=seed
    )


def _by_name(name: str) -> Callable[..., LoRAWeights]:
    def merged(adapters: Adapters, **settings: Any) -> LoRAWeights:
        return merge(adapters, name, **settings)

    return merged


# The functions behind calling a spec: vlora-dev's where it has one.
FUNCTIONS: dict[str, Callable[..., LoRAWeights]] = {
    **{name: _by_name(name) for name in MERGE_METHODS},
    "task_arithmetic": task_arithmetic,
    "ties": ties_merge,
    "dare": dare_merge,
}
