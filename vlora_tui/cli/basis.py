"""``basis``: the shared basis of a coded collection's tasks, written beside them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from vlora_engine.errors import ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import option
from vlora_tui.cli.hub_inputs import require_own
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural, size


def basis(
    out: Output,
    subspace: o.Subspace,
    k: Annotated[
        int | None, option("-k", "--num-components", "Directions per side, in every module.")
    ] = None,
    variance: Annotated[
        float | None,
        option("--variance", "Or the energy to keep; each module gets the smallest k.  [0.99]"),
    ] = None,
    no_wait: o.NoWait = False,
    dry_run: o.DryRun = False,
) -> None:
    """Make a shared basis of a coded collection's tasks and keep it beside them, in place.

    Tasks are trained in it, and stored as their loadings; the others stay coded as they are. The
    whole is format 3. Made again, it takes the place of the one before.
    """
    from vlora_engine.catalog.read import read_manifest
    from vlora_engine.subspace.coded.basis import BasisTarget
    from vlora_tui.cli.execute import in_place

    BasisTarget(k, variance)  # refused before anything is read
    require_own(subspace)
    read_manifest(subspace)  # beside what is no subspace no lock is made
    with in_place(subspace, out, no_wait=no_wait, dry_run=dry_run):
        _basis_at(subspace, k, variance, out, dry_run=dry_run)


def _basis_at(
    subspace: str, k: int | None, variance: float | None, out: Output, *, dry_run: bool
) -> None:
    """Make it and tell what it came to."""
    from vlora_engine.catalog.read import read_manifest

    manifest = read_manifest(subspace)
    if manifest.coding is None:
        raise ParameterError(
            "This subspace has a basis: all its tasks are loadings in it.",
            where=subspace,
            expected="a coded collection (methods auto and own)",
            found=f"method {manifest.method}",
            remedy="for another k compress the adapters again",
        )
    if not manifest.tasks:
        raise ParameterError("The subspace has no task.", where=subspace)
    data = {"path": subspace, "tasks": len(manifest.tasks), "bytes_before": manifest.nbytes}
    if dry_run:
        out.json("basis", {**data, "dry_run": True})
        tasks = plural(len(manifest.tasks), "task")
        out.text(f"Would make a basis of {tasks} and write it beside them in {subspace}")
        return
    from vlora_engine.shared_subspace import SharedSubspace
    from vlora_tui.cli.progress import Watcher

    opened = SharedSubspace.load(Path(subspace), lazy=True)
    with Watcher(out) as watcher:
        made = opened.with_basis(k, variance, progress=watcher.on_progress)
    figures = made.basis_figures
    assert figures is not None  # noqa: S101  (it was made just now)
    made.save(Path(subspace))
    after = read_manifest(subspace)
    result = {
        "k": [figures.least_k, figures.largest_k],
        "basis_bytes": figures.nbytes,
        "bytes": after.nbytes,
        "variance": figures.variance,
        "error": figures.error,
        "clamped_layers": figures.clamped,
        "seconds": figures.seconds,
    }
    out.json("basis", {**data, **result, "dry_run": False})
    out.text(figures.words())
    out.text(
        f"{size(manifest.nbytes)} -> {size(after.nbytes)}; the tasks stay as they were coded, with "
        f"an error of {percent(after.mean_error)} on average"
    )
    out.essence(subspace)
    out.note(f"next: vlora-tui coverage {shlex.quote(subspace)} ADAPTER")
