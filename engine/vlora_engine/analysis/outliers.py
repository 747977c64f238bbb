"""Find outliers: adapters whose size or direction differs from the others, and where; no torch.

Two features of every adapter are compared with those of the *other* adapters, over all modules and
in each family of modules: the size of its change (``log ||dW||``) and its direction (the angle of
its mean cosine with the others). An outlier does not move the median and the median absolute
deviation (MAD) of the others, so that it cannot hide by widening the spread. With three families or
more, the size in a family is also compared with the adapter's own strength in the others: one that
is strong everywhere is one outlier as a whole, not one in every family.

**What a score means** (docs/mathematics.md#outliers). Among few adapters a large deviation is often
chance, and among many adapters and families one is always the largest. The score corrects for both:
an adapter scores ``s`` if a collection of that size without any outlier holds one as extreme no
more often than a normal variable deviates ``s`` standard deviations from its mean. The default
threshold of 2 means a false alarm in at most 4.6 % of collections (not of adapters); 3 means 0.3 %.

- Few adapters: of normal values, ``(x - median) / (1.4826 MAD)`` against n = N - 1 others is, to a
  few per cent between p = .1 and 3e-5, ``1 + 3 / N`` times a t variable of ``floor(n / 2)`` degrees
  of freedom (simulated for N = 4 to 200), turned into a normal deviate by Wallace (1959).
- A deviation that would be large beside any spread that adapters of one kind have (`_WIDEST`)
  counts by the normal tail, the median's own error included, even among few.
- Many tests: p times the number of deviations tested (Bonferroni), half of the chance given to
  adapters as a whole, half to all families together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vlora_engine.analysis.relations import Array, Relations, norms_of, ratios_of
from vlora_engine.utils.ranking import ranked

FEATURES = ("norm", "similarity")
THRESHOLD = 2.0
FEWEST = 3  # adapters among which one can be an outlier

# The smallest spread assumed: among near-identical adapters a negligible difference must not become
# a large score. In log ||dW|| and in radians.
_NARROWEST = {"norm": math.log(1.05), "similarity": 0.05}
_WIDEST = {"norm": 0.6, "similarity": 0.25}  # a factor of 1.8; 14 degrees
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_RESTLESS = 1.5  # times the spread of all families, above which a family's own spread is used
_SURE = 37.0  # standard deviations beyond which a normal tail underflows


@dataclass(frozen=True)
class Reason:
    """One feature in which an adapter is an outlier.

    Args:
        family: The family of modules; None for all modules together.
        feature: ``norm`` (its size) or ``similarity`` (its direction).
        value: ``||dW||``, or the mean cosine with the others.
        typical: The median of the others' values; for the size in a family, at this adapter's
            strength where other families give it.
        score: In normal standard deviations; see the module.
    """

    family: str | None
    feature: str
    value: float
    typical: float
    score: float

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outlier:
    """An outlier.

    Args:
        index: Of the adapter.
        reasons: The features in which it is one, the strongest first.
        distance: Of its dW from the mean dW.
        norm: ``||dW||`` over all modules.
        mean_similarity: The mean cosine with the others.
    """

    index: int
    reasons: tuple[Reason, ...]
    distance: float
    norm: float
    mean_similarity: float

    @property
    def score(self) -> float:
        """The score of the strongest reason."""
        return self.reasons[0].score

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON, with the strongest reason's at the top level."""
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
    """The outliers of a collection, in the adapters' order; none of fewer than three adapters.

    Args:
        relations: Of the N adapters.
        threshold: The score from which on a reason counts; see the module for what it means.
    """
    if len(relations) < FEWEST:
        return []
    reasons: dict[int, list[Reason]] = {}
    parts = list(_parts(relations))
    strengths = _strengths(relations, parts)
    for family, gram, present in parts:
        at = np.flatnonzero(present)
        families = 1 if family is None else len(parts) - 1
        shares = min(2, len(parts)) * families
        tests = shares * len(at) * len(FEATURES)
        family_strengths = None if family is None else strengths
        for row in _deviations(family, gram[np.ix_(at, at)], at, tests, family_strengths):
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
    """The outliers over all modules from inner products (N, N), as dictionaries."""
    return [outlier.as_dict() for outlier in outliers_in(Relations(gram), threshold)]


def _parts(relations: Relations) -> Iterator[tuple[str | None, Array, Array]]:
    """Name, inner products and present adapters of all modules, then of each usable family."""
    yield None, relations.total, np.ones(len(relations), dtype=bool)
    if len(relations.families) > 1:
        for name, gram in relations.families.items():
            if int(relations.holders[name].sum()) >= FEWEST:
                yield name, gram, relations.holders[name]


@dataclass(frozen=True)
class _Strengths:
    """How strong each adapter is in most families, for collections with three or more.

    Args:
        effect: (N,) log of an adapter's strength over the typical one.
        spread: Of the families' log sizes around that, over all adapters and families.
        degrees: The degrees of freedom of that spread.
    """

    effect: Array
    spread: float
    degrees: int


def _strengths(
    relations: Relations, parts: Sequence[tuple[str | None, Array, Array]]
) -> _Strengths | None:
    """Estimate strengths by one step of Tukey's median polish of ``log ||dW||``.

    A family's size is then compared with the adapter's own strength, with a spread estimated from
    all families together, so that one odd family shows even among few adapters.
    """
    if len(parts) < 1 + FEWEST:
        return None
    sizes = np.full((len(parts) - 1, len(relations)), np.nan)
    for row, (_, gram, present) in zip(sizes, parts[1:], strict=True):
        row[present] = _log(norms_of(gram))[present]
        row -= np.nanmedian(row)
    present = ~np.isnan(sizes)
    effect = np.zeros(len(relations))
    measured = present.any(axis=0)
    effect[measured] = np.nanmedian(sizes[:, measured], axis=0)
    residuals = np.abs(sizes - effect)[present]
    if residuals.any():
        residuals = residuals[residuals > 0]  # of an odd number one is the median itself
    families, adapters = sizes.shape
    # Fitting the row and column effects removed some of the spread.
    correction = families * adapters / ((families - 1) * (adapters - 1))
    spread = _MAD_TO_SIGMA * float(np.median(residuals)) * correction
    return _Strengths(effect, spread, (families - 1) * (adapters - 1) // 2)


def _log(norms: Array) -> Array:
    """Logarithms of norms (n,); a zero norm counts as 1e-12 of the largest."""
    logs: Array = np.log(norms.clip(max(float(norms.max()), 1e-300) * 1e-12))
    return logs


def _deviations(
    family: str | None, gram: Array, at: Array, tests: int, strengths: _Strengths | None
) -> Iterator[Mapping[int, Reason]]:
    """For each feature the scored deviation of every adapter, by index.

    Args:
        family: The family of modules; None for all modules.
        gram: (n, n) inner products of the adapters present.
        at: (n,) their indices in the collection.
        tests: The number of deviations tested, for Bonferroni's correction.
        strengths: Each adapter's strength, if its size is to be compared with that.
    """
    norms, n = norms_of(gram), len(gram)
    sizes = _log(norms)
    if strengths is not None:
        sizes = sizes - strengths.effect[at]
    others = np.broadcast_to(sizes, (n, n))[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    scores, typical = _scores("norm", sizes, others, tests, strengths)
    if strengths is not None:
        typical = typical + strengths.effect[at]
    yield {
        i: Reason(family, "norm", float(norms[i]), math.exp(typical[i]), float(scores[i]))
        for i in range(n)
    }
    acting = np.flatnonzero(norms > 0)  # the others have no direction
    if len(acting) < FEWEST:
        return
    angles, others = _angles(gram[np.ix_(acting, acting)])
    scores, typical = _scores("similarity", angles, others, tests)
    yield {
        int(i): Reason(
            family, "similarity", math.cos(angles[k]), math.cos(typical[k]), float(scores[k])
        )
        for k, i in enumerate(acting)
    }


def _angles(gram: Array) -> tuple[Array, Array]:
    """The angle of each one's mean cosine with the others (n,), and the others' angles (n, n - 1).

    The others' are computed without the one in question, which would affect all of them.
    """
    norms, n = norms_of(gram), len(gram)
    cosines = (gram / norms[:, None] / norms).clip(-1, 1)
    np.fill_diagonal(cosines, 0.0)
    sums = cosines.sum(axis=1)
    angles = np.arccos((sums / (n - 1)).clip(-1, 1))
    without = (sums[None, :] - cosines) / (n - 2)  # [i, j]: j among all but i
    others = without[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return angles, np.arccos(others.clip(-1, 1))


def _mean_cosines(gram: Array) -> Array:
    """The mean cosine of each with the others, (N,); 0 for one without effect."""
    cosines = ratios_of(gram).clip(-1, 1)
    np.fill_diagonal(cosines, 0.0)
    mean: Array = cosines.sum(axis=1) / (len(gram) - 1)
    return mean


def _scores(
    feature: str, values: Array, others: Array, tests: int, strengths: _Strengths | None = None
) -> tuple[Array, Array]:
    """The score of each value (n,) against its others (n, n - 1), and the others' median (n,)."""
    n = len(values)
    typical = np.median(others, axis=1)
    deviation = values - typical
    if feature == "norm":
        deviation = np.abs(deviation)  # too large and too small both count; too similar does not
    small_sample = 1 + 3 / n
    spread = small_sample * _MAD_TO_SIGMA * np.median(np.abs(others - typical[:, None]), axis=1)
    # The median of n - 1 normal values has the variance pi / 2 / (n - 1).
    of_median = math.sqrt(1 + math.pi / 2 / (n - 1))
    degrees = np.full(n, max(1, (n - 1) // 2))
    if strengths is not None:  # few may lie close by chance; all families together do not
        common = of_median * strengths.spread
        degrees[spread < _RESTLESS * common] = max(1, strengths.degrees)
        spread = spread.clip(common)
    by_others = _as_normal(deviation / spread.clip(_NARROWEST[feature]), degrees)
    at_most = spread * (1 + 2 / math.sqrt(n - 1))  # an upper estimate of the spread
    by_itself = deviation / (of_median * at_most.clip(_WIDEST[feature]))
    deviates = np.maximum(by_others, by_itself)
    tails = 2 if feature == "norm" else 1
    return np.array([_score(float(z), tails * tests) for z in deviates]), typical


def _as_normal(t: Array, degrees: Array) -> Array:
    """The normal deviate of the same tail probability as a t deviate (Wallace 1959).

    ``z = (8 f + 1) / (8 f + 3) sqrt(f log(1 + t^2 / f))`` with f degrees of freedom.
    """
    shrink = (8 * degrees + 1) / (8 * degrees + 3)
    normal: Array = np.sign(t) * shrink * np.sqrt(degrees * np.log1p(t**2 / degrees))
    return normal


def _score(z: float, tests: int) -> float:
    """The two-sided normal deviate of ``tests`` times the upper tail of ``z``, at least 0."""
    if z <= 0:
        return 0.0
    if z > _SURE:
        return math.sqrt(z * z - 2 * math.log(tests))
    p = tests * 0.5 * math.erfc(z / math.sqrt(2))
    return -NormalDist().inv_cdf(p / 2) if p < 1 else 0.0
