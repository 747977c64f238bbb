"""Read the index of a subspace by path or address, this library's or another's."""

from __future__ import annotations

from pathlib import Path

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.errors import MissingPathError
from vlora_engine.hub.fetch import local_path
from vlora_engine.interop.names import peer_at
from vlora_engine.interop.read import read_peer
from vlora_engine.manifest.manifest import Manifest, is_own_subspace, read_index
from vlora_engine.manifest.parse import parse_manifest
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.partials import how_to_put_back
from vlora_engine.utils.safetensors_file import read_error


def is_subspace(path: Path) -> bool:
    """Whether ``path`` is a directory with a subspace, this library's or a peer's."""
    return is_own_subspace(path) or peer_at(path) is not None


def read_manifest(path: str | Path | AdapterRef) -> Manifest:
    """Read and check subspace.json of the directory ``path``; opens no tensor file.

    Of a peer's subspace its own index and the headers of its files are read instead. An ``hf://``
    address is fetched into the Hub's cache, and read there.

    Raises:
        NotFoundError: There is no subspace.
        CorruptFileError: The index is not sound.
        SubspaceError: It is of another version.
    """
    ref = AdapterRef.parse(path)
    directory = Path(ref)
    if ref.is_hub:
        directory = local_path(ref)
    file = directory / SUBSPACE_INDEX
    try:
        raw = read_index(directory)
    except (FileNotFoundError, NotADirectoryError):
        peer = peer_at(directory)
        if peer is not None:
            return read_peer(peer, directory)
        raise MissingPathError(
            "There is no subspace here.",
            where=directory,
            expected=f"a directory with {SUBSPACE_INDEX}",
            remedy=how_to_put_back(directory)
            or "make one with `vlora-tui compress ADAPTERS -o DIR`",
        ) from None
    except OSError as error:
        raise read_error(file, error) from None
    return parse_manifest(directory, raw)
