"""``compact``: a coded collection planned anew, with all the tasks that it has by now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vlora_engine.errors import ParameterError
from vlora_engine.utils.device import require_device
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import option
from vlora_tui.cli.hub_inputs import fetch_first, require_own
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural, size


def compact(
    out: Output,
    subspace: o.Subspace,
    output: Annotated[
        str | None, option("-o", "--output", "Where to write; by default in place.", metavar="DIR")
    ] = None,
    device: o.Device = "auto",
    force: o.Force = False,
    no_wait: o.NoWait = False,
    dry_run: o.DryRun = False,
) -> None:
    """Plan and code a collection anew, for the target that it was coded for.

    Tasks that were added since are then part of the plan, and what removed ones left is gone.
    Originals that are still in their places are read again; other tasks are taken from what was
    kept of them, and their errors are bounds from then on.
    """
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.cli.execute import in_place

    require_device(device)
    if output is None:
        require_own(subspace)
    (subspace,) = fetch_first(out, subspace)
    read_manifest(subspace)  # beside what is no subspace no lock is made
    with in_place(subspace, out, no_wait=no_wait, dry_run=dry_run or output is not None):
        _compact_at(subspace, output, device, out, force=force, dry_run=dry_run)


def _compact_at(
    subspace: str, output: str | None, device: str, out: Output, *, force: bool, dry_run: bool
) -> None:
    """Plan and code it anew and tell what that came to."""
    from vlora_engine.catalog.read import read_manifest
    from vlora_engine.utils.output_checks import check_output
    from vlora_tui.pipeline.inputs import require_apart_from

    manifest = read_manifest(subspace)
    if manifest.coding is None:
        raise ParameterError(
            "Only what methods own and auto coded is compacted.",
            where=subspace,
            found=f"method {manifest.method}",
            remedy="compress the adapters again, or add them without --project",
        )
    if not manifest.tasks:
        raise ParameterError("The subspace has no task.", where=subspace)
    target = Path(subspace if output is None else output)
    if output is not None:
        require_apart_from([target], [subspace])
        check_output(target, force=force)
    data = {"path": str(target), "tasks": len(manifest.tasks), "bytes_before": manifest.nbytes}
    if dry_run:
        out.json("compact", {**data, "dry_run": True})
        out.text(f"Would plan {plural(len(manifest.tasks), 'task')} anew and write {target}")
        return
    from vlora_engine.shared_subspace import SharedSubspace

    new, rebuilt = SharedSubspace.load(Path(subspace), lazy=True).compact(device=device)
    new.save(target, force=force or output is None)
    after = read_manifest(target)
    worst = after.worst
    lost = {"mean_error": after.mean_error, "max_error": worst.error if worst else 0.0}
    result = {"bytes": after.nbytes, **lost, "from_reconstructions": rebuilt, "dry_run": False}
    out.json("compact", {**data, **result})
    for name in rebuilt:
        out.note(f"{name}: its original was not found; taken from the subspace")
    out.text(
        f"{size(manifest.nbytes)} -> {size(after.nbytes)}; error {percent(after.mean_error)} on "
        f"average, {percent(lost['max_error'])} at worst"
    )
    out.essence(str(target))
