"""Merge methods that work on single entries: which each keeps of an adapter, and how they combine.

A method is a sieve (trim, draw, ...) and a way to combine (sum, or elect signs). Both take any
tensor, so that tests can compare them with plain arithmetic. docs/mathematics.md#the-core-space
has a table of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from vlora_engine.merging.core_space import ROUNDING, Change, ModuleInputs

Values = Mapping[str, Any]
# (the entries, the parameters of this adapter, its generator) -> the entries kept, zeros elsewhere
Sieve = Callable[[Tensor, Values, Generator | None], Tensor]
# () -> the weighted entries of each adapter and its |weight|; called twice, so that two tensors are
# in memory and not as many as there are adapters
Votes = Callable[[], Iterable[tuple[Tensor, float]]]


# ---- sieves -------------------------------------------------------------------------------------


def trim(entries: Tensor, values: Values, generator: Generator | None = None) -> Tensor:
    """TIES' sieve: the share ``density`` of largest magnitude; entries of equal magnitude stay."""
    return _largest(entries, entries.abs(), values["density"])


def draw(entries: Tensor, values: Values, generator: Generator | None) -> Tensor:
    """DARE's sieve: each entry stays with probability ``1 - drop_rate`` and is divided by it."""
    drop_rate = values["drop_rate"]
    if drop_rate == 0:
        return entries
    mask = _uniform(entries, generator) >= drop_rate
    rescaled: Tensor = entries * mask.to(entries) / (1.0 - drop_rate)
    return rescaled


def draw_by_size(entries: Tensor, values: Values, generator: Generator | None) -> Tensor:
    """DELLA's sieve: as `draw`, with a probability that grows with the entry's rank in its row.

    From ``density - epsilon`` for the smallest magnitude to ``density + epsilon`` for the largest;
    every entry is divided by its own probability, so that the expectation is exact.
    """
    density, epsilon = values["density"], values["epsilon"]
    if density >= 1:
        return entries
    ranks = entries.abs().argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    last = entries.shape[-1] - 1
    share = ranks.to(entries) / last if last else torch.full_like(entries, 0.5)
    probability = density - epsilon + 2 * epsilon * share
    rescaled: Tensor = (
        entries * (_uniform(entries, generator) < probability).to(entries) / probability
    )
    return rescaled


def drop_tails(entries: Tensor, values: Values, generator: Generator | None = None) -> Tensor:
    """Breadcrumbs' sieve: drop the share ``gamma`` of largest magnitude, and small ones.

    So many small ones are dropped that ``density`` of the entries stay; where ``gamma`` leaves less
    than that, fewer of the largest are dropped.
    """
    density, gamma, n = values["density"], values["gamma"], entries.numel()
    count = min(n, max(1, round(density * n)))
    if count == n:
        return entries
    top = min(round(gamma * n), n - count)
    order = entries.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros_like(entries).flatten()
    mask[order[top : top + count]] = 1.0
    return entries * mask.view_as(entries)


# ---- combining ----------------------------------------------------------------------------------


def add(votes: Votes) -> Tensor:
    """Add up what is left of the adapters' cores."""
    each = iter(votes())
    total = next(each)[0].clone()
    for vote, _ in each:
        total += vote
    return total


def elect(votes: Votes, *, mean: bool, ballots: Votes | None = None) -> Tensor:
    """Combine by sign election: only entries with the sign of the sum of ``ballots`` count.

    Args:
        votes: The weighted entries.
        mean: Average agreeing entries by ``|weight|``, instead of summing them.
        ballots: What the sign is elected by; by default the votes themselves.

    Returns:
        The combined entries; 0 where the ballots cancel up to rounding.
    """
    cast = ballots or votes
    total = add(cast)
    size = add(lambda: ((vote.abs(), weight) for vote, weight in cast()))
    elected = total.sign().masked_fill_(total.abs() <= ROUNDING * size, 0.0)
    agreeing, weights = torch.zeros_like(total), torch.zeros_like(total)
    for vote, weight in votes():
        # in the dtype of the entries: a float times a bool mask would have torch's default dtype
        agrees = ((vote.sign() == elected) & (elected != 0)).to(total)
        agreeing += vote * agrees
        weights += weight * agrees
    if not mean:
        return agreeing
    return torch.where(weights > 0, agreeing / weights, torch.zeros_like(agreeing))


# ---- methods on the core ------------------------------------------------------------------------


def on_core(sieve: Sieve, *, elects: bool) -> Callable[[ModuleInputs, Values], Change]:
    """Make the operator that applies a sieve to every core, then sums or elects signs."""

    def merged(inputs: ModuleInputs, values: Values) -> Change:
        def votes() -> Iterable[tuple[Tensor, float]]:
            for i, weight in enumerate(inputs.weights):
                entries = sieve(inputs.core(i), *of_adapter(inputs, values, i))
                yield weight * entries, abs(weight)

        core = elect(votes, mean=inputs.mean) if elects else add(votes)
        return inputs.from_core(core)

    return merged


def sce(inputs: ModuleInputs, values: Values) -> Change:
    """SCE on the cores: select, calculate, erase (Wan et al. 2024, FuseChat, arXiv:2408.07990).

    Select: entries whose variance over the adapters is among the largest ``select_topk``.
    Calculate: an adapter's coefficient is its weight times the energy of what was selected.
    Erase: entries against the sign of the weighted sum are dropped, the others averaged by
    coefficient.
    """
    count = range(len(inputs.weights))
    selected = _varying(inputs, values["select_topk"])
    energy = [float((inputs.core(i) * selected).square().sum()) for i in count]

    def with_factors(factors: Sequence[float]) -> Votes:
        return lambda: ((f * inputs.core(i) * selected, abs(f)) for i, f in enumerate(factors))

    coefficients = [w * e for w, e in zip(inputs.weights, energy, strict=True)]
    ballots = with_factors(inputs.weights)
    return inputs.from_core(elect(with_factors(coefficients), mean=True, ballots=ballots))


def of_adapter(inputs: ModuleInputs, values: Values, i: int) -> tuple[Values, Generator | None]:
    """The parameters of one adapter, and the generator of its draws.

    Draws depend only on the seed, the module and the adapter's position: not on other modules or on
    the number of adapters.
    """
    position = inputs.positions[i]
    parameters = {k: v[position] if isinstance(v, tuple) else v for k, v in values.items()}
    if "seed" not in parameters:
        return parameters, None
    digest = hashlib.sha256(f"{parameters['seed']}\0{inputs.module}\0{position}".encode()).digest()
    return parameters, Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _varying(inputs: ModuleInputs, share: float) -> Tensor:
    """The mask (k_b, k_a) of the share of entries that vary most over the adapters."""
    n = len(inputs.weights)
    mean = add(lambda: ((inputs.core(i) / n, 1.0) for i in range(n)))
    variance = add(lambda: (((inputs.core(i) - mean).square() / n, 1.0) for i in range(n)))
    noise = (ROUNDING * max((c.norm for c in inputs.changes), default=0.0)) ** 2
    variance.masked_fill_(variance <= noise, 0.0)
    return _largest(torch.ones_like(variance), variance, share)


def _largest(entries: Tensor, magnitude: Tensor, share: float) -> Tensor:
    """The entries of the largest magnitudes (equal ones stay together), zeros elsewhere."""
    count = max(1, round(share * magnitude.numel()))
    if count >= magnitude.numel():
        return entries
    smallest_kept = magnitude.flatten().kthvalue(magnitude.numel() - count + 1).values
    return entries.masked_fill(magnitude < smallest_kept, 0.0)


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """Uniform draws in [0, 1) made on the CPU, so that a seed means the same everywhere."""
    return torch.rand(like.shape, dtype=torch.float64, generator=generator).to(like.device)
