"""The merge methods: each one function, its arithmetic on cores, and its entry in the registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from vlora_engine.adapters import AdapterSource, LoRAWeights
from vlora_engine.merging import factors
from vlora_engine.merging.apply import Space, merge
from vlora_engine.merging.registry import MERGE_METHODS, MergeMethod, MergeParameter
from vlora_engine.merging.space import ROUNDING, ModuleCores

Adapters = Sequence[LoRAWeights | AdapterSource]


def task_arithmetic(
    adapters: Adapters,
    weights: Sequence[float] | None = None,
    *,
    space: Space = "delta",
    rank: int | None = None,
) -> LoRAWeights:
    """``dW = sum_i w_i dW_i``, exactly (Ilharco et al. 2023, arXiv:2212.04089).

    Args:
        adapters: At least one; ranks, scales and module sets may differ. A module that an adapter
            lacks counts as zero with its weight as given.
        weights: One for each adapter, as they are; the average by default.
        space: ``"factors"`` averages A and B apart, as the first library does.
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
    """Trim, elect signs, average what agrees (Yadav et al. 2023, arXiv:2306.01708).

    On the cores of the weight changes: per adapter and module the largest ``density`` of the
    entries stay, the sign of their weighted sum is elected entry by entry, and the weighted mean
    of the entries with that sign is taken. Where the sum cancels, nothing is elected and the
    result is 0. Only the weights' ratios matter; T copies give what one of them gives.

    Args:
        adapters: As for `task_arithmetic`.
        density: Share of entries to keep, in (0, 1].
        weights: Equal by default.
        space: ``"factors"`` works on A and B apart, as the first library does.
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
    """Drop entries at random, rescale the rest, sum (Yu et al. 2024, arXiv:2311.03099).

    On the cores of the weight changes, so that the expectation is exactly `task_arithmetic`.
    What is dropped is drawn per (seed, module, position of the adapter): it depends neither on
    the other modules nor on the number of adapters, but on their order.

    Args:
        adapters: As for `task_arithmetic`.
        drop_rate: Probability of dropping an entry, in [0, 1).
        weights: The average by default.
        seed: Same seed, same result; a fresh one by default. torch's own state is not touched.
        space: ``"factors"`` works on A and B apart, as the first library does.
        rank: As for `task_arithmetic`.

    Raises:
        ParameterError: Also for a drop rate outside [0, 1).
        CollectionError: No adapters, or a module's dimensions differ.
    """
    return merge(
        adapters, "dare", weights=weights, space=space, rank=rank, drop_rate=drop_rate, seed=seed
    )


def _ties_core(cores: ModuleCores, parameters: Mapping[str, Any]) -> Tensor:
    density = parameters["density"]

    def votes() -> Iterator[tuple[Tensor, float]]:
        # Formed twice rather than kept: memory of two cores, not of as many as adapters.
        pairs = enumerate(cores.weights)
        return ((weight * _trimmed(cores.core(i), density), abs(weight)) for i, weight in pairs)

    total = torch.zeros(cores.shape, dtype=torch.float64, device=cores.space.U.device)
    size, agreeing, weight_sum = (torch.zeros_like(total) for _ in range(3))
    for vote, _ in votes():
        total += vote
        size += vote.abs()
    elected = total.sign().masked_fill_(total.abs() <= ROUNDING * size, 0.0)
    for vote, weight in votes():
        agree = (vote.sign() == elected) & (elected != 0)
        agreeing += vote * agree
        weight_sum += weight * agree
    return torch.where(weight_sum > 0, agreeing / weight_sum, torch.zeros_like(agreeing))


def _dare_core(cores: ModuleCores, parameters: Mapping[str, Any]) -> Tensor:
    drop_rate, seed = parameters["drop_rate"], parameters["seed"]
    total = torch.zeros(cores.shape, dtype=torch.float64, device=cores.space.U.device)
    for i, (weight, position) in enumerate(zip(cores.weights, cores.positions, strict=True)):
        core = cores.core(i)
        if drop_rate > 0:
            draw = torch.rand(
                cores.shape, dtype=torch.float64, generator=_generator(seed, cores.module, position)
            )
            core *= (draw >= drop_rate).to(core) / (1.0 - drop_rate)
        total += weight * core
    return total


def _trimmed(core: Tensor, density: float) -> Tensor:
    """The largest ``density`` of a core's entries (ties stay), zeros elsewhere."""
    count = max(1, round(density * core.numel()))
    if count >= core.numel():
        return core
    magnitude = core.abs()
    smallest_kept = magnitude.flatten().kthvalue(core.numel() - count + 1).values
    return core.masked_fill(magnitude < smallest_kept, 0.0)


def _generator(seed: int, module: str, position: int) -> Generator:
    digest = hashlib.sha256(f"{seed}\0{module}\0{position}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


MERGE_METHODS.add(
    MergeMethod(
        name="task_arithmetic",
        aliases=("average", "linear"),
        summary="weighted sum of the weight changes, exact",
        function=task_arithmetic,
        core=None,
        factors=factors.weighted_sum,
        acts_on="dW",
        identities=frozenset({"one", "copies", "gauge", "order", "scaling", "linear"}),
        reference="arXiv:2212.04089",
    )
)
MERGE_METHODS.add(
    MergeMethod(
        name="ties",
        summary="keep the largest entries, elect signs, average what agrees",
        function=ties_merge,
        core=_ties_core,
        factors=factors.ties,
        acts_on="dW, in the core space of the adapters",
        parameters=(
            MergeParameter(
                "density", "float", 0.5, "share of entries kept", low=0, high=1, low_open=True
            ),
        ),
        neutral={"density": 1.0},
        normalises_weights=True,
        identities=frozenset({"one", "copies", "gauge", "order", "scaling"}),
        reference="arXiv:2306.01708",
    )
)
MERGE_METHODS.add(
    MergeMethod(
        name="dare",
        summary="drop entries at random, rescale the rest, sum",
        function=dare_merge,
        core=_dare_core,
        factors=factors.dare,
        acts_on="dW, in the core space of the adapters",
        parameters=(
            MergeParameter(
                "drop_rate", "float", 0.5, "share of entries dropped", low=0, high=1, high_open=True
            ),
            MergeParameter("seed", "int", None, "seed of the draws; a fresh one by default"),
        ),
        neutral={"drop_rate": 0.0},
        order_independent=False,
        identities=frozenset({"one", "copies", "gauge", "scaling", "linear"}),
        reference="arXiv:2311.03099",
    )
)
