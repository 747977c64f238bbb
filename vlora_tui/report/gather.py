"""Gathers the data of a report: of a collection of adapters, or of a subspace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora_engine.adapters.model import MemorySource
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import ParameterError
from vlora_engine.manifest.task_errors import task_figures
from vlora_engine.spectra.size_curves import curves
from vlora_engine.utils.ranking import foremost
from vlora_tui.report.comparison import Compared, analysis_data, compare

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.spectra.tables import Spectra
    from vlora_engine.utils.progress import ProgressCallback
    from vlora_tui.pipeline.inputs import Collection

K_SHOWN = 256  # beyond it a curve of variance is not drawn
SHARES = (0.9, 0.95, 0.99)
# A subspace's tasks are compared as adapters while they take no more than this.
MAX_COMPARED_BYTES = 2_000_000_000


def collection_data(
    collection: Collection,
    compared: Compared | None,
    spectra: Spectra | None,
    *,
    threshold: float,
    outliers: float | None,
) -> dict[str, Any]:
    """A report on adapters.

    Args:
        compared: How they relate; None of a single adapter.
        spectra: What every k costs, where that is measured.
    """
    names = {path: name for name, path in collection.places.items()}
    local = [path for path in names if Path(path).exists()]
    catalog = scan(local) if local else None
    infos = [info for info in catalog.adapters if str(info.path) in names] if catalog else []
    rows = [{**info.as_dict(), "name": names[str(info.path)]} for info in infos]
    rows += [
        _row_of_task(name, collection) for path, name in names.items() if path not in set(local)
    ]
    findings = [
        {"about": row["name"], **finding} for row in rows for finding in row.pop("findings")
    ]
    findings += [{"about": "", **f.as_dict()} for f in (catalog.findings if catalog else ())]
    if spectra is not None:
        findings += [{"about": "", **f.as_dict()} for f in spectra.findings]
    analysis = None
    if compared is not None:
        analysis = analysis_data(compared, threshold=threshold, outliers=outliers)
    return {
        "of": "adapters",
        "adapters": rows,
        "analysis": analysis,
        "variance": None if spectra is None else variance_data(spectra),
        "sizes": None if spectra is None else sizes_data(spectra),
        "findings": findings,
    }


def _row_of_task(name: str, collection: Collection) -> dict[str, Any]:
    """The row of a task of a subspace among adapters."""
    source = collection.adapters[name]
    return {
        "name": name,
        "path": collection.places[name],
        "format": "vlora-subspace",
        "base_model": source.config.get("base_model_name_or_path"),
        "rank": source.config.get("r"),
        "alpha": source.config.get("lora_alpha"),
        "modules": len(source.modules),
        "dtype": next(iter({shape.dtype for shape in source.modules.values()}), None),
        "bytes": source.nbytes,
        "findings": [],
    }


def require_same(spectra: Spectra, compared: Compared) -> None:
    """Raise ParameterError unless the spectra are those of the adapters that were read."""
    norms = dict(zip(compared.names, compared.relations.norms.tolist(), strict=True))
    spectra_norms = {task.name: task.norm for task in spectra.tasks}
    other = sorted(norms.keys() ^ spectra_norms.keys())
    other += [
        n
        for n in norms
        if n in spectra_norms and not np.isclose(norms[n], spectra_norms[n], rtol=1e-6)
    ]
    if other:
        raise ParameterError(
            "The spectra are of other adapters.",
            where=spectra.path,
            expected=", ".join(sorted(norms)[:5]),
            found=f"a difference at {other[0]}",
            remedy="leave --spectra out, or measure these with `vlora-tui spectra`",
        )


def variance_data(spectra: Spectra) -> dict[str, Any]:
    """Per method the captured share of dW against k, over layers: median, least, most.

    ``k_for`` names for each of some shares the least k at which the median layer, and every
    layer, has it; None where that is beyond what is drawn.
    """
    found: dict[str, Any] = {}
    for method in spectra.methods:
        curves = [spectra.variance(layer, method) for layer in spectra.layer_names]
        top = min(K_SHOWN, max(int(k[-1]) for k, _ in curves))
        k = np.unique(np.concatenate([curve_k for curve_k, _ in curves]))
        k = k[(k >= 1) & (k <= top)]
        # between kept k the share of the next lower one, as `MethodTable.at`
        at = [share[np.searchsorted(curve_k, k, "right") - 1] for curve_k, share in curves]
        shares = np.stack(at).clip(0, 1)
        middle, least = np.median(shares, axis=0), shares.min(axis=0)
        found[method] = {
            "k": k.tolist(),
            "median": middle.tolist(),
            "least": least.tolist(),
            "most": shares.max(axis=0).tolist(),
            "k_for": [
                {"share": s, "median": _first_k(k, middle, s), "every": _first_k(k, least, s)}
                for s in SHARES
            ],
        }
    return {"spectra": str(spectra.path), "methods": found}


def _first_k(k: Any, shares: Any, share: float) -> int | None:
    reached = np.flatnonzero(shares >= share)
    return int(k[reached[0]]) if len(reached) else None


def sizes_data(spectra: Spectra) -> dict[str, Any] | None:
    """Size against error of every method, where it is known what coding costs."""
    rate_tables = spectra.rate_tables()
    if rate_tables is None:
        return None
    return {
        "input_bytes": rate_tables.input_bytes,
        "rest_bytes": rate_tables.rest_bytes,
        "curves": [curve.as_dict() for curve in curves(spectra, rate_tables)],
    }


def subspace_data(
    directory: str,
    *,
    threshold: float,
    outliers: float | None,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """A report on a subspace: its tasks, their errors, its layers, how the tasks relate."""
    manifest = read_manifest(directory)
    compared = _compared_tasks(manifest, progress)
    analysis = None
    if compared is not None:
        analysis = analysis_data(compared, threshold=threshold, outliers=outliers)
    return {
        "of": "subspace",
        "subspace": manifest.as_dict(),
        "layers": layer_rows(manifest),
        "analysis": analysis,
        "findings": [{"about": "", **f.as_dict()} for f in check_subspace(directory)],
    }


def layer_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Per shared layer the error of dW: over all tasks together, and of the worst."""
    energy: dict[str, list[tuple[float, float, str]]] = {spec.name: [] for spec in manifest.layers}
    for task in manifest.tasks:
        figures = task_figures(manifest, task)
        for name, norm, error in zip(figures.layers, figures.norms, figures.errors, strict=True):
            energy[name].append((float(norm), float(error), task))
    rows = []
    for spec in manifest.layers:
        layer_energy = energy[spec.name]
        total = sum(norm**2 for norm, _, _ in layer_energy)
        lost = sum((norm * error) ** 2 for norm, error, _ in layer_energy)
        worst = foremost(layer_energy, lambda row: row[1], lambda row: row[2]) or (0.0, 0.0, None)
        rows.append(
            {
                "name": spec.name,
                "k_a": spec.k_a,
                "k_b": spec.k_b,
                "tasks": len(layer_energy),
                "error": (lost / total) ** 0.5 if total > 0 else 0.0,
                "worst_error": worst[1],
                "worst_task": worst[2],
            }
        )
    return rows


def _compared_tasks(manifest: Manifest, progress: ProgressCallback | None) -> Compared | None:
    """How the tasks relate as they are stored; None of one task, or where they are too many."""
    elements = sum(task.factor_elements for task in manifest.tasks.values())
    if len(manifest.tasks) < 2 or 4 * elements > MAX_COMPARED_BYTES:
        return None
    from vlora_engine.shared_subspace import SharedSubspace

    opened = SharedSubspace.load(manifest.path, lazy=True)
    return compare(
        {task: MemorySource(opened.reconstruct(task)) for task in manifest.tasks}, progress=progress
    )


def names_of(data: dict[str, Any]) -> Sequence[str]:
    """The adapters or tasks of a report that are compared, in their order."""
    analysis = data["analysis"]
    return [] if analysis is None else list(analysis["similarity_matrix"])
