"""The demo: the whole way, every figure measured, every command that it proposes works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.faults.commands import demo_adapters_small
from vlora_engine import demo
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_tui.cli.demo import next_commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "vlora demo"  # a space, as people have them


@pytest.mark.slow
def test_the_demo_end_to_end(cli: Cli, place: Path) -> None:
    data = cli("demo", place, "--json").data
    assert data["adapters"] == 19
    assert [left["name"] for left in data["left_out"]] == ["broken-nan"]
    manifest = read_manifest(place / "subspace")
    assert len(manifest.tasks) == 18
    assert data["subspace"]["max_error"] == pytest.approx(manifest.worst.error)  # type: ignore[union-attr]
    assert data["subspace"]["max_error"] <= 0.05
    assert len(data["exported"]) == 18
    assert all(row["error"] < 1e-6 for row in data["exported"])
    for row in data["exported"]:
        assert open_adapter(row["path"]).modules
    for words in next_commands(data):
        cli(*words)

    # once more, on what is there: the same story
    told = cli("demo", place)
    assert told.err == ""
    _, _, left = told.out.partition("left out: broken-nan: ")
    assert "exact, but for rounding" in told.out
    assert "smaller" in told.out
    assert "x larger" in told.out
    assert "each read back: the same dW" in told.out
    assert "e-0" not in told.out
    assert left.startswith("The adapter holds NaN (1 of 2048 entries not finite)\n")
    assert left.splitlines()[1].strip().startswith("tensor model.layers.")
    assert "no task above 5 %" in told.out
    assert "18 adapters" in told.out
    lines = told.out.splitlines()
    assert len(lines) <= 24
    assert all(len(line.replace(str(place), "demo")) <= 120 for line in lines)
    assert cli("demo", place, "-q").out == f"{place}\n"


def test_the_demo_tells_its_story_without_a_cache(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DEMO_ADAPTERS", demo_adapters_small())
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    told = cli("demo", tmp_path / "demo").out
    assert "The cache cannot be written." in told
    assert "each read back: the same dW" in told
    assert cli("demo", tmp_path / "demo", "--json").data["costs"] == []


def test_the_demo_does_not_touch_what_is_not_its_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "mine.txt").write_text("precious")
    found = cli("demo", tmp_path, code=2)
    assert "other files" in found.err
    assert (tmp_path / "adapters" / "mine.txt").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["adapters"]


def test_the_demo_replaces_no_subspace_that_it_did_not_make(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "subspace").mkdir()
    (tmp_path / "subspace" / "mine.txt").write_text("precious")
    found = cli("demo", tmp_path, code=2)
    assert "already exists" in found.err
    assert (tmp_path / "subspace" / "mine.txt").read_text() == "precious"
