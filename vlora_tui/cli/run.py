"""``run``: execute a recipe, from a file or from flags."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from vlora_engine.errors import ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events


def run(
    out: Output,
    ctx: typer.Context,
    sources: Annotated[
        list[str], argument("A recipe file (- is stdin), or adapters.", metavar="RECIPE | PATHS")
    ],
    *,
    headless: Annotated[bool, option("--headless", "Without the interface, here and now.")] = False,
    output: Annotated[
        str | None, option("-o", "--output", "The subspace to write.", metavar="DIR")
    ] = None,
    compressing: o.Compressing,
    preview: Annotated[
        bool, option("--preview", "Say what its merges keep; write nothing.")
    ] = False,
    writing: o.Writing,
    job: Annotated[Path | None, typer.Option("--job", hidden=True)] = None,
    job_lock: Annotated[int | None, typer.Option("--job-lock", hidden=True)] = None,
    warm: Annotated[int | None, typer.Option("--warm", hidden=True)] = None,
) -> None:
    """Execute a recipe: a TOML file, or flags as compress takes them."""
    from vlora_tui.cli.execute import carry_out, execute_job
    from vlora_tui.cli.flags import compress_recipe, say_once
    from vlora_tui.cli.interface import open_interface
    from vlora_tui.cli.merge import is_recipe, preview_merges
    from vlora_tui.jobs.worker import wait_for_job
    from vlora_tui.recipe.reader import load_recipe
    from vlora_tui.tui.app.start import require_terminal

    if warm is not None and headless:  # a process kept ready by an interface
        job, job_lock = wait_for_job(warm) or (None, None)
        if job is None:
            return
    if job is not None and headless:  # how vlora_tui.jobs starts this very process
        for path in execute_job(job, out, lock=job_lock).last(events.Finished).outputs:
            out.text(f"written to {path}")
        return
    opens = not (headless or writing.print_recipe or writing.dry_run or preview)
    if opens:
        instead = f"vlora-tui run --headless {shlex.join(sources[:3])} ..."
        require_terminal(instead)
    say_once(out, compressing)
    if is_recipe(sources):
        flags = [p for p in _FLAGS if _is_from_command_line(ctx, p)]
        if flags:
            raise ParameterError(
                "A recipe file says all; flags that change it are not taken.",
                where=sources[0],
                found=", ".join(flags),
                remedy="change the file, or run the adapters with flags",
            )
        recipe = load_recipe(sources[0])
    elif output is None and not opens:
        raise ParameterError("There is nowhere to put the subspace.", remedy="name it: -o DIR")
    else:
        recipe = compress_recipe(sources, output, **compressing.flags())
    if opens:
        raise typer.Exit(open_interface(ctx, recipe=recipe, instead=instead))
    if preview and not (writing.print_recipe or writing.dry_run):
        preview_merges(recipe, out)
        return
    watcher = carry_out(recipe, out, writing)
    if watcher is not None:
        show_results(watcher, out)


def show_results(watcher: Watcher, out: Output) -> None:
    """What came of a recipe."""
    from vlora_tui.cli.compress import compress_data, show_subspace
    from vlora_tui.cli.convert import show_converted
    from vlora_tui.cli.export import show_exports, starts
    from vlora_tui.cli.hub import show_pushes
    from vlora_tui.cli.merge import show_merges
    from vlora_tui.cli.resize import show_resizes

    finished = watcher.last(events.Finished)
    data = {"outputs": list(finished.outputs), "seconds": finished.seconds}
    if watcher.last(events.SubspaceWritten) is not None:
        data["subspace"] = compress_data(watcher)
        show_subspace(out, watcher)
    data["exported"] = show_exports(out, watcher)
    data["start"] = starts(watcher)
    data["merged"] = show_merges(out, watcher)
    data["resized"] = show_resizes(out, watcher)
    data["converted"] = show_converted(out, watcher)
    data["pushed"] = show_pushes(out, watcher)
    out.json("run", data)
    for path in finished.outputs:
        out.essence(path)


_FLAGS = ("output", *(f.name for f in fields(o.Compressing) if f.name not in o.WITHOUT_EFFECT))


def _is_from_command_line(ctx: typer.Context, parameter: str) -> bool:
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
