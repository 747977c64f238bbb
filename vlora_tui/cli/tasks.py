"""``add`` and ``remove``: tasks of a subspace that is there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.errors import CollectionError, ParameterError, SubspaceError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.hub_inputs import fetch_first, require_own
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural, size

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.manifest.manifest import Manifest

PROGRAM = "vlora-tui"
LOST = 0.5  # an error of dW above which adding a task is remarked on


def add(
    out: Output,
    subspace: o.Subspace,
    adapter: Annotated[str, argument("The adapter to add.", metavar="ADAPTER")],
    task_id: Annotated[
        str | None, option("--task-id", "--name", "Its task name; else its folder's.")
    ] = None,
    incremental: Annotated[
        bool, option("--incremental", "Extend the basis instead of computing it anew.")
    ] = False,
    project: Annotated[bool, option("--project", "Keep the basis: writes one small file.")] = False,
    no_wait: o.NoWait = False,
    dry_run: o.DryRun = False,
) -> None:
    """Add an adapter to a subspace, and say what its task lost."""
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.cli.execute import in_place
    from vlora_tui.cli.flags import require_there

    if incremental and project:
        raise ParameterError("--incremental and --project are two ways of adding.")
    require_own(subspace)
    require_there([adapter])
    manifest = read_manifest(subspace)
    _require_ours(manifest, "add", adapter)
    (adapter,) = fetch_first(out, adapter)
    how = "project" if project else "incremental" if incremental else "absorb"
    notes = []
    if how != "absorb" and manifest.coding is not None and manifest.shared_basis is None:
        why = f"method {manifest.method} codes every task by itself, and no basis is beside them"
        notes = [f"--{how}: no effect; {why}"]
        out.once(notes[0])
        how = "absorb"
    with in_place(subspace, out, no_wait=no_wait, dry_run=dry_run):
        _add_to(subspace, adapter, task_id, how, notes, out, dry_run=dry_run)


def _new_name(manifest: Manifest, adapter: str, task_id: str | None) -> str:
    """The name of a task to be added.

    Raises:
        ParameterError: It is empty, or there is a task of that name.
    """
    ref = AdapterRef.parse(adapter)
    default_name = ref.name if ref.is_hub else Path(adapter).resolve().name
    name = task_id if task_id is not None else default_name
    if not name.strip():
        raise ParameterError("A task needs a name.", found=repr(name))
    if name in manifest.tasks:
        raise ParameterError(
            f"The subspace has a task {name!r} already.",
            where=manifest.path,
            remedy="choose another name with --task-id, or remove the old one first",
        )
    return name


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

    manifest = read_manifest(subspace)
    name = _new_name(manifest, adapter, task_id)
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
    from vlora_engine.adapters.check import check_adapters

    check_adapters({name: source}).require()
    for other in _add(Path(subspace), source, name, how):
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
        out.warn(f"most of what {name!r} does is not in this basis; to mend it: {remedy}")
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
    from vlora_tui.pipeline.task_patterns import match_tasks

    manifest = read_manifest(subspace)
    names = match_tasks(tasks, list(manifest.tasks))
    if len(names) == len(manifest.tasks):
        raise ParameterError(
            "That would leave no task.", where=subspace, remedy="delete the directory instead"
        )
    if not dry_run:
        from vlora_engine.shared_subspace import SharedSubspace

        opened = SharedSubspace.load(Path(subspace), lazy=True)
        for name in names:
            opened.remove_task(name)
        opened.save(Path(subspace), force=True)
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


def error_grown_most(before: Manifest, after: Manifest) -> tuple[str, float, float] | None:
    """The task whose error grew most, with its error before and now; None if none did."""
    grown = [
        (task.error - before.tasks[name].error, name)
        for name, task in after.tasks.items()
        if name in before.tasks
    ]
    most, name = max(grown, default=(0.0, ""))
    return (name, before.tasks[name].error, after.tasks[name].error) if most > 1e-4 else None


def _add(subspace: Path, source: AdapterSource, name: str, how: str) -> list[str]:
    """Add what was checked; the tasks that were taken from their reconstructions."""
    from vlora_engine.adapters.model import to_memory
    from vlora_engine.shared_subspace import SharedSubspace

    opened = SharedSubspace.load(subspace, lazy=True)
    weights = to_memory(source)
    if how == "project":
        # Beside coded tasks the basis is asked for: by itself an adapter would be coded.
        opened.add_task(opened.in_basis().project(weights, name, None))
    elif how == "incremental":
        opened.absorb_incremental(weights, name)
    try:
        inexact = opened.absorb(weights, name) if how == "absorb" else []
    except CollectionError as error:
        raise (error.errors[0] if len(error.errors) == 1 else error) from None
    opened.save(subspace, force=True)
    return inexact
