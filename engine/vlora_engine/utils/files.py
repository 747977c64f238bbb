"""Write files and directories in one step, so that no output is ever left half written.

Everything is written to a hidden sibling, flushed to the disk and then renamed; a lock keeps a
second writer out.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vlora_engine.errors import (
    ConflictError,
    OutputExistsError,
    ParameterError,
    StorageError,
    VLoRAError,
)
from vlora_engine.utils.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_GGUF,
    SHARE_INDEX,
    SPECTRA_INDEX,
    SUBSPACE_INDEX,
    VLORA_INDEX,
)
from vlora_engine.utils.locks import is_held, writing
from vlora_engine.utils.safetensors_file import close_below, read_error, write_error

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def check_output(path: Path, *, force: bool = False) -> None:
    """Check that an output may be written at ``path``, before any work is done.

    An empty directory counts as free. With ``force`` an earlier output may be replaced, but nothing
    that this engine did not write. If an earlier replacement was cut short, the former output is
    put back first.

    Raises:
        OutputExistsError: ``path`` exists; with ``force``, it holds files of others.
    """
    put_back(path)
    if not os.path.lexists(path) or is_empty_directory(path):
        return
    foreign = foreign_entries(path)
    if force and foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise OutputExistsError(
            "The output exists and holds what vlora-tui did not write; nothing was changed.",
            where=path,
            expected="an earlier subspace, adapter or spectra, and nothing else",
            found=", ".join(foreign[:3]) + more,
            remedy="choose another output, or move this away yourself",
        )
    if not force:
        raise OutputExistsError(
            "The output already exists; nothing was written.",
            where=path,
            remedy="choose another output, or move this away yourself"
            if foreign
            else "choose another output, or pass --force to replace it",
        )


def check_output_file(path: Path, *, force: bool = False) -> None:
    """Check that a single file may be written at ``path``; ``force`` allows to replace a file.

    Raises:
        OutputExistsError: Something is there; with ``force``, something other than a file.
    """
    if not os.path.lexists(path) or (force and path.is_file()):
        return
    raise OutputExistsError(
        "The output already exists; nothing was written.",
        where=path,
        expected="a file, or nothing",
        found="a file" if path.is_file() else "a directory" if path.is_dir() else "no file",
        remedy="choose another output, or pass --force to replace it"
        if path.is_file()
        else "choose another output",
    )


def require_apart(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that are, contain or lie in an input, or one another, by whatever name.

    Raises:
        ParameterError: It would be written over what is read, ``force`` or not.
    """
    # Through links, and as links: neither may lead an output onto an input.
    read = {form for path in inputs for form in _forms(path)}
    for i, output in enumerate(outputs):
        others = {form for j, path in enumerate(outputs) if j != i for form in _forms(path)}
        for path in _forms(output):
            if path in others:
                raise ParameterError("Two outputs go to one place.", where=output)
            if path in read:
                raise ParameterError(
                    "An output is one of the inputs.",
                    where=output,
                    remedy="choose another output; nothing is changed in place",
                )
            above = set(path.parents)
            for other in sorted({*read, *others}):
                if other in above or path in other.parents:
                    inside = f"it is in {other}" if other in above else f"{other} is in it"
                    raise ParameterError(
                        "An output lies inside another path of this work, or that in it.",
                        where=output,
                        found=inside,
                        remedy="choose an output beside it",
                    )


def _forms(path: Path) -> set[Path]:
    """``path`` with all links resolved, and with those on the way to its last part."""
    real, absolute = Path(os.path.realpath(path)), Path(os.path.abspath(path))
    return {real, Path(os.path.realpath(absolute.parent)) / absolute.name}


# In the index of a peer's format that this engine wrote: what a peer wrote is not ours to replace.
WRITTEN_BY = {"written_by": "vlora-tui"}
_PEERS_MARKERS = frozenset({VLORA_INDEX, SHARE_INDEX})
_MARKERS = frozenset({SUBSPACE_INDEX, ADAPTER_CONFIG, SPECTRA_INDEX, ADAPTER_GGUF})
_WRITTEN = re.compile(
    r"README\.md|subspace\.json|tasks|basis(-\d+-of-\d+)?\.safetensors"
    r"|adapter_config\.json|adapter_model\.(safetensors|bin)|adapters\.safetensors"
    r"|adapter\.gguf|Modelfile"
    r"|spectra\.json|layers|vectors|similarity\.safetensors"
)


def foreign_entries(path: Path) -> list[str]:
    """The names at ``path`` that no output of this engine has, sorted; none for a symbolic link."""
    if path.is_symlink():
        return []
    if not path.is_dir():
        return [path.name]
    names = sorted(entry.name for entry in path.iterdir())
    if not _MARKERS.intersection(names):
        return [] if _is_peers_form_of_ours(path, names) else names
    return [name for name in names if not _WRITTEN.fullmatch(name)]


_PEERS_FILES = re.compile(
    r"subspace_meta\.json|subspace\.safetensors|task_[A-Za-z0-9._-]+\.safetensors"
    r"|share_config\.json|shared_components\.safetensors|adapters"
)


def _is_peers_form_of_ours(path: Path, names: list[str]) -> bool:
    """Whether this engine wrote the directory in another library's format, with nothing added."""
    markers = _PEERS_MARKERS.intersection(names)
    if not markers or not all(_PEERS_FILES.fullmatch(name) for name in names):
        return False
    try:
        return all(b'"written_by": "vlora-tui"' in (path / name).read_bytes() for name in markers)
    except OSError:
        return False


def is_empty_directory(path: Path) -> bool:
    """Whether ``path`` is a directory with nothing in it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def partial_path(final: Path, job: str = "run") -> Path:
    """Where the unfinished form of ``final`` is built: a hidden sibling on the same file system."""
    return final.parent / f".{final.name}.part-{job}"


def output_of(partial: Path) -> Path:
    """The output that an unfinished form is of."""
    return partial.parent / partial.name.removeprefix(".").rpartition(".part-")[0]


def former_path(final: Path) -> Path:
    """Where the former ``final`` waits while the new one takes its place."""
    return partial_path(final, "old")


def put_back(final: Path) -> bool:
    """Restore ``final`` if its replacement was killed between the two renames; True if restored.

    Nothing is done while another process writes there: the new output may come at any moment.

    Raises:
        StorageError: The former output cannot be moved back.
    """
    former = former_path(final)
    if os.path.lexists(final) or not os.path.lexists(former) or _is_being_written(final):
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
    if os.path.lexists(final) or not os.path.lexists(former):
        return None
    command = shlex.join(["mv", str(former), str(final)])
    return f"its replacement was cut short and the former one is still there: {command}"


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
            lock = _lock(partial)
        except BlockingIOError:
            return True
        except OSError:
            continue  # not ours to open
        if lock is not None and lock >= 0:
            os.close(lock)
    return False


@contextmanager
def new_directory(
    final: Path, *, job: str = "run", force: bool = False, keep_foreign: bool = False
) -> Iterator[Path]:
    """Write a directory in one step: yields an empty one and renames it to ``final`` at the end.

    On an exception the partial directory is removed and ``final`` is as it was.

    Args:
        final: Where the directory goes.
        job: Tells the partial directories of different jobs apart.
        force: Replace an earlier output.
        keep_foreign: ``final`` exists and is renewed; files that others put into it stay.

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
                discard(entry)
            yield partial
            publish(partial, final, force=force, keep_foreign=keep_foreign)
        except OSError as error:
            discard(partial)
            if isinstance(error, VLoRAError):
                raise
            raise write_error(final, error) from None
        except BaseException:
            discard(partial)
            raise


@contextmanager
def sole_writer(partial: Path, final: Path) -> Iterator[None]:
    """Make ``partial`` where it is missing, and hold it and ``final`` against every other writer.

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
            while held is None:
                partial.mkdir(parents=True, exist_ok=True)
                held = _lock(partial)
        except (ConflictError, BlockingIOError):
            raise StorageError(
                "Another process is writing this output right now.",
                where=final,
                remedy="wait until it is done, or choose another output",
            ) from None
        except OSError as error:
            raise write_error(final, error) from None
        if held >= 0:
            locks.callback(os.close, held)
        yield


def _lock(directory: Path) -> int | None:
    """A descriptor that locks ``directory``, -1 without locks, None if it was just replaced."""
    if fcntl is None:
        return -1
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
        # The former holder may have renamed or removed it between the opening and the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def discard(path: Path) -> None:
    """Delete ``path``, and close files below it that are still open for reading."""
    close_below(path)
    with suppress(OSError):
        _remove(path)


def publish(partial: Path, final: Path, *, force: bool = False, keep_foreign: bool = False) -> None:
    """Flush ``partial`` and rename it to ``final``; the former ``final`` is deleted last.

    Raises:
        OutputExistsError: See `check_output`.
        StorageError: The disk does not take it; ``final`` is then as it was.
    """
    try:
        for file in partial.rglob("*"):
            if file.is_file():
                fsync(file)
        fsync(partial)
        old = None
        if not keep_foreign:
            check_output(final, force=force)
        if os.path.lexists(final):
            if not os.path.islink(final) and not os.access(final, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(final))
            old = former_path(final)
            _hand_over(old, final)  # of an earlier replacement that was cut short
            os.rename(final, old)
        try:
            os.rename(partial, final)
        except OSError:
            if old is not None:
                os.rename(old, final)
            raise
        fsync(final.parent)
        if old is not None:
            _hand_over(old, final)
    except OSError as error:
        if isinstance(error, VLoRAError):
            raise
        raise write_error(final, error) from None


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file in one step, replacing what is at ``path``.

    Raises:
        StorageError: The disk does not take it; the former file is then unchanged.
    """
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


def _hand_over(old: Path, new: Path) -> None:
    """Move the files of others from ``old`` to ``new``, and delete the rest of ``old``."""
    if old.is_dir() and not old.is_symlink() and new.is_dir():
        for name in foreign_entries(old):
            if not os.path.lexists(new / name):
                os.rename(old / name, new / name)
    close_below(old)
    close_below(new)  # its former files have been open under these names
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
