"""Measures `RateTables`: energies of every task, clusters, and what sharing would cost.

Two passes, layer by layer. The first keeps the singular values of every task and compares the A of
all; those with a cosine above a half are a cluster, whatever the reason (one run, one seed). What
a group would gain is looked at on one layer of every family first, on two more where it gains
there, on some more where these do not agree or that costs little; the rest are like those.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.adapters.needs import StackShape, by_layer, coding, looking
from vlora_engine.adapters.stack import LayerStack, read_stack
from vlora_engine.analysis.relations import components_of, ratios_of
from vlora_engine.codec import delta
from vlora_engine.codec.forecast import (
    COARSEST,
    EVERYBODY,
    FINEST,
    Forecast,
    GroupTable,
    OwnTable,
    RateTables,
)
from vlora_engine.codec.klt import row_energies
from vlora_engine.codec.own import singular_values
from vlora_engine.codec.rates import direction_rate, vector_rate
from vlora_engine.codec.tables import Array
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.manifest.records import rest_bytes
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import map_ordered

COSINE = 0.5  # of A; where the line runs matters little: partitions are the same from .15 to .6
GRID_FACTOR = 2.0**1.25
BEST, WORST = 0.002, 0.97  # mean errors between which groups are looked at
CORE_OVERHEAD = 8 * 14.0  # bits of a task's place in a group
SHARE_OVERHEAD = 8 * 11.0
LOOKED_AT = 5  # layers of a family on which groups are looked at; more are like their neighbours
LARGE = 256  # rows of all tasks on a layer: decomposing more takes a while
CORES_LOOKED_AT = 16  # members of a group whose cores are made to learn what they cost
Seen = tuple[OwnTable, Tensor | None]  # a layer's own table, and the inner products of all A

NEAR = 1.5  # times the error that is aimed at: what only helps beyond it is not looked at


class FirstPass:
    """Collects, layer by layer, what the first pass sees: own tables, and how alike all A are.

    Args:
        names: Of the tasks. groups: Whether groups are going to be looked at.
    """

    def __init__(self, names: Sequence[str], *, groups: bool = True) -> None:
        self.places = {name: i for i, name in enumerate(names)}
        self.tables: list[OwnTable] = []
        self.gram = np.zeros((len(names), len(names)))
        self._groups = groups and len(names) > 1

    def look(self, stack: LayerStack, known: OwnTable | None = None) -> Seen:
        """What one layer is to be remembered by; in any thread. ``known``: its table, if made."""
        table = own_table(stack, self.places) if known is None else known
        return table, _a_gram(stack) if self._groups else None

    def add(self, seen: Seen) -> None:
        """Take the next layer, in their order."""
        table, inner = seen
        self.tables.append(table)
        if inner is not None:
            self.gram[np.ix_(table.tasks, table.tasks)] += inner.cpu().numpy()


def measure(
    sources: Mapping[str, AdapterSource],
    layers: Sequence[LayerSpec],
    weights: Mapping[str, float],
    run: RunContext,
    *,
    groups: bool = True,
    aim: CompressionTarget | None = None,
    overhead: int = 0,
    passed: FirstPass | None = None,
) -> RateTables:
    """The rate tables of a checked collection, their sizes left open but for that of rest tensors.

    Args:
        weights: 1 / ||dW|| of every task. groups: Look at what sharing would save, too.
        aim: The one target that the tables are made for; without it, they serve all.
        overhead: Bytes on disk that no choice changes, rest tensors apart.
        passed: The first pass over all layers, where it was made before.
    """
    names = list(sources)
    order, device = [spec.name for spec in layers], pick_device(run.device)
    first = FirstPass(names, groups=groups) if passed is None else passed

    def look_first(layer: str) -> Seen:
        return first.look(read_stack(layer, sources, weights, device))

    if passed is None:
        need = by_layer(sources.values(), looking)
        looked_at = map_ordered(look_first, order, run, stage="codec", need=need, device=device)
        with closing(looked_at):
            for layer in looked_at:
                first.add(layer)
    rate_tables = RateTables(names, first.tables, {}, np.ones(1), {})
    rate_tables.overhead, rate_tables.rest_bytes = overhead, sum(map(rest_bytes, sources.values()))
    rate_tables.grid = _grid(rate_tables) if aim is None else _grid_around(rate_tables, aim)
    if not groups or len(names) < 2:
        return rate_tables
    rate_tables.cosines = ratios_of(first.gram)
    signatures = [_signature(sources[name]) for name in names]
    rate_tables.clusters = _clusters(rate_tables.cosines, signatures)

    def look(work: Look) -> tuple[int, list[GroupTable]]:
        stack = read_stack(order[work.layer], sources, weights, device)
        table = rate_tables.layers[work.layer]
        found = []
        for number, kind in work.offers:
            wanted = set(rate_tables.clusters[number])
            members = [i for i, task in enumerate(table.tasks.tolist()) if task in wanted]
            if len(members) > 1:
                make = klt_table if kind == "klt" else delta_table
                found.append(make(stack, number, members, rate_tables.grid))
        return work.layer, found

    is_one_family = (
        len(components_of(rate_tables.cosines > COSINE)) == 1 and len(set(signatures)) == 1
    )
    related = set(rate_tables.clusters) - (set() if is_one_family else {EVERYBODY})
    offers = [(n, "delta") for n in rate_tables.clusters] + [(n, "klt") for n in sorted(related)]
    families = list(_families(order).values())

    def need_of_groups(work: Look) -> int:
        return coding(StackShape.of(order[work.layer], sources.values()), shares=True)

    done, most = 0, sum(map(_most_looks, families))
    for choose in (_middle, _ends, _some):
        works = [work for rows in families for work in choose(rate_tables, rows, offers, aim)]
        part = run.after(done, most)
        seen = map_ordered(look, works, part, stage="groups", need=need_of_groups, device=device)
        with closing(seen):
            rate_tables.groups |= seen
        done += len(works)
    if done < most:
        run.report("groups", most, most)  # the others are not worth a look
    for rows in families:
        if aim is None or _promising(rate_tables, rows[len(rows) // 2], aim):
            _borrow(rate_tables, rows)
        else:
            rate_tables.groups |= {row: [] for row in rows}
    return rate_tables


Offers = Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Look:
    """Groups to look at on one layer: (number, kind) each."""

    layer: int
    offers: Offers

    def __str__(self) -> str:
        return str(self.layer)


def _most_looks(rows: Sequence[int]) -> int:
    """How many layers of a family are looked at, if everything promises something everywhere."""
    return len({rows[0], rows[len(rows) // 2], rows[-1], *_spread(rows, LOOKED_AT)})


def _middle(
    rate_tables: RateTables, rows: Sequence[int], offers: Offers, aim: CompressionTarget | None
) -> list[Look]:
    """Everything on the middle layer of a family."""
    return [Look(rows[len(rows) // 2], offers)]


def _ends(
    rate_tables: RateTables, rows: Sequence[int], offers: Offers, aim: CompressionTarget | None
) -> list[Look]:
    """What promises something there, on the first and the last."""
    promising = _promising(rate_tables, rows[len(rows) // 2], aim)
    left = sorted({rows[0], rows[-1]} - rate_tables.groups.keys())
    return [Look(row, promising) for row in left if promising]


def _some(
    rate_tables: RateTables, rows: Sequence[int], offers: Offers, aim: CompressionTarget | None
) -> list[Look]:
    """The same on some more, but where these three agree and looking takes long."""
    looked_at = [row for row in rows if row in rate_tables.groups]
    offered = {_promising(rate_tables, row, aim) for row in looked_at}
    promising = _promising(rate_tables, rows[len(rows) // 2], aim)
    if not promising or (
        len(offered) == 1 and rate_tables.layers[looked_at[0]].shares.size > LARGE
    ):
        return []
    return [Look(row, promising) for row in _spread(rows, LOOKED_AT) if row not in looked_at]


def own_table(stack: LayerStack, places: Mapping[str, int]) -> OwnTable:
    """The singular values of every task of one layer."""
    values = singular_values(stack.gram_a, stack.gram_b, stack.scale)
    shares = np.square(values * stack.weight.cpu().numpy()[:, None])
    tasks = np.array([places[task] for task in stack.tasks], dtype=np.int64)
    return OwnTable(
        stack.layer, stack.a.shape[2], stack.bt.shape[2], tasks, shares.astype(np.float32)
    )


def klt_table(stack: LayerStack, number: int, members: Sequence[int], grid: Array) -> GroupTable:
    """What a transform across the members costs, from the energies of its rows."""
    at = torch.tensor(list(members))
    weight = (stack.weight * stack.scale)[at]
    count, rank = len(members), max(stack.ranks[row] for row in members)
    a = stack.a[at, :rank].cpu().numpy()
    bt = (stack.bt[at, :rank] * weight.view(-1, 1, 1)).cpu().numpy()
    shared, missed, components = np.zeros(len(grid)), np.zeros(len(grid)), np.zeros(len(grid))
    for energy, width in zip(row_energies(a, bt), (a.shape[2], bt.shape[2]), strict=True):
        for g, step in enumerate(grid):
            bits, lost = vector_rate(energy, width, float(step))  # [components, r]
            used = (bits > 0).any(axis=1).sum()
            shared[g] += bits.sum() + (bits > 0).sum() * (16 * rank + 24)
            components[g] += used
            missed[g] += lost.sum()
    each = np.repeat(missed[:, None] / count, count, axis=1)
    bits_each = np.repeat((16 * components + SHARE_OVERHEAD)[:, None], count, axis=1)
    return _group_table(number, "klt", members, shared, bits_each, each)


def delta_table(stack: LayerStack, number: int, members: Sequence[int], grid: Array) -> GroupTable:
    """What shared columns and cores cost, by quantizing them at every step of the grid.

    Of many members only some get cores; those of the others are taken to cost and to miss as much
    against what they cost and miss by themselves.
    """
    at = torch.tensor(list(members))
    weight, count = stack.weight[at], len(members)
    part, floor = stack.only(members, weight), delta.energy_floor(float(grid[0]))
    found = {side: delta.leading_directions(part.rows("delta", side), floor) for side in ("a", "b")}
    energy = (stack.energy()[at] * weight.square()).cpu().numpy()
    some = _spread(range(count), CORES_LOOKED_AT)
    rows = at[some]
    alone = _alone(stack, members, grid)
    shared, bits, missed = np.zeros(len(grid)), *np.full((2, len(grid), count), CORE_OVERHEAD)
    for g, step in enumerate(grid.tolist()):
        (b, bits_b), (a, bits_a) = (delta.round_columns(found[side], step) for side in ("b", "a"))
        shared[g] = bits_b + bits_a
        cores = delta.code_cores(
            stack.a[rows],
            stack.bt[rows],
            stack.scale[rows] * weight[some] / step,
            energy[some] / step**2,
            delta.orthonormal(b),
            delta.orthonormal(a),
            [stack.ranks[row] for row in rows.tolist()],
        )
        bits[g] += _like(alone[0][g], some, [core_bits for _, core_bits in cores])
        missed[g] = _like(alone[1][g], some, [core.missed * step**2 for core, _ in cores])
        missed[g] = np.minimum(missed[g], energy)
    return _group_table(number, "delta", members, shared, bits, missed)


def _alone(stack: LayerStack, members: Sequence[int], grid: Array) -> tuple[Array, Array]:
    """Bits and missed shares (G, n) of the members, every one by itself."""
    at = torch.tensor(list(members))
    values = singular_values(stack.gram_a[at], stack.gram_b[at], stack.scale[at])
    shares = np.square(values * stack.weight[at].cpu().numpy()[:, None])
    widths = stack.bt.shape[2], stack.a.shape[2]
    bits, missed = direction_rate(shares[None], *widths, grid[:, None, None])
    return bits.sum(axis=2), missed.sum(axis=2)


def _like(alone: Array, some: Sequence[int], found: Sequence[float]) -> Array:
    """(n,) what was ``found`` of ``some``, and of the others as much of what they are alone."""
    whole = float(alone[list(some)].sum())
    out = alone * (sum(found) / whole) if whole > 0 else np.full(len(alone), np.mean(found))
    out[list(some)] = found
    return out


def _group_table(
    number: int, kind: str, members: Sequence[int], shared: Array, bits: Array, missed: Array
) -> GroupTable:
    narrow = (x.astype(np.float32) for x in (shared, bits, missed))
    return GroupTable(number, kind, np.array(members, dtype=np.int64), *narrow)


def _a_gram(stack: LayerStack) -> Tensor:
    """(N, N) inner products of A; fp32 is enough for a cosine that is compared with a half."""
    rows = stack.a.flatten(1).float()
    return rows @ rows.T


def _signature(source: AdapterSource) -> tuple[tuple[str, int], ...]:
    """Modules and ranks: only adapters that have all of them in common can be a cluster."""
    return tuple((name, shape.rank) for name, shape in source.modules.items())


def _clusters(cosines: Array, signatures: Sequence[object]) -> dict[int, list[int]]:
    """Connected components of cosines above the line, by number; number 0 is everybody."""
    count, kinds = len(cosines), {s: n for n, s in enumerate(dict.fromkeys(signatures))}
    kind = np.array([kinds[signature] for signature in signatures])
    close = np.tril((cosines > COSINE) & (kind[:, None] == kind), -1)
    found = [group for group in components_of(close | close.T) if 1 < len(group) < count]
    return {EVERYBODY: list(range(count)), **dict(enumerate(found, 1))}


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """About ``count`` of them, evenly spaced, first and last included."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _borrow(rate_tables: RateTables, rows: Sequence[int]) -> None:
    """Layers that were not looked at are taken to be like the nearest of their family."""
    looked_at = [row for row in rows if row in rate_tables.groups]
    for row in rows:
        if row not in rate_tables.groups:
            near = min(looked_at, key=lambda other: (abs(other - row), other))
            alike = np.array_equal(rate_tables.layers[row].tasks, rate_tables.layers[near].tasks)
            rate_tables.groups[row] = rate_tables.groups[near] if alike else []


def _families(names: Sequence[str]) -> dict[str, list[int]]:
    """Layers that have the same name but for numbers."""
    families: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        families[re.sub(r"\d+", "#", name)].append(i)
    return families


def _promising(
    rate_tables: RateTables, layer: int, aim: CompressionTarget | None
) -> tuple[tuple[int, str], ...]:
    """The groups that save anything on a layer, at any step of the grid that may be taken."""
    error = None if aim is None else aim.error
    found: set[tuple[int, str]] = set()
    part = rate_tables.only([layer])
    for step in rate_tables.grid.tolist():
        modes = rate_tables.layer_modes(layer, step)
        forecast = part.forecast(np.full(len(rate_tables.tasks), step), [modes])
        if error is None or float(forecast.layer_errors[0]) <= NEAR * error:
            found |= {(mode.number, mode.kind) for mode in modes}
    return tuple(sorted(found))


def _grid(rate_tables: RateTables) -> Array:
    """Steps between a mean error of next to nothing and one of next to everything."""
    finest, coarsest = (_step_at(rate_tables, error) for error in (BEST, WORST))
    points = max(2, int(np.ceil(np.log(coarsest / finest) / np.log(GRID_FACTOR))) + 1)
    return np.geomspace(finest, coarsest, points)


def _grid_around(rate_tables: RateTables, aim: CompressionTarget) -> Array:
    """A few steps from what the target comes to without sharing to what it may come to with it."""
    if aim.budget is not None:
        bits = 8 * max(1, aim.budget - rate_tables.rest_bytes - rate_tables.overhead)
        step = _step_for(rate_tables, lambda found: found.bits.sum() <= bits, coarser=False)
    else:
        step = _step_at(rate_tables, aim.error or BEST)
    spread = (1 / 8, 1 / 3, 1, 3) if aim.budget is not None else (1 / 3, 1, 3)
    return np.array([step * factor for factor in spread])


def _step_at(rate_tables: RateTables, error: float) -> float:
    return _step_for(rate_tables, lambda found: found.errors.mean() <= error, coarser=True)


def _step_for(
    rate_tables: RateTables, holds: Callable[[Forecast], bool], *, coarser: bool
) -> float:
    """The coarsest (or finest) step of `own` for which something still holds."""
    low, high = np.log2(FINEST), np.log2(COARSEST)
    for _ in range(14):
        middle = (low + high) / 2
        found = bool(holds(rate_tables.at("own", 2.0**middle)))
        low, high = (middle, high) if found == coarser else (low, middle)
    return float(2.0 ** ((low + high) / 2))
