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


ONTO = {
    "export": ["export", "S", "task00"],
    "export to a server": ["export", "S", "task00", "--target", "vllm"],
    "resize a task": ["resize", "S:task00", "--rank", "2"],
    "convert a task": ["convert", "S:task00", "--to", "peft"],
    "convert a subspace": ["convert", "S", "--to", "lorashare"],
    "merge tasks": ["merge", "S:task00", "S:task01"],
    "compress a task": ["compress", "S:task00", "S:task01", "-k", "2"],
    "quantize": ["quantize", "S"],
    "compact": ["compact", "C"],
}


@pytest.mark.parametrize("command", ONTO)
def test_what_a_task_was_made_from_is_not_written_over(
    places: Path, cli: Cli, command: str
) -> None:
    cli("compress", "A", "B", "--names", "task00", "task01", "-k", "2", "-o", "S", "--force")
    cli("compress", "A", "B", "--names", "task00", "task01", "-o", "C")
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    for name in ("A", "A-link", "../all/A/", "A/inside", str(places.parent / "link" / "A")):
        told = cli(*ONTO[command], "-o", name, "--force", code=2).err
        assert "task was made from" in told or "lies inside" in told, (name, told)
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before


def test_files_beside_the_output_go_into_no_input_either(places: Path, cli: Cli) -> None:
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    for target in ("A/adapter_config.json", "A/adapter_model.safetensors", "A/new.csv", "S/x.csv"):
        cli("analyze", "A", "B", "--csv", target, "--force", code=2)
    for target in ("S/report.md", "A-link/report.md"):
        cli("report", "A", "B", "-o", target, "--force", code=2)
    for target in ("A/adapter_model.safetensors", "A/adapter_config.json", "S/README.md"):
        told = cli("resize", "A", "--rank", "2", "-o", "new", "--events", target, code=2).err
        assert "holds something else" in told
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before
    assert not Path("new").exists()


def test_beside_an_input_is_room(places: Path, cli: Cli) -> None:
    cli("convert", "A", "--to", "mlx", "-o", "A-mlx")
    cli("resize", "S:task00", "--rank", "2", "-o", "S2")
