"""What writes several adapters can be run again: what is there and the same stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.witnesses.files import tree


@pytest.fixture(params=["export", "resize", "convert", "repair"])
def words(request: pytest.FixtureRequest, built: Path, runs: Path, tmp_path: Path) -> list[str]:
    """A command that writes four adapters to ``tmp_path / "out"``."""
    what = {
        "export": ["export", str(built), "--all"],
        "resize": ["resize", str(runs), "--rank", "2"],
        "convert": ["convert", str(runs), "--to", "mlx"],
        "repair": ["doctor", str(runs), "--fix"],
    }
    return [*what[request.param], "-o", str(tmp_path / "out")]


def test_what_is_missing_is_written_and_the_rest_is_skipped(
    cli: Cli, words: list[str], tmp_path: Path
) -> None:
    cli(*words)
    whole = tree(tmp_path / "out")
    kept = {p: p.stat().st_ino for p in (tmp_path / "out" / "task01").iterdir()}
    shutil.rmtree(tmp_path / "out" / "task02")
    data = cli(*words, "--json").data
    rows = next(v for v in data.values() if isinstance(v, list) and v and "skipped" in v[0])
    assert {Path(row["path"]).name: row["skipped"] for row in rows} == {
        "task00": True,
        "task01": True,
        "task02": False,
        "task03": True,
    }
    assert all(row.get("verified", True) for row in rows)
    assert tree(tmp_path / "out") == whole
    assert {p: p.stat().st_ino for p in (tmp_path / "out" / "task01").iterdir()} == kept
    assert "skipped" in cli(*words).out


def test_another_adapter_in_the_way_ends_it_before_anything_is_written(
    cli: Cli, words: list[str], tmp_path: Path
) -> None:
    cli(*words)
    config = tmp_path / "out" / "task03" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    for name in ("task00", "task02"):
        shutil.rmtree(tmp_path / "out" / name)
    before = tree(tmp_path / "out")
    said = cli(*words, code=2).err
    assert "Another adapter is in the place of an output" in said
    assert str(tmp_path / "out" / "task03") in said
    assert tree(tmp_path / "out") == before
    cli(*words, "--force")  # as it says
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "task00", "task01", "task02", "task03",
    ]  # fmt: skip
