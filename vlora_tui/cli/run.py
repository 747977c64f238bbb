"""``run``: execute a recipe, from a file or from flags."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlora_engine.errors import ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.interface import open_interface
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.cli.table_flags import TableFlags, recipe_of_flags
from vlora_tui.pipeline import events

if TYPE_CHECKING:
    from vlora_tui.recipe.model import Recipe


class CompressFlags(o.Compressing):
    """The flags of ``compress``, below a heading of their own."""

    section = "Table [compress], and what is read"


def run(
    out: Output,
    ctx: typer.Context,
    sources: Annotated[
        list[str] | None,
        argument(
            "A recipe file (- is stdin), adapters, or a subspace.",
            metavar="RECIPE | PATHS",
            show_default=False,
        ),
    ] = None,
    *,
    headless: Annotated[bool, option("--headless", "Run here, without the interface.")] = False,
    output: Annotated[
        str | None, option("-o", "--output", "The subspace to write.", metavar="DIR")
    ] = None,
    subspace: Annotated[
        str | None, option("--subspace", "A subspace to work on, not adapters.", metavar="DIR")
    ] = None,
    preview: Annotated[
        bool, option("--preview", "Say what its merges keep; write nothing.")
    ] = False,
    writing: o.Writing,
    compressing: CompressFlags,
    tables: TableFlags,
    job: Annotated[Path | None, typer.Option("--job", hidden=True)] = None,
    job_lock: Annotated[int | None, typer.Option("--job-lock", hidden=True)] = None,
    warm: Annotated[int | None, typer.Option("--warm", hidden=True)] = None,
) -> None:
    """Execute a recipe: a TOML file, or flags, which also change what a file says.

    A flag of a table makes the table, or changes it: --TABLE-KEY for every key of a recipe.
    """
    from vlora_tui.cli.execute import carry_out, execute_job
    from vlora_tui.cli.flags import say_once
    from vlora_tui.cli.merge import is_recipe, preview_merges
    from vlora_tui.jobs.worker import wait_for_job
    from vlora_tui.recipe.reader import load_recipe
    from vlora_tui.tui.app.start import require_terminal

    places = sources or []
    if warm is not None and headless:  # a process kept ready by an interface
        job, job_lock = wait_for_job(warm) or (None, None)
        if job is None:
            return
    if job is not None and headless:  # how vlora_tui.jobs starts this very process
        for path in execute_job(job, out, lock=job_lock).last(events.Finished).outputs:
            out.text(f"written to {path}")
        return
    opens = not (headless or writing.print_recipe or writing.dry_run or preview)
    instead = f"vlora-tui run --headless {shlex.join(places[:3])} ..."
    if opens:
        require_terminal(instead)
    say_once(out, compressing)
    given = _given(ctx, output, subspace, compressing, tables)
    if is_recipe(places):
        recipe = load_recipe(places[0], given)
    else:
        recipe = _recipe_of(places, given)
    if opens:
        raise typer.Exit(open_interface(ctx, recipe=recipe, instead=instead))
    if preview and not (writing.print_recipe or writing.dry_run):
        preview_merges(recipe, out)
        return
    watcher = carry_out(recipe, out, writing)
    if watcher is not None:
        show_results(watcher, out)


def _given(
    ctx: typer.Context,
    output: str | None,
    subspace: str | None,
    compressing: o.Compressing,
    tables: TableFlags,
) -> dict[str, dict[str, Any]]:
    """What the flags say, by table and key; defaults say nothing."""
    from vlora_tui.cli.flags import compress_table, given_only

    flags = {
        name: value
        for name, value in compressing.flags().items()
        if _is_from_command_line(ctx, name)
    }
    names, skip_bad = flags.pop("names", None), flags.pop("skip_bad", None)
    found = {
        "input": {"names": names, "skip_bad": skip_bad, "subspace": subspace},
        "compress": compress_table(**flags),
        "output": {"subspace": output},
        **tables.tables(),
    }
    given = {table: given_only(keys) for table, keys in found.items()}
    return {table: keys for table, keys in given.items() if keys}


def _recipe_of(places: list[str], given: dict[str, dict[str, Any]]) -> Recipe:
    """The recipe of a command line without a file.

    Raises:
        ParameterError: It names no input, or two.
    """
    from vlora_engine.convert.convert import is_whole_subspace
    from vlora_tui.cli.flags import input_table

    source = given.pop("input", {})
    subspace = source.pop("subspace", None)
    if subspace is not None and places:
        raise ParameterError(
            "The input is adapters or a subspace, not both.", found=f"--subspace and {places[0]}"
        )
    if subspace is None and is_whole_subspace(places):
        subspace = places[0]
    if subspace is not None:
        return recipe_of_flags({"input": {"subspace": subspace, **source}}, given)
    if not places:
        raise ParameterError(
            "There is nothing to work on.", expected="a recipe file, adapters, or --subspace DIR"
        )
    table = input_table(places, source.get("names"), skip_bad=source.get("skip_bad", False))
    return recipe_of_flags({"input": table}, given)


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


def _is_from_command_line(ctx: typer.Context, parameter: str) -> bool:
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
