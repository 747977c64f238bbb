"""The tasks of our own subspaces as adapters: ``DIR:TASK``."""

from __future__ import annotations

from pathlib import Path

from vlora_engine.adapters import AdapterSource, MemorySource
from vlora_engine.errors import NotFoundError, ParameterError
from vlora_engine.formats.base import Inspection, Probe, json_says

SUBSPACE_INDEX = "subspace.json"


class SubspaceFormat:
    """A directory with subspace.json; its tasks, not itself, are adapters."""

    name = "vlora-subspace"

    def detect(self, probe: Probe) -> bool:
        """See `Format`."""
        return SUBSPACE_INDEX in probe.names and is_subspace(probe.directory)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Always refuses: a subspace is not one adapter."""
        raise whole_subspace_error(probe.path)

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Always refuses: a subspace is not one adapter."""
        raise whole_subspace_error(probe.path)


def is_subspace(directory: Path) -> bool:
    """Whether ``directory`` is one of our own subspaces."""
    return json_says(directory / SUBSPACE_INDEX, "format", SubspaceFormat.name)


def open_task(directory: Path, task: str) -> AdapterSource:
    """The adapter that ``task`` of the subspace in ``directory`` stands for.

    Raises:
        NotFoundError: There is no such task.
    """
    from vlora_engine.subspace import SharedSubspace

    subspace = SharedSubspace.load(directory)
    if task not in subspace.tasks:
        known = sorted(subspace.tasks)
        raise NotFoundError(
            f"The subspace has no task {task!r}.",
            where=directory,
            expected="one of " + ", ".join(known[:8]) + (" ..." if len(known) > 8 else ""),
            found=task,
        )
    return MemorySource(subspace.reconstruct(task))


def whole_subspace_error(where: Path) -> ParameterError:
    """The error for a subspace that is named where one adapter is meant."""
    return ParameterError(
        "This is a subspace, not one adapter.",
        where=where,
        expected="an adapter, or a task as DIR:TASK",
        found="a directory with subspace.json",
        remedy=f"name one of its tasks: {where}:TASK",
    )
