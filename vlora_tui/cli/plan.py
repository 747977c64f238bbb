"""``plan``: what every method would cost at every size, and what auto would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from vlora_engine.utils.ranking import ranked
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import option
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural, size, times

if TYPE_CHECKING:
    from vlora_engine.compression_target import CompressionTarget
    from vlora_engine.spectra.tables import Spectra

SHOWN = 6  # adapters of a cluster that are named


def plan(
    out: Output,
    adapters: o.Adapters,
    max_error: o.MaxError = None,
    mean_error: o.MeanError = None,
    variance: Annotated[
        float | None, option("--variance", "The share of dW's energy to keep.")
    ] = None,
    budget: o.Budget = None,
    names: o.Names = None,
    device: o.Device = "auto",
    skip_bad: o.SkipBad = False,
) -> None:
    """Size against error for every method on these adapters, and what auto would do for a target.

    Errors of delta, columns and flat are exact; those of own, auto and of plain quantization are
    told from tables, within a few percent. Nothing but the cache is written.
    """
    from vlora_tui.cli.execute import measured
    from vlora_tui.cli.flags import compress_recipe

    recipe = compress_recipe(
        adapters,
        "unused",
        names=names,
        skip_bad=skip_bad,
        method="auto",
        max_error=max_error,
        mean_error=mean_error,
        budget=budget,
        device=device,
    )
    assert recipe.compress is not None  # noqa: S101
    target = recipe.compress.target
    if variance is not None:
        target = target.with_goal("variance", variance)
    data = plan_data(measured(recipe, out, device), target)
    out.json("plan", data)
    show_plan(out, data)
    out.essence(" ".join(f"{row['group']}:{len(row['tasks'])}" for row in data["clusters"]))


def plan_data(spectra: Spectra, target: CompressionTarget) -> dict[str, Any]:
    """The curves of all methods, and the choice of auto for a target, for JSON."""
    from vlora_engine.spectra.size_curves import curves
    from vlora_tui.pipeline.forecast import choice_data, cluster_rows

    rate_tables = spectra.rate_tables()
    name, value = target.goal
    assert rate_tables is not None  # noqa: S101  (these spectra were just computed with it)
    return {
        "path": str(spectra.path),
        "tasks": rate_tables.tasks,
        "input_bytes": rate_tables.input_bytes,
        "rest_bytes": rate_tables.rest_bytes,
        "curves": [curve.as_dict() for curve in curves(spectra, rate_tables)],
        "clusters": cluster_rows(rate_tables),
        "target": {"name": name, "value": value},
        "choice": choice_data(rate_tables, target),
    }


def show_plan(out: Output, data: dict[str, Any]) -> None:
    """The same for people."""
    from vlora_engine.spectra.size_curves import RATIOS

    out.text(f"error of dW (mean over {plural(len(data['tasks']), 'task')}) by codec ratio")
    out.text()
    rows = []
    plain = [curve for curve in data["curves"] if len(curve["points"]) == 1]
    for curve in (curve for curve in data["curves"] if curve not in plain):
        at = {point["ratio"]: point for point in curve["points"]}
        cells = [percent(at[r]["mean_error"]) if r in at else "-" for r in RATIOS]
        rows.append((curve["method"], *cells))
    out.table(("method", *(f"{ratio}x" for ratio in RATIOS)), rows)
    for curve in plain:
        point = curve["points"][0]
        error, ratio = percent(point["mean_error"]), times(point["ratio"])
        out.text(f"{curve['method']} of A and B as they are: about {error} at {ratio}")
    out.text()
    choice, target = data["choice"], data["target"]
    goal = size(target["value"]) if target["name"] == "budget" else f"{target['value']:g}"
    out.text(
        f"auto for {target['name'].replace('_', ' ')} {goal}: {size(choice['nbytes'])} of "
        f"{size(data['input_bytes'])} (codec ratio {times(choice['codec_ratio'])}), error "
        f"{percent(choice['mean_error'])} on average, {percent(choice['max_error'])} at worst"
    )
    saved = choice["own"]["nbytes"] - choice["nbytes"]
    sharing = [row for row in choice["layers"] if row["groups"]]
    if not sharing:
        out.text("sharing does not help on this collection: every adapter is coded separately")
    for row in data["clusters"]:
        kinds = [
            group["kind"]
            for layer in choice["layers"]
            for group in layer["groups"]
            if group["group"] == row["group"]
        ]
        names = ", ".join(row["tasks"][:SHOWN]) + (", ..." if len(row["tasks"]) > SHOWN else "")
        used = ", ".join(f"{kind} in {kinds.count(kind)}" for kind in sorted(set(kinds)))
        out.text(f"cluster {row['group']}: {names}: {used or 'nothing shared'}")
    if sharing and saved > 0:
        out.text(f"sharing saves {size(saved)} against coding each separately")
    out.text()
    lost = ranked(choice["adapters"], lambda row: row["error"], lambda row: row["task"])
    out.table(
        ("task", "error", "size", "worst module", "its error"),
        [
            (
                row["task"],
                percent(row["error"]),
                size(row["nbytes"]),
                row["worst_layer"],
                percent(row["worst_layer_error"]),
            )
            for row in lost
        ],
    )
