"""What killed commands left: `validate` names it, the next command that writes there sweeps it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from vlora_engine.catalog.read import read_manifest

BESIDE = (".subspace.gone-12-1", ".subspace.part-save", ".subspace.part-convert")
INSIDE = (".subspace.json.part", ".README.md.part-12-34", "tasks/.task00.safetensors.part")


@pytest.fixture
def littered(subspace: Path) -> Path:
    """A subspace with all that a kill can leave, and a file that somebody else put there."""
    for name in BESIDE:
        shutil.copytree(subspace, subspace.with_name(name))
    for name in INSIDE:
        (subspace / name).write_bytes(b"half")
    files = sorted((subspace / "tasks").glob("task*"))
    shutil.copy(files[0], subspace / "tasks" / "gone.safetensors")
    (subspace / "tasks" / "cut.safetensors").write_bytes(files[0].read_bytes()[:20])
    (subspace / "notes.txt").write_text("mine")
    return subspace


def left(subspace: Path) -> list[str]:
    hidden = [p.name for p in subspace.parent.iterdir() if p.name.startswith(".subspace.")]
    inside = [str(p.relative_to(subspace)) for p in subspace.rglob("*") if p.name.startswith(".")]
    known = {record.file for record in read_manifest(subspace).tasks.values()}
    loose = [name for name in os.listdir(subspace / "tasks") if name not in known]
    return sorted({*hidden, *inside, *loose} - {".subspace.lock"})


def test_validate_names_each_with_the_command_that_deletes_it(cli: Cli, littered: Path) -> None:
    said = cli("validate", littered, code=3).out
    for name in (*INSIDE, "tasks/gone.safetensors", "tasks/cut.safetensors"):
        assert f"rm -r {littered / name}" in said, name
    for name in BESIDE:
        assert f"rm -r {littered.with_name(name)}" in said, name
    assert "notes.txt" in said
    assert f"rm -r {littered / 'notes.txt'}" not in said
    assert left(littered)  # it only says so


@pytest.mark.parametrize("how", ["add", "remove", "failed add"])
def test_the_next_command_in_place_sweeps(cli: Cli, littered: Path, runs: Path, how: str) -> None:
    if how == "add":
        cli("add", littered, runs / "task00", "--task-id", "new")
    elif how == "remove":
        cli("remove", littered, "task01")
    else:
        cli("add", littered, runs / "task00", code=2)  # it has that task
        assert left(littered) == ["cut.safetensors", "gone.safetensors"]
        return
    assert left(littered) == []
    assert (littered / "notes.txt").read_text() == "mine"


def test_none_of_it_makes_force_refuse(cli: Cli, littered: Path, runs: Path) -> None:
    (littered / "notes.txt").unlink()
    cli("compress", runs, "-o", littered, "-k", "2", "--force")
    assert left(littered) == []
    assert cli("validate", littered, "--json").data["findings"] == []
