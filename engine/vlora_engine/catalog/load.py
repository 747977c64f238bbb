"""Open a subspace: this library's with a basis or coded, or another library's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import ConflictError, VLoRAError
from vlora_engine.interop.store import open_peer
from vlora_engine.manifest.manifest import is_own_subspace
from vlora_engine.subspace.basis_space import BasisSpace, load_basis_space
from vlora_engine.subspace.coded.space import CodedSpace, load_coded
from vlora_engine.utils.file_names import SUBSPACE_INDEX

AnySpace = BasisSpace | CodedSpace
T = TypeVar("T")


def load_space(path: str | Path, *, verify: bool = True) -> AnySpace:
    """Open the subspace in the directory ``path``, or at a Hub address.

    Only its index is read now; every tensor file is checked against its checksum when it is first
    read (those of the other libraries have none).

    Raises:
        NotFoundError: There is no subspace at ``path``. CorruptFileError: It is not sound.
    """
    manifest = read_manifest(path)
    if manifest.peer:
        return open_peer(manifest)
    if manifest.coding is not None:
        return load_coded(manifest, verify=verify)
    return load_basis_space(manifest, verify=verify)


def read_settled(space: AnySpace, read: Callable[[AnySpace], T]) -> tuple[AnySpace, T]:
    """Read from a subspace, loading it again where its directory was replaced meanwhile.

    Returns:
        The subspace that was read, loaded anew if need be, and what was read of it.

    Raises:
        ConflictError: It was changed on disk, and in memory.
    """
    while True:
        try:
            return space, read(space)
        except VLoRAError:
            if space.stored is None or not space.stored.manifest.is_outdated():
                raise
            space = _reopened(space)


def _reopened(space: AnySpace) -> AnySpace:
    stored = space.stored
    assert stored is not None  # noqa: S101  (`read_settled`)
    path = stored.manifest.path
    fresh = load_space(path, verify=stored.verify) if space.is_as_stored else None
    if fresh is None or type(fresh) is not type(space):
        raise ConflictError(
            "The subspace was changed on disk since it was loaded.",
            where=path,
            remedy="load it again",
        )
    stored.close()
    return fresh


def open_space(directory: Path) -> AnySpace:
    """The subspace in ``directory``, to read from: opened, and checked, once while it is unchanged.

    A basis is checked when it is first read. Whoever wants all tasks of a subspace one by one
    would have it checked for each of them.

    Raises:
        NotFoundError, CorruptFileError: As `load_space`.
    """
    key = _identity(directory)
    with _lock:
        space = _open.pop(key, None) if key is not None else None
        if space is None:
            space = load_space(directory)
        if key is not None:
            for stale in [identity for identity in _open if identity[0] == key[0]]:
                del _open[stale]
            _open[key] = space
            while len(_open) > MAX_OPEN:
                del _open[next(iter(_open))]
    return space


_Identity = tuple[str, int, int, int, int]

MAX_OPEN = 2  # subspaces that are kept open: the one being read, and the one it is compared with
_open: dict[_Identity, AnySpace] = {}  # the one used last comes last
_lock = threading.Lock()


def _identity(directory: Path) -> _Identity | None:
    """A key that changes when the subspace in a directory is written anew; None for a peer's.

    Whatever changes a subspace writes its index anew. A peer's index may stay as it is.
    """
    if not is_own_subspace(directory):
        return None
    try:
        index = (directory / SUBSPACE_INDEX).stat()
    except OSError:
        return None
    path = os.path.realpath(directory)
    return path, index.st_dev, index.st_ino, index.st_size, index.st_mtime_ns
