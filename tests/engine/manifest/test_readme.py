"""The README in a subspace's directory: its figures, in the form that all of the program has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.utils.naming import percent_text


@pytest.mark.parametrize(
    ("target", "stored"),
    [({"k": 2}, "stored in "), ({"max_error": 0.05}, "stored as coded bits.")],
)
def test_figures_are_those_of_the_index(
    target: dict[str, float], stored: str, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    paths = make.collection(tmp_path / "in", 3)
    build_subspace({path.name: open_adapter(path) for path in paths}, out, **target)
    manifest = read_manifest(out)
    card = (out / "README.md").read_text("utf-8")
    assert manifest.worst is not None
    for error in (manifest.mean_error, manifest.worst.error):
        assert f"{100 * error:.3g} %" in card
    assert re.findall(r"\d%", card) == []
    assert stored in card
    assert "in as" not in card


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0498, "4.98 %"), (0.05, "5 %"), (0, "0 %"), (3e-8, "<0.001 %"), (1e-5, "0.001 %"),
        (0.9999, "100 %"), (1.0, "100 %"), (12.345, "1234 %"),
    ],
)  # fmt: skip
def test_percent_has_one_form(share: float, shown: str) -> None:
    assert percent_text(share) == shown
