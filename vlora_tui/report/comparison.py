"""Compares the adapters of a collection for ``analyze`` and ``report``: one pass, one JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vlora_engine.errors import ParameterError, VLoRAError
from vlora_engine.utils.naming import cosine_text

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.analysis.outliers import Outlier
    from vlora_engine.analysis.relations import Array, Relations
    from vlora_engine.utils.progress import CancelCheck, ProgressCallback

Space = Literal["delta", "factors"]
CLUSTERED = 0.9  # the cosine from which on adapters are alike, where nobody says another


@dataclass
class Compared:
    """Adapters that were read, and how they relate.

    Args:
        sources: By name, the good ones.
        bad: By name, why the others cannot be compared.
    """

    sources: dict[str, AdapterSource]
    relations: Relations
    bad: dict[str, VLoRAError] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return list(self.sources)


def compare(
    sources: Mapping[str, AdapterSource],
    *,
    skip_bad: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Compared:
    """Read every adapter once; what cannot be used stops it, or is left out with ``skip_bad``.

    Raises:
        CollectionError: Adapters that cannot be compared, and not ``skip_bad``; or none is left.
    """
    from vlora_engine.adapters.check import AdapterCheck, CheckReport, check_adapter, misfits_of
    from vlora_engine.analysis.similarity import relate

    checks = {name: AdapterCheck(name, error=e) for name, e in misfits_of(sources).items()}
    for name, source in sources.items():
        if not source.modules:
            checks[name] = check_adapter(name, source)
    fitting = {name: source for name, source in sources.items() if name not in checks}
    names, failed = list(fitting), dict[int, VLoRAError]()
    relations = relate(list(fitting.values()), bad=failed, progress=progress, cancelled=cancelled)
    for i, error in failed.items():  # the check says more of a NaN than that it is there
        again = check_adapter(names[i], fitting[names[i]])
        again.error = again.error or error
        checks[names[i]] = again
    report = CheckReport({name: checks.get(name, AdapterCheck(name)) for name in sources})
    good = report.require(skip_bad=skip_bad)
    if failed:
        relations = relations.only([i for i in range(len(names)) if i not in failed])
    bad = {n: check.error for n, check in report.adapters.items() if check.error is not None}
    return Compared({name: sources[name] for name in good}, relations, bad)


def require_several(names: Sequence[str]) -> None:
    """Raise ParameterError unless there are two adapters or more."""
    if len(names) < 2:
        raise ParameterError("There is nothing to compare: one adapter.", found=", ".join(names))


def analysis_data(
    compared: Compared,
    *,
    threshold: float = CLUSTERED,
    outliers: float | None = None,
    space: Space = "delta",
) -> dict[str, Any]:
    """Similarity, clusters, outliers with reasons, duplicates, runs of checkpoints; for JSON.

    With ``factors`` the similarity and the clusters of A and B apart, and nothing else.

    Args:
        threshold: The cosine from which adapters count as similar.
        outliers: The score from which on one stands apart; by default the engine's.
    """
    from vlora_engine.analysis.outliers import THRESHOLD, outliers_in
    from vlora_engine.analysis.relations import clusters_of

    names, relations = compared.names, compared.relations
    cosines = cosines_in(compared, space)
    clusters = [[names[i] for i in cluster] for cluster in clusters_of(cosines, threshold)]
    score = THRESHOLD if outliers is None else outliers
    on_delta = space == "delta"
    return {
        "space": space,
        "threshold": threshold,
        "similarity_matrix": {
            name: dict(zip(names, row, strict=True))
            for name, row in zip(names, cosines.tolist(), strict=True)
        },
        "clusters": clusters,
        "redundant_count": sum(len(cluster) - 1 for cluster in clusters),
        "norms": dict(zip(names, relations.norms.tolist(), strict=True)),
        "family_norms": _families(names, relations),
        "outlier_threshold": score,
        "outliers": _outlier_rows(names, outliers_in(relations, score)) if on_delta else [],
        "duplicates": _duplicate_rows(compared) if on_delta else [],
        "runs": _run_rows(compared) if on_delta else [],
        "left_out": [{"name": name, **error.as_dict()} for name, error in compared.bad.items()],
    }


def cosines_in(compared: Compared, space: Space) -> Array:
    """(N, N) cosines of dW, or of A and B apart."""
    from vlora_engine.analysis.relations import cosines_of

    if space == "delta":
        return cosines_of(compared.relations.total)
    from vlora_engine.analysis.similarity import compute_similarity_matrix

    matrix: Array = compute_similarity_matrix(
        list(compared.sources.values()), space="factors"
    ).numpy()
    return matrix


def _families(names: Sequence[str], relations: Relations) -> dict[str, Any]:
    """Per family of modules ``||dW||`` of the adapters that have modules of it."""
    from vlora_engine.analysis.relations import norms_of

    found = {}
    for family, holders in relations.holders.items():
        norms = norms_of(relations.families[family]).tolist()
        found[family] = {
            name: norm for name, norm, has in zip(names, norms, holders, strict=True) if has
        }
    return found


def _outlier_rows(names: Sequence[str], found: Sequence[Outlier]) -> list[dict[str, Any]]:
    return [{"name": names[outlier.index], **outlier.as_dict()} for outlier in found]


def _duplicate_rows(compared: Compared) -> list[dict[str, Any]]:
    from vlora_engine.analysis.compare import duplicates_among

    groups = duplicates_among(list(compared.sources.values()), compared.relations)
    return [_named(group.as_dict(), compared.names) for group in groups]


def _run_rows(compared: Compared) -> list[dict[str, Any]]:
    from vlora_engine.analysis.compare import runs_among

    runs = runs_among(list(compared.sources.values()), compared.relations)
    return [_named(run.as_dict(), compared.names) for run in runs]


def _named(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {"names": [names[i] for i in row.pop("members")], **row}


def why(reason: Mapping[str, Any]) -> str:
    """A reason of an outlier in words: what, where, against what is usual."""
    of_family = "" if reason["family"] is None else f" of {reason['family']}"
    value, typical = reason["value"], reason["typical"]
    if reason["feature"] == "similarity":
        usual = f"where {cosine_text(typical)} is usual"
        return f"direction{of_family}: mean cosine {cosine_text(value)}, {usual}"
    if value == 0:
        return f"size{of_family}: no effect, where {typical:.3g} is usual"
    ratio = f" ({value / typical:.2g}x)" if typical > 0 else ""
    return f"size{of_family}: ||dW|| {value:.3g}, where {typical:.3g} is usual{ratio}"


def sameness(row: Mapping[str, Any]) -> str:
    """What is the same of duplicates, in words."""
    if row["kind"] == "identical":
        return "the same bits"
    difference = f"apart by {row['difference']:.0e} of dW at most"
    if row["kind"] == "same change":
        return f"the same change in another form, {difference}"
    factors = ", ".join(f"{factor:.3g}" for factor in row["factors"])
    return f"one change at the strengths {factors}; otherwise {difference}"
