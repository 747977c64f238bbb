"""``convert``: adapters and subspaces in the formats of other tools, and theirs in ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.hub_inputs import on_disk
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import AdapterInput, named_inputs
from vlora_tui.utils.formatting import plural, printable, size

if TYPE_CHECKING:
    from vlora_engine.convert.convert import Conversion, Converted
    from vlora_tui.pipeline.inputs import Collection


def convert(
    out: Output,
    paths: Annotated[
        list[str], argument("Adapters, folders of them, subspaces, DIR:TASK.", metavar="PATHS")
    ],
    to: Annotated[str, option("--to", "peft, mlx, gguf, subspace (ours), vlora-dev or lorashare.")],
    output: o.OutputDir,
    names: o.Names = None,
    k: Annotated[
        int | None, option("-k", "Directions, where bases are recomputed; by default all (exact).")
    ] = None,
    allow_loss: Annotated[
        bool, option("--allow-loss", "Leave out what the format cannot hold.")
    ] = False,
    base: Annotated[
        str | None,
        option(
            "--base",
            "GGUF, PEFT: the base model's folder or config.json; its names are written.",
            metavar="MODEL",
        ),
    ] = None,
    dtype: Annotated[str | None, option("--dtype", "GGUF: fp32, fp16, bf16 or q8_0.")] = None,
    skip_bad: o.SkipBad = False,
    force: o.Force = False,
    dry_run: o.DryRun = False,
) -> None:
    """Write adapters as PEFT, MLX-LM or GGUF; subspaces as ours, vlora-dev's or lorashare's.

    What the format cannot hold is said, and refused where the adapter would act otherwise. What
    was written is read again, and its dW compared.
    """
    from vlora_engine.convert.convert import convert as convert_planned
    from vlora_engine.convert.convert import is_whole_subspace, plan
    from vlora_engine.convert.formats import format_named
    from vlora_tui.cli.execute import stop_on_signals
    from vlora_tui.cli.flags import require_there
    from vlora_tui.pipeline.inputs import require_apart_from

    format_named(to)
    require_there(paths)
    paths = on_disk(out, *paths)
    planned = partial(plan, to, Path(output), k=k, base=base, dtype=dtype)
    if is_whole_subspace(paths) and not names:
        conversion = planned(whole=Path(paths[0]))
        read = paths
    else:
        found = _collection(paths, names or [], out, skip_bad=skip_bad)
        read = list(found.places.values())
        conversion = planned(adapters=found.adapters)
    require_apart_from(list(conversion.outputs.values()), read)
    _say_losses(out, conversion)
    if dry_run:
        _show_plan(out, conversion, allow_loss=allow_loss, force=force)
        return
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        written = convert_planned(
            conversion,
            allow_loss=allow_loss,
            force=force,
            progress=watcher.on_progress,
            cancelled=stop.is_set,
        )
    _show_written(out, conversion, written)


def _collection(
    paths: Sequence[str], names: Sequence[str], out: Output, *, skip_bad: bool
) -> Collection:
    """The adapters at these paths by name, a subspace among them standing for its tasks."""
    from vlora_tui.pipeline.inputs import gather_adapters
    from vlora_tui.recipe.resolve import expand_input

    entries: list[AdapterInput] = []
    for entry in named_inputs(list(paths), list(names)):
        for found in expand_input(entry):
            entries += _tasks_of(found) or [found]
    collection = gather_adapters(entries, skip_bad=skip_bad)
    for finding in collection.closed:
        out.note(f"note: {finding.where}: {finding.what}")
    for bad in collection.unusable:
        out.warn(f"{bad.name} is left out: {bad.error.what}")
    return collection


def _tasks_of(entry: AdapterInput) -> list[AdapterInput]:
    from vlora_engine.catalog.read import is_subspace, read_manifest

    if not is_subspace(Path(entry.path)):
        return []
    return [AdapterInput(f"{entry.path}:{task}") for task in read_manifest(entry.path).tasks]


def _say_losses(out: Output, conversion: Conversion) -> None:
    for loss in conversion.losses:
        if loss.serious:
            out.warn(loss.what)
        else:
            out.note(f"note: {loss.what}")
    if conversion.how:
        out.note(f"note: {conversion.how}")


def _show_plan(out: Output, conversion: Conversion, *, allow_loss: bool, force: bool) -> None:
    from vlora_engine.convert.convert import refuse_losses
    from vlora_engine.utils.output_checks import check_output

    refuse_losses(conversion, allow_loss)
    for path in conversion.outputs.values():
        check_output(path, force=force)
    out.json("convert", {**conversion.as_dict(), "written": [], "notes": [], "dry_run": True})
    for path in conversion.outputs.values():
        out.text(f"Would write {path} ({conversion.to})")
        out.essence(str(path))
    out.note("dry run: nothing was written")


def _show_written(out: Output, conversion: Conversion, written: Sequence[Converted]) -> None:
    rows = [
        {
            "name": w.name or None,
            "path": str(w.path),
            "bytes": w.nbytes,
            "error": None if w.skipped else w.error,
            "skipped": w.skipped,
        }
        for w in written
    ]
    notes = [note for w in written for note in w.notes]
    for note in notes:
        out.note(f"note: {note}")
    out.json("convert", {**conversion.as_dict(), "written": rows, "notes": notes, "dry_run": False})
    _say_written(out, [{"to": conversion.to, **row} for row in rows])
    for adapter in written:
        out.essence(str(adapter.path))


def show_converted(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Everything that a recipe converted, printed for people and returned for JSON."""
    rows = [
        {
            "name": event.task or None,
            "path": event.path,
            "to": event.to,
            "bytes": event.nbytes,
            "error": None if event.skipped else event.error,
            "skipped": event.skipped,
        }
        for event in watcher.all(events.Converted)
    ]
    _say_written(out, rows)
    return rows


def _say_written(out: Output, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows[:12]:
        what = printable(row["name"]) if row["name"] else "the subspace"
        if row["skipped"]:
            out.text(f"skipped {what}: the same is there already, {row['path']}")
            continue
        out.text(
            f"converted {what} to {row['to']}: {row['path']} ({size(row['bytes'])}); "
            + f"read again, dW differs by {row['error']:.2g}"
        )
    if len(rows) > 12:
        worst = max((row["error"] for row in rows if not row["skipped"]), default=0.0)
        more = plural(len(rows) - 12, "more adapter")
        out.text(f"and {more}; dW differs by at most {worst:.2g}")
