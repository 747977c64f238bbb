"""Measures what an `Outlook` tells: energies of every task, clusters, and what sharing would cost.

Two passes, layer by layer. The first keeps the singular values of every task and compares the A of
all; those with a cosine above a half are a cluster, whatever the reason (one run, one seed). What
a group would gain is looked at on a few layers of every kind first, and on the others only where
it gains there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlora_engine.adapters import AdapterSource
from vlora_engine.codec.delta import code_core, orthonormal, principal
from vlora_engine.codec.klt import row_energies
from vlora_engine.codec.layer import delta_rows, singular_directions
from vlora_engine.codec.outlook import COARSEST, FINEST, GroupTable, Outlook, OwnTable
from vlora_engine.codec.own import singular_values
from vlora_engine.codec.quantizer import PRICE, quantize
from vlora_engine.codec.rates import SIDE_OVERHEAD, number_bits, single
from vlora_engine.codec.tables import Array
from vlora_engine.manifest import LayerSpec
from vlora_engine.progress import CancelCheck, ProgressCallback, map_ordered
from vlora_engine.stack import LayerStack, read_stack

COSINE = 0.5  # of A; where the line runs matters little: partitions are the same from .15 to .6
GRID_FACTOR = 2.0**1.25
BEST, WORST = 0.002, 0.97  # mean errors between which groups are looked at
EVERYBODY = 0
CORE_OVERHEAD = 8 * 14.0  # bits of a task's place in a group
SHARE_OVERHEAD = 8 * 11.0


def measure(
    sources: Mapping[str, AdapterSource],
    layers: Sequence[LayerSpec],
    weights: Mapping[str, float],
    *,
    groups: bool = True,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Outlook:
    """The outlook of a checked collection, its sizes left open.

    Args:
        weights: 1 / ||dW|| of every task. groups: Look at what sharing would save, too.
    """
    names = list(sources)
    places = {name: i for i, name in enumerate(names)}
    order = [spec.name for spec in layers]

    def first(layer: str) -> tuple[OwnTable, Tensor | None]:
        stack = read_stack(layer, sources, weights, device)
        return own_table(stack, places), _a_gram(stack) if groups and len(names) > 1 else None

    tables: list[OwnTable] = []
    gram = np.zeros((len(names), len(names)))
    passed = map_ordered(first, order, stage="codec", progress=progress, cancelled=cancelled)
    with closing(passed):
        for table, inner in passed:
            tables.append(table)
            if inner is not None:
                gram[np.ix_(table.tasks, table.tasks)] += inner.cpu().numpy()
    outlook = Outlook(names, tables, {}, _grid(tables, len(names)), {})
    if not groups or len(names) < 2:
        return outlook
    outlook.cosines = _cosines(gram)
    signatures = [_signature(sources[name]) for name in names]
    outlook.clusters = _clusters(outlook.cosines, signatures)

    def look(work: Look) -> tuple[int, list[GroupTable]]:
        stack = read_stack(order[work.layer], sources, weights, device)
        own = outlook.layers[work.layer]
        found = []
        for number, kind in work.offers:
            wanted = set(outlook.clusters[number])
            members = [i for i, task in enumerate(own.tasks.tolist()) if task in wanted]
            if len(members) > 1:
                make = klt_table if kind == "klt" else delta_table
                found.append(make(stack, number, members, outlook.grid))
        return work.layer, found

    families = _families(order)
    one = _is_one(outlook.cosines) and len(set(signatures)) == 1
    related = set(outlook.clusters) - (set() if one else {EVERYBODY})
    offers = [(n, "delta") for n in outlook.clusters] + [(n, "klt") for n in sorted(related)]
    samples = [Look(rows[len(rows) // 2], tuple(offers)) for rows in families.values()]
    seen = map_ordered(
        look, samples, stage="groups", describe=str, progress=progress, cancelled=cancelled
    )
    with closing(seen):
        for layer, found in seen:
            outlook.groups[layer] = found
    others = [
        Look(layer, promising)
        for rows in families.values()
        if (promising := _promising(outlook, rows[len(rows) // 2]))
        for layer in rows
        if layer != rows[len(rows) // 2]
    ]
    rest = map_ordered(
        look, others, stage="groups", describe=str, progress=progress, cancelled=cancelled
    )
    with closing(rest):
        for layer, found in rest:
            outlook.groups[layer] = found
    return outlook


@dataclass(frozen=True)
class Look:
    """Groups to look at on one layer: (number, kind) each."""

    layer: int
    offers: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        return str(self.layer)


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
            bits, lost = single(energy, width, float(step))  # [components, r]
            used = (bits > 0).any(axis=1).sum()
            shared[g] += bits.sum() + (bits > 0).sum() * (16 * rank + 24)
            components[g] += used
            missed[g] += lost.sum()
    each = np.repeat(missed[:, None] / count, count, axis=1)
    own = np.repeat((16 * components + SHARE_OVERHEAD)[:, None], count, axis=1)
    return _group_table(number, "klt", members, shared, own, each)


def delta_table(stack: LayerStack, number: int, members: Sequence[int], grid: Array) -> GroupTable:
    """What shared columns and cores cost, by quantizing them at every step of the grid."""
    norms = np.array([1 / w if w > 0 else 0.0 for w in stack.weight.tolist()])
    norms[norms == 0] = 1.0
    found = {s: principal(delta_rows(stack, norms, members, s)) for s in ("a", "b")}
    changes = [(u, s / norms[row], v) for row, u, s, v in singular_directions(stack, list(members))]
    shared = np.zeros(len(grid))
    bits = np.full((len(grid), len(members)), CORE_OVERHEAD)
    missed = np.zeros((len(grid), len(members)))
    for g, step in enumerate(grid):
        bases = {}
        for side, (energy, vectors) in found.items():
            scaled = vectors * (np.sqrt(energy) / step)[:, None]
            scaled = scaled[energy > PRICE * SIDE_OVERHEAD * step * step]
            coded = quantize(scaled) if len(scaled) else scaled
            lost, need = np.square(scaled - coded).sum(axis=1), number_bits(coded) + SIDE_OVERHEAD
            worth = np.square(scaled).sum(axis=1) - lost > PRICE * need
            shared[g] += need[worth].sum()
            bases[side] = orthonormal(coded[worth])
        for i, (u, s, v) in enumerate(changes):
            core, core_bits = code_core(
                u, s / step, v, bases["b"], bases["a"], stack.ranks[members[i]]
            )
            bits[g, i] += core_bits
            missed[g, i] = core.missed * step * step
    return _group_table(number, "delta", members, shared, bits, missed)


def _group_table(
    number: int, kind: str, members: Sequence[int], shared: Array, bits: Array, missed: Array
) -> GroupTable:
    narrow = (x.astype(np.float32) for x in (shared, bits, missed))
    return GroupTable(number, kind, np.array(members, dtype=np.int64), *narrow)


def _a_gram(stack: LayerStack) -> Tensor:
    """(N, N) inner products of A; fp32 is enough for a cosine that is compared with a half."""
    rows = stack.a.flatten(1).float()
    return rows @ rows.T


def _cosines(gram: Array) -> Array:
    norms = np.sqrt(gram.diagonal().clip(0))
    inverse = np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
    return gram * inverse[:, None] * inverse[None, :]


def _signature(source: AdapterSource) -> tuple[tuple[str, int], ...]:
    """Modules and ranks: only adapters that have all of them in common can be a cluster."""
    return tuple((name, shape.rank) for name, shape in source.modules.items())


def _clusters(cosines: Array, signatures: Sequence[object]) -> dict[int, list[int]]:
    """Connected components of cosines above the line, by number; number 0 is everybody."""
    count = len(cosines)
    component = list(range(count))

    def root(i: int) -> int:
        while component[i] != i:
            component[i] = component[component[i]]
            i = component[i]
        return i

    for i in range(count):
        for j in range(i):
            if cosines[i, j] > COSINE and signatures[i] == signatures[j]:
                component[root(i)] = root(j)
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(count):
        members[root(i)].append(i)
    found = [group for group in members.values() if 1 < len(group) < count]
    return {EVERYBODY: list(range(count)), **dict(enumerate(found, 1))}


def _is_one(cosines: Array) -> bool:
    """Whether everybody is one cluster."""
    seen, edge = {0}, [0]
    while edge:
        near = set(np.flatnonzero(cosines[edge.pop()] > COSINE).tolist()) - seen
        seen |= near
        edge += near
    return len(seen) == len(cosines)


def _families(names: Sequence[str]) -> dict[str, list[int]]:
    """Layers that have the same name but for numbers."""
    families: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        families[re.sub(r"\d+", "#", name)].append(i)
    return families


def _promising(outlook: Outlook, layer: int) -> tuple[tuple[int, str], ...]:
    """The groups that save anything on a layer at any step of the grid."""
    modes = [mode for step in outlook.grid for mode in outlook.layer_modes(layer, float(step))]
    return tuple(sorted({(mode.number, mode.kind) for mode in modes}))


def _grid(layers: Sequence[OwnTable], count: int) -> Array:
    """Steps between a mean error of next to nothing and one of next to everything."""
    outlook = Outlook([str(i) for i in range(count)], list(layers), {}, np.ones(1), {})

    def step_at(error: float) -> float:
        low, high = np.log2(FINEST), np.log2(COARSEST)
        for _ in range(12):
            middle = (low + high) / 2
            closer = outlook.at("own", 2.0**middle).errors.mean() <= error
            low, high = (middle, high) if closer else (low, middle)
        return float(2.0**low)

    finest, coarsest = step_at(BEST), step_at(WORST)
    points = max(2, int(np.ceil(np.log(coarsest / finest) / np.log(GRID_FACTOR))) + 1)
    return np.geomspace(finest, coarsest, points)
