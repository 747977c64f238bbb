"""Find adapters with the same weight change, however it is stored; no torch.

Two adapters are the same change if in *every* module their dW differ by no more than the rounding
of what they are stored in: another gauge ``(B G, G^-1 A)``, another split of the scale or another
dtype then makes no difference, and a near-copy that was trained a little further does
(docs/mathematics.md#duplicates).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vlora_engine.analysis.relations import Array, Relations, components_of, norms_of

Sameness = Literal["identical", "same change", "multiple"]

# u, the rounding unit. Rounding moves every number of A and of B by up to u relative, and so dW by
# about u in all; twice that is allowed. In fp32 the floor leaves room for an ill-conditioned gauge;
# inner products in fp64 resolve differences from 1e-7 on.
_UNIT = {"F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
_FINEST = 1e-6


@dataclass(frozen=True)
class Duplicates:
    """A group of adapters that are the same.

    Args:
        members: Their indices, ascending.
        kind: ``identical`` (every tensor, bit for bit), ``same change`` (dW up to rounding),
            ``multiple`` (dW up to a positive factor: the same adapter at another strength).
        difference: The largest ``||dW_i - dW_j|| / max ||dW||`` of any module of any two of them;
            of multiples after scaling both to one length.
        factors: ``||dW||`` of each over that of the first.
    """

    members: tuple[int, ...]
    kind: Sameness
    difference: float
    factors: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {**asdict(self), "members": list(self.members), "factors": list(self.factors)}


def coarsest(dtypes: Iterable[str]) -> str:
    """The dtype with the largest rounding unit among those of an adapter's factors."""
    return max(sorted(dtypes), key=lambda dtype: _UNIT.get(dtype, 0.0), default="F32")


def rounding_of(dtypes: Sequence[str]) -> Array:
    """The relative difference of dW up to which adapters of these dtypes are the same, (N,).

    ``max(1e-6, 2 u)`` with u the rounding unit.
    """
    return np.array([max(_FINEST, 2 * _UNIT.get(dtype, 0.0)) for dtype in dtypes])


def duplicates_in(
    relations: Relations, dtypes: Sequence[str], digests: Sequence[str] | None = None
) -> list[Duplicates]:
    """The duplicates of a collection, in the adapters' order.

    An adapter without effect counts as a duplicate only where files are identical.

    Args:
        relations: Of the N adapters.
        dtypes: (N,) the coarsest dtype of each one's factors, under safetensors' name.
        digests: (N,) the sha256 of each one's content, to tell identical ones.
    """
    if relations.difference is None or relations.turn is None:
        return _identical(digests)
    rounding = rounding_of(dtypes)
    allowed = np.maximum.outer(rounding, rounding)
    acts = relations.norms > 0
    both_act = np.logical_and.outer(acts, acts)
    same = (relations.difference <= allowed) & both_act
    if digests is not None:
        same |= _equal(digests)
    groups = [
        _group(relations, members, relations.difference, digests)
        for members in components_of(same)
        if len(members) > 1
    ]
    first = [min(members) for members in components_of(same)]
    multiple = _multiples(relations, allowed) & both_act & ~same
    others = multiple[np.ix_(first, first)]  # of adapters that are the same, one stands for all
    for members in components_of(others):
        if len(members) > 1:
            chosen = [first[i] for i in members]
            groups.append(_group(relations, chosen, relations.turn, None, "multiple"))
    return sorted(groups, key=lambda group: group.members)


def _identical(digests: Sequence[str] | None) -> list[Duplicates]:
    if digests is None:
        return []
    return [
        Duplicates(tuple(members), "identical", 0.0, (1.0,) * len(members))
        for members in components_of(_equal(digests))
        if len(members) > 1
    ]


def _equal(digests: Sequence[str]) -> Array:
    values = np.array(digests, dtype=object)
    equal: Array = np.equal.outer(values, values).astype(bool)
    return equal


def _multiples(relations: Relations, allowed: Array) -> Array:
    """Which pairs (N, N) are parallel in every module, with one ratio of norms in all families."""
    assert relations.turn is not None  # noqa: S101
    parallel: Array = relations.turn <= allowed
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide.outer(relations.norms, relations.norms)
        for gram in relations.families.values():
            norms = norms_of(gram)
            family_ratio = np.divide.outer(norms, norms)
            parallel &= (np.abs(family_ratio / ratio - 1) <= allowed) | ~(family_ratio > 0)
    return parallel


def _group(
    relations: Relations,
    members: Sequence[int],
    distances: Array,
    digests: Sequence[str] | None,
    kind: Sameness = "same change",
) -> Duplicates:
    if digests is not None and len({digests[i] for i in members}) == 1:
        return Duplicates(tuple(members), "identical", 0.0, (1.0,) * len(members))
    norms = relations.norms[list(members)]
    return Duplicates(
        members=tuple(members),
        kind=kind,
        difference=float(distances[np.ix_(members, members)].max()),
        factors=tuple((norms / norms[0]).tolist()) if norms[0] > 0 else (1.0,) * len(members),
    )
