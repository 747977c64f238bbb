"""Packed subspaces from the command line and from recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.engine.test_shared_subspace import files
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.quantization.packing import named_quantization, quantization


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_compress_packs(kind: str, cli: Cli, runs: Path, tmp_path: Path) -> None:
    flags = ("-o", tmp_path / "s", "-k", "4", "--quantize", kind)
    data = cli("compress", runs, *flags, "--json").data
    manifest = read_manifest(tmp_path / "s")
    assert manifest.quantization == named_quantization(kind)
    assert data["quantization"] == manifest.as_dict()["quantization"]
    assert data["quantization"]["bits"] == (8 if kind == "int8" else 4)
    assert f"stored in {kind} (loadings int8)" in cli("info", tmp_path / "s").out
    assert cli("info", tmp_path / "s", "--json").data["quantization"] == data["quantization"]
    assert "sound" in cli("validate", tmp_path / "s").out
    told = cli("compress", runs, *flags, "--force").out
    assert f"stored as {kind} (loadings int8)" in told
    cli("export", tmp_path / "s", "task00", "-o", tmp_path / "task00")
    true = dense_error(load_adapter(runs / "task00"), load_adapter(tmp_path / "task00"))
    assert data["task_errors"]["task00"] == pytest.approx(true, rel=1e-3)


def test_a_budget_is_kept_by_what_is_packed(cli: Cli, tmp_path: Path) -> None:
    modules = {f"layers.{i}.q_proj": (192, 256) for i in range(4)}
    for i in range(6):
        make.write(tmp_path / "in" / f"t{i}", make.factors(modules, seed=i))
    flags = ("--budget", "40kB", "--json")
    words = ("compress", tmp_path / "in", "--method", "delta")
    plain = cli(*words, "-o", tmp_path / "plain", *flags).data
    packed = cli(
        "compress", tmp_path / "in", "-o", tmp_path / "nf4", "--quantize", "nf4", *flags
    ).data
    assert read_manifest(tmp_path / "nf4").nbytes == packed["nbytes"] <= 40_000
    assert packed["mean_error"] < plain["mean_error"]
    for row in packed["other_methods"]:
        assert row["nbytes"] is None or row["nbytes"] <= packed["nbytes"]


def test_quantize_packs_what_is_there(cli: Cli, built: Path, runs: Path, tmp_path: Path) -> None:
    before = files(built)
    words = ("quantize", built, "-o", tmp_path / "q", "--bits", "4", "--block-size", "32")
    data = cli(*words, "--loadings", "--double-quant", "--json").data
    wanted = quantization("symmetric", 4, block_size=32, double_quant=True, loadings=True)
    assert read_manifest(tmp_path / "q").quantization == wanted
    assert data["nbytes"] < read_manifest(built).nbytes
    assert data["bounded"] == []
    loaded = SharedSubspace.load(tmp_path / "q")
    for name, error in data["task_errors"].items():
        true = dense_error(load_adapter(runs / name), loaded.reconstruct(name))
        assert error == pytest.approx(true, rel=1e-3)
    assert files(built) == before
    assert "exists" in cli(*words, code=2).err
    assert cli(*words, "--force", "-q").out.strip() == str(tmp_path / "q")


def test_errors_that_cannot_be_measured_are_called_bounds(cli: Cli, tmp_path: Path) -> None:
    runs = make.collection(tmp_path / "runs", 3)
    cli("compress", *runs, "-o", tmp_path / "s", "-k", "3")
    tensors = make.factors(seed=77)
    make.write(runs[1], tensors)  # it is another adapter now
    told = cli("quantize", tmp_path / "s", "-o", tmp_path / "q", "--method", "nf4")
    assert "of 1 task the adapter is gone or changed" in told.err
    rows = cli("info", tmp_path / "q").out.splitlines()
    assert [row.split()[0] for row in rows if "<=" in row] == ["task01"]


def test_a_dry_run_and_a_printed_recipe_write_nothing(
    cli: Cli, built: Path, tmp_path: Path
) -> None:
    words = ("quantize", built, "-o", tmp_path / "q", "--method", "nf4", "--loadings")
    assert str(tmp_path / "q") in cli(*words, "--dry-run").out
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(cli(*words, "--print-recipe").out)
    assert not (tmp_path / "q").exists()
    cli("run", "--headless", recipe)
    by_recipe = files(tmp_path / "q")
    cli(*words, "--force")
    assert files(tmp_path / "q") == by_recipe


def test_a_recipe_compresses_packs_and_exports(cli: Cli, runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[input]\nadapters = ["{runs}/*"]\n[compress]\nk = 3\nquantize = "int8"\n'
        '[output]\nsubspace = "s"\n[[export]]\npath = "e/{task}"\n'
    )
    cli("run", "--headless", recipe)
    assert read_manifest(tmp_path / "s").quantization == named_quantization("int8")
    again = SharedSubspace.load(tmp_path / "s").reconstruct("task02")
    assert dense_error(again, load_adapter(tmp_path / "e" / "task02")) < 1e-6
    flags = ("-o", tmp_path / "flags", "-k", "3", "--quantize", "int8")
    cli("run", "--headless", *sorted(runs.iterdir()), *flags)
    assert files(tmp_path / "flags") == files(tmp_path / "s")


def test_exports_of_a_recipe_that_quantizes_are_of_what_it_packed(
    cli: Cli, built: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[input]\nsubspace = "{built}"\n[quantize]\nbits = 4\n[output]\nsubspace = "q"\n'
        '[[export]]\ntasks = ["task01"]\npath = "e"\n'
    )
    told = cli("run", "--headless", recipe, "--json").data
    assert told["subspace"]["quantization"]["bits"] == 4
    packed = SharedSubspace.load(tmp_path / "q").reconstruct("task01")
    assert dense_error(packed, load_adapter(tmp_path / "e")) < 1e-6


def test_a_task_is_added_to_a_packed_subspace(cli: Cli, runs: Path, tmp_path: Path) -> None:
    some = [runs / f"task{i:02d}" for i in range(3)]
    cli("compress", *some, "-o", tmp_path / "s", "-k", "4", "--quantize", "int8")
    for i, flags in enumerate((["--project"], ["--incremental"], [])):
        cli("add", tmp_path / "s", runs / "task03", "--task-id", f"new{i}", *flags)
        assert read_manifest(tmp_path / "s").quantization == named_quantization("int8")
        assert "sound" in cli("validate", tmp_path / "s").out
    cli("remove", tmp_path / "s", "new0")
    index = json.loads((tmp_path / "s" / "subspace.json").read_text())
    assert {task["id"] for task in index["tasks"]} == {
        *(path.name for path in some), "new1", "new2",
    }  # fmt: skip
