"""Save a subspace: to a new directory in one step, or only what changed in its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from vlora_engine.adapters.address import relative_source
from vlora_engine.errors import ConflictError, InputError, StorageError, SubspaceError
from vlora_engine.manifest.manifest import Manifest, TaskRecord, read_index
from vlora_engine.manifest.parse import parse_manifest
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.subspace.space import SpaceState
from vlora_engine.subspace.store import unlisted_task_files
from vlora_engine.subspace.write import (
    free_task_file,
    index_digest,
    require_readable,
    task_files,
    write_index,
)
from vlora_engine.utils.locks import changing
from vlora_engine.utils.outputs import MadeCheck, new_directory, sweep
from vlora_engine.utils.safetensors_file import close_file, write_error

logger = logging.getLogger(__name__)


def save(
    space: SpaceState, path: Path, *, force: bool = False, check: MadeCheck | None = None
) -> None:
    """Save a space to a directory (`SharedSubspace.save`).

    ``check`` is shown a directory that is written anew before it takes its place.

    Raises:
        SubspaceError: It is empty. ConflictError: The directory was changed since it was loaded.
        OutputExistsError: Something else is there, and not ``force``. StorageError: The disk.
    """
    if not len(space.tasks) and not space.layers:
        raise SubspaceError("There is nothing to save: no module and no task.")
    is_own = _is_own(space, path)
    with changing(path) if is_own else nullcontext():
        if is_own:
            sweep(Path(os.path.realpath(path)))
        _save(space, path, force=force, check=check)


def _save(space: SpaceState, path: Path, *, force: bool, check: MadeCheck | None) -> None:
    if space.opened is not None and _is_own(space, path):
        _require_unchanged(space.opened, path)
    home = space.stored.manifest.path if space.stored is not None and space.is_update else None
    if space.stored is not None and home is not None and _same_directory(home, path):
        try:
            manifest = _update(space, space.stored.manifest)
        except StorageError as error:
            if error.found is None and Path(str(error.where)).is_relative_to(path):
                error.found = "the subspace as it was; nothing was saved"
            raise
    else:
        replaces_own = space.home is not None and _same_directory(space.home, path)
        # Of its own directory that is named by a link, the directory is renewed, not the link.
        target = Path(os.path.realpath(path)) if replaces_own else path
        manifest = _write(space, target, force=force, replaces_own=replaces_own, check=check)
    if space.stored is not None:
        space.stored.close()
    manifest = replace(manifest, digest=index_digest(manifest))
    stored = space.open_store(manifest)
    space.bind(stored)
    space.tasks.rebind(stored)


def _is_own(space: SpaceState, path: Path) -> bool:
    """Whether ``path`` is the directory that the subspace was loaded from, or saved to."""
    return space.opened is not None and _same_directory(space.opened.path, path)


def _require_unchanged(opened: Manifest, path: Path) -> None:
    """Refuse to overwrite a subspace that was saved again since it was loaded.

    Raises:
        ConflictError: The index on disk is not the one that was loaded.
    """
    disk = parse_manifest(path, read_index(path))
    if disk.digest == opened.digest:
        return
    changes = {
        "added": [name for name in disk.tasks if name not in opened.tasks],
        "removed": [name for name in opened.tasks if name not in disk.tasks],
    }
    listed = [f"{what} since: {', '.join(names)}" for what, names in changes.items() if names]
    raise ConflictError(
        "The subspace was changed since it was loaded; nothing was saved.",
        where=path,
        expected="the tasks that were loaded",
        found="; ".join(listed) or "the same tasks with other content",
        remedy="load it again and repeat the change",
    )


def write_copy(space: SpaceState, path: Path) -> Manifest:
    """Write all of it to a new directory; the subspace stays bound to where it came from."""
    return _write(space, path, force=False, replaces_own=False)


def _same_directory(path: Path, other_path: Path) -> bool:
    return other_path.exists() and os.path.samefile(path, other_path) if path.exists() else False


def _write(
    space: SpaceState,
    path: Path,
    *,
    force: bool,
    replaces_own: bool,
    check: MadeCheck | None = None,
) -> Manifest:
    files = task_files(list(space.tasks))

    def tasks() -> Iterator[tuple[TaskRecord, EncodedTask]]:
        for record in space.tasks.records():
            yield _placed(record, files[record.id], path), space.tasks.encoded(record.id)

    with new_directory(path, force=force, keep_foreign=replaces_own, check=check) as directory:
        manifest = space.write(directory, tasks())
    return replace(manifest, path=path)


def _update(space: SpaceState, old: Manifest) -> Manifest:
    """Write the files of new tasks, then the index, then drop the files of tasks that went."""
    path, changed = old.path, space.tasks.changed
    records: dict[str, TaskRecord] = {}
    used_files = {record.file for record in old.tasks.values()}
    for record in space.tasks.records():
        if record.id in changed:
            file = free_task_file(record.id, used_files)
            used_files.add(file)
            placed = _placed(record, file, path)
            target = path / "tasks" / file
            try:
                target.unlink(missing_ok=True)  # of an earlier update that was cut short
            except OSError as error:
                raise write_error(path, error) from None
            sha256 = space.write_task(target, space.tasks.encoded(record.id))
            records[record.id] = replace(placed, sha256=sha256, nbytes=target.stat().st_size)
        else:
            records[record.id] = old.tasks[record.id]
    manifest = space.index(replace(old, tasks=records))
    try:
        require_readable(space.store_of(manifest), changed)
    except InputError:
        for name in changed:
            (path / "tasks" / records[name].file).unlink(missing_ok=True)
        raise
    write_index(manifest)
    for gone in unlisted_task_files(manifest):
        close_file(gone)
        try:
            gone.unlink(missing_ok=True)
        except OSError as error:
            logger.warning(
                "%s is saved, but a file of a former task could not be deleted (%s): %s",
                path,
                error.strerror or error,
                gone,
            )
    return manifest


def _placed(record: TaskRecord, file: str, out: Path) -> TaskRecord:
    return replace(record, file=file, source=relative_source(record.source, out))
