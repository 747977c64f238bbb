"""Find adapters below a directory, and resolve paths, addresses and ``DIR:TASK``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vlora_engine.adapters.address import FORM, AdapterRef, address_of_page, expanded, is_address
from vlora_engine.errors import InputError, MissingPathError, ParameterError, VLoRAError
from vlora_engine.formats.base import Format, Location, Probe, Registry, odd_file_error
from vlora_engine.hub.fetch import local_path
from vlora_engine.utils.partials import FORMER, how_to_put_back, output_of
from vlora_engine.utils.safetensors_file import read_error

MAX_DEPTH = 4
MAX_ADAPTERS = 100_000
_SKIPPED = frozenset({"__pycache__", "node_modules"})


def walk(
    registry: Registry,
    root: Path,
    max_depth: int,
    max_adapters: int,
    closed: list[Path] | None = None,
    lost: list[Path] | None = None,
) -> Iterator[tuple[Probe, Format]]:
    """Every adapter at or below ``root``, sorted by path, each with the format that knows it.

    The root's adapter is PEFT's ``default``; named adapters and checkpoints lie in directories
    below it. Hidden directories are left out; a directory reached twice (a loop of symbolic
    links) is looked at once. Directories below ``root`` that may not be read go to ``closed``,
    outputs of which a killed replacement left the former one alone, hidden, to ``lost``.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    found = 0
    while waiting and found < max_adapters:
        path, depth = waiting.pop()
        try:
            if not _first_visit(path, seen):
                continue
            files, directories, formers = _list(path)
            if lost is not None:
                finals = sorted(output_of(path / name) for name in formers)
                lost += [final for final in finals if how_to_put_back(final)]
        except OSError as error:
            if depth == 0:
                raise read_error(path, error) from None
            # What went away since its parent was listed is no finding.
            if closed is not None and not isinstance(error, FileNotFoundError | NotADirectoryError):
                closed.append(path)
            continue
        here = list(_adapters_in(registry, path, files))
        yield from here[: max_adapters - found]
        found += len(here)
        if any(form.name in _CLOSED for _, form in here) or depth >= max_depth:
            continue
        waiting.extend((path / name, depth + 1) for name in sorted(directories, reverse=True))


_CLOSED = frozenset({"vlora-subspace", "vlora-dev", "lorashare"})


def _adapters_in(
    registry: Registry, path: Path, files: frozenset[str]
) -> Iterator[tuple[Probe, Format]]:
    """The adapter that ``path`` is, or the single-file adapters in it."""
    if not files:
        return
    probe = Probe(path, files)
    form = registry.find(probe)
    if form is not None and _is_adapter(probe, form):
        yield probe, form
        return
    for name in sorted(files):
        if not name.endswith((".safetensors", ".gguf")) or _BASE_SHARD.search(name):
            continue
        file_probe = Probe(path / name)
        form = registry.find(file_probe)
        if form is not None and _is_adapter(file_probe, form):
            yield file_probe, form


def _is_adapter(probe: Probe, form: Format) -> bool:
    """Whether to list what ``form`` recognised: an unknown file only if it is damaged."""
    if form.name != "unknown":
        return True
    name = probe.tensor_file.name if probe.tensor_file is not None else ""
    if _BASE_SHARD.search(name):
        return False
    try:
        probe.contents  # noqa: B018
    except VLoRAError:
        return True
    return False


_BASE_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$|^model\.safetensors$|^consolidated")


def _list(path: Path) -> tuple[frozenset[str], list[str], list[str]]:
    """The files in a directory, its folders, and the hidden ones that a replacement left."""
    files, directories, formers = [], [], []
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                is_directory = entry.is_dir()
            except OSError:
                is_directory = False
            if not is_directory:
                files.append(entry.name)
            elif not entry.name.startswith(".") and entry.name not in _SKIPPED:
                directories.append(entry.name)
            elif entry.name.endswith(FORMER):
                formers.append(entry.name)
    return frozenset(files), directories, formers


def _first_visit(path: Path, seen: set[tuple[int, int]]) -> bool:
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return False
    seen.add(key)
    return True


def location(probe: Probe, form: Format) -> Location:
    """The location of ``probe``, named by its directory, or by its file without the suffix."""
    name = probe.path.stem if probe.file is not None else probe.path.name
    return Location(probe.path, name or str(probe.path), form.name)


def locate(place: str | os.PathLike[str]) -> AdapterRef:
    """Parse a place, splitting ``DIR:TASK`` into path and task where all of it is no path.

    The directory is the longest that exists. What is on the Hub says by itself where it ends.

    Raises:
        ParameterError: It begins as a place on the Hub, and is of another form.
    """
    ref = AdapterRef.parse(place)
    text = ref.path
    if not ref.is_local or ref.task or ":" not in text or os.path.exists(ref.expanded):
        return ref
    at = len(text)
    while (at := text.rfind(":", 0, at)) > 0:
        if text[at + 1 :] and os.path.isdir(expanded(text[:at])):
            return AdapterRef.at(text[:at], text[at + 1 :])
    return ref


def existing_path(place: str | os.PathLike[str]) -> Path:
    """``place`` as a path that exists; a place on the Hub is fetched into its cache.

    Raises:
        ParameterError: It names another machine.
        HubError, HubAccessError: It is on the Hub, which does not give it.
        NotFoundError: There is nothing there; the remedy names what is near, or the hf:// form.
    """
    ref = AdapterRef.parse(place)
    if ref.is_hub:
        return local_path(ref)
    raw = str(ref)
    if not raw or "\0" in raw:
        raise ParameterError("A path cannot be empty or hold a NUL.", found=repr(raw))
    refuse_elsewhere(raw)
    path = expanded(raw)
    if not os.path.lexists(path):
        raise _not_there(raw, path)
    if not os.path.exists(path):
        raise MissingPathError(
            "The symbolic link leads nowhere, or in a circle.",
            where=path,
            found=f"a link to {os.readlink(path)}",
            remedy="fix the link, or name the place itself",
        )
    return path


def refuse_elsewhere(raw: str) -> None:
    """Raise for a place on another machine or store; the Hub is none.

    Raises:
        ParameterError: It is one.
    """
    if is_address(raw):
        return
    page = address_of_page(raw)
    if page is not None:
        raise ParameterError(
            "This is a page for browsers.", where=raw, expected=FORM, remedy=f"write {page}"
        )
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", raw)
    if scheme and scheme[1] == "file":
        raise ParameterError(
            "A file:// address is not a path.", where=raw, remedy=f"write {raw[7:]}"
        )
    if scheme or (re.match(r"[\w.-]+@[\w.-]+:", raw) and not os.path.lexists(raw)):
        raise ParameterError(
            "The place is on another machine or store; only local files are read.",
            where=raw,
            expected="a local directory, or hf://org/name",
            found=f"{scheme[1]}://" if scheme else "a name of ssh",
            remedy="mount it, or run vlora-tui there",
        )


def _not_there(raw: str, path: Path) -> VLoRAError:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", raw) and not raw.startswith("."):
        remedy = f"check the spelling; on the Hugging Face Hub it would be hf://{raw}"
    else:
        near = _nearest(path)
        remedy = f"did you mean {near}?" if near else "check the spelling and the current directory"
        remedy = how_to_put_back(path) or remedy
    return MissingPathError("There is no such file or directory.", where=raw, remedy=remedy)


def _nearest(path: Path) -> Path | None:
    try:
        names = [entry for entry in os.listdir(path.parent) if not entry.startswith(".")]
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names[:2000], 1)
    return path.parent / close[0] if close else None


def nothing_error(path: Path) -> InputError:
    """The error for a directory with no adapter in or below it."""
    if odd := odd_file_error(path):
        return odd
    try:
        empty = path.is_dir() and not any(path.iterdir())
    except OSError:
        empty = False
    return MissingPathError(
        "The directory is empty." if empty else "There is no adapter here.",
        where=path,
        expected="directories with adapter_config.json and adapter_model.safetensors",
        found="nothing at all" if empty else "neither, here or below",
        remedy="point at the directory that PEFT's model.save_pretrained wrote, or one above it",
    )
