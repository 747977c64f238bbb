"""The command line on real adapters: what is sound goes through, the rest is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.conftest import Cli


def test_everything_is_listed(cli: Cli, real_adapters: Path) -> None:
    data = cli("inspect", real_adapters, "--json").data
    assert len(data["adapters"]) >= 14
    refused = [row for row in data["adapters"] if row["error"]]
    assert refused
    assert all(row["error"]["what"] and row["error"]["remedy"] for row in refused)
    assert "cannot be used" in cli("inspect", real_adapters).out


def test_an_unknown_format_is_refused(cli: Cli, real_adapters: Path, tmp_path: Path) -> None:
    found = cli("compress", real_adapters / "sam-ranks", "-o", tmp_path / "s", "-k", "2", code=2)
    assert "fix" in found.err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_compress_export_and_diff(cli: Cli, real_adapters: Path, tmp_path: Path) -> None:
    folder = real_adapters / "roberta-checkpoints"
    figures = cli("compress", folder, "-o", tmp_path / "s", "--json").data
    assert figures["max_error"] <= 0.05
    assert figures["ratio"] > 1
    rows = cli("export", tmp_path / "s", "--all", "-o", tmp_path / "o", "--json").data["exported"]
    assert len(rows) == len(figures["tasks"])
    for row in rows:
        words = ["diff", folder / row["task"], row["path"], "--fail-above", "0.0501", "--json"]
        total = cli(*words).data["total"]
        expected = figures["task_errors"][row["task"]]
        assert total["relative_difference"] == pytest.approx(expected, rel=1e-3)
