"""The names of the two peers, and the files that they are recognised by."""

from __future__ import annotations

import os
from pathlib import Path

from vlora_engine.utils.file_names import SHARE_INDEX, VLORA_INDEX

VLORA_DEV = "vlora-dev"
LORASHARE = "lorashare"


PEERS = {VLORA_DEV: VLORA_INDEX, LORASHARE: SHARE_INDEX}


def peer_at(directory: Path) -> str | None:
    """The peer whose subspace lies in ``directory``; None where it is none's."""
    # What is no file in the place of one: whoever reads it says so.
    indices = ((peer, directory / index) for peer, index in PEERS.items())
    return next((peer for peer, index in indices if os.path.lexists(index)), None)
