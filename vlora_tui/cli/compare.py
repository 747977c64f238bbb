"""``diff`` and ``analyze``: how adapters relate, on the weight change that the model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vlora_engine.errors import ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.flags import require_there
from vlora_tui.cli.hub_places import fetch_first
from vlora_tui.cli.output import Output, percent, plural, printable
from vlora_tui.cli.progress import Watcher
from vlora_tui.recipe import expand_input, named_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from vlora_engine.adapters import AdapterSource

Space = Annotated[
    Literal["delta", "factors"],
    typer.Option("--space", help="delta: compares dW; factors: A and B apart, as vLoRA."),
]
WIDE = 12  # adapters that a matrix of similarities is printed for


def diff(
    places: Annotated[
        list[str],
        typer.Argument(help="Two of adapter and DIR:TASK; or DIR TASK TASK.", metavar="A B"),
    ],
    fail_above: Annotated[
        float | None,
        typer.Option("--fail-above", help="Exit 3 if the relative difference exceeds this."),
    ] = None,
    space: Space = "delta",
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare two adapters or tasks, module by module and as a whole."""
    from vlora_engine.analysis import adapter_diff, diff_total

    out = Output(json=as_json, quiet=quiet)
    if fail_above is not None and not fail_above >= 0:
        raise ParameterError("--fail-above is a share, 0 or more.", found=str(fail_above))
    first, second = fetch_first(out, *two_places(places))
    modules = adapter_diff(open_place(first), open_place(second), space="delta")
    total = diff_total(modules)
    if space == "factors":
        modules = adapter_diff(open_place(first), open_place(second), space="factors")
    exceeds = fail_above is not None and not total["relative_difference"] <= fail_above
    out.json(
        "diff",
        {
            "a": first,
            "b": second,
            "space": space,
            "total": total,
            "modules": modules,
            "fail_above": fail_above,
            "exceeds": exceeds,
        },
    )
    out.table(
        ("module", "distance", "of first", "cosine", "norm 1st", "norm 2nd"),
        [(name, *_figures(row)) for name, row in modules.items()],
    )
    out.text()
    out.text(
        f"{printable(first)} and {printable(second)} differ by "
        f"{percent(total['relative_difference'])} of the first's dW, "
        f"cosine {total['cosine_sim']:.4f}"
    )
    out.essence(f"{total['relative_difference']:.6g}")
    if exceeds:
        out.note(f"the difference exceeds {percent(fail_above)}")
        raise typer.Exit(FOUND)


def analyze(
    adapters: o.Adapters,
    threshold: Annotated[
        float, typer.Option("--threshold", help="The cosine from which on adapters are alike.")
    ] = 0.9,
    space: Space = "delta",
    skip_bad: o.SkipBad = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Similarity of adapters, clusters of those that are alike, outliers."""
    from vlora_engine.analysis import find_clusters

    if not -1 <= threshold <= 1:
        raise ParameterError(
            "The threshold is a cosine.", expected="between -1 and 1", found=str(threshold)
        )
    out = Output(json=as_json, quiet=quiet)
    sources = open_all(adapters, out, skip_bad=skip_bad)
    names, opened = list(sources), list(sources.values())
    if len(names) < 2:
        raise ParameterError("There is nothing to compare: one adapter.", found=", ".join(names))
    similarity, outliers = relate(opened, space, out)
    clusters = [[names[i] for i in cluster] for cluster in find_clusters(similarity, threshold)]
    for outlier in outliers:
        outlier["name"] = names[outlier["index"]]
    redundant = sum(len(cluster) - 1 for cluster in clusters)
    values = similarity.tolist()
    out.json(
        "analyze",
        {
            "space": space,
            "threshold": threshold,
            "similarity_matrix": {
                a: dict(zip(names, row, strict=True)) for a, row in zip(names, values, strict=True)
            },
            "clusters": clusters,
            "redundant_count": redundant,
            "outliers": outliers,
        },
    )
    _show_similarity(out, names, values)
    out.text()
    for number, cluster in enumerate((c for c in clusters if len(c) > 1), start=1):
        more = f" and {len(cluster) - WIDE} more" if len(cluster) > WIDE else ""
        members = ", ".join(cluster[:WIDE]) + more
        out.text(f"cluster {number} (cosine of {threshold:g} and above): {members}")
    alone = sum(len(cluster) == 1 for cluster in clusters)
    out.text(f"{plural(alone, 'adapter')} like no other; {redundant} redundant at {threshold:g}")
    for outlier in outliers:
        out.text(printable(f"outlier: {outlier['name']} ({_why(outlier)})"))
    out.essence(str(redundant))


def relate(
    sources: list[AdapterSource], space: Literal["delta", "factors"], out: Output
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Cosines (N, N), and who stands apart; with ``delta`` both from one reading."""
    from vlora_engine.analysis import (
        compute_similarity_matrix,
        cosines,
        delta_grams,
        outliers_of,
    )

    if space == "factors":
        return compute_similarity_matrix(sources, space=space), []
    with Watcher(out) as watcher:
        gram = delta_grams(sources, progress=watcher.on_progress)
    return cosines(gram), outliers_of(gram) if len(sources) > 2 else []


def open_all(paths: list[str], out: Output, *, skip_bad: bool) -> dict[str, AdapterSource]:
    """The adapters at these paths by name, every tensor of them checked."""
    from vlora_engine.check import check_adapters
    from vlora_tui.collection import gather_adapters

    require_there(paths)
    entries = [found for entry in named_inputs(paths) for found in expand_input(entry)]
    fetch_first(out, *(entry.path for entry in entries))
    collection = gather_adapters(entries, skip_bad=skip_bad)
    for bad in collection.unusable:
        out.warn(printable(f"{bad.name} is left out: {bad.error.what}"))
    with Watcher(out) as watcher:
        report = check_adapters(collection.adapters, progress=watcher.on_progress)
    for name, check in report.adapters.items():
        if check.error is not None and skip_bad:
            out.warn(printable(f"{name} is left out: {check.error.what}"))
    return {name: collection.adapters[name] for name in report.require(skip_bad=skip_bad)}


def two_places(places: list[str]) -> tuple[str, str]:
    """``A B``, or ``DIR TASK TASK`` as ``DIR:TASK DIR:TASK``."""
    if len(places) == 3:
        directory, first, second = places
        return f"{directory}:{first}", f"{directory}:{second}"
    if len(places) != 2:
        raise ParameterError(
            "diff compares two adapters.",
            expected="A B, or DIR TASK_A TASK_B",
            found=plural(len(places), "place"),
        )
    return places[0], places[1]


def open_place(place: str) -> Any:
    """One adapter, or a task of a subspace."""
    from vlora_engine.formats import open_adapter

    return open_adapter(place)


def _show_similarity(out: Output, names: list[str], values: list[list[float]]) -> None:
    if len(names) <= WIDE:
        heads = [str(i) for i in range(1, len(names) + 1)]
        rows = [
            (i, name, *(f"{value:.3f}" for value in row))
            for i, (name, row) in enumerate(zip(names, values, strict=True), start=1)
        ]
        out.table(("", "cosine of dW", *heads), rows)
        return
    pairs = [(values[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
    pairs.sort(key=lambda pair: -pair[0])
    out.text(f"the most alike of {plural(len(pairs), 'pair')}")
    out.table(("cosine", "adapter", "and"), [(f"{v:.3f}", b, a) for v, a, b in pairs[:15]])


def _figures(row: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{row['l2_distance']:.4g}",
        percent(row["relative_difference"]),
        f"{row['cosine_sim']:.4f}",
        f"{row['norm_a']:.4g}",
        f"{row['norm_b']:.4g}",
    )


def _why(outlier: dict[str, Any]) -> str:
    what = {"norm": "size of dW", "similarity": "mean cosine"}[outlier["feature"]]
    return f"{what} {outlier['value']:.3g}, where {outlier['typical']:.3g} is usual"
