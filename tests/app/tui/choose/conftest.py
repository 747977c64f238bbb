"""Six adapters that share three directions, measured for a basis; nothing waits for quiet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.tui.choose.opened import Opened
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.choose import worker as choose_worker


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make.collection(tmp_path_factory.mktemp("adapters"), 6)


@pytest.fixture(scope="session")
def measured(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra") / "spectra"
    compute_spectra({path.name: open_adapter(path) for path in adapters}, folder)
    return folder


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other methods are worked out without waiting for quiet; a state of its own."""
    monkeypatch.setattr(choose_worker, "QUIET_SECONDS", 0.001)
    monkeypatch.setattr(choose_worker, "ARRIVING_SECONDS", 0.001)
    for name in ("STATE", "CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.fixture
def screen(measured: Path) -> Opened:
    return Opened(Spectra.load(measured))


@pytest.fixture
def at_k(measured: Path) -> Opened:
    return Opened(Spectra.load(measured), k=3)
