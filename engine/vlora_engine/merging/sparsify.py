"""Operators that look at single entries: what each keeps of an adapter, and how the kept combine.

A method is a sieve (trim, draw, ...) and a way to combine (sum, or elect signs). Both are written
for any tensor, so that tests can hold them against plain arithmetic.
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
# weighted entries of each adapter and its |weight|; asked for twice rather than kept, which takes
# memory of two tensors and not of as many as there are adapters
Votes = Callable[[], Iterable[tuple[Tensor, float]]]


# ---- sieves -------------------------------------------------------------------------------------


def trim(entries: Tensor, values: Values, generator: Generator | None = None) -> Tensor:
    """The largest ``density`` of the entries; equal ones stay together."""
    return _largest(entries, entries.abs(), values["density"])


def draw(entries: Tensor, values: Values, generator: Generator | None) -> Tensor:
    """Each entry stays with the chance ``1 - drop_rate`` and grows by one over it."""
    drop_rate = values["drop_rate"]
    if drop_rate == 0:
        return entries
    stays = _uniform(entries, generator) >= drop_rate
    return entries * stays.to(entries) / (1.0 - drop_rate)


def draw_by_size(entries: Tensor, values: Values, generator: Generator | None) -> Tensor:
    """As `draw`, with a chance that grows with the entry's place among its row by magnitude.

    From ``density - epsilon`` for the smallest to ``density + epsilon`` for the largest; every
    entry grows by one over its own chance, so that the expectation is exact.
    """
    density, epsilon = values["density"], values["epsilon"]
    if density >= 1:
        return entries
    places = entries.abs().argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    last = entries.shape[-1] - 1
    share = places.to(entries) / last if last else torch.full_like(entries, 0.5)
    chance = density - epsilon + 2 * epsilon * share
    return entries * (_uniform(entries, generator) < chance).to(entries) / chance


def drop_tails(entries: Tensor, values: Values, generator: Generator | None = None) -> Tensor:
    """Without the largest ``gamma`` of the entries and as many small ones as leave ``density``.

    Where both do not fit, fewer of the largest go: ``density`` of the entries stay in any case.
    """
    density, gamma, n = values["density"], values["gamma"], entries.numel()
    kept = min(n, max(1, round(density * n)))
    if kept == n:
        return entries
    top = min(round(gamma * n), n - kept)
    order = entries.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros_like(entries).flatten()
    mask[order[top : top + kept]] = 1.0
    return entries * mask.view_as(entries)


# ---- combining ----------------------------------------------------------------------------------


def add(votes: Votes) -> Tensor:
    """The sum of all."""
    each = iter(votes())
    total = next(each)[0].clone()
    for vote, _ in each:
        total += vote
    return total


def elect(votes: Votes, *, mean: bool, ballots: Votes | None = None) -> Tensor:
    """The entries with the sign of the sum of ``ballots`` (by default the votes themselves).

    Averaged by weight, or summed. Where the ballots cancel to rounding, nothing is elected and the
    result is 0.
    """
    cast = ballots or votes
    total = add(cast)
    size = add(lambda: ((vote.abs(), weight) for vote, weight in cast()))
    elected = total.sign().masked_fill_(total.abs() <= ROUNDING * size, 0.0)
    agreeing, weights = torch.zeros_like(total), torch.zeros_like(total)
    for vote, weight in votes():
        # in fp64: a number times a mask would be rounded to torch's default dtype
        agrees = ((vote.sign() == elected) & (elected != 0)).to(total)
        agreeing += vote * agrees
        weights += weight * agrees
    if not mean:
        return agreeing
    return torch.where(weights > 0, agreeing / weights, torch.zeros_like(agreeing))


# ---- methods on the core ------------------------------------------------------------------------


def on_core(sieve: Sieve, *, elects: bool) -> Callable[[ModuleInputs, Values], Change]:
    """The method that sieves every core and then sums, or elects signs."""

    def merged(inputs: ModuleInputs, values: Values) -> Change:
        def votes() -> Iterable[tuple[Tensor, float]]:
            for i, weight in enumerate(inputs.weights):
                kept = sieve(inputs.core(i), *of_adapter(inputs, values, i))
                yield weight * kept, abs(weight)

        core = elect(votes, mean=inputs.mean) if elects else add(votes)
        return inputs.from_core(core)

    return merged


def sce(inputs: ModuleInputs, values: Values) -> Change:
    """Select, calculate, erase (FuseChat's SCE) on the cores.

    Select: entries whose variance over the adapters is among the largest ``select_topk``.
    Calculate: an adapter's coefficient is its weight times the energy of what was selected.
    Erase: entries against the sign of the weighted sum go; the others are averaged by coefficient.
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

    What is drawn depends on seed, module and the adapter's place alone: neither on the other
    modules nor on how many adapters there are.
    """
    place = inputs.positions[i]
    own = {k: v[place] if isinstance(v, tuple) else v for k, v in values.items()}
    if "seed" not in own:
        return own, None
    digest = hashlib.sha256(f"{own['seed']}\0{inputs.module}\0{place}".encode()).digest()
    return own, Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _varying(inputs: ModuleInputs, share: float) -> Tensor:
    """1 where the cores vary most over the adapters, 0 elsewhere; (k_b, k_a)."""
    n = len(inputs.weights)
    mean = add(lambda: ((inputs.core(i) / n, 1.0) for i in range(n)))
    variance = add(lambda: (((inputs.core(i) - mean).square() / n, 1.0) for i in range(n)))
    least = (ROUNDING * max((c.norm for c in inputs.changes), default=0.0)) ** 2
    variance.masked_fill_(variance <= least, 0.0)
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
