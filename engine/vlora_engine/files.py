"""Writing so that nothing is ever half there: a temporary sibling, flushed, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlora_engine.errors import OutputExistsError, VLoRAError
from vlora_engine.tensorfile import read_error, write_error


def check_output(path: Path, *, force: bool = False) -> None:
    """Raise ``OutputExistsError`` if ``path`` is there (an empty directory does not count)."""
    if not force and os.path.lexists(path) and not is_empty_directory(path):
        raise OutputExistsError(
            "The output already exists; nothing was written.",
            where=path,
            remedy="choose another output, or pass --force to replace it",
        )


def is_empty_directory(path: Path) -> bool:
    """Whether ``path`` is a directory with nothing in it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def partial_path(final: Path, job: str = "run") -> Path:
    """Where the unfinished form of ``final`` is built: a hidden sibling on the same file system."""
    return final.parent / f".{final.name}.part-{job}"


@contextmanager
def new_directory(final: Path, *, job: str = "run", force: bool = False) -> Iterator[Path]:
    """Give an empty directory to fill; rename it to ``final`` when the block ends well.

    On an exception the partial directory is removed and ``final`` is as it was.
    """
    check_output(final, force=force)
    partial = partial_path(final, job)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise write_error(final, error) from None
    try:
        yield partial
        publish(partial, final, force=force)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, VLoRAError):
            raise
        raise write_error(final, error) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(partial: Path, final: Path, *, force: bool = False) -> None:
    """Flush ``partial`` and rename it to ``final``; with ``force`` what is there makes way last."""
    try:
        for file in partial.rglob("*"):
            if file.is_file():
                fsync(file)
        fsync(partial)
        old = None
        check_output(final, force=force)
        if os.path.lexists(final):
            old = partial_path(final, "old")
            _remove(old)
            os.rename(final, old)
        try:
            os.rename(partial, final)
        except OSError:
            if old is not None:
                os.rename(old, final)
            raise
        fsync(final.parent)
        if old is not None:
            _remove(old)
    except OSError as error:
        if isinstance(error, VLoRAError):
            raise
        raise write_error(final, error) from None


def write_file(path: Path, data: bytes | str) -> None:
    """Replace the file at ``path`` in one step."""
    raw = data.encode() if isinstance(data, str) else data
    partial = path.parent / f".{path.name}.part-{os.getpid()}"
    try:
        with partial.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise write_error(path, error) from None


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Replace ``path`` by ``value`` as JSON: sorted by the caller, no NaN, one trailing newline."""
    write_file(path, dump_json(value, indent=indent))


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON text that is the same everywhere; NaN is an error."""
    separators = (",", ":") if indent is None else None
    return (
        json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
        + "\n"
    )


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise read_error(path, error) from None


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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
