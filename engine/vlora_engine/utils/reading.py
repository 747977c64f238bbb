"""Open files for reading: regular files only, never what somebody put in their place.

A named pipe waits for a writer that never comes, a device may never end or do something when it is
opened. Every file that this project reads is opened here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vlora_engine.errors import FileKindError

MOST_TEXT = 1 << 28  # bytes of a JSON, TOML or YAML file that is read as a whole
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_descriptor(path: str | Path) -> int:
    """Open a regular file for reading; the caller closes the descriptor.

    Raises:
        OSError: There is no such file, or it cannot be opened.
        FileKindError: It is no regular file; it was not opened.
    """
    try:
        status = os.stat(path)
    except ValueError:  # a NUL, or half a surrogate pair
        raise OSError(errno.EILSEQ, "no file can have such a name", ascii(str(path))) from None
    except OSError as error:
        raise _link_error(path, error) or error from None
    _check_kind(path, status)
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        _check_kind(path, os.fstat(descriptor))  # it may have been replaced in between
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_file(path: str | Path) -> BinaryIO:
    """`open_descriptor` as a file of bytes."""
    return open(open_descriptor(path), "rb")


def read_file(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: There is no such file, or it cannot be read.
        FileKindError: It is no regular file, or larger than ``most``.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(most + 1) if size <= most else b""
    if size > most or len(raw) > most:
        raise FileKindError(
            "The file is too large.",
            where=path,
            expected=f"at most {most} bytes",
            found=f"{max(size, len(raw))} bytes",
            remedy="check the path",
            code="corrupt-file",
        )
    return raw


def read_text(path: str | Path, most: int = MOST_TEXT) -> str:
    r"""All of a regular file as text; line ends become ``\\n``.

    Raises:
        As `read_file`; UnicodeDecodeError: It is not UTF-8.
    """
    return read_file(path, most).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def kind_error(path: str | Path) -> FileKindError | None:
    """The error for what stands in a file's place and is none; None for a file, or nothing.

    Whoever looks for a file by name and does not find one asks this before it says "missing".
    """
    try:
        _check_kind(path, os.stat(path))
    except FileKindError as error:
        return error
    except OSError as error:
        return _link_error(path, error)
    except ValueError:  # no file can have such a name
        pass
    return None


def folder_error(path: str | Path) -> FileKindError | None:
    """The error for what stands in a folder's place and is none; None for a folder, or nothing."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        return _link_error(path, error)
    if kind == stat.S_IFDIR:
        return None
    return FileKindError(
        "This is no directory.",
        where=path,
        expected="a directory",
        found=_KINDS.get(kind, "a file" if kind == stat.S_IFREG else "something else"),
        remedy="remove it, or put the directory there",
        code="corrupt-file",
    )


def _check_kind(path: str | Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise FileKindError(
            "This is no regular file.",
            where=path,
            expected="a file",
            found=_KINDS.get(kind, "something else"),
            remedy="remove it, or put the file there",
            code="corrupt-file",
        )


def _link_error(path: str | Path, error: OSError) -> FileKindError | None:
    """The error for a symbolic link without a file at its end; None for anything else."""
    if error.errno not in (errno.ENOENT, errno.ELOOP) or not os.path.islink(path):
        return None
    return FileKindError(
        "The symbolic link leads nowhere."
        if error.errno == errno.ENOENT
        else "The symbolic link leads in a circle.",
        where=path,
        found=f"a link to {os.readlink(path)}",
        remedy="download it again, or mount what the link leads to",
        code="missing-file",
    )
