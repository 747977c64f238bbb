"""What may be written where: refuses outputs that would lie on an input, or on files of others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlora_engine.errors import (
    OutputExistsError,
    ParameterError,
    StorageError,
)
from vlora_engine.utils.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_GGUF,
    ROUTER_INDEX,
    SHARE_INDEX,
    SPECTRA_INDEX,
    SUBSPACE_INDEX,
    VLORA_INDEX,
)
from vlora_engine.utils.files import same_content
from vlora_engine.utils.partials import put_back
from vlora_engine.utils.reading import read_file

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


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
    if not os.path.lexists(path) or (force and path.is_file()):
        refuse_inside_output(path)
        return
    raise OutputExistsError(
        "The output already exists; nothing was written.",
        where=path,
        expected="a file, or nothing",
        found="a file" if path.is_file() else "a directory" if path.is_dir() else "no file",
        remedy="choose another output, or replace it with --force (in Python force=True)"
        if path.is_file() and _output_around(path) is None
        else "choose another output",
    )


def refuse_inside_output(path: Path) -> None:
    """Refuse a place in an adapter, a subspace or spectra, however deep: it would change them.

    Raises:
        ParameterError: It is in one.
    """
    if around := _output_around(path):
        raise ParameterError(
            "An output would lie in an adapter, a subspace or spectra.",
            where=path,
            found=f"it is in {around}",
            remedy="choose a place beside it",
        )


def _output_around(path: Path) -> Path | None:
    return next((p for p in Path(os.path.realpath(path)).parents if is_output(p)), None)


class SameThere(Exception):
    """Ends the writing of what is there already."""


def keep_same(made: Path, final: Path) -> None:
    """Leave ``final`` where it is what was just made: a command of several can be run again.

    It is the last check before ``made`` takes its place.

    Raises:
        SameThere: They are the same, byte for byte.
        OutputExistsError: ``final`` is another.
    """
    if is_empty_directory(final):
        return
    if same_content(made, final):
        raise SameThere
    raise OutputExistsError(
        "Another adapter is in the place of an output; nothing was written there.",
        where=final,
        expected="nothing, or what this command writes: that would be left as it is",
        remedy="choose another output, or pass --force to replace it",
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
    parents: dict[str, str] = {}
    read = {form for path in inputs for form in _forms(path, parents)}
    # One thing may have several names: hard links, mounts, disks that know no case.
    things = {_identity(path): path for path in read}
    around = {above: path for path in read for above in path.parents}
    around_things = {_identity(above): path for above, path in around.items()}
    for known in (things, around_things):
        known.pop(_NOTHING, None)
    written = [_forms(output, parents) for output in outputs]
    whose = _owners([(_READ, read), *enumerate(written)])
    inside = _two_inside(whose)
    for i, (output, forms) in enumerate(zip(outputs, written, strict=True)):
        for path in forms:
            if whose[path] - {i, _READ}:
                raise ParameterError("Two outputs go to one place.", where=output)
            if path in read or _identity(path) in things:
                raise ParameterError(
                    f"An output is {called}.",
                    where=output,
                    remedy="choose another output; nothing is changed in place",
                )
            above = {parent for parent in path.parents if whose.get(parent, set()) - {i}}
            above |= {things[key] for key in map(_identity, path.parents) if key in things}
            below = {other for owner, other in inside.get(path, {}).items() if owner != i}
            if (held := around_things.get(_identity(path))) is not None:
                below.add(held)
            if above or below:
                other = min(above | below)
                raise ParameterError(
                    "An output lies inside another path of this work, or that in it.",
                    where=output,
                    found=f"it is in {other}" if other in above else f"{other} is in it",
                    remedy="choose an output beside it",
                )


_READ = -1  # whose the inputs are; an output is its own number's


def _owners(forms: Iterable[tuple[int, set[Path]]]) -> dict[Path, set[int]]:
    """Whose every path is."""
    whose: dict[Path, set[int]] = {}
    for owner, paths in forms:
        for path in paths:
            whose.setdefault(path, set()).add(owner)
    return whose


def _two_inside(whose: Mapping[Path, set[int]]) -> dict[Path, dict[int, Path]]:
    """What lies in every directory: a path each of two owners, so that one is another's."""
    inside: dict[Path, dict[int, Path]] = {}
    for path in sorted(whose):
        for above in path.parents:
            known = inside.setdefault(above, {})
            for owner in whose[path]:
                if owner not in known and len(known) < 2:
                    known[owner] = path
    return inside


_NOTHING = (0, 0)


def _identity(path: Path) -> tuple[int, int]:
    """What the system knows a file or directory by: its disk and its number there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return _NOTHING
    return status.st_dev, status.st_ino


def _forms(path: Path, parents: dict[str, str]) -> set[Path]:
    """``path`` with all links resolved, and with those on the way to its last part.

    Args:
        parents: The folders that were resolved before; filled.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if folder not in parents:
        parents[folder] = os.path.realpath(folder)
    linked = Path(parents[folder], name)
    if ".." in path.parts or os.path.islink(linked):
        return {Path(os.path.realpath(path)), linked}
    return {linked}


# In the index of a peer's format that this engine wrote: what a peer wrote is not ours to replace.
WRITTEN_BY = {"written_by": "vlora-tui"}


PEERS_MARKERS = frozenset({VLORA_INDEX, SHARE_INDEX})


MARKERS = frozenset({SUBSPACE_INDEX, ADAPTER_CONFIG, SPECTRA_INDEX, ADAPTER_GGUF, ROUTER_INDEX})


_WRITTEN = re.compile(
    r"README\.md|subspace\.json|tasks|(basis|components)(-\d+-of-\d+)?\.safetensors"
    r"|adapter_config\.json|adapter_model\.(safetensors|bin)|adapters\.safetensors"
    r"|adapter\.gguf|Modelfile"
    r"|router\.(json|safetensors)"
    r"|spectra\.json|layers|vectors|(similarity|codec)\.safetensors"
    r"|\..+\.part(-[\w-]+)?"  # half written, then killed
)


_WRITTEN_IN = {  # the files in folders of an output
    "tasks": re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors|\..+\.(part|gone)(-[\w-]+)?"),
    "layers": re.compile(r"\d+\.safetensors|\..+\.part(-[\w-]+)?"),
    "vectors": re.compile(r"\d+\.safetensors|\..+\.part(-[\w-]+)?"),
}
_FOLDER = re.compile(r"tasks|layers|vectors|\..+")  # what may be a folder in an output


def foreign_entries(path: Path) -> list[str]:
    """What no output of this engine has at ``path``, sorted; none for a symbolic link.

    Names, of what lies in a folder of an output with that folder: ``tasks/notes.txt``.
    """
    if path.is_symlink():
        return []
    if not path.is_dir():
        return [path.name]
    names = sorted(entry.name for entry in path.iterdir())
    if not MARKERS.intersection(names):
        return [] if _is_peers_form_of_ours(path, names) else names
    foreign = [
        name
        for name in names
        if not _WRITTEN.fullmatch(name) or (_is_folder(path / name) and not _FOLDER.fullmatch(name))
    ]
    for folder, written in _WRITTEN_IN.items():
        if _is_folder(path / folder):
            inside = sorted(entry.name for entry in (path / folder).iterdir())
            foreign += [f"{folder}/{name}" for name in inside if not written.fullmatch(name)]
    return foreign


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


_PEERS_FILES = re.compile(
    r"subspace_meta\.json|subspace\.safetensors|task_[A-Za-z0-9._-]+\.safetensors"
    r"|share_config\.json|shared_components\.safetensors|adapters"
)


_SHARE_TASK = {"adapter_meta.json", "loadings.safetensors", "classifier_head.safetensors"}


def _is_peers_form_of_ours(path: Path, names: list[str]) -> bool:
    """Whether this engine wrote the directory in another library's format, with nothing added."""
    markers = PEERS_MARKERS.intersection(names)
    if not markers or not all(_PEERS_FILES.fullmatch(name) for name in names):
        return False
    try:
        for task in (path / "adapters").iterdir() if "adapters" in names else ():
            if not {entry.name for entry in task.iterdir()} <= _SHARE_TASK:
                return False
        return all(b'"written_by": "vlora-tui"' in read_file(path / name) for name in markers)
    except OSError:
        return False


def is_empty_directory(path: Path) -> bool:
    """Whether ``path`` is a directory with nothing in it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def is_output(path: Path) -> bool:
    """Whether a directory is an adapter, a subspace or spectra, by the index that it has."""
    return any((path / name).is_file() for name in MARKERS | PEERS_MARKERS)
