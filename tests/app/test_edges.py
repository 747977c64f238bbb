"""What the system refuses or takes away in the middle: said plainly, and the rest goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Cli
from vlora_engine.catalog.scanner import scan

Close = Callable[[Path], None]


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def test_a_closed_directory_is_a_finding_and_the_scan_goes_on(
    cli: Cli, folder: Path, closed: Close
) -> None:
    closed(folder / "task01")
    out = cli("inspect", folder).out
    assert f"{folder / 'task01'}: The directory may not be read" in out
    assert all(name in out for name in ("task00", "task02", "task03"))
    catalog = scan([folder])
    assert len(catalog.adapters) == 3
    assert [f.remedy for f in catalog.findings if f.code == "closed-directory"] == [
        "check its permissions"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every directory")
def test_a_directory_that_can_be_listed_but_not_entered(folder: Path) -> None:
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "inner").chmod(0o400)
    try:
        found = [f.where for f in scan([folder]).findings if f.code == "closed-directory"]
    finally:
        (folder / "inner").chmod(0o700)
    assert found == [str(folder / "inner" / "deep")]


def test_a_directory_that_cannot_be_asked_about_is_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refuses(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path) == str(folder / "task02"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuses)
    catalog = scan([folder])
    assert [f.where for f in catalog.findings if f.code == "closed-directory"] == [
        str(folder / "task02")
    ]
    assert len(catalog.adapters) == 3


def test_a_directory_that_goes_away_while_it_is_scanned_is_no_finding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def vanishing(path: Any) -> Any:
        if str(path) == str(folder / "task00"):
            shutil.rmtree(folder / "task01")
            shutil.rmtree(folder / "task02")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    catalog = scan([folder])
    assert [info.name for info in catalog.adapters] == ["task00", "task03"]
    assert [f for f in catalog.findings if f.code == "closed-directory"] == []


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_that_may_not_be_read_is_named_and_the_others_are_listed(
    cli: Cli, folder: Path, tmp_path: Path, closed: Close, file: str
) -> None:
    place = folder / "task01" / file
    closed(place)
    row = next(i for i in scan([folder]).adapters if i.path == folder / "task01")
    assert row.error is not None
    assert "cannot be read: Permission denied" in row.error.what
    assert str(place) in str(row.error.where)
    found = cli("inspect", folder).out
    assert "Permission denied" in found
    assert cli("compress", folder, "-o", tmp_path / "s", "-k", "2", code=None).code != 0
    assert not (tmp_path / "s").exists()
    cli("compress", folder, "-o", tmp_path / "s", "-k", "2", "--skip-bad")
    assert (tmp_path / "s" / "subspace.json").is_file()


@pytest.mark.parametrize("command", ["start", "list"])
def test_jobs_without_a_state_directory_say_which_and_the_rest_works(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[input]\nadapters = ["{runs}"]\n[compress]\nk = 2\n[output]\nsubspace = "s"\n'
    )
    if command == "start":
        told = cli("jobs", "start", recipe, code=1).err
        assert "The state directory cannot be used" in told
        assert str(tmp_path / "taken") in told
        assert "--state-dir" in told
        cli("jobs", "start", recipe, "--state-dir", tmp_path / "other")
    else:
        assert cli("jobs", "list", "--json").data["jobs"] == []
    cli("compress", runs, "-o", tmp_path / "alone", "-k", "2")  # that is no job
    assert (tmp_path / "alone" / "subspace.json").is_file()


@pytest.mark.parametrize(
    "line",
    [
        "compress {a} {b} {junk} -o {out}",
        "compress {a} {b} {junk} -o {out} --dry-run",
        "export {a} {junk} -o {out}",
        "resize {a} {junk} --rank 2 -o {out}",
        "convert {a} {junk} --to mlx -o {out}",
    ],
)
def test_a_named_file_that_is_no_adapter_is_not_passed_over_in_silence(
    cli: Cli, runs: Path, tmp_path: Path, line: str
) -> None:
    junk = tmp_path / "notes.txt"
    junk.write_text("no adapter")
    places = {"a": runs / "task00", "b": runs / "task01", "junk": junk, "out": tmp_path / "o"}
    said = cli(*(word.format(**places) for word in line.split())).err
    assert f"{junk}: There is no adapter here" in said
