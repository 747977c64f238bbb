"""``export --target``: what is written, what is printed, what is refused before anything is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.targets import TARGETS
from vlora_engine.targets.verify import verify_adapter
from vlora_tui.recipe.reader import load_recipe


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The config of the model that the adapters of `runs` fit."""
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 12}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_writes_reads_back_and_says_how_to_start(
    cli: Cli, built: Path, runs: Path, tmp_path: Path, base: Path, target: str
) -> None:
    out = tmp_path / "o"
    words = ["export", built, "--all", "--target", target, "-o", out, "--base", base]
    data = cli(*words, "--json").data
    assert [row["target"] for row in data["exported"]] == [target] * 4
    error = 1e-3 if target == "portable" else 1e-5
    for row in data["exported"]:
        assert row["verify_error"] < error
        assert open_adapter(row["path"]).modules
    meant = load_adapter(runs / "task02")
    assert verify_adapter(meant, out / "task02") < error
    said = cli(*words, "--force").out
    assert all(f"start it with: {line}" in said for line in data["start"])
    assert bool(data["start"]) == (target not in ("peft", "portable"))
    assert cli("diff", out / "task02", f"{built}:task02", "--json").data
    assert cli("inspect", out, "--json").data["adapters"][0]["error"] is None


def test_a_recipe_says_the_same(cli: Cli, built: Path, tmp_path: Path, base: Path) -> None:
    words = ["export", built, "task00", "-o", tmp_path / "a", "--target", "ollama"]
    words += ["--base", base, "--drop-rest"]
    text = cli(*words, "--print-recipe").out
    (tmp_path / "r.toml").write_text(text)
    (export,) = load_recipe(tmp_path / "r.toml").exports
    assert (export.target, export.base, export.drop_rest) == ("ollama", str(base), True)
    cli(*words)
    recipe = (tmp_path / "r.toml").read_text().replace(f"{tmp_path}/a", "b")
    (tmp_path / "r.toml").write_text(recipe.replace(str(base), "base"))
    data = cli("run", tmp_path / "r.toml", "--headless", "--json").data
    assert data["start"] == [f"ollama create task00 -f {tmp_path}/b/Modelfile"]
    for name in ("adapter.gguf", "Modelfile"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_task_that_does_not_fit_stops_all_before_the_first_is_written(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    tensors = {**make.factors(seed=1), f"{make.PREFIX}score.weight": torch.ones(2, 12)}
    make.write(tmp_path / "in" / "zz-head", tensors)
    cli("compress", runs, tmp_path / "in", "-o", tmp_path / "s", "-k", "4", "-q")
    before = sorted(os.listdir(tmp_path))
    words = ["export", tmp_path / "s", "--all", "--target", "vllm", "-o", tmp_path / "o"]
    for more in ([], ["--dry-run"]):
        found = cli(*words, *more, code=2)
        assert "vLLM takes no tensors besides A and B" in found.err
        assert "zz-head" in found.err
        assert "--drop-rest" in found.err
        assert sorted(os.listdir(tmp_path)) == before
    said = cli(*words, "--drop-rest")
    assert "Left out, as asked: 1 tensor besides" in said.err
    assert not open_adapter(tmp_path / "o" / "zz-head").rest


def test_a_build_that_could_not_be_exported_is_not_begun(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(
        f'[input]\nadapters = ["{runs}"]\n[compress]\nk = 4\n[output]\nsubspace = "s"\n'
        '[[export]]\ntarget = "llamacpp"\npath = "o/{task}"\n'
    )
    found = cli("run", tmp_path / "r.toml", "--headless", code=2)
    assert "--base DIR" in found.err
    assert os.listdir(tmp_path) == ["r.toml"]


def test_the_base_model_that_is_named_is_the_one_that_is_served(
    cli: Cli, built: Path, tmp_path: Path, base: Path
) -> None:
    words = ["export", built, "task00", "-o", tmp_path / "o"]
    data = cli(*words, "--target", "vllm", "--base-model", "org/other", "--json").data
    assert data["start"][0].startswith("vllm serve org/other --enable-lora --max-lora-rank 8 ")
    cli(*words, "--target", "llamacpp", "--base-model", base, "--force")  # its config is found
