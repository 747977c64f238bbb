"""``add`` and ``remove``: tasks of a subspace that is there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlora_engine.errors import ParameterError, SubspaceError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.hub_inputs import fetch_first, require_own
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural, size

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest

PROGRAM = "vlora-tui"
LOST = 0.5  # an error of dW above which adding a task is remarked on


def add(
    out: Output,
    subspace: o.Subspace,
    adapter: Annotated[str, argument("The adapter to add.", metavar="ADAPTER")],
    task_id: Annotated[
        str | None, option("--task-id", "--name", "Task name; by default the folder's.")
    ] = None,
    incremental: Annotated[
        bool, option("--incremental", "Extend the basis instead of recomputing it.")
    ] = False,
    project: Annotated[bool, option("--project", "Keep the basis: writes one small file.")] = False,
    no_wait: o.NoWait = False,
    dry_run: o.DryRun = False,
) -> None:
    """Add an adapter to a subspace, and say what its task lost."""
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.cli.execute import in_place
    from vlora_tui.cli.flags import require_there
    from vlora_tui.pipeline.tasks import ABSORB, INCREMENTAL, PROJECT, way_of

    if incremental and project:
        raise ParameterError("--incremental and --project are two ways of adding.")
    require_own(subspace)
    require_there([adapter])
    manifest = read_manifest(subspace)
    _require_ours(manifest, "add", adapter)
    (adapter,) = fetch_first(out, adapter)
    asked = PROJECT if project else INCREMENTAL if incremental else ABSORB
    how, why = way_of(manifest, asked)
    notes = [f"--{asked}: no effect; {why}"] if why else []
    for note in notes:
        out.once(note)
    with in_place(subspace, out, no_wait=no_wait, dry_run=dry_run):
        _add_to(subspace, adapter, task_id, how, notes, out, dry_run=dry_run)


def _add_to(
    subspace: str,
    adapter: str,
    task_id: str | None,
    how: str,
    notes: list[str],
    out: Output,
    *,
    dry_run: bool,
) -> None:
    """Add it and tell what it came to; the index is as it was when it is read here."""
    from vlora_engine.adapters.base_models import normalise_base_model
    from vlora_engine.catalog.open import open_adapter
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.pipeline.tasks import add_task, error_grown_most, new_name

    manifest = read_manifest(subspace)
    name = new_name(manifest, adapter, task_id)
    source = open_adapter(adapter)
    base_model, own = source.config.get("base_model_name_or_path"), manifest.base_model
    if base_model and own and normalise_base_model(str(base_model)) != normalise_base_model(own):
        out.warn(f"{adapter} names the base model {base_model}, the subspace {manifest.base_model}")
    data = {
        "path": subspace,
        "task": name,
        "how": how,
        "tasks": len(manifest.tasks) + 1,
        "notes": notes,
    }
    if dry_run:
        out.json("add", {**data, "dry_run": True, "adapter_bytes": source.nbytes})
        out.text(f"Would add {adapter} as {name!r} ({size(source.nbytes)}) to {subspace}")
        return
    for other in add_task(Path(subspace), source, name, how):
        out.note(f"{other}: its original was not found; taken from the subspace")
    after = read_manifest(subspace)
    record = after.task(name)
    out.json("add", {**data, "error": record.error, "bytes": after.nbytes, "dry_run": False})
    out.text(
        f"added {name!r}: error {percent(record.error)} of dW; "
        + f"{plural(len(after.tasks), 'task')}, {size(after.nbytes)}"
    )
    grown = error_grown_most(manifest, after)
    if grown is not None:
        other, before, now = grown
        out.text(f"of the others {other!r} lost most: {percent(before)} -> {percent(now)}")
    if record.error > LOST:
        remedy = "leave --project out" if how == "project" else "compress again with a larger k"
        out.warn(f"most of what {name!r} does is not in this basis; fix: {remedy}")
    out.essence(name)


def remove(
    out: Output,
    subspace: o.Subspace,
    tasks: Annotated[list[str], argument("Tasks or patterns.", metavar="TASK...")],
    no_wait: o.NoWait = False,
    dry_run: o.DryRun = False,
) -> None:
    """Take tasks out of a subspace; the basis and the others stay as they are."""
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.cli.execute import in_place

    require_own(subspace)
    _require_ours(read_manifest(subspace), "remove", *tasks)
    with in_place(subspace, out, no_wait=no_wait, dry_run=dry_run):
        _remove_from(subspace, tasks, out, dry_run=dry_run)


def _remove_from(subspace: str, tasks: list[str], out: Output, *, dry_run: bool) -> None:
    """Remove them and tell what is left; the index is as it was when it is read here."""
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.pipeline.tasks import removable, remove_tasks

    manifest = read_manifest(subspace)
    names = removable(manifest, tasks)
    if not dry_run:
        remove_tasks(Path(subspace), names)
    left = len(manifest.tasks) - len(names)
    nbytes = read_manifest(subspace).nbytes
    out.json(
        "remove",
        {"path": subspace, "removed": names, "tasks": left, "bytes": nbytes, "dry_run": dry_run},
    )
    action = "Would remove" if dry_run else "removed"
    out.text(f"{action} {', '.join(names)}; {plural(left, 'task')} left")
    for name in names:
        out.essence(name)


def _require_ours(manifest: Manifest, command: str, *words: str) -> None:
    """Refuse a subspace that is not ours: it is not changed under another program's hands.

    Raises:
        SubspaceError: It is a peer's; the remedy is the two commands that lead on.
    """
    if not manifest.peer:
        return
    path = manifest.path
    ours = f"{path}-{PROGRAM}"
    convert = shlex.join([PROGRAM, "convert", str(path), "--to", "subspace", "-o", ours])
    again = shlex.join([PROGRAM, command, ours, *words])
    raise SubspaceError(
        f"This is a subspace of {manifest.peer}, which is not changed in place.",
        where=path,
        expected="a subspace of vlora-tui",
        found=f"one that {manifest.peer} owns",
        remedy=f"{convert} && {again}",
    )
