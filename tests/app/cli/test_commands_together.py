"""Commands that change one subspace at the same time: none undoes what another has done.

Real processes. This one holds the lock until both have said that they wait for it: whichever goes
first then, the other must see what it wrote.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.utils.locks import changing, lock_path
from vlora_engine.utils.outputs import new_directory

WORKED_ON = ["task00", "task01", "task02", "task03"]


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """Two adapters that are not in the subspace."""
    make.collection(tmp_path / "late", 2)
    return tmp_path / "late"


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A command line in a process of its own, which has come so far that it waits."""
    command = [sys.executable, "-m", "vlora_tui", *map(str, words)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            assert "waiting for another command on" in said, said + process.stderr.read()
            yield process
        finally:
            process.kill()


def together(place: Path, *commands: tuple[object, ...]) -> None:
    """Run commands at the same time, each to its good end."""
    with changing(place):
        one, two = (started(*command) for command in commands)
        first, second = one.__enter__(), two.__enter__()
    for running, process in ((one, first), (two, second)):
        _, said = process.communicate()
        assert process.returncode == 0, said
        running.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("one", "other"),
    [("--project", "--project"), ("--incremental", "--project"), (None, "--incremental")],
)
def test_two_that_add_both_add(subspace: Path, late: Path, one: str | None, other: str) -> None:
    ways = [[way] if way else [] for way in (one, other)]
    together(
        subspace,
        ("add", subspace, late / "task00", "--task-id", "first", *ways[0]),
        ("add", subspace, late / "task01", "--task-id", "second", *ways[1]),
    )
    assert sorted(read_manifest(subspace).tasks) == ["first", "second", *WORKED_ON]
    assert not [f for f in check_subspace(subspace) if f.severity != "note"]


def test_one_that_adds_and_one_that_removes(subspace: Path, late: Path) -> None:
    together(
        subspace,
        ("add", subspace, late / "task00", "--task-id", "first"),
        ("remove", subspace, "task02"),
    )
    assert sorted(read_manifest(subspace).tasks) == ["first", "task00", "task01", "task03"]


def test_one_that_compacts_and_one_that_adds(
    runs: Path, late: Path, cli: Cli, tmp_path: Path
) -> None:
    place = tmp_path / "coded"
    cli("compress", runs, "-o", place, "-q")
    together(place, ("compact", place), ("add", place, late / "task00", "--task-id", "first", "-q"))
    assert sorted(read_manifest(place).tasks) == ["first", *WORKED_ON]


def test_every_name_of_a_directory_has_its_one_lock(
    subspace: Path, late: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(subspace)
    monkeypatch.chdir(tmp_path)
    together(
        subspace,
        ("add", "link", late / "task00", "--task-id", "first"),
        ("remove", f"./{subspace.name}/", "task02"),
    )
    assert sorted(read_manifest(subspace).tasks) == ["first", "task00", "task01", "task03"]
    assert (tmp_path / "link").is_symlink()


def test_no_wait_refuses(subspace: Path, late: Path, cli: Cli) -> None:
    program = [sys.executable, "-m", "vlora_tui"]
    before = read_manifest(subspace)
    with changing(subspace):
        for words in (["add", subspace, late / "task00"], ["remove", subspace, "task00"]):
            done = subprocess.run(
                [*program, *map(str, words), "--no-wait"], capture_output=True, text=True
            )
            assert done.returncode == 2
            assert "Another command is changing this directory" in done.stderr
            assert "waiting" not in done.stderr
    assert read_manifest(subspace) == before
    cli("remove", subspace, "task00", "--no-wait")  # nobody has it now
    assert "task00" not in read_manifest(subspace).tasks


def test_a_save_waits_too_and_then_sees_that_it_comes_too_late(subspace: Path) -> None:
    program = f"""
import logging
from vlora_engine.subspace import SharedSubspace
logging.basicConfig()
opened = SharedSubspace.load({str(subspace)!r})
opened.remove_task("task01")
opened.save({str(subspace)!r})
"""
    with changing(subspace):
        process = subprocess.Popen([sys.executable, "-c", program], stderr=-1, text=True)
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "waiting for another command on" in said, said
        own = SharedSubspace.load(subspace)
        own.remove_task("task02")
        own.save(subspace)  # the holder itself does not wait
    _, said = process.communicate()
    assert process.returncode == 1
    assert "ConflictError" in said
    assert "removed since: task02" in said
    assert sorted(read_manifest(subspace).tasks) == ["task00", "task01", "task03"]


def test_what_is_changed_is_not_replaced_meanwhile(runs: Path, subspace: Path, cli: Cli) -> None:
    words = ["compress", runs, "-o", subspace, "-k", "4", "--force"]
    before = read_manifest(subspace)
    with changing(subspace):
        done = subprocess.run(
            [sys.executable, "-m", "vlora_tui", *map(str, words)], capture_output=True, text=True
        )
    assert done.returncode == 1
    assert "writing this output right now" in done.stderr
    assert read_manifest(subspace) == before
    cli(*words)
    assert {layer.k_a for layer in read_manifest(subspace).layers} == {4}


def test_the_lock_is_in_nobodys_way(subspace: Path, late: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.rmtree(late / "task01")
    cli("add", subspace, late / "task00", "--task-id", "first", "--project")
    assert lock_path(subspace) == tmp_path / ".subspace.lock"
    assert sorted(os.listdir(tmp_path)) == [".subspace.lock", "late", "subspace"]
    assert ".lock" not in cli("inspect", tmp_path, "--json").out
    assert cli("validate", subspace).code == 0
    with new_directory(tmp_path / "other") as partial:
        (partial / "file").write_text("an output that nobody changes leaves no lock")
    assert sorted(os.listdir(tmp_path)) == [".subspace.lock", "late", "other", "subspace"]
