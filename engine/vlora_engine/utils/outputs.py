"""Write a directory in one step, so that no output is ever left half written.

It is written to a hidden sibling, flushed to the disk and then takes the place of the former one; a
lock keeps a second writer out. What killed writers left is swept by the next one.
"""

from __future__ import annotations

import errno
import glob
import itertools
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vlora_engine.errors import (
    ConflictError,
    StorageError,
    VLoRAError,
)
from vlora_engine.utils.exchange import exchange
from vlora_engine.utils.files import discard, fsync, remove, unwritten
from vlora_engine.utils.locks import writing
from vlora_engine.utils.output_checks import (
    MARKERS,
    PEERS_MARKERS,
    check_output,
    foreign_entries,
    is_output,
)
from vlora_engine.utils.partials import (
    UNLOCKED,
    former_path,
    lock_unfinished,
    partial_path,
    put_back,
    unlock,
)
from vlora_engine.utils.safetensors_file import close_below, write_error

logger = logging.getLogger(__name__)

MadeCheck = Callable[[Path], object]


@contextmanager
def new_directory(
    final: Path,
    *,
    job: str = "run",
    force: bool = False,
    keep_foreign: bool = False,
    check: MadeCheck | None = None,
) -> Iterator[Path]:
    """Write a directory in one step: yields an empty one and renames it to ``final`` at the end.

    On an exception the partial directory is removed and ``final`` is as it was.

    Args:
        final: Where the directory goes.
        job: Tells the partial directories of different jobs apart.
        force: Replace an earlier output.
        keep_foreign: ``final`` exists and is renewed; files that others put into it stay.
        check: Is shown the finished directory before it is renamed; if it raises, nothing is.

    Raises:
        OutputExistsError: See `check_output`.
        StorageError: Another process writes ``final``, or the disk does not take it.
    """
    if keep_foreign:
        put_back(final)
    else:
        check_output(final, force=force)
    partial = partial_path(final, job)
    with sole_writer(partial, final):
        try:
            for entry in list(partial.iterdir()):  # left by a run that was killed
                remove(entry)
            yield partial
            if check is not None:
                check(partial)
            publish(partial, final, force=force, keep_foreign=keep_foreign)
        except OSError as error:
            discard(partial)
            if not isinstance(error, VLoRAError):
                raise unwritten(write_error(final, error), final) from None
            if isinstance(error, StorageError):
                unwritten(error, final)
            raise
        except BaseException:
            discard(partial)
            raise


def being_written(final: Path) -> StorageError:
    """The error for an output that another process has."""
    return StorageError(
        "Another process is writing this output right now.",
        where=final,
        remedy="wait until it is done, or choose another output",
    )


@contextmanager
def sole_writer(partial: Path, final: Path) -> Iterator[None]:
    """Make ``partial`` where it is missing, and hold it and ``final`` against every other writer.

    What killed writers left of ``final`` is deleted (`sweep`).
    The lock ends with the process, however that ends. Systems and disks without such locks are not
    protected.

    Raises:
        StorageError: Another process, or thread, is writing ``final`` right now.
    """
    with ExitStack() as locks:
        held = None
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(writing(final))
            if os.path.lexists(partial) and not partial.is_dir():
                raise StorageError(
                    "Something is in the place where the output would be prepared.",
                    where=partial,
                    expected="a directory, or nothing",
                    remedy=f"remove it: {shlex.join(['rm', str(partial)])}",
                )
            while held is None:
                partial.mkdir(parents=True, exist_ok=True)
                held = lock_unfinished(partial)
        except (ConflictError, BlockingIOError):
            raise being_written(final) from None
        except OSError as error:
            if isinstance(error, VLoRAError):
                raise
            raise write_error(final, error) from None
        locks.callback(unlock, held)
        sweep(final)
        yield


def publish(
    made: Path,
    final: Path,
    *,
    within: Path | None = None,
    force: bool = False,
    keep_foreign: bool = False,
) -> None:
    """Flush ``made`` and let it take the place of ``final`` in one step.

    First it gets a name that nothing resumes or puts back, together with what lies around it in
    ``within``; then it and the former ``final`` exchange their names. So a kill at any point leaves
    ``final`` old or new, and nothing else that could be taken for it. Where names cannot be
    exchanged, two renames stand in, and `put_back` heals what a kill leaves between them. The
    former ``final`` is deleted last: if that fails, it is a warning.

    Args:
        within: The unfinished directory that holds ``made``; it goes as a whole.

    Raises:
        OutputExistsError: See `check_output`.
        StorageError: The disk does not take it; ``final`` is then as it was.
    """
    whole = within or made
    try:
        for path in (*made.rglob("*"), made):
            if not path.is_symlink():
                fsync(path)
        if not keep_foreign:
            check_output(final, force=force)
        replaces = os.path.lexists(final)
        if replaces and not os.path.islink(final) and not os.access(final, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(final))
        gone = _gone_path(final)
        os.rename(whole, gone)
        moved = gone / made.relative_to(whole)
        try:
            if not replaces:
                os.rename(moved, final)
            elif not exchange(moved, final):
                _rename_twice(moved, final)
        except BaseException:
            with suppress(OSError):
                os.rename(gone, whole)
            raise
        fsync(final.parent)
    except OSError as error:
        if isinstance(error, VLoRAError):
            raise
        raise write_error(final, error) from None
    close_below(whole)
    close_below(final)  # the former files have been open under these names
    for is_last in (False, True):  # what interrupted a call, or was busy, may have passed
        try:
            if replaces:
                _hand_over(moved, final)
                _remove_marked(moved)
            if os.path.lexists(gone):
                remove(gone)
            return
        except OSError as error:
            if is_last:
                logger.warning(
                    "%s is complete and in place, but what was there before could not be deleted "
                    "(%s). To delete it: %s",
                    final,
                    error.strerror or error,
                    shlex.join(["rm", "-r", str(gone)]),
                )


def _rename_twice(moved: Path, final: Path) -> None:
    """What `exchange` does, in two steps: between them ``final`` is not there."""
    former = former_path(final)
    os.rename(final, former)
    try:
        os.rename(moved, final)
    except OSError:
        os.rename(former, final)
        raise
    os.rename(former, moved)


def _gone_path(final: Path) -> Path:
    """A free name for what is to be deleted; if it stays, the next writer there sweeps it."""
    names = (f".{final.name}.gone-{os.getpid()}-{i}" for i in itertools.count(1))
    return next(path for path in map(final.with_name, names) if not os.path.lexists(path))


def _hand_over(old: Path, new: Path) -> None:
    """Move the files of others from ``old`` to ``new``."""
    if old.is_dir() and not old.is_symlink() and new.is_dir():
        for name in foreign_entries(old):
            if not os.path.lexists(new / name):
                (new / name).parent.mkdir(exist_ok=True)
                os.rename(old / name, new / name)


def _remove_marked(path: Path) -> None:
    """Delete an output, its index first: half of it is no output any more."""
    if path.is_dir() and not path.is_symlink():
        for name in MARKERS | PEERS_MARKERS:
            (path / name).unlink(missing_ok=True)
    remove(path)


# ---- what killed writers left


def strays(final: Path) -> list[Path]:
    """What writers of ``final`` that were killed left beside and in it, sorted.

    Finished layers of an interrupted build are none: the same command goes on with them.
    """
    found = [path for path in _hidden(final.parent, final.name) if _is_stray(path, final)]
    if final.is_dir() and not final.is_symlink() and is_output(final):
        for folder in (final, final / "tasks"):
            found += [path for path in _hidden(folder) if not path.is_dir()]
    return sorted(found)


def sweep(final: Path) -> None:
    """Delete the `strays` of ``final``; whoever calls this holds its lock.

    What was to replace ``final`` and holds files of others gives them back first. Where that or
    the deleting fails, it is left to the next one.
    """
    for path in strays(final):
        lock = None
        try:
            lock = lock_unfinished(path) if path.is_dir() else None
            if lock == UNLOCKED:
                continue  # nothing tells whether somebody is at it
            if is_whole := path.is_dir() and is_output(path):
                if not final.is_dir() and foreign_entries(path):
                    continue
                _hand_over(path, final)
            close_below(path)
            (_remove_marked if is_whole else remove)(path)
        except OSError as error:
            logger.debug("%s was not deleted: %s", path, error)
        finally:
            unlock(lock)


def tidy(final: Path) -> None:
    """`sweep` an output that is not written again, unless somebody else is writing it."""
    with suppress(ConflictError, OSError), writing(final):
        sweep(final)


def _hidden(folder: Path, name: str = "*") -> Iterator[Path]:
    """The unfinished and the former forms of an output, or of all, in a folder."""
    exact = "*" if name == "*" else glob.escape(name)
    for pattern in (f".{exact}.part", f".{exact}.part-*", f".{exact}.gone-*"):
        yield from folder.glob(pattern)


def _is_stray(path: Path, final: Path) -> bool:
    if path == former_path(final):
        return os.path.lexists(final)  # else `put_back` is for it
    return not any(path.glob("**/layers/*.safetensors")) or ".gone-" in path.name
