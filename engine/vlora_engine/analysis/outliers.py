"""Which adapters stand apart, in which modules, and why; numpy alone.

Two features of every adapter are held against those of the *other* adapters, over all modules and
again in each family of modules: how large its change is (``log ||dW||``) and how it points (the
angle of its mean cosine with the others). The median and the median absolute deviation of the
others are not moved by an outlier, so that none can hide itself by widening the spread. With three
families or more a family's size is held against the adapter's own strength in the others, too: one
that is strong everywhere is an outlier as a whole and not seven times over.

**What a score means.** Of few adapters such a deviation is often large by chance, and of many
adapters and families one is bound to be the largest. The score takes both out: an adapter scores
``s`` if a collection of that size without any outlier holds one as extreme no more often than a
normal variable strays ``s`` standard deviations from its mean. The default threshold of 2 so means
a false alarm in at most 4.6 % of collections (not of adapters); 3 means 0.3 %.

- Few: of normal values, ``(x - median) / (1.4826 MAD)`` against n = N - 1 others is, to a few per
  cent between p = .1 and 3e-5, ``1 + 3 / N`` times a t variable of ``floor(n / 2)`` degrees of
  freedom (simulated for N = 4 to 200). Its tail is turned into a normal one by Wallace (1959).
- A deviation that would be remarkable beside any spread that adapters of one kind have (`_WIDEST`)
  is remarkable among few, too: there the normal tail counts, the median's own error included.
- Many: p times the number of deviations looked at (Bonferroni), half of the chance left to the
  adapters as wholes, half to all families together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vlora_engine.analysis.relations import Array, Relations, norms_of
from vlora_engine.utils.ranking import ranked

FEATURES = ("norm", "similarity")
THRESHOLD = 2.0
FEWEST = 3  # adapters of which one can stand apart

# Spreads below these are taken as these: among near-identical adapters a difference that no one
# would call one must not become a large score. In log ||dW|| and in radians.
_NARROWEST = {"norm": math.log(1.05), "similarity": 0.05}
_WIDEST = {"norm": 0.6, "similarity": 0.25}  # a factor of 1.8; 14 degrees
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_RESTLESS = 1.5  # times the spread of all families: from there on a family speaks for itself
_SURE = 37.0  # standard deviations beyond which a normal tail underflows


@dataclass(frozen=True)
class Reason:
    """One way in which an adapter stands apart.

    Args:
        family: The modules it is about; None for all together.
        feature: ``norm`` (its size) or ``similarity`` (its direction).
        value: ``||dW||``, or the mean cosine with the others. typical: the median of the others';
            of a family's size at this adapter's strength, where that is told by other families.
        score: See the module.
    """

    family: str | None
    feature: str
    value: float
    typical: float
    score: float

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outlier:
    """An adapter that stands apart; its reasons, the strongest first."""

    index: int
    reasons: tuple[Reason, ...]
    distance: float
    norm: float
    mean_similarity: float

    @property
    def score(self) -> float:
        return self.reasons[0].score

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON; the strongest reason stands on top."""
        return {
            "index": self.index,
            "distance": self.distance,
            "z_score": self.score,
            **{key: value for key, value in self.reasons[0].as_dict().items() if key != "score"},
            "norm": self.norm,
            "mean_similarity": self.mean_similarity,
            "reasons": [reason.as_dict() for reason in self.reasons],
        }


def outliers_in(relations: Relations, threshold: float = THRESHOLD) -> list[Outlier]:
    """Who stands apart, in the adapters' order; with fewer than three adapters none can.

    Args:
        threshold: The score from which on a reason counts; see the module for what it means.
    """
    if len(relations) < FEWEST:
        return []
    reasons: dict[int, list[Reason]] = {}
    parts = list(_parts(relations))
    strengths = _strengths(relations, parts)
    for family, gram, held in parts:
        at = np.flatnonzero(held)
        equals = 1 if family is None else len(parts) - 1
        shares = min(2, len(parts)) * equals
        looks = shares * len(at) * len(FEATURES)
        own = None if family is None else strengths
        for row in _deviations(family, gram[np.ix_(at, at)], at, looks, own):
            for i, reason in row.items():
                if reason.score > threshold:
                    reasons.setdefault(int(at[i]), []).append(reason)
    gram = relations.total
    distance2 = gram.diagonal() - 2 * gram.mean(axis=1) + gram.mean()
    likeness = _mean_cosines(gram)
    return [
        Outlier(
            index=i,
            reasons=tuple(ranked(reasons[i], lambda reason: reason.score)),
            distance=math.sqrt(max(0.0, float(distance2[i]))),
            norm=float(relations.norms[i]),
            mean_similarity=float(likeness[i]),
        )
        for i in sorted(reasons)
    ]


def outliers_of(gram: Array, threshold: float = THRESHOLD) -> list[dict[str, Any]]:
    """`outliers_in` over all modules together, from inner products (N, N), for JSON."""
    return [found.as_dict() for found in outliers_in(Relations(gram), threshold)]


def _parts(relations: Relations) -> Iterator[tuple[str | None, Array, Array]]:
    """All modules, then each family of which three or more adapters have modules."""
    yield None, relations.total, np.ones(len(relations), dtype=bool)
    if len(relations.families) > 1:
        for name, gram in relations.families.items():
            if int(relations.holders[name].sum()) >= FEWEST:
                yield name, gram, relations.holders[name]


@dataclass(frozen=True)
class _Strengths:
    """Of a collection with three families or more: how strong each adapter is in most of them.

    Args:
        effect: (N,) logarithm, against what is usual. spread: of what a family's size strays from
            that, over all adapters and families. degrees: what that spread is worth.
    """

    effect: Array
    spread: float
    degrees: int


def _strengths(
    relations: Relations, parts: Sequence[tuple[str | None, Array, Array]]
) -> _Strengths | None:
    """One step of Tukey's median polish of ``log ||dW||`` over families and adapters.

    With it a family's size is held against the adapter's own strength, and the spread is told by
    all families together, so that one odd family shows even among few adapters.
    """
    if len(parts) < 1 + FEWEST:
        return None
    sizes = np.full((len(parts) - 1, len(relations)), np.nan)
    for row, (_, gram, held) in zip(sizes, parts[1:], strict=True):
        row[held] = _log(norms_of(gram))[held]
        row -= np.nanmedian(row)
    held = ~np.isnan(sizes)
    effect = np.zeros(len(relations))
    some = held.any(axis=0)
    effect[some] = np.nanmedian(sizes[:, some], axis=0)
    rest = np.abs(sizes - effect)[held]
    rest = rest[rest > 0] if rest.any() else rest  # of an odd number one is the median itself
    families, adapters = sizes.shape
    # The row and the column that were taken out have taken some of the spread along.
    lost = families * adapters / ((families - 1) * (adapters - 1))
    spread = _MAD_TO_SIGMA * float(np.median(rest)) * lost
    return _Strengths(effect, spread, (families - 1) * (adapters - 1) // 2)


def _log(norms: Array) -> Array:
    """Logarithms; a zero norm has none: far below every other is what it means."""
    logs: Array = np.log(norms.clip(max(float(norms.max()), 1e-300) * 1e-12))
    return logs


def _deviations(
    family: str | None, gram: Array, at: Array, looks: int, strengths: _Strengths | None
) -> Iterator[Mapping[int, Reason]]:
    """Per feature the reason that each adapter's deviation would be, by index.

    Args:
        at: (n,) who they are in the collection.
        strengths: How strong each is elsewhere, where its size is to be held against that.
    """
    norms, n = norms_of(gram), len(gram)
    sizes = _log(norms)
    if strengths is not None:
        sizes = sizes - strengths.effect[at]
    others = np.broadcast_to(sizes, (n, n))[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    scores, typical = _scores("norm", sizes, others, looks, strengths)
    if strengths is not None:
        typical = typical + strengths.effect[at]
    yield {
        i: Reason(family, "norm", float(norms[i]), math.exp(typical[i]), float(scores[i]))
        for i in range(n)
    }
    acting = np.flatnonzero(norms > 0)  # the others have no direction
    if len(acting) < FEWEST:
        return
    own, others = _angles(gram[np.ix_(acting, acting)])
    scores, typical = _scores("similarity", own, others, looks)
    yield {
        int(i): Reason(
            family, "similarity", math.cos(own[k]), math.cos(typical[k]), float(scores[k])
        )
        for k, i in enumerate(acting)
    }


def _angles(gram: Array) -> tuple[Array, Array]:
    """Angles of the mean cosine of each with the others (n,), and of those others (n, n - 1).

    The others' are taken without the one in question, which would draw all of them to itself.
    """
    norms, n = norms_of(gram), len(gram)
    cosines = (gram / norms[:, None] / norms).clip(-1, 1)
    np.fill_diagonal(cosines, 0.0)
    sums = cosines.sum(axis=1)
    own = np.arccos((sums / (n - 1)).clip(-1, 1))
    without = (sums[None, :] - cosines) / (n - 2)  # [i, j]: j among all but i
    others = without[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return own, np.arccos(others.clip(-1, 1))


def _mean_cosines(gram: Array) -> Array:
    """(N,) the mean cosine of each with the others; 0 for one without effect."""
    norms = norms_of(gram)
    inverse = np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0)
    cosines = (gram * inverse[:, None] * inverse).clip(-1, 1)
    np.fill_diagonal(cosines, 0.0)
    mean: Array = cosines.sum(axis=1) / (len(gram) - 1)
    return mean


def _scores(
    feature: str,
    values: Array,
    others: Array,
    looks: int,
    strengths: _Strengths | None = None,
) -> tuple[Array, Array]:
    """Per entry of (n,) its score against its others (n, n - 1), and their median."""
    n = len(values)
    typical = np.median(others, axis=1)
    deviation = values - typical
    if feature == "norm":
        deviation = np.abs(deviation)  # too large and too small both count; too alike does not
    small = 1 + 3 / n
    spread = small * _MAD_TO_SIGMA * np.median(np.abs(others - typical[:, None]), axis=1)
    of_median = math.sqrt(1 + math.pi / 2 / (n - 1))
    degrees = np.full(n, max(1, (n - 1) // 2))
    if strengths is not None:  # few may lie close by chance; all families together do not
        common = of_median * strengths.spread
        degrees[spread < _RESTLESS * common] = max(1, strengths.degrees)
        spread = spread.clip(common)
    by_others = _as_normal(deviation / spread.clip(_NARROWEST[feature]), degrees)
    at_most = spread * (1 + 2 / math.sqrt(n - 1))  # what the spread may be, for all that few show
    by_itself = deviation / (of_median * at_most.clip(_WIDEST[feature]))
    looked = np.maximum(by_others, by_itself)
    tails = 2 if feature == "norm" else 1
    return np.array([_score(float(z), tails * looks) for z in looked]), typical


def _as_normal(t: Array, degrees: Array) -> Array:
    """The normal deviate that a t deviate is as rare as (Wallace 1959, his simplest form)."""
    shrink = (8 * degrees + 1) / (8 * degrees + 3)
    normal: Array = np.sign(t) * shrink * np.sqrt(degrees * np.log1p(t**2 / degrees))
    return normal


def _score(z: float, looks: int) -> float:
    """The two-sided normal deviate of ``looks`` times the upper tail of ``z``, at least 0."""
    if z <= 0:
        return 0.0
    if z > _SURE:
        return math.sqrt(z * z - 2 * math.log(looks))
    p = looks * 0.5 * math.erfc(z / math.sqrt(2))
    return -NormalDist().inv_cdf(p / 2) if p < 1 else 0.0
