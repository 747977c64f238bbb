"""Exchange two names of one directory in a single step, where the system can.

Linux has ``renameat2`` with ``RENAME_EXCHANGE`` (renameat2(2)), macOS ``renamex_np`` with
``RENAME_SWAP`` (rename(2) there); neither is in Python's library, so that both are called through
ctypes. Not every file system takes part.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_AT_FDCWD = -100  # a path counts from the working directory, as with rename(2)
_RENAME_EXCHANGE = _RENAME_SWAP = 2
# What says that exchanging is not offered here, rather than that this exchange went wrong.
_NOT_OFFERED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def exchange(one: Path, other: Path) -> bool:
    """Give each of two existing paths the other's name, at once; False where that is not offered.

    Raises:
        OSError: It is offered, and failed; both are as they were.
    """
    call = _system_call()
    if call is None:
        return False
    while call(os.fsencode(one), os.fsencode(other)) != 0:
        code = ctypes.get_errno()
        if code in _NOT_OFFERED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), str(one), None, str(other))
    return True


@cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    """The call that exchanges, 0 on success with ``errno`` in ctypes else; None without one."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # no such library (Windows)
        return None
    text, number = ctypes.c_char_p, ctypes.c_uint
    try:
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes, swap.restype = [text, text, number], ctypes.c_int
            return lambda one, other: int(swap(one, other, _RENAME_SWAP))
        rename = library.renameat2
    except AttributeError:
        return None
    rename.argtypes = [ctypes.c_int, text, ctypes.c_int, text, number]
    rename.restype = ctypes.c_int
    return lambda one, other: int(rename(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))
