"""Saving a `SharedSubspace`: a new directory in one step, or only what changed in its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.adapters.address import relative_source
from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import ConflictError, SubspaceError
from vlora_engine.manifest.manifest import Manifest, TaskRecord
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.subspace.store import (
    free_task_file,
    index_digest,
    task_files,
    write_index,
)
from vlora_engine.utils.files import new_directory
from vlora_engine.utils.locks import changing
from vlora_engine.utils.safetensors_file import close_file, write_error

if TYPE_CHECKING:
    from vlora_engine.shared_subspace import SharedSubspace


def save(subspace: SharedSubspace, path: Path, *, force: bool = False) -> None:
    """`SharedSubspace.save`."""
    if not len(subspace.tasks) and not subspace.layers:
        raise SubspaceError("There is nothing to save: no layer and no task.")
    with changing(path) if _is_own(subspace, path) else nullcontext():
        _save(subspace, path, force=force)


def _save(subspace: SharedSubspace, path: Path, *, force: bool) -> None:
    if subspace.opened is not None and _is_own(subspace, path):
        _require_unchanged(subspace.opened, path)
    if subspace.stored is not None and _same_place(subspace.stored.manifest.path, path):
        manifest = _update(subspace, subspace.stored.manifest)
    else:
        own = subspace.home is not None and _same_place(subspace.home, path)
        # Of its own directory that is named by a link, the directory is renewed, not the link.
        place = Path(os.path.realpath(path)) if own else path
        manifest = _write(subspace, place, force=force, own=own)
    if subspace.stored is not None:
        subspace.stored.close()
    manifest = replace(manifest, digest=index_digest(manifest))
    subspace.stored = subspace._open_store(manifest)
    subspace.home, subspace.opened = manifest.path, manifest
    subspace.tasks.rebind(subspace.stored)


def _is_own(subspace: SharedSubspace, path: Path) -> bool:
    """Whether ``path`` is the directory that the subspace was loaded from, or saved to."""
    return subspace.opened is not None and _same_place(subspace.opened.path, path)


def _require_unchanged(opened: Manifest, path: Path) -> None:
    """Refuse to write over what somebody else has saved meanwhile.

    Raises:
        ConflictError: The index on disk is not the one that was loaded.
    """
    disk = read_manifest(path)
    if disk.digest == opened.digest:
        return
    changes = {
        "added": [name for name in disk.tasks if name not in opened.tasks],
        "removed": [name for name in opened.tasks if name not in disk.tasks],
    }
    told = [f"{what} since: {', '.join(names)}" for what, names in changes.items() if names]
    raise ConflictError(
        "The subspace was changed since it was loaded; nothing was saved.",
        where=path,
        expected="the tasks that were loaded",
        found="; ".join(told) or "the same tasks with other content",
        remedy="load it again and repeat the change",
    )


def write_copy(subspace: SharedSubspace, path: Path) -> Manifest:
    """Write all of it to a new directory; the subspace stays bound to where it came from."""
    return _write(subspace, path, force=False, own=False)


def _same_place(one: Path, other: Path) -> bool:
    return other.exists() and os.path.samefile(one, other) if one.exists() else False


def _write(subspace: SharedSubspace, path: Path, *, force: bool, own: bool) -> Manifest:
    files = task_files(list(subspace.tasks))

    def tasks() -> Iterator[tuple[TaskRecord, EncodedTask]]:
        for record in subspace.tasks.records():
            yield _placed(record, files[record.id], path), subspace.tasks.encoded(record.id)

    with new_directory(path, force=force, keep_foreign=own) as directory:
        manifest = subspace._write(directory, tasks())
    return replace(manifest, path=path)


def _update(subspace: SharedSubspace, old: Manifest) -> Manifest:
    """Write the files of new tasks, then the index, then drop the files of tasks that went."""
    path, changed = old.path, subspace.tasks.changed
    records: dict[str, TaskRecord] = {}
    taken = {record.file for record in old.tasks.values()}
    for record in subspace.tasks.records():
        if record.id in changed:
            file = free_task_file(record.id, taken)
            taken.add(file)
            target = path / "tasks" / file
            try:
                target.unlink(missing_ok=True)  # of an earlier update that was cut short
            except OSError as error:
                raise write_error(path, error) from None
            sha256 = subspace._write_task(target, subspace.tasks.encoded(record.id))
            placed = _placed(record, file, path)
            records[record.id] = replace(placed, sha256=sha256, nbytes=target.stat().st_size)
        else:
            records[record.id] = old.tasks[record.id]
    manifest = subspace._index(replace(old, tasks=records))
    write_index(manifest)
    kept = {record.file for record in records.values()}
    for file in sorted(taken - kept):
        close_file(path / "tasks" / file)
        (path / "tasks" / file).unlink(missing_ok=True)
    return manifest


def _placed(record: TaskRecord, file: str, out: Path) -> TaskRecord:
    return replace(record, file=file, source=relative_source(record.source, out))
