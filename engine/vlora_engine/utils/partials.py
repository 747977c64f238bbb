"""The unfinished and the former form of an output: their names and locks, and putting one back."""

from __future__ import annotations

import glob
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlora_engine.utils.locks import is_held
from vlora_engine.utils.safetensors_file import read_error, write_error

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMER = ".part-old"  # ends the hidden name of an output that is being replaced
UNLOCKED = -1  # in the place of a descriptor: nothing can be locked here


def partial_path(final: Path, job: str = "run") -> Path:
    """Where the unfinished form of ``final`` is built: a hidden sibling on the same file system."""
    return final.parent / f".{final.name}.part-{job}"


def output_of(partial: Path) -> Path:
    """The output that an unfinished form is of."""
    return partial.parent / partial.name.removeprefix(".").rpartition(".part-")[0]


def former_path(final: Path) -> Path:
    """Where the former ``final`` waits while the new one takes its place."""
    return final.with_name(f".{final.name}{FORMER}")


def put_back(final: Path) -> bool:
    """Restore ``final`` if its replacement was killed between the two renames; True if restored.

    Nothing is done while another process writes there: the new output may come at any moment.

    Raises:
        StorageError: The former output cannot be moved back.
    """
    former = former_path(final)
    if os.path.lexists(final) or not _is_content(former) or _is_being_written(final):
        return False
    try:
        os.rename(former, final)
    except OSError as error:
        if os.path.lexists(final):  # the new one came after all
            return False
        raise write_error(final, error) from None
    logger.warning("%s is put back: its replacement was cut short.", final)
    return True


def how_to_put_back(final: Path) -> str | None:
    """The remedy for readers where `put_back` would restore ``final``; None where it would not.

    A reader moves nothing itself; this gives the command that does.
    """
    former = former_path(final)
    if os.path.lexists(final) or not _is_content(former):
        return None
    command = shlex.join(["mv", str(former), str(final)])
    return f"its replacement was cut short and the former one is still there: {command}"


def _is_content(former: Path) -> bool:
    """Whether an output could be this: a pipe or a device of its name is not ours."""
    return os.path.isdir(former) or os.path.isfile(former)  # False of a name too long for any


def is_being_replaced(final: Path) -> bool:
    """Whether ``final`` is missing for this moment only, as a new one is taking its place."""
    return os.path.lexists(former_path(final)) and not os.path.lexists(final) and is_held(final)


def _is_being_written(final: Path) -> bool:
    if is_held(final):
        return True
    for partial in final.parent.glob(f"{glob.escape(partial_path(final, '').name)}*"):
        if partial == former_path(final) or not partial.is_dir():
            continue
        try:
            lock = lock_unfinished(partial)
        except BlockingIOError:
            return True
        except OSError:
            continue  # not ours to open
        unlock(lock)
    return False


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Keep an unfinished directory from being swept while the block reads from it.

    Raises:
        StorageError: Another process is at it, or it cannot be opened.
    """
    try:
        held = lock_unfinished(directory)
    except OSError as error:
        raise read_error(directory, error) from None
    try:
        yield
    finally:
        unlock(held)


def lock_unfinished(directory: Path) -> int | None:
    """A descriptor that locks ``directory``, None if it was just replaced."""
    if fcntl is None:
        return UNLOCKED
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            os.close(descriptor)
            return UNLOCKED
        # The former holder may have renamed or removed it between the opening and the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def unlock(lock: int | None) -> None:
    """Let go of an unfinished directory that `lock_unfinished` locked."""
    if lock is not None and lock != UNLOCKED:
        os.close(lock)
