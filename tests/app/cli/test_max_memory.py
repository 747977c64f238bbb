"""A limit of memory: as a flag of every command, in a recipe, and by a variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.engine.test_shared_subspace import files
from vlora_engine.utils import memory, workers
from vlora_engine.utils.memory import VARIABLE
from vlora_tui.cli.argv import prepare
from vlora_tui.recipe.reader import parse_recipe
from vlora_tui.recipe.table import RecipeError


@pytest.fixture(autouse=True)
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process held nothing yet, on a machine of four cores."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(memory, "held", lambda: 0)
    monkeypatch.setattr(workers, "cores", lambda: 4)


@pytest.mark.parametrize(
    "words",
    [
        ["--max-memory", "4GB", "info", "DIR"],
        ["info", "--max-memory", "4GB", "DIR"],
        ["info", "DIR", "--max-memory", "4GB"],
    ],
)
def test_the_flag_may_stand_anywhere(words: list[str]) -> None:
    assert prepare(words) == ["--max-memory", "4GB", "info", "DIR"]
    glued = ["info", "DIR", "--max-memory=4GB", "--", "--max-memory", "x"]
    assert prepare(glued) == ["--max-memory=4GB", "info", "DIR", "--", "--max-memory", "x"]


def test_a_build_under_a_limit_is_the_same_and_says_so(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    cli("compress", runs, "-o", tmp_path / "free", "-k", "3")
    told = cli("compress", runs, "-o", tmp_path / "kept", "-k", "3", "--max-memory", "60MB")
    assert files(tmp_path / "free") == files(tmp_path / "kept")
    assert "at a time where 4 cores are free" in told.err
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("command", ["compress", "spectra", "merge", "analyze", "interference"])
def test_every_step_refuses_what_does_not_fit(
    command: str, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    places = sorted(runs.iterdir())[:2]
    output = [] if command in ("analyze", "interference") else ["-o", tmp_path / "out"]
    told = cli(command, *places, *output, "--max-memory", "1MB", code=1)
    assert "too little memory" in told.err
    assert "--max-memory" in told.err
    assert not (tmp_path / "out").exists()


def test_a_recipe_has_a_limit(cli: Cli, runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'max_memory = "1MB"\n[input]\nadapters = ["{runs}"]\n'
        f'[compress]\nmethod = "delta"\nk = 3\n[output]\nsubspace = "{tmp_path / "out"}"\n'
    )
    told = cli("run", "--headless", recipe, code=1)
    assert "too little memory" in told.err
    assert VARIABLE not in os.environ
    recipe.write_text(recipe.read_text().replace("1MB", "1 GiB"))
    cli("run", "--headless", recipe)
    with pytest.raises(RecipeError, match="no size"):
        parse_recipe('max_memory = "much"\n[input]\nadapters = ["a"]\n')


def test_the_recipe_of_a_command_has_its_limit(cli: Cli, runs: Path, tmp_path: Path) -> None:
    words = ("compress", runs, "-o", tmp_path / "out", "-k", "3", "--print-recipe")
    printed = cli(*words, "--max-memory", "4GB").out
    recipe = parse_recipe(printed)
    assert recipe.max_memory == 4 * 10**9
    assert parse_recipe(recipe.to_toml()) == recipe
    assert parse_recipe(cli(*words).out).max_memory is None


def test_what_is_no_size_is_refused(cli: Cli, runs: Path) -> None:
    told = cli("analyze", runs, "--max-memory", "lots", code=2)
    assert "--max-memory" in told.err
    assert "no size" in told.err
