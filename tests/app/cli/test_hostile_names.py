"""Tasks whose names look like patterns: a name stands for its task, and for no other."""

from __future__ import annotations

import os
import tomllib
from glob import escape
from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.shared_subspace import SharedSubspace

NAMES = ["*", "[a]", "?", "a", "b"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    paths = make.collection(tmp_path / "in", len(NAMES))
    adapters = [load_adapter(path) for path in paths]
    SharedSubspace.from_adapters(adapters, NAMES, num_components=4).save(tmp_path / "s")
    return tmp_path / "s"


def same(path: Path, place: Path, name: str) -> bool:
    """Whether the adapter at ``path`` is this task of the subspace."""
    found, meant = load_adapter(path), SharedSubspace.load(place).reconstruct(name)
    return all(torch.equal(found.lora_a[n], meant.lora_a[n]) for n in meant.layer_names)


def test_all_are_all(place: Path, cli: Cli, tmp_path: Path) -> None:
    shown = cli("export", place, "--all", "-o", tmp_path / "out", "--json").data["exported"]
    assert sorted(row["task"] for row in shown) == sorted(NAMES)
    assert all(same(Path(row["path"]), place, row["task"]) for row in shown)
    assert len(os.listdir(tmp_path / "out")) == len(NAMES)


def test_all_are_all_in_a_recipe_too(place: Path, cli: Cli, tmp_path: Path) -> None:
    words = ["export", place, "--all", "-o", tmp_path / "out"]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(cli(*words, "--print-recipe").out)
    assert "tasks" not in tomllib.loads(recipe.read_text())["export"][0]
    cli("run", "--headless", recipe)
    assert len(os.listdir(tmp_path / "out")) == len(NAMES)


@pytest.mark.parametrize("table", ["export", "resize", "convert"])
def test_a_star_in_a_recipe_is_all(place: Path, cli: Cli, tmp_path: Path, table: str) -> None:
    recipe, more = tmp_path / "r.toml", {"resize": "rank = 2", "convert": 'to = "peft"'}
    rows = ['tasks = ["*"]', f'path = "{tmp_path}/out/{{task}}"', more.get(table, "")]
    recipe.write_text("\n".join([f'[input]\nsubspace = "{place}"\n[[{table}]]', *rows]))
    cli("run", "--headless", recipe)
    assert len(os.listdir(tmp_path / "out")) == len(NAMES)


@pytest.mark.parametrize("word", ["?", "[a]"])
def test_a_name_that_is_a_pattern_of_others_is_refused_in_a_recipe(
    place: Path, cli: Cli, tmp_path: Path, word: str
) -> None:
    recipe = tmp_path / "r.toml"

    def write(name: str) -> None:
        table = f'[[export]]\ntasks = ["{name}"]\npath = "{tmp_path}/out"'
        recipe.write_text(f'[input]\nsubspace = "{place}"\n{table}')

    write(word)
    said = cli("run", "--headless", recipe, code=2).err
    assert "matches others" in said
    assert escape(word) in said
    assert not (tmp_path / "out").exists()
    write(escape(word))
    cli("run", "--headless", recipe)
    assert same(tmp_path / "out", place, word)


def test_several_by_their_names(place: Path, cli: Cli, tmp_path: Path) -> None:
    cli("export", place, "*", "[a]", "-o", tmp_path / "out")
    found = sorted((tmp_path / "out").iterdir())
    assert len(found) == 2
    assert all(any(same(path, place, name) for path in found) for name in ("*", "[a]"))


@pytest.mark.parametrize("name", NAMES[:3])
def test_one_by_its_name(place: Path, cli: Cli, tmp_path: Path, name: str) -> None:
    cli("export", place, name, "-o", tmp_path / "one")
    assert same(tmp_path / "one", place, name)
    cli("merge", f"{place}:{name}", f"{place}:b", "-o", tmp_path / "merged")
    cli("resize", f"{place}:{name}", "--rank", "2", "-o", tmp_path / "resized")
    assert float(cli("diff", f"{place}:{name}", tmp_path / "one", "-q").out) < 1e-5
    cli("remove", place, name)
    assert sorted(read_manifest(place).tasks) == sorted(set(NAMES) - {name})


def test_a_pattern_is_one_still(place: Path, cli: Cli, tmp_path: Path) -> None:
    shown = cli("export", place, "[ab]", "-o", tmp_path / "out", "--json").data["exported"]
    assert sorted(row["task"] for row in shown) == ["a", "b"]
