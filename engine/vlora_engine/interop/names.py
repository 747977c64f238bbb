"""What the peers are called here, and the file that tells whose subspace a directory is."""

from __future__ import annotations

VLORA_DEV, VLORA_INDEX = "vlora-dev", "subspace_meta.json"
LORASHARE, SHARE_INDEX = "lorashare", "share_config.json"
