"""Adds tasks to a subspace in its place, and removes them: what commands and jobs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.adapters.model import AdapterSource, to_memory
from vlora_engine.errors import CollectionError, ParameterError
from vlora_engine.utils.locks import changing
from vlora_engine.utils.outputs import sweep
from vlora_tui.pipeline.task_patterns import match_tasks

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.utils.progress import ProgressCallback

ABSORB, INCREMENTAL, PROJECT = "absorb", "incremental", "project"
WAYS = (ABSORB, INCREMENTAL, PROJECT)


@contextmanager
def in_place(
    subspace: str | Path,
    *,
    wait: bool = True,
    tell: Callable[[str], None],
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Keep other programs from a subspace while it is changed; what killed ones left is swept.

    Raises:
        ConflictError: Another one has it, and not ``wait``.
        Cancelled: ``cancelled()`` became true while waiting.
    """
    with changing(subspace, wait=wait, tell=tell, cancelled=cancelled):
        sweep(Path(subspace).expanduser().resolve())
        yield


def new_name(manifest: Manifest, adapter: str, task_id: str | None) -> str:
    """The name of a task to be added: what is given, else that of the adapter's folder.

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


def way_of(manifest: Manifest, how: str) -> tuple[str, str]:
    """The way an adapter is added, and why it is not the one asked for (empty if it is)."""
    if how != ABSORB and manifest.coding is not None and manifest.shared_basis is None:
        why = f"method {manifest.method} codes every task by itself, and no basis is beside them"
        return ABSORB, why
    return how, ""


def add_task(
    subspace: Path,
    source: AdapterSource,
    name: str,
    how: str,
    *,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> list[str]:
    """Add an adapter to a subspace; the tasks that were taken from their reconstructions.

    The caller holds the subspace (`in_place`).

    Raises:
        VLoRAError: The adapter cannot be used, or does not fit.
    """
    from vlora_engine.adapters.check import check_adapters
    from vlora_engine.shared_subspace import SharedSubspace

    check_adapters({name: source}, progress=progress).require()
    opened = SharedSubspace.load(subspace, lazy=True)
    weights = to_memory(source)
    if how == PROJECT:
        # Beside coded tasks the basis is asked for: by itself an adapter would be coded.
        opened.add_task(opened.in_basis().project(weights, name, None))
    elif how == INCREMENTAL:
        opened.absorb_incremental(weights, name)
    try:
        inexact = (
            opened.absorb(weights, name, device=device, progress=progress) if how == ABSORB else []
        )
    except CollectionError as error:
        raise (error.errors[0] if len(error.errors) == 1 else error) from None
    opened.save(subspace, force=True)
    return inexact


def removable(manifest: Manifest, patterns: Sequence[str]) -> list[str]:
    """The tasks that patterns mean, of a subspace that keeps at least one other.

    Raises:
        NotFoundError: There is no such task. ParameterError: No task would be left.
    """
    names = match_tasks(patterns, list(manifest.tasks))
    if len(names) == len(manifest.tasks):
        raise ParameterError(
            "That would leave no task.",
            where=manifest.path,
            remedy="delete the directory instead",
        )
    return names


def remove_tasks(subspace: Path, names: Sequence[str]) -> None:
    """Take tasks out of a subspace; the basis and the others stay as they are.

    The caller holds the subspace (`in_place`).
    """
    from vlora_engine.shared_subspace import SharedSubspace

    opened = SharedSubspace.load(subspace, lazy=True)
    for name in names:
        opened.remove_task(name)
    opened.save(subspace, force=True)


def error_grown_most(before: Manifest, after: Manifest) -> tuple[str, float, float] | None:
    """The task whose error grew most, with its error before and now; None if none did."""
    grown = [
        (task.error - before.tasks[name].error, name)
        for name, task in after.tasks.items()
        if name in before.tasks
    ]
    most, name = max(grown, default=(0.0, ""))
    return (name, before.tasks[name].error, after.tasks[name].error) if most > 1e-4 else None
