"""``spectra``: measure once what every k would cost, for every method."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from vlora_engine.adapters.address import expanded
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.utils.device import require_device
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import option
from vlora_tui.cli.output import Output
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, plural, size, times

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra

LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def spectra(
    out: Output,
    adapters: o.Adapters,
    output: Annotated[
        str | None,
        option("-o", "--output", "Where to keep them; by default the cache.", metavar="DIR"),
    ] = None,
    names: o.Names = None,
    device: o.Device = "auto",
    skip_bad: o.SkipBad = False,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    events_file: o.EventsFile = None,
) -> None:
    """Read every adapter, check it, and measure what every k of every method would cost.

    The figures are exact: they are what a build will store, but for the rounding of its dtype.
    """
    from vlora_tui.cli.execute import check_events_file, execute
    from vlora_tui.cli.execute import dry_run as show_plan
    from vlora_tui.cli.flags import from_tables, input_table

    require_device(device)
    recipe = from_tables({"input": input_table(adapters, names, skip_bad=skip_bad)})
    target = None if output is None else expanded(output).absolute()
    if events_file is not None:
        check_events_file(events_file, recipe, target)
    if dry_run:
        show_plan(recipe, out, force=force, also=[] if target is None else [target])
        return
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.pipeline.run import SpectraRun

    kind = partial(SpectraRun, target=target, device=device)
    watcher = execute(recipe, out, force=force, events_file=events_file, make=kind)

    ready = watcher.last(events.SpectraReady)
    found = Spectra.load(ready.path)
    rows = cost_rows(found)
    out.json(
        "spectra",
        {
            "path": ready.path,
            "reused": ready.reused,
            "tasks": [task.name for task in found.tasks],
            "layers": len(found.layer_names),
            "methods": found.methods,
            "costs": rows,
            "left_out": [s.name for s in watcher.all(events.AdapterSkipped)],
        },
    )
    show_costs(out, found, rows)
    out.essence(ready.path)


def cost_rows(spectra: Spectra) -> list[dict[str, Any]]:
    """What some k of every method would cost."""
    from vlora_engine.spectra.choose import choose

    rows = []
    for method in spectra.methods:
        for k in LADDER:
            try:
                prediction = choose(spectra, CompressionTarget(method, k=k)).prediction
            except VLoRAError:
                break  # beyond what this collection has
            rows.append(
                {
                    "method": method,
                    "k": k,
                    "mean_error": prediction.mean_error,
                    "max_error": prediction.max_error,
                    "worst_task": prediction.worst_task,
                    "nbytes": prediction.nbytes,
                    "ratio": prediction.ratio,
                    "codec_ratio": prediction.codec_ratio,
                }
            )
            if prediction.mean_error < 1e-6:
                break
    return rows


def show_costs(out: Output, spectra: Spectra, rows: list[dict[str, Any]]) -> None:
    """The same as a table."""
    tasks, layers = plural(len(spectra.tasks), "task"), plural(len(spectra.layer_names), "module")
    out.text(f"{tasks}, {layers}; error of dW by method and k")
    out.text()
    out.table(
        ("method", "k", "mean error", "worst error", "on disk", "ratio", "codec"),
        [
            (
                row["method"],
                row["k"],
                percent(row["mean_error"]),
                percent(row["max_error"]),
                size(row["nbytes"]),
                times(row["ratio"]),
                times(row["codec_ratio"]),
            )
            for row in rows
        ],
    )
