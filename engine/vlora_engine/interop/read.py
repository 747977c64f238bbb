"""Read the index of another library's subspace as a `Manifest`, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.interop.lorashare import read_lorashare
from vlora_engine.interop.names import VLORA_DEV
from vlora_engine.interop.vlora_dev import read_vlora_dev

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest


def read_peer(peer: str, directory: Path) -> Manifest:
    """Read the index of a peer's subspace as a manifest.

    Errors count from what the peer holds, so that they are 0: no peer keeps what its tasks lost.

    Raises:
        CorruptFileError: Its index, or the header of a file, is not sound.
        NotFoundError: A file that its index names is not there.
    """
    if peer == VLORA_DEV:
        return read_vlora_dev(directory)
    return read_lorashare(directory)
