"""No command writes over what it reads, whatever it is called and whatever --force says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.app.conftest import Cli

COMMANDS = {
    "convert": ["convert", "A", "--to", "mlx"],
    "convert a task": ["convert", "S:task00", "--to", "peft"],
    "convert a subspace": ["convert", "S", "--to", "lorashare"],
    "resize": ["resize", "A", "--rank", "2"],
    "resize a task": ["resize", "S:task00", "--rank", "2"],
    "merge": ["merge", "A", "B"],
    "merge tasks": ["merge", "S:task00", "S:task01"],
    "compress": ["compress", "A", "B", "-k", "2"],
    "quantize": ["quantize", "S"],
    "export": ["export", "S", "task00"],
    "spectra": ["spectra", "A", "B"],
}


@pytest.fixture
def places(runs: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place, name in ((runs / "task00", "A"), (runs / "task01", "B"), (built, "S")):
        shutil.copytree(place, tmp_path / "all" / name)
    (tmp_path / "link").symlink_to(tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    for name in "AS":
        Path(f"{name}-link").symlink_to(name)
    return tmp_path / "all"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_an_input_is_refused(places: Path, cli: Cli, command: str) -> None:
    words = COMMANDS[command]
    read = words[1].partition(":")[0]
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    names = [
        read,
        f"{read}/",
        f"../all/./{read}",
        str(places / read),
        str(places.parent / "link" / read),
        f"{read}-link",
        f"{read}/inside",
        str(places),
        "..",
    ]
    for name in names:
        told = cli(*words, "-o", name, "--force", code=2).err
        assert "one of the inputs" in told or "lies inside" in told, (name, told)
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before
    assert sorted(os.listdir(places)) == ["A", "A-link", "B", "S", "S-link"]


def test_beside_an_input_is_room(places: Path, cli: Cli) -> None:
    cli("convert", "A", "--to", "mlx", "-o", "A-mlx")
    cli("resize", "S:task00", "--rank", "2", "-o", "S2")
