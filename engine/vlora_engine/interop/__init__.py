"""Subspaces of the two peers, vlora-dev and lorashare: read as if they were ours, and written.

`read_peer` makes a `Manifest` of their index and headers, without torch; `store.open_peer` makes a
`SharedSubspace` of it; `write` has the way back. Nothing is ever changed in a peer's directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.interop.names import LORASHARE, VLORA_DEV
from vlora_engine.utils.file_names import SHARE_INDEX, VLORA_INDEX

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest

__all__ = ["LORASHARE", "PEERS", "VLORA_DEV", "peer_at", "read_peer"]

PEERS = {VLORA_DEV: VLORA_INDEX, LORASHARE: SHARE_INDEX}


def peer_at(directory: Path) -> str | None:
    """Whose subspace lies in ``directory``, if it is a peer's."""
    return next((peer for peer, index in PEERS.items() if (directory / index).is_file()), None)


def read_peer(peer: str, directory: Path) -> Manifest:
    """The index of a peer's subspace: what `read_manifest` gives of ours.

    Errors count from what the peer holds, so that they are 0: no peer keeps what its tasks lost.

    Raises:
        CorruptFileError: Its index, or the header of a file, is not sound.
        NotFoundError: A file that its index names is not there.
    """
    if peer == VLORA_DEV:
        from vlora_engine.interop.vlora_dev import read_vlora_dev

        return read_vlora_dev(directory)
    from vlora_engine.interop.lorashare import read_lorashare

    return read_lorashare(directory)
