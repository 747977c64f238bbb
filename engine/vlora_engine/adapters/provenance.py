"""Where an adapter comes from, while it is in memory: what it was made of, and by which steps.

`vlora_engine.formats.provenance` writes it beside the tensors and reads it back. Paths stay here:
they say where to hash, and are never written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ABOUT_BYTES = 850  # what it takes in the metadata and the card, about; for estimates


@dataclass(frozen=True)
class Origin:
    """One thing that an adapter was made of.

    Args:
        name: What it is called: the last part of its path, or the task's name.
        place: Where it lies, so that its files can be hashed; None where it was in memory.
        hashes: sha256 that are known already, by what they are of.
    """

    name: str = ""
    place: Path | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, path: str | Path | None) -> Origin:
        """The adapter at a path; of one without a path nothing is known."""
        return cls() if path is None else cls(os.path.basename(os.path.abspath(path)), Path(path))


@dataclass(frozen=True)
class Provenance:
    """What an adapter was made of, and the steps in their order.

    Args:
        origins: Its sources.
        steps: Each with its ``action``, its settings without paths, and its ``error`` of dW.
    """

    origins: tuple[Origin, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()

    def then(self, action: str, **settings: Any) -> Provenance:
        """The same with one step more; settings that are None are left out."""
        given = {name: value for name, value in settings.items() if value is not None}
        return replace(self, steps=(*self.steps, {"action": action, **given}))
