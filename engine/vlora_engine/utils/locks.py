"""One writer of a directory at a time: a lock beside it, held from reading it to writing it.

The lock is flock's on a hidden file ``.NAME.lock`` next to the directory. It ends with its process,
however that ends, and says nothing by merely lying there. The standard library's lock is used as it
is: whoever waits here can be asked to stop, a thread that holds it may save, and the file stays,
which no library of locks offers together.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlora_engine.errors import Cancelled, ConflictError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_UNLOCKED = -1  # in the place of a descriptor: nothing could be locked
_held: set[tuple[Path, int]] = set()  # by this process: the lock's path, and the thread
_told: set[Path] = set()


@contextmanager
def changing(
    path: str | Path,
    *,
    wait: bool = True,
    tell: Callable[[str], None] = logger.warning,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Keep every other writer from a directory, from before it is read until it is written.

    The same thread may change and save it in the block. Where files cannot be locked, that is said
    once and the work goes on.

    Args:
        wait: For whoever is at it; else that is an error.
        tell: Told, once, that there is somebody to wait for, or that nothing can be locked.
        cancelled: Asked while waiting.

    Raises:
        ConflictError: Another command has it, and not ``wait``.
        Cancelled: ``cancelled()`` became true.
    """
    has_said = not wait
    while True:
        lock_file = lock_path(path)
        holder = (lock_file, threading.get_ident())
        if holder in _held:
            yield
            return
        lock = _take(lock_file)
        if lock is not None and lock_path(path) == lock_file:
            break
        if lock is not None:  # a link was turned meanwhile
            _let_go(lock[0])
            continue
        if not wait:
            raise ConflictError(
                "Another command is changing this directory right now; nothing was changed.",
                where=path,
                remedy="wait until it is done (without --no-wait, a command does)",
            )
        if not has_said:
            has_said = True
            tell(f"waiting for another command on {path}")
        if cancelled is not None and cancelled():
            raise Cancelled("Stopped while waiting for another command; nothing was changed.")
        time.sleep(POLL_SECONDS)
    if lock[0] == _UNLOCKED and lock_file not in _told:
        _told.add(lock_file)
        tell(f"{path} cannot be locked: nothing else may change it meanwhile.")
    with _holding(holder, lock):
        yield


@contextmanager
def writing(final: Path) -> Iterator[None]:
    """Keep every other writer from an output that is not there yet, or is going to be replaced.

    A lock that this made, or one that was left beside nothing by a writer that was killed, goes
    with the block: an output that nobody changes in its place needs none. Whoever comes upon a
    lock that just went takes the next.

    Raises:
        ConflictError: Somebody is writing there right now.
    """
    lock_file = lock_path(final)
    holder = (lock_file, threading.get_ident())
    if holder in _held:
        yield
        return
    lock = _take(lock_file)
    if lock is None:
        raise ConflictError("Another command is writing this output right now.", where=final)
    with _holding(holder, lock, tidy=lock[1] or not os.path.lexists(final)):
        yield


def is_held(path: Path) -> bool:
    """Whether somebody but this thread is writing the directory."""
    lock_file = lock_path(path)
    if fcntl is None or (lock_file, threading.get_ident()) in _held:
        return False
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _is_refusal(error)
    finally:
        os.close(descriptor)
    return False


def lock_path(path: str | Path) -> Path:
    """Where the lock of a directory lies, the same for every way of naming the directory."""
    real = Path(os.path.realpath(path))
    return real.parent / f".{real.name}.lock"


@contextmanager
def _holding(
    holder: tuple[Path, int], lock: tuple[int, bool], *, tidy: bool = False
) -> Iterator[None]:
    """Hold a lock that was taken; a file that this made goes where the work was refused."""
    refused = True
    _held.add(holder)
    try:
        yield
        refused = False
    finally:
        _held.discard(holder)
        if tidy or (refused and lock[1]):  # before it is let go: nobody else can have it yet
            with suppress(OSError):
                holder[0].unlink()
        _let_go(lock[0])


def _take(lock_file: Path) -> tuple[int, bool] | None:
    """A descriptor that holds the lock and whether its file is new; None if somebody has it."""
    if fcntl is None:
        return _UNLOCKED, False
    while True:
        try:
            opened = _open(lock_file)
        except OSError:
            return _UNLOCKED, False
        if opened is None:
            continue
        descriptor, made = opened
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have removed it between the opening and the lock.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock_file)):
                    return descriptor, made
        except OSError as error:
            os.close(descriptor)
            return None if _is_refusal(error) else (_UNLOCKED, False)
        os.close(descriptor)


def _open(lock_file: Path) -> tuple[int, bool] | None:
    """A descriptor of the lock's file and whether it is new; None if it went between two looks.

    Raises:
        OSError: It cannot be made, or not opened: there is no such folder, or it takes no files.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(lock_file, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        pass
    try:
        try:
            return os.open(lock_file, flags), False
        except PermissionError:  # another user's: to lock it, reading is enough
            return os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), False
    except FileNotFoundError:
        return None


def _is_refusal(error: OSError) -> bool:
    return error.errno in (errno.EWOULDBLOCK, errno.EACCES)


def _let_go(descriptor: int) -> None:
    if descriptor != _UNLOCKED:
        os.close(descriptor)
