"""Locks on files (flock): held by a process, and let go by its end however it ends."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.2


def open_lock(path: Path) -> int:
    """A descriptor of the lock file at ``path``, made if it is not there; not inherited."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock if nobody holds it; ``shared`` only looks, as several may at once.

    Raises:
        OSError: The file system has no locks.
    """
    import fcntl  # not on Windows, where the program says so before it comes here

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


@contextmanager
def waiting_lock(
    path: Path, *, cancelled: Callable[[], bool], waiting: Callable[[], None]
) -> Iterator[bool]:
    """Hold the lock at ``path``, waiting for whoever has it; yields whether it is held.

    ``waiting`` is called once if there is somebody to wait for. False where ``cancelled()`` ended
    the wait, or where files cannot be locked: a lock that is only thrift must not stop the work.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(path)
    except OSError:
        yield False
        return
    held = reported = False
    try:
        with suppress(OSError):
            while not (held := try_lock(descriptor)) and not cancelled():
                if not reported:
                    reported = True
                    waiting()
                time.sleep(POLL_SECONDS)
        yield held
    finally:
        os.close(descriptor)
