"""How adapters relate, from the inner products of their weight changes; numpy alone.

One pass over the modules of a collection sums up `Relations`: a few (N, N) matrices, from which
similarity, clusters, outliers (`outliers`), duplicates (`duplicates`) and runs of checkpoints
(`checkpoints`) follow without a weight at hand. The spectra hold them, so that whoever reads them
needs no torch.
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
    """Inner products of N adapters, and how far every two of them are apart.

    A module that an adapter lacks counts as a change of zero.

    Args:
        total: (N, N) fp64 ``<dW_i, dW_j>`` over all modules.
        families: Per family of modules the same over its modules.
        holders: Per family (N,) bool: who has a module of it.
        starts: (N, N) ``<A_i, A_j>`` of the factors as stored, over modules of equal rank: A keeps
            much of what training began with. None where it is not known.
        difference: (N, N) the largest of all modules' ``||dW_i - dW_j|| / max ||dW||``.
        turn: (N, N) the same of the changes scaled to length 1: how far apart their directions are.
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
        """(N,) ``||dW||``."""
        return norms_of(self.total)

    def only(self, members: Sequence[int]) -> Relations:
        """Those of some adapters, in this order."""
        at = np.ix_(members, members)
        chosen = np.asarray(members, dtype=np.int64)

        def cut(matrix: Array | None) -> Array | None:
            return None if matrix is None else matrix[at]

        holders = {name: held[chosen] for name, held in self.holders.items()}
        return Relations(
            total=self.total[at],
            families={n: gram[at] for n, gram in self.families.items() if holders[n].any()},
            holders={name: held for name, held in holders.items() if held.any()},
            starts=cut(self.starts),
            difference=cut(self.difference),
            turn=cut(self.turn),
        )

    def arrays(self) -> dict[str, Array]:
        """What a file keeps of them: all but the total in fp32."""
        kept: dict[str, Array] = {"version": np.array([VERSION], dtype=np.int32)}
        kept["inner"] = self.total
        for name in ("starts", "difference", "turn"):
            matrix = getattr(self, name)
            if matrix is not None:
                kept[name] = matrix.astype(np.float32)
        for name, gram in self.families.items():
            kept[f"{_FAMILY}{name}"] = gram.astype(np.float32)
            kept[f"holders.{name}"] = self.holders[name].astype(np.uint8)
        return kept

    @classmethod
    def of_arrays(cls, kept: Mapping[str, Array]) -> Relations:
        """From what a file keeps; of an older or a newer version the total alone."""
        if not is_current(kept):
            return cls(kept["inner"])
        names = [key.removeprefix(_FAMILY) for key in kept if key.startswith(_FAMILY)]
        return cls(
            total=kept["inner"],
            families={n: kept[f"{_FAMILY}{n}"].astype(np.float64) for n in names},
            holders={n: kept[f"holders.{n}"].astype(bool) for n in names},
            starts=kept.get("starts"),
            difference=kept.get("difference"),
            turn=kept.get("turn"),
        )


def is_current(kept: Mapping[str, Array]) -> bool:
    """Whether the arrays of a file are those that this version writes."""
    version = kept.get("version")
    return version is not None and bool(version.tolist() == [VERSION])


class RelationsSum:
    """Adds up `Relations` module by module; holds the (N, N) matrices and nothing else.

    Args:
        count: N.
        modules: All modules there will be.
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
            at: (n,) which adapters have it.
            gram: (n, n) their ``<dW_i, dW_j>``. starts: (n, n) their ``<A_i, A_j>``.
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
        distance = np.sqrt(squared.clip(0))
        np.divide(distance, larger, out=distance, where=larger > 0)
        np.maximum(self._difference, distance, out=self._difference)
        # one that does nothing here is at a right angle to all but its like
        unlike = np.not_equal.outer(norms > 0, norms > 0) | (np.multiply.outer(norms, norms) > 0)
        angle = np.sqrt((2 - 2 * _ratios(whole, norms)).clip(0), where=unlike, out=whole * 0)
        np.maximum(self._turn, angle, out=self._turn)

    def relations(self) -> Relations:
        """What was added so far."""
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
    """(N,) norms from inner products (N, N)."""
    norms: Array = np.sqrt(gram.diagonal().clip(0))
    return norms


def cosines_of(gram: Array) -> Array:
    """Cosines (N, N) from inner products, 1 on the diagonal; a zero dW is like no other."""
    matrix = _ratios(gram, norms_of(gram))
    np.fill_diagonal(matrix, 1.0)
    return matrix


def _ratios(gram: Array, norms: Array) -> Array:
    inverse = np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
    ratios: Array = (gram * inverse[:, None] * inverse).clip(-1, 1)
    return ratios


def clusters_of(cosines: Array, threshold: float) -> list[list[int]]:
    """Indices grouped so that every two of a cluster are at least ``threshold`` alike.

    Complete linkage: the two clusters whose least alike members are most alike are joined first,
    while those are alike enough. The order of the adapters changes nothing, ties apart. Costs N^2
    (chains of nearest neighbours: Benzecri 1982, Murtagh 1983). Every index is in one cluster.
    """
    n = len(cosines)
    threshold = round(threshold, _DIGITS)
    alike = np.round(np.array(cosines, dtype=np.float64), _DIGITS)
    np.fill_diagonal(alike, -np.inf)
    clusters = {i: [i] for i in range(n)}
    waiting, chain = list(range(n)), list[int]()
    while waiting or chain:
        if not chain:
            first = waiting.pop(0)
            chain += [first] if first in clusters else []
            continue
        last = chain[-1]
        nearest = int(alike[last].argmax())
        if len(chain) > 1 and alike[last, chain[-2]] >= alike[last, nearest]:
            nearest = chain[-2]  # of equals whoever led here, so that the chain ends
        best = alike[last, nearest]
        if best < threshold:  # joining makes no two clusters more alike: it stays as it is
            chain.pop()
            alike[last], alike[:, last] = -np.inf, -np.inf
        elif len(chain) > 1 and nearest == chain[-2]:
            chain = chain[:-2]
            kept, gone = min(last, nearest), max(last, nearest)
            alike[kept] = alike[:, kept] = np.minimum(alike[kept], alike[gone])
            alike[gone], alike[:, gone], alike[kept, kept] = -np.inf, -np.inf, -np.inf
            clusters[kept] += clusters.pop(gone)
            waiting.insert(0, kept)
        else:
            chain.append(nearest)
    return sorted(sorted(members) for members in clusters.values())


def components_of(linked: Array) -> list[list[int]]:
    """The connected components of a graph (N, N) bool, each ascending."""
    left, found = set(range(len(linked))), []
    while left:
        edge = [min(left)]
        members = set(edge)
        while edge:
            near = set(np.flatnonzero(linked[edge.pop()]).tolist()) - members
            members |= near
            edge += near
        left -= members
        found.append(sorted(members))
    return found


def order_by_likeness(cosines: Array) -> list[int]:
    """An order in which those that are alike stand together.

    Prim's order of the maximum spanning tree: next is whoever is most like one that is placed.
    """
    n = len(cosines)
    if not n:
        return []
    best = cosines[0].copy()
    placed = np.zeros(n, dtype=bool)
    placed[0], order = True, [0]
    while len(order) < n:
        left = np.where(placed, -np.inf, best)
        following = int((left >= left.max() - 10.0**-_DIGITS).argmax())  # of equals the first
        placed[following] = True
        order.append(following)
        best = np.maximum(best, cosines[following])
    return order
