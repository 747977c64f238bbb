"""Sessions for step 5: one with a subspace, one with marked adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_tui.tui.core.session import Session


@pytest.fixture
def opened(subspace: Path) -> Session:
    session = Session()
    session.manifest = read_manifest(subspace)
    return session


@pytest.fixture
def marked(runs: Path) -> Session:
    session = Session()
    session.add_found(scan([runs]).adapters)
    for path in session.infos:
        session.mark(path, True)
    return session
