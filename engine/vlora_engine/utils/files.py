"""Write a file in one step, so that none is ever left half written; compare and delete files.

A file is written to a hidden sibling, flushed to the disk and then renamed. Directories are written
by `vlora_engine.utils.outputs`.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlora_engine.errors import (
    StorageError,
)
from vlora_engine.utils.reading import open_descriptor
from vlora_engine.utils.safetensors_file import close_below, read_error, write_error

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file in one step, replacing what is at ``path``.

    Raises:
        StorageError: The disk does not take it; the former file is then unchanged.
    """
    raw = data.encode() if isinstance(data, str) else data
    partial = None
    try:
        descriptor, partial = _open_partial(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()
        raise unwritten(write_error(path, error), path) from None


def _open_partial(path: Path) -> tuple[int, Path]:
    """An empty hidden sibling of a file, open for writing and locked.

    It has one name, so that the next writer uses what a killed one left; only where another is
    writing the same file right now, or nothing tells, it is one of its own.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    partial = path.with_name(f".{path.name}.part")
    if fcntl is not None:
        descriptor = os.open(partial, flags, 0o666)
        if _is_ours(descriptor, partial):
            try:
                os.ftruncate(descriptor, 0)
            except OSError:
                os.close(descriptor)
                partial.unlink(missing_ok=True)
                raise
            return descriptor, partial
        os.close(descriptor)
    own = path.with_name(f".{path.name}.part-{os.getpid()}-{threading.get_ident()}")
    return os.open(own, flags | os.O_TRUNC, 0o666), own


def _is_ours(descriptor: int, path: Path) -> bool:
    """Lock an open file; False where another has it, or renamed it since, or nothing locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def unwritten(error: StorageError, final: Path) -> StorageError:
    """An error of the disk while ``final`` was in the making: it says what is in place now.

    One that names another place, such as an input that cannot be read, stays as it is.
    """
    place, unfinished = str(error.where), f".{final.name}.part"
    if place != str(final) and unfinished not in place:
        return error
    if error.found is None or unfinished in place:
        there = os.path.lexists(final)
        error.found = "the former one, unchanged" if there else "nothing: it was not written"
    error.where = str(final)
    return error


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write ``value`` as JSON in one step: keys in the caller's order, no NaN, a final newline."""
    write_file(path, dump_json(value, indent=indent))


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON text, the same bytes on every machine.

    Raises:
        ValueError: NaN or infinity in it.
    """
    separators = (",", ":") if indent is None else None
    return (
        json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
        + "\n"
    )


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb", opener=lambda name, _: open_descriptor(name)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise read_error(path, error) from None


def same_content(one: Path, other: Path) -> bool:
    """Whether two directories hold the same files, byte for byte."""
    names = [sorted(p.relative_to(d) for p in d.rglob("*") if p.is_file()) for d in (one, other)]
    return names[0] == names[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names[0]
    )


def directory_bytes(path: Path) -> int:
    """The bytes of all files under ``path``."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def fsync(path: Path) -> None:
    """Flush a file or directory to its disk; directories only where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Delete ``path`` if it can be: what is left of it would do no harm."""
    with suppress(OSError):
        remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a directory with all that is in it; nothing where nothing is.

    Files below it that are still open for reading are closed.

    Raises:
        OSError: It cannot be deleted. What is going to be published must be rid of it first.
    """
    close_below(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
