"""The plots of a report, each from its data; by the name that its file gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlora_engine.analysis.relations import order_by_likeness
from vlora_engine.utils.ranking import ranked
from vlora_tui.report import svg

MOST_COLUMNS = 14  # families of modules in one plot


def charts_of(data: dict[str, Any]) -> dict[str, str]:
    """Name to SVG, in the order of the report."""
    found: dict[str, str] = {}
    analysis = data["analysis"]
    if analysis is not None:
        found["similarity"] = _similarity(analysis)
        found["norms"] = _norms(analysis)
    if data["of"] == "subspace":
        found["errors"] = _task_errors(data["subspace"])
        found["layers"] = _layer_errors(data["layers"])
    if data.get("variance"):
        found["variance"] = _variance(data["variance"])
    if data.get("sizes"):
        found["sizes"] = _sizes(data["sizes"])
    return found


def _similarity(analysis: dict[str, Any]) -> str:
    """Cosines of dW, those that are alike beside each other."""
    names = list(analysis["similarity_matrix"])
    values = np.array([list(row.values()) for row in analysis["similarity_matrix"].values()])
    order = order_by_likeness(values)
    shown = values[np.ix_(order, order)].tolist()
    return svg.matrix("Cosine of dW", [names[i] for i in order], shown)


def _norms(analysis: dict[str, Any]) -> str:
    """Sizes of dW against the median, in all and per family; outliers by size are named."""
    reasons = [(reason, row["name"]) for row in analysis["outliers"] for reason in row["reasons"]]
    far = {(r["family"], name) for r, name in reasons if r["feature"] == "norm"}
    parts: dict[str | None, dict[str, float]] = {None: analysis["norms"]}
    families = analysis["family_norms"]
    if len(families) > 1:
        marked = sorted(families, key=lambda f: not any(f == family for family, _ in far))
        parts |= {family: families[family] for family in sorted(marked[: MOST_COLUMNS - 1])}
    dots = []
    for family, norms in parts.items():
        usual = float(np.median([norm for norm in norms.values() if norm > 0] or [1.0]))
        dots.append(
            [(norm / usual, name if (family, name) in far else "") for name, norm in norms.items()]
        )
    columns = ["all modules" if family is None else family for family in parts]
    return svg.strips("Size of dW, by family of modules", columns, dots, y="||dW|| / median")


def _variance(variance: dict[str, Any]) -> str:
    series = [
        svg.Series(method, curve["k"], curve["median"], curve["least"], curve["most"])
        for method, curve in variance["methods"].items()
        if curve["k"]
    ]
    title = "Share of dW that k directions hold: median module, and all modules"
    return svg.lines(title, series, x="k", y="share of ||dW||²")


def _sizes(sizes: dict[str, Any]) -> str:
    series = [
        svg.Series(
            curve["method"],
            [point["ratio"] for point in curve["points"]],
            [max(point["mean_error"], 1e-6) for point in curve["points"]],
        )
        for curve in sizes["curves"]
        if curve["points"]
    ]
    title = "Error of dW against codec ratio, mean over adapters"
    return svg.lines(title, series, x="codec ratio", y="error of dW", log_y=True)


def _task_errors(subspace: dict[str, Any]) -> str:
    tasks = ranked(subspace["tasks"], lambda task: task["error"], lambda task: task["id"])
    return svg.bars(
        "Error of dW by task", [task["id"] for task in tasks], [task["error"] for task in tasks]
    )


def _layer_errors(layers: list[dict[str, Any]]) -> str:
    return svg.bars(
        "Error of dW by module: all tasks together (bar), worst task (mark)",
        [row["name"] for row in layers],
        [row["error"] for row in layers],
        tops=[row["worst_error"] for row in layers],
    )
