"""What the peers are called here."""

from __future__ import annotations

VLORA_DEV = "vlora-dev"
LORASHARE = "lorashare"
