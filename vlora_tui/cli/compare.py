"""``diff`` and ``analyze``: how adapters relate, on the weight change that the model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vlora_engine.errors import ParameterError
from vlora_engine.utils.naming import cosine_text, threshold_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.cli import options as o
from vlora_tui.cli.csv_file import Csv, CsvFile
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.hub_inputs import fetch_first
from vlora_tui.cli.output import Output
from vlora_tui.report.comparison import (
    CLUSTERED,
    Compared,
    analysis_data,
    compare,
    require_several,
    sameness,
    why,
)
from vlora_tui.utils.formatting import listed, percent, plural

if TYPE_CHECKING:
    from vlora_tui.pipeline.inputs import Collection

Space = Annotated[
    Literal["delta", "factors"],
    option("--space", "delta: compares dW; factors: A and B apart, as vLoRA."),
]
Outliers = Annotated[
    float | None,
    option(
        "--outliers",
        "The score from which an adapter is an outlier; at 2, up to 5 % of collections show one.",
        metavar="SCORE",
    ),
]
WIDE = 12  # adapters that a matrix of similarities is printed for
REASONS = 3  # of an outlier that are printed
MEASURES = ("l2_distance", "relative_difference", "cosine_sim", "norm_a", "norm_b")


def diff(
    out: Output,
    places: Annotated[
        list[str], argument("Two of adapter and DIR:TASK; or DIR TASK TASK.", metavar="A B")
    ],
    fail_above: Annotated[
        float | None, option("--fail-above", "Exit 3 if the relative difference exceeds this.")
    ] = None,
    space: Space = "delta",
    csv: Csv = None,
    force: o.Force = False,
) -> None:
    """Compare two adapters or tasks, module by module and as a whole."""
    from vlora_engine.analysis.compare import adapter_diff, diff_total
    from vlora_engine.catalog.open import open_adapter

    sheet = CsvFile(csv, out, force=force)
    if fail_above is not None and not fail_above >= 0:
        raise ParameterError("--fail-above is a share, 0 or more.", found=str(fail_above))
    first, second = fetch_first(out, *two_adapters(places))
    sheet.require_apart_from([first, second])
    modules = adapter_diff(open_adapter(first), open_adapter(second), space="delta")
    total = diff_total(modules)
    if space == "factors":
        modules = adapter_diff(open_adapter(first), open_adapter(second), space="factors")
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
    sheet.write(
        ("module", *MEASURES),
        [(name, *(row[key] for key in MEASURES)) for name, row in modules.items()],
    )
    out.table(
        ("module", "distance", "of first", "cosine", "norm 1st", "norm 2nd"),
        [(name, *_figures(row)) for name, row in modules.items()],
    )
    out.text()
    out.text(
        f"{first} and {second} differ by "
        f"{percent(total['relative_difference'])} of the first's dW, "
        f"cosine {cosine_text(total['cosine_sim'])}"
    )
    out.essence(f"{total['relative_difference']:.6g}")
    if exceeds:
        out.note(f"the difference exceeds {percent(fail_above)}")
        raise typer.Exit(FOUND)


def analyze(
    out: Output,
    adapters: o.Adapters,
    threshold: Annotated[
        float, option("--threshold", "The cosine from which adapters count as similar.")
    ] = CLUSTERED,
    outliers: Outliers = None,
    space: Space = "delta",
    csv: Csv = None,
    force: o.Force = False,
    skip_bad: o.SkipBad = False,
) -> None:
    """Similarity of adapters, clusters, outliers and why, duplicates, checkpoints of one run."""
    check_thresholds(threshold, outliers)
    sheet = CsvFile(csv, out, force=force)
    collection = find_all(adapters, out, skip_bad=skip_bad)
    sheet.require_apart_from(collection.places.values())
    require_several(list(collection.adapters))
    compared = read_all(collection, out, skip_bad=skip_bad)
    require_several(compared.names)
    data = analysis_data(compared, threshold=threshold, outliers=outliers, space=space)
    out.json("analyze", data)
    names = compared.names
    values = [list(row.values()) for row in data["similarity_matrix"].values()]
    sheet.write(("", *names), [(name, *row) for name, row in zip(names, values, strict=True)])
    _show_similarity(out, names, values)
    out.text()
    _show_clusters(out, data)
    _show_remarkable(out, data)
    out.essence(str(data["redundant_count"]))


def check_thresholds(threshold: float, outliers: float | None) -> None:
    """Raise ParameterError unless they are a cosine and a score."""
    if not -1 <= threshold <= 1:
        raise ParameterError(
            "The threshold is a cosine.", expected="between -1 and 1", found=str(threshold)
        )
    if outliers is not None and not outliers > 0:
        raise ParameterError("--outliers is a score, above 0.", found=str(outliers))


def find_all(paths: list[str], out: Output, *, skip_bad: bool) -> Collection:
    """The adapters at these paths, open; those that headers rule out are told of."""
    from vlora_tui.cli.flags import require_there
    from vlora_tui.pipeline.inputs import gather_adapters
    from vlora_tui.recipe.model import named_inputs
    from vlora_tui.recipe.resolve import expand_input

    require_there(paths)
    entries = [found for entry in named_inputs(paths) for found in expand_input(entry)]
    fetch_first(out, *(entry.path for entry in entries))
    collection = gather_adapters(entries, skip_bad=skip_bad)
    for bad in collection.unusable:
        out.warn(f"{bad.name} is left out: {bad.error.what}")
    return collection


def read_all(collection: Collection, out: Output, *, skip_bad: bool) -> Compared:
    """Every tensor of them read once, and how they relate."""
    from vlora_tui.cli.progress import Watcher

    with Watcher(out) as watcher:
        compared = compare(collection.adapters, skip_bad=skip_bad, progress=watcher.on_progress)
    for name, error in compared.bad.items():
        out.warn(f"{name} is left out: {error.what}")
    return compared


def two_adapters(paths: list[str]) -> tuple[str, str]:
    """``A B``, or ``DIR TASK TASK`` as ``DIR:TASK DIR:TASK``."""
    if len(paths) == 3:
        directory, first, second = paths
        return f"{directory}:{first}", f"{directory}:{second}"
    if len(paths) != 2:
        raise ParameterError(
            "diff compares two adapters.",
            expected="A B, or DIR TASK_A TASK_B",
            found=plural(len(paths), "place"),
        )
    return paths[0], paths[1]


def _show_similarity(out: Output, names: list[str], values: list[list[float]]) -> None:
    if len(names) <= WIDE:
        heads = [str(i) for i in range(1, len(names) + 1)]
        rows = [
            (i, name, *(cosine_text(value) for value in row))
            for i, (name, row) in enumerate(zip(names, values, strict=True), start=1)
        ]
        out.table(("", "cosine of dW", *heads), rows)
        return
    pairs = [(values[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
    pairs = ranked(pairs, lambda pair: pair[0])
    out.text(f"the most similar of {plural(len(pairs), 'pair')}")
    out.table(("cosine", "adapter", "and"), [(cosine_text(v), b, a) for v, a, b in pairs[:15]])


def _show_clusters(out: Output, data: dict[str, Any]) -> None:
    threshold, clusters = data["threshold"], data["clusters"]
    for number, cluster in enumerate((c for c in clusters if len(c) > 1), start=1):
        members = listed(cluster)
        out.text(f"cluster {number} (cosine of {threshold_text(threshold)} and above): {members}")
    alone = sum(len(cluster) == 1 for cluster in clusters)
    redundant = data["redundant_count"]
    out.text(
        f"{plural(alone, 'adapter')} not similar to any other; "
        f"{redundant} redundant at {threshold_text(threshold)}"
    )


def _show_remarkable(out: Output, data: dict[str, Any]) -> None:
    for row in data["duplicates"]:
        out.text(f"duplicates: {listed(row['names'])} ({sameness(row)})")
    for row in data["runs"]:
        kind = "checkpoints of one run" if row["kind"] == "run" else "started from the same weights"
        out.text(f"{kind}: {listed(row['names'])} ({row['how']})")
    for row in data["outliers"]:
        reasons = row["reasons"][:REASONS]
        more = len(row["reasons"]) - len(reasons)
        also = f"; and in {more} more ways" if more else ""
        whys = "; ".join(why(reason) for reason in reasons)
        out.text(f"outlier (score {row['z_score']:.1f}): {row['name']}: {whys}{also}")


def _figures(row: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{row['l2_distance']:.4g}",
        percent(row["relative_difference"]),
        cosine_text(row["cosine_sim"]),
        f"{row['norm_a']:.4g}",
        f"{row['norm_b']:.4g}",
    )
