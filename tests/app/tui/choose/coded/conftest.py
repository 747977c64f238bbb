"""Related adapters, measured for a basis and for the codec."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.tui.choose.coded.collection import related
from tests.app.tui.choose.opened import Opened
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.spectra.tables import Spectra


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return related(tmp_path_factory.mktemp("related"))


@pytest.fixture(scope="session")
def measured(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra") / "spectra"
    compute_spectra({path.name: open_adapter(path) for path in adapters}, folder, codec=True)
    return folder


@pytest.fixture
def screen(measured: Path) -> Opened:
    return Opened(Spectra.load(measured))


@pytest.fixture
def auto(measured: Path) -> Opened:
    return Opened(Spectra.load(measured), method="auto")
