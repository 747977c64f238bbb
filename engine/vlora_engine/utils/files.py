"""Write files and directories in one step, so that no output is ever left half written.

Everything is written to a hidden sibling, flushed to the disk and then renamed; a lock keeps a
second writer out.
"""

from __future__ import annotations

import errno
import filecmp
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from vlora_engine.utils.exchange import exchange
from vlora_engine.utils.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_GGUF,
    ROUTER_INDEX,
    SHARE_INDEX,
    SPECTRA_INDEX,
    SUBSPACE_INDEX,
    VLORA_INDEX,
)
from vlora_engine.utils.locks import is_held, writing
from vlora_engine.utils.reading import open_descriptor, read_file
from vlora_engine.utils.safetensors_file import close_below, read_error, write_error

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMER = ".part-old"  # ends the hidden name of an output that is being replaced
_UNLOCKED = -1  # in the place of a descriptor: nothing can be locked here


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
        _require_room_for(path)
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
            else "choose another output, or replace it with --force (in Python force=True)",
        )


def _require_room_for(path: Path) -> None:
    """Refuse a place below something that is no directory.

    Raises:
        StorageError: It is one.
    """
    above = next(p for p in Path(os.path.abspath(path)).parents if os.path.lexists(p))
    if not os.path.isdir(above):
        raise StorageError(
            "The output cannot be written: it would lie in something that is no directory.",
            where=path,
            expected="a directory, or nothing",
            found=str(above),
            remedy="choose another output",
        )


def check_output_file(path: Path, *, force: bool = False) -> None:
    """Check that a single file may be written at ``path``; ``force`` allows to replace a file.

    Raises:
        OutputExistsError: Something is there; with ``force``, something other than a file.
        ParameterError: It would lie in an adapter, a subspace or spectra.
    """
    lies_in_output = _is_output(Path(os.path.realpath(path)).parent)
    if not os.path.lexists(path) or (force and path.is_file()):
        if lies_in_output:
            raise ParameterError(
                "An output would lie in an adapter, a subspace or spectra.",
                where=path,
                remedy="choose a place beside it",
            )
        return
    raise OutputExistsError(
        "The output already exists; nothing was written.",
        where=path,
        expected="a file, or nothing",
        found="a file" if path.is_file() else "a directory" if path.is_dir() else "no file",
        remedy="choose another output, or replace it with --force (in Python force=True)"
        if path.is_file() and not lies_in_output
        else "choose another output",
    )


def require_apart(
    outputs: Sequence[Path], inputs: Iterable[Path], *, called: str = "one of the inputs"
) -> None:
    """Refuse outputs that are, contain or lie in an input, or one another, by whatever name.

    Args:
        called: What the inputs are, in the error.

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
                    f"An output is {called}.",
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
_MARKERS = frozenset({SUBSPACE_INDEX, ADAPTER_CONFIG, SPECTRA_INDEX, ADAPTER_GGUF, ROUTER_INDEX})
_WRITTEN = re.compile(
    r"README\.md|subspace\.json|tasks|(basis|components)(-\d+-of-\d+)?\.safetensors"
    r"|adapter_config\.json|adapter_model\.(safetensors|bin)|adapters\.safetensors"
    r"|adapter\.gguf|Modelfile"
    r"|router\.(json|safetensors)"
    r"|spectra\.json|layers|vectors|(similarity|codec)\.safetensors"
    r"|\..+\.part(-[\w-]+)?"  # half written, then killed
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
        return all(b'"written_by": "vlora-tui"' in read_file(path / name) for name in markers)
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
    return final.with_name(f".{final.name}{FORMER}")


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
        _let_go(lock)
    return False


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
                discard(entry)
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
        locks.callback(_let_go, held)
        sweep(final)
        yield


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Keep an unfinished directory from being swept while the block reads from it.

    Raises:
        StorageError: Another process is at it, or it cannot be opened.
    """
    try:
        held = _lock(directory)
    except OSError as error:
        raise read_error(directory, error) from None
    try:
        yield
    finally:
        _let_go(held)


def _lock(directory: Path) -> int | None:
    """A descriptor that locks ``directory``, None if it was just replaced."""
    if fcntl is None:
        return _UNLOCKED
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
            return _UNLOCKED
        # The former holder may have renamed or removed it between the opening and the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _let_go(lock: int | None) -> None:
    """Undo `_lock`."""
    if lock is not None and lock != _UNLOCKED:
        os.close(lock)


def discard(path: Path) -> None:
    """Delete ``path``, and close files below it that are still open for reading."""
    close_below(path)
    with suppress(OSError):
        _remove(path)


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
    try:
        if replaces:
            _hand_over(moved, final)
            _remove_marked(moved)
        if os.path.lexists(gone):
            _remove(gone)
    except OSError as error:
        logger.warning(
            "%s is complete and in place, but what was there before could not be deleted (%s). "
            "To delete it: %s",
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
                os.rename(old / name, new / name)


def _remove_marked(path: Path) -> None:
    """Delete an output, its index first: half of it is no output any more."""
    if path.is_dir() and not path.is_symlink():
        for name in _MARKERS | _PEERS_MARKERS:
            (path / name).unlink(missing_ok=True)
    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


# ---- what killed writers left


def strays(final: Path) -> list[Path]:
    """What writers of ``final`` that were killed left beside and in it, sorted.

    Finished layers of an interrupted build are none: the same command goes on with them.
    """
    found = [path for path in _hidden(final.parent, final.name) if _is_stray(path, final)]
    if final.is_dir() and not final.is_symlink() and _is_output(final):
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
            lock = _lock(path) if path.is_dir() else None
            if lock == _UNLOCKED:
                continue  # nothing tells whether somebody is at it
            if is_output := path.is_dir() and _is_output(path):
                if not final.is_dir() and foreign_entries(path):
                    continue
                _hand_over(path, final)
            close_below(path)
            (_remove_marked if is_output else _remove)(path)
        except OSError as error:
            logger.debug("%s was not deleted: %s", path, error)
        finally:
            _let_go(lock)


def _hidden(folder: Path, name: str = "*") -> Iterator[Path]:
    """The unfinished and the former forms of an output, or of all, in a folder."""
    exact = "*" if name == "*" else glob.escape(name)
    for pattern in (f".{exact}.part", f".{exact}.part-*", f".{exact}.gone-*"):
        yield from folder.glob(pattern)


def _is_stray(path: Path, final: Path) -> bool:
    if path == former_path(final):
        return os.path.lexists(final)  # else `put_back` is for it
    return not any(path.glob("**/layers/*.safetensors")) or ".gone-" in path.name


def _is_output(path: Path) -> bool:
    return any((path / name).is_file() for name in _MARKERS | _PEERS_MARKERS)


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
