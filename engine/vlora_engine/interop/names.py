"""What the peers are called here."""

from __future__ import annotations

from pathlib import Path

from vlora_engine.utils.file_names import SHARE_INDEX, VLORA_INDEX

VLORA_DEV = "vlora-dev"
LORASHARE = "lorashare"


PEERS = {VLORA_DEV: VLORA_INDEX, LORASHARE: SHARE_INDEX}


def peer_at(directory: Path) -> str | None:
    """Whose subspace lies in ``directory``, if it is a peer's."""
    return next((peer for peer, index in PEERS.items() if (directory / index).is_file()), None)
