"""How the two peers are started, where they are installed."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.measure import script

MISSING = "not installed; `make bench` installs both peers"

VLORA_STREAMING = """
import sys
from vlora import SharedSubspace
out, k, *paths = sys.argv[1:]
SharedSubspace.from_adapters_streaming(paths, num_components=int(k)).save(out)
"""


@dataclass(frozen=True)
class Peer:
    """One of the packages that we are compared with, and its command line."""

    name: str
    command: str | None

    @property
    def there(self) -> bool:
        return self.command is not None

    def __call__(self, *arguments: object) -> list[str]:
        return [str(self.command), *map(str, arguments)]


VLORA = Peer("vlora-dev", script("vlora"))
LORASHARE = Peer("lorashare", script("lorashare"))
