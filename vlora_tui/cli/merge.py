"""``merge``: adapters into one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlora_engine.errors import ParameterError
from vlora_tui import events
from vlora_tui.cli import options as o
from vlora_tui.cli.execute import dry_run as show_plan
from vlora_tui.cli.execute import execute
from vlora_tui.cli.flags import from_tables, numbers, require_there
from vlora_tui.cli.output import Output, percent, plural, printable
from vlora_tui.cli.progress import Watcher
from vlora_tui.recipe import resolve


def merge(
    adapters: Annotated[
        list[str], typer.Argument(help="Adapters, or DIR:TASK of subspaces.", metavar="ADAPTERS")
    ],
    output: o.OutputDir,
    method: Annotated[str, typer.Option("--method", help="average, ties or dare.")] = "average",
    weights: Annotated[
        str | None, typer.Option("--weights", help="One for each adapter: 0.7,0.3.")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="ties: the share of entries to keep.")
    ] = None,
    drop_rate: Annotated[
        float | None, typer.Option("--drop-rate", help="dare: the share of entries to drop.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="dare: makes it repeatable.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="The rank of the result.")] = None,
    space: Annotated[
        str, typer.Option("--space", help="delta: merges dW; factors: A and B apart, as vLoRA.")
    ] = "delta",
    force: o.Force = False,
    dry_run: o.DryRun = False,
    print_recipe: o.PrintRecipe = False,
    events_file: o.EventsFile = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Merge adapters into one, on the weight change that the model sees."""
    out = Output(json=as_json, quiet=quiet)
    for path in adapters:
        if path.endswith((".yml", ".yaml")):
            raise ParameterError(
                "Merges from a mergekit file are not built yet.",
                where=path,
                remedy="name the adapters and give --method and --weights",
            )
    require_there(adapters)
    places = [path if "/" in path else f"./{path}" for path in adapters]
    row: dict[str, Any] = {
        "adapters": places,
        "method": method,
        "weights": numbers(weights, "--weights"),
        "density": density,
        "drop_rate": drop_rate,
        "seed": seed,
        "rank": rank,
        "space": space,
        "path": output,
    }
    recipe = from_tables(
        {
            "input": {"adapters": list(dict.fromkeys(places))},
            "merge": [{name: value for name, value in row.items() if value is not None}],
        }
    )
    if print_recipe:
        print(resolve(recipe).to_toml(), end="")
        return
    if dry_run:
        show_plan(recipe, out, force=force)
        return
    watcher = execute(recipe, out, force=force, events_file=events_file)
    merged = show_merges(out, watcher)
    out.json("merge", merged[0])
    out.essence(merged[0]["path"])


def show_merges(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Every merge, printed for people and returned for JSON."""
    rows = []
    for event in watcher.all(events.Merged):
        report = event.report
        weights = ", ".join(f"{weight:.3g}" for weight in report["weights"])
        out.text(
            printable(
                f"merged {', '.join(event.adapters)} by {event.method} (weights {weights}): "
                f"rank {event.rank}, {plural(event.modules, 'module')}"
            )
        )
        if report["cut_error"] > 0:
            out.text(f"cutting the rank changed dW by {percent(report['cut_error'])}")
        if report["rest_left_out"]:
            left = plural(len(report["rest_left_out"]), "tensor")
            out.text(
                printable(
                    f"left out, as the adapters differ in them: {left}, such as "
                    f"{report['rest_left_out'][0]}"
                )
            )
        out.text(printable(f"written to {event.path}"))
        rows.append(
            {
                "path": event.path,
                "method": event.method,
                "adapters": list(event.adapters),
                "rank": event.rank,
                "modules": event.modules,
                **{
                    name: report[name]
                    for name in ("weights", "cut_error", "rest_kept", "rest_left_out")
                },
            }
        )
    return rows
