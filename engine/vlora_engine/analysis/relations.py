"""The relations of N adapters as (N, N) matrices, with clusters and an order from them; no torch.

One pass over the modules of a collection sums up `Relations`, from which similarity, clusters,
outliers (`outliers`), duplicates (`duplicates`) and runs of checkpoints (`checkpoints`) follow
without reading weights again. Spectra store them (docs/mathematics.md#relations).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.adapters.module_types import module_families

Array = npt.NDArray[Any]

VERSION = 2  # of the arrays; the first held `inner` alone
_FAMILY = "family."
_DIGITS = 9  # of cosines: those that differ later are equal, whatever machine summed them


@dataclass(frozen=True)
class Relations:
    """Inner products and differences of N adapters.

    A module that an adapter lacks counts as a change of zero.

    Args:
        total: (N, N) fp64 ``<dW_i, dW_j>`` over all modules.
        families: By family of modules the same over its modules.
        holders: By family (N,) bool, which adapters have a module of it.
        starts: (N, N) ``<A_i, A_j>`` of the factors as stored, over modules of equal rank: A stays
            close to its initialization. None where it is not known.
        difference: (N, N) the largest over modules of
            ``||dW_i - dW_j|| / max(||dW_i||, ||dW_j||)``.
        turn: (N, N) the same of the changes scaled to norm 1, ``sqrt(2 - 2 cos_ij)``.
    """

    total: Array
    families: Mapping[str, Array] = field(default_factory=dict)
    holders: Mapping[str, Array] = field(default_factory=dict)
    starts: Array | None = None
    difference: Array | None = None
    turn: Array | None = None

    def __len__(self) -> int:
        return len(self.total)

    @property
    def norms(self) -> Array:
        """The norms ``||dW_i||`` over all modules, (N,)."""
        return norms_of(self.total)

    def only(self, members: Sequence[int]) -> Relations:
        """The relations of some adapters, in this order."""
        at = np.ix_(members, members)
        chosen = np.asarray(members, dtype=np.int64)

        def cut(matrix: Array | None) -> Array | None:
            return None if matrix is None else matrix[at]

        holders = {name: present[chosen] for name, present in self.holders.items()}
        return Relations(
            total=self.total[at],
            families={n: gram[at] for n, gram in self.families.items() if holders[n].any()},
            holders={name: present for name, present in holders.items() if present.any()},
            starts=cut(self.starts),
            difference=cut(self.difference),
            turn=cut(self.turn),
        )

    def arrays(self) -> dict[str, Array]:
        """The arrays that are stored in a file: all but the total in fp32."""
        arrays: dict[str, Array] = {"version": np.array([VERSION], dtype=np.int32)}
        arrays["inner"] = self.total
        for name in ("starts", "difference", "turn"):
            matrix = getattr(self, name)
            if matrix is not None:
                arrays[name] = matrix.astype(np.float32)
        for name, gram in self.families.items():
            arrays[f"{_FAMILY}{name}"] = gram.astype(np.float32)
            arrays[f"holders.{name}"] = self.holders[name].astype(np.uint8)
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Relations:
        """The relations from stored arrays; of another version only the total."""
        if not is_current(arrays):
            return cls(arrays["inner"])
        names = [key.removeprefix(_FAMILY) for key in arrays if key.startswith(_FAMILY)]
        return cls(
            total=arrays["inner"],
            families={n: arrays[f"{_FAMILY}{n}"].astype(np.float64) for n in names},
            holders={n: arrays[f"holders.{n}"].astype(bool) for n in names},
            starts=arrays.get("starts"),
            difference=arrays.get("difference"),
            turn=arrays.get("turn"),
        )


def is_current(kept: Mapping[str, Array]) -> bool:
    """Whether the arrays of a file are those that this version writes."""
    version = kept.get("version")
    return version is not None and bool(version.tolist() == [VERSION])


class RelationsSum:
    """Adds up `Relations` module by module, in the memory of a few (N, N) matrices.

    Args:
        count: N.
        modules: All modules that will be added.
    """

    def __init__(self, count: int, modules: Iterable[str]) -> None:
        self._family = module_families(modules)
        names = sorted(set(self._family.values()))
        self._families = {name: np.zeros((count, count)) for name in names}
        self._holders = {name: np.zeros(count, dtype=bool) for name in names}
        self._starts = np.zeros((count, count))
        self._difference = np.zeros((count, count))
        self._turn = np.zeros((count, count))

    def add(self, module: str, at: Sequence[int], gram: Array, starts: Array) -> None:
        """Add one module.

        Args:
            module: Its name.
            at: (n,) the indices of the adapters that have it.
            gram: (n, n) their ``<dW_i, dW_j>``.
            starts: (n, n) their ``<A_i, A_j>``.
        """
        rows, family = np.asarray(at, dtype=np.int64), self._family[module]
        block = np.ix_(rows, rows)
        self._families[family][block] += gram
        self._holders[family][rows] = True
        self._starts[block] += starts
        whole = np.zeros_like(self._starts)
        whole[block] = gram
        norms = norms_of(whole)
        larger = np.maximum.outer(norms, norms)
        squared = np.add.outer(norms**2, norms**2) - 2 * whole
        distance = np.sqrt(squared.clip(0))  # ||dW_i - dW_j||
        np.divide(distance, larger, out=distance, where=larger > 0)
        np.maximum(self._difference, distance, out=self._difference)
        # An adapter whose dW is zero here is orthogonal to all but those whose dW is zero, too.
        unlike = np.not_equal.outer(norms > 0, norms > 0) | (np.multiply.outer(norms, norms) > 0)
        angle = np.sqrt((2 - 2 * ratios_of(whole).clip(-1, 1)).clip(0), where=unlike, out=whole * 0)
        np.maximum(self._turn, angle, out=self._turn)

    def relations(self) -> Relations:
        """The relations over the modules added so far."""
        for matrix in (self._difference, self._turn):
            np.fill_diagonal(matrix, 0.0)
        return Relations(
            total=sum(self._families.values(), np.zeros_like(self._starts)),
            families=self._families,
            holders=self._holders,
            starts=self._starts,
            difference=self._difference,
            turn=self._turn,
        )


def norms_of(gram: Array) -> Array:
    """The norms (N,) from inner products (N, N)."""
    norms: Array = np.sqrt(gram.diagonal().clip(0))
    return norms


def cosines_of(gram: Array) -> Array:
    """The cosines (N, N) from inner products; 1 on the diagonal, 0 beside a zero dW."""
    matrix = ratios_of(gram).clip(-1, 1)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def ratios_of(gram: Array) -> Array:
    """Inner products (N, N) over the norms; 0 beside a zero dW, rounded beyond 1 at times."""
    norms = norms_of(gram)
    inverse = np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
    return gram * inverse[:, None] * inverse


def clusters_of(cosines: Array, threshold: float) -> list[list[int]]:
    """Cluster N adapters so that every two of a cluster have at least this cosine.

    Complete linkage: the two clusters whose least similar members are most similar are merged
    first, while that similarity reaches ``threshold``. The adapters' order has no effect except in
    exact ties. N^2 steps, by chains of nearest neighbours (Benzecri 1982, Murtagh 1983;
    docs/mathematics.md#similarity-and-clusters).

    Args:
        cosines: (N, N).
        threshold: The smallest cosine within a cluster.

    Returns:
        The clusters as ascending indices; every index is in one.
    """
    n = len(cosines)
    threshold = round(threshold, _DIGITS)
    similarity = np.round(np.array(cosines, dtype=np.float64), _DIGITS)
    np.fill_diagonal(similarity, -np.inf)
    clusters = {i: [i] for i in range(n)}
    unvisited, chain = list(range(n)), list[int]()
    while unvisited or chain:
        if not chain:
            first = unvisited.pop(0)
            chain += [first] if first in clusters else []
            continue
        last = chain[-1]
        nearest = int(similarity[last].argmax())
        if len(chain) > 1 and similarity[last, chain[-2]] >= similarity[last, nearest]:
            nearest = chain[-2]  # in a tie the one before in the chain, so that the chain ends
        best = similarity[last, nearest]
        if best < threshold:  # merging others never raises its similarity: it is final
            chain.pop()
            similarity[last], similarity[:, last] = -np.inf, -np.inf
        elif len(chain) > 1 and nearest == chain[-2]:
            chain = chain[:-2]
            merged, absorbed = min(last, nearest), max(last, nearest)
            similarity[merged] = similarity[:, merged] = np.minimum(
                similarity[merged], similarity[absorbed]
            )
            similarity[absorbed], similarity[:, absorbed], similarity[merged, merged] = (
                -np.inf,
                -np.inf,
                -np.inf,
            )
            clusters[merged] += clusters.pop(absorbed)
            unvisited.insert(0, merged)
        else:
            chain.append(nearest)
    return sorted(sorted(members) for members in clusters.values())


def components_of(linked: Array) -> list[list[int]]:
    """The connected components of a graph (N, N) bool, each as ascending indices."""
    remaining, components = set(range(len(linked))), []
    while remaining:
        frontier = [min(remaining)]
        members = set(frontier)
        while frontier:
            neighbours = set(np.flatnonzero(linked[frontier.pop()]).tolist()) - members
            members |= neighbours
            frontier += neighbours
        remaining -= members
        components.append(sorted(members))
    return components


def order_by_likeness(cosines: Array) -> list[int]:
    """Order adapters so that similar ones are adjacent, from cosines (N, N).

    Prim's order of the maximum spanning tree: the next is the one most similar to any placed one.
    """
    n = len(cosines)
    if not n:
        return []
    best = cosines[0].copy()
    placed = np.zeros(n, dtype=bool)
    placed[0], order = True, [0]
    while len(order) < n:
        open_ones = np.where(placed, -np.inf, best)
        # The first of equals.
        nearest = int((open_ones >= open_ones.max() - 10.0**-_DIGITS).argmax())
        placed[nearest] = True
        order.append(nearest)
        best = np.maximum(best, cosines[nearest])
    return order
