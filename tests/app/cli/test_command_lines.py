"""Our own command lines and those of both peers work as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.app.conftest import Cli
from vlora_engine.analysis.compare import adapter_diff, diff_total
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_tui.cli.argv import prepare


def task(runs: Path, number: int) -> Path:
    return runs / f"task{number:02d}"


def difference(one: str | Path, other: str | Path) -> float:
    return diff_total(adapter_diff(open_adapter(one), open_adapter(other)))["relative_difference"]


@pytest.mark.parametrize(
    ("line", "prepared"),
    [
        ("compress a b --names x y -o d", "compress a b --names x --names y -o d"),
        ("compress --names x y z", "compress --names x --names y --names z"),
        ("compress a --names x --names y b", "compress a --names x --names y b"),
        ("compress a b --names=x --names y", "compress a b --names=x --names y"),
        ("compress --names x a --names y b", "compress --names x a --names y b"),
        ("compress a --names -o d", "compress a --names -o d"),
        ("run a b --headless --names x y", "run a b --headless --names x --names y"),
        ("merge a b --names x y", "merge a b --names x y"),
        ("compress a -vv -o d", "-vv compress a -o d"),
        ("info d --verbose", "--verbose info d"),
        ("diff -- -v b", "diff -- -v b"),
    ],
)
def test_what_the_parser_cannot_read_is_prepared(line: str, prepared: str) -> None:
    assert prepare(line.split()) == prepared.split()


def test_compress_with_k(cli: Cli, runs: Path, tmp_path: Path) -> None:
    places = [task(runs, 0), task(runs, 1), task(runs, 2)]
    cli("compress", *places, "-o", tmp_path / "s", "-k", "3")
    manifest = read_manifest(tmp_path / "s")
    assert list(manifest.tasks) == ["task00", "task01", "task02"]
    assert {(layer.k_a, layer.k_b) for layer in manifest.layers} == {(3, 3)}


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        (["--variance-threshold", "0.6"], {"variance": 0.6}),
        (["--variance-threshold", "0.6", "--adaptive-k"], {"variance": 0.6, "adaptive": True}),
        (["--adaptive-k"], {"variance": 0.6, "adaptive": True}),
        (["-k", "auto", "--variance", "0.9"], {"variance": 0.9}),
        (["-k", "auto"], {"variance": 0.95}),
        (["--num-components", "4"], {"k": 4}),
        (["--k-a", "4", "--k-b", "6"], {"k_a": 4, "k_b": 6}),
        (["--max-error", "0.1"], {"method": "auto", "max_error": 0.1}),
        (["--budget", "1MB"], {"method": "auto", "budget": 1_000_000}),
        (["--budget", "1MB", "--quantize", "nf4"], {"budget": 1_000_000, "quantize": "nf4"}),
        (["--variance", "0.9", "--method", "own"], {"method": "own", "variance": 0.9}),
        (["--layers", "*.c_attn=5", "-k", "4"], {"k": 4, "layers": {"*.c_attn": 5}}),
        (["--layers", "*.c_attn=5,7", "-k", "4"], {"k": 4, "layers": {"*.c_attn": [5, 7]}}),
        (
            ["-k", "4", "--quantize", "int4", "--block-size", "32", "--no-double-quant"],
            {"k": 4, "quantize": "int4", "block_size": 32, "double_quant": False},
        ),
        (["--device", "cpu", "-k", "2"], {"k": 2, "device": "cpu"}),
        ([], {"method": "auto"}),
    ],
)
def test_the_flags_become_a_recipe(
    cli: Cli, runs: Path, flags: list[str], target: dict[str, object]
) -> None:
    import tomllib

    words = ["compress", runs, "-o", "s", *flags, "--print-recipe"]
    tables = tomllib.loads(cli(*words).out)
    assert tables["compress"] == {"method": "delta", **target}
    assert tables["output"]["subspace"] == str(Path.cwd() / "s")


def test_a_variance_is_kept(cli: Cli, runs: Path, tmp_path: Path) -> None:
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "auto", "--variance", "0.95", "--json"]
    figures = cli(*words).data
    assert 0.95 <= figures["variance"] < 1


def test_a_budget_is_kept(cli: Cli, runs: Path, tmp_path: Path) -> None:
    cli("compress", runs, "-o", tmp_path / "s", "--budget", "20kB")
    taken = sum(file.stat().st_size for file in (tmp_path / "s").rglob("*") if file.is_file())
    assert taken <= 20_000


def test_without_k_or_target_no_task_loses_more_than_five_percent(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    found = cli("compress", runs, "-o", tmp_path / "s", "--json")
    figures = found.data
    assert figures["method"] == "auto"
    assert 0 < figures["max_error"] <= 0.05
    for number in range(4):
        name = f"task{number:02d}"
        measured = difference(task(runs, number), f"{tmp_path / 's'}:{name}")
        assert measured == pytest.approx(figures["task_errors"][name], rel=1e-4)
    assert figures["other_methods"] == []  # nothing was measured that was not needed


def test_other_methods_are_compared_where_spectra_know_them(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    def compressed(name: str) -> dict[str, Any]:
        return cli("compress", runs, "-o", tmp_path / name, "--method", "delta", "--json").data

    assert compressed("alone")["other_methods"] == []
    cli("spectra", runs, "-q")
    figures = compressed("compared")
    for file in (tmp_path / "alone").glob("*.safetensors"):  # on the spectra of one method or all
        assert file.read_bytes() == (tmp_path / "compared" / file.name).read_bytes()
    others = {row["method"]: row for row in figures["other_methods"]}
    assert set(others) == {"own", "auto", "columns", "flat"}
    assert others["columns"]["nbytes"] <= figures["nbytes"]


def test_compress_says_in_one_line_what_it_used(cli: Cli, runs: Path, tmp_path: Path) -> None:
    said = cli("compress", runs, "-o", tmp_path / "a").out.splitlines()
    assert said[0].startswith("auto, ")
    said = cli("compress", runs, "-o", tmp_path / "s", "--method", "delta").out.splitlines()
    assert said[0].startswith("delta, k = ")
    assert not any(line.startswith("same bytes") for line in said)
    cli("spectra", runs, "-q")
    said = cli("compress", runs, "-o", tmp_path / "t", "--method", "delta").out.splitlines()
    assert any(line.startswith("same bytes") and "columns" in line for line in said)


def test_names_are_given_as_lorashare_takes_them(cli: Cli, runs: Path, tmp_path: Path) -> None:
    places = [task(runs, 1), task(runs, 0)]
    cli("compress", *places, "--names", "eins", "../zwei", "-o", tmp_path / "s", "-k", "2")
    manifest = read_manifest(tmp_path / "s")
    assert set(manifest.tasks) == {"eins", "../zwei"}
    assert difference(task(runs, 0), f"{tmp_path / 's'}:../zwei") < 1
    assert [file.name for file in tmp_path.iterdir()] == ["s"]  # no name left the directory


def test_flags_without_effect_are_accepted_and_said_once(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "2"]
    found = cli(*words, "--layer-by-layer", "--chunk-size", "10")
    assert found.err.count("--layer-by-layer and --chunk-size: no effect") == 1
    assert "no effect" not in found.out


def test_info_as_json_keeps_the_first_librarys_words(cli: Cli, built: Path) -> None:
    data = cli("info", built, "--json").data
    assert data["num_tasks"] == 4
    assert data["task_ids"] == ["task00", "task01", "task02", "task03"]
    assert data["num_layers"] == 4
    assert data["num_components"] == 16
    assert data["rank"] == 4
    assert data["compression_ratio"] == pytest.approx(data["ratio"])
    assert "task03" in cli("info", built).out


def test_export_one_task(cli: Cli, runs: Path, built: Path, tmp_path: Path) -> None:
    cli("export", built, "task01", "-o", tmp_path / "one")
    assert difference(task(runs, 1), tmp_path / "one") < 1e-5
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config == json.loads((task(runs, 1) / "adapter_config.json").read_text())


def test_export_with_what_vlora_lets_one_say(cli: Cli, built: Path, tmp_path: Path) -> None:
    words = ["export", built, "task01", "-o", tmp_path / "one"]
    cli(*words, "--alpha", "32", "--base-model", "org/other", "--target-modules", "c_attn, c_proj")
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 32
    assert config["base_model_name_or_path"] == "org/other"
    assert sorted(config["target_modules"]) == ["c_attn", "c_proj"]
    # another alpha says the same weight change in other words
    assert difference(f"{built}:task01", tmp_path / "one") < 1e-6
    cli("export", built, "task01", "-o", tmp_path / "same")
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    scaled, plain = (
        load_file(tmp_path / name / "adapter_model.safetensors")[key] for name in ("one", "same")
    )
    assert (scaled * 4 == plain).all()  # the adapters were trained with alpha 8


def test_reconstruct_as_lorashare_has_it(cli: Cli, built: Path, tmp_path: Path) -> None:
    cli("reconstruct", built, "--adapter", "task02", "-o", tmp_path / "one")
    assert (tmp_path / "one" / "adapter_model.safetensors").is_file()
    cli("reconstruct", built, "--all", "-o", tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [
        f"task{number:02d}" for number in range(4)
    ]


def test_export_several_and_patterns(cli: Cli, built: Path, tmp_path: Path) -> None:
    rows = cli("export", built, "task0[12]", "task03", "-o", tmp_path / "o", "--json").data
    assert [row["task"] for row in rows["exported"]] == ["task01", "task02", "task03"]
    assert all(row["verified"] and row["verify_error"] < 1e-6 for row in rows["exported"])


@pytest.mark.parametrize("how", [[], ["--incremental"], ["--project"]])
def test_add(cli: Cli, runs: Path, tmp_path: Path, how: list[str]) -> None:
    first = [task(runs, 0), task(runs, 1), task(runs, 2)]
    cli("compress", *first, "-o", tmp_path / "s", "-k", "9")
    data = cli("add", tmp_path / "s", task(runs, 3), "--task-id", "new one", *how, "--json").data
    assert data["task"] == "new one"
    assert len(read_manifest(tmp_path / "s").tasks) == 4
    measured = difference(task(runs, 3), f"{tmp_path / 's'}:new one")
    assert measured == pytest.approx(data["error"], rel=1e-3)
    assert cli("validate", tmp_path / "s").code == 0


def test_remove(cli: Cli, subspace: Path) -> None:
    cli("remove", subspace, "task00", "task03")
    assert list(read_manifest(subspace).tasks) == ["task01", "task02"]
    assert not (subspace / "tasks" / "task00.safetensors").exists()
    assert cli("validate", subspace).code == 0


def test_analyze(cli: Cli, runs: Path) -> None:
    places = [task(runs, 0), task(runs, 1), task(runs, 2)]
    data = cli("analyze", *places, "--threshold", "0.9", "--json").data
    matrix = data["similarity_matrix"]
    assert matrix["task01"]["task01"] == pytest.approx(1)
    assert matrix["task00"]["task02"] == pytest.approx(matrix["task02"]["task00"])
    assert data["clusters"] == [["task00"], ["task01"], ["task02"]]
    assert data["redundant_count"] == 0
    assert data["threshold"] == 0.9
    assert "task02" in cli("analyze", *places).out


def test_analyze_finds_copies(cli: Cli, runs: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(task(runs, 0), tmp_path / "copy")
    data = cli("analyze", task(runs, 0), task(runs, 1), copy, "--json").data
    assert data["clusters"] == [["task00", "copy"], ["task01"]]
    assert data["redundant_count"] == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "ties", "--density", "0.5"],
        ["--method", "dare", "--drop-rate", "0.5", "--seed", "1"],
        ["--weights", "0.7,0.3"],
        ["--method", "average"],
        ["--space", "factors"],
        ["--rank", "2"],
    ],
)
def test_merge(cli: Cli, runs: Path, tmp_path: Path, flags: list[str]) -> None:
    data = cli("merge", task(runs, 0), task(runs, 1), "-o", tmp_path / "m", *flags, "--json").data
    assert data["adapters"] == ["task00", "task01"]
    assert open_adapter(tmp_path / "m").modules.keys() == open_adapter(task(runs, 0)).modules.keys()


def test_merge_weights_follow_the_order_given(cli: Cli, runs: Path, tmp_path: Path) -> None:
    cli("merge", task(runs, 3), task(runs, 0), "--weights", "1,0", "-o", tmp_path / "m")
    assert difference(task(runs, 3), tmp_path / "m") < 1e-5


def test_merge_takes_tasks_of_subspaces(cli: Cli, runs: Path, built: Path, tmp_path: Path) -> None:
    cli("merge", f"{built}:task00", task(runs, 0), "-o", tmp_path / "m")
    assert difference(task(runs, 0), tmp_path / "m") < 1e-5


def test_one_module_of_an_adapter_and_of_two(cli: Cli, runs: Path, built: Path) -> None:
    name = "transformer.h.0.attn.c_proj"
    one = cli("module", task(runs, 0), name, "--json").data
    assert one["places"] == [str(task(runs, 0))]
    assert len(one["singular_values"]) == one["rank"] == 4
    two = cli("module", task(runs, 0), f"{built}:task01", name, "--json").data
    assert two["a"] == {key: one[key] for key in two["a"]}
    told = adapter_diff(open_adapter(task(runs, 0)), open_adapter(f"{built}:task01"))[name]
    assert two["cosine"] == pytest.approx(told["cosine_sim"])
    assert two["relative_difference"] == pytest.approx(told["relative_difference"])
    shown = cli("module", task(runs, 0), task(runs, 1), name).out
    assert f"{two['a']['singular_values'][0]:.4g}" in shown
    assert "principal angles" in shown
    assert "did you mean" in cli("module", task(runs, 0), name[:-1], code=2).err
    assert "One adapter or two" in cli("module", name, code=2).err


def test_diff_of_two_tasks_of_a_subspace(cli: Cli, runs: Path, built: Path) -> None:
    data = cli("diff", built, "task00", "task01", "--json").data
    expected = difference(task(runs, 0), task(runs, 1))
    assert data["total"]["relative_difference"] == pytest.approx(expected, rel=1e-4)
    assert len(data["modules"]) == 4


@pytest.mark.parametrize("swap", [False, True])
def test_diff_of_an_adapter_and_a_task(cli: Cli, runs: Path, built: Path, swap: bool) -> None:
    places = [task(runs, 0), f"{built}:task00"]
    found = cli("diff", *(reversed(places) if swap else places))
    assert "of the first's dW" in found.out  # what the share is a share of
    assert float(cli("diff", *places, "-q").out) < 1e-5


def test_spectra_are_kept_and_used_again(cli: Cli, runs: Path, tmp_path: Path) -> None:
    first = cli("spectra", runs, "--json").data
    again = cli("spectra", runs, "--json").data
    assert (first["reused"], again["reused"]) == (False, True)
    assert first["costs"] == again["costs"]
    assert first["path"] == again["path"]
    elsewhere = cli("spectra", runs, "-o", tmp_path / "spectra", "--json").data
    assert elsewhere["costs"] == first["costs"]
    words = ["compress", runs, "--method", "delta", "--max-error", "0.2", "-o"]
    assert "spectra taken from" in cli(*words, tmp_path / "s").err
    cli(*words, tmp_path / "t", "--spectra", tmp_path / "spectra")
    files = ["subspace.json", "basis.safetensors"]
    for name in files:
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "t" / name).read_bytes()


def test_predictions_are_what_is_then_measured(cli: Cli, runs: Path, tmp_path: Path) -> None:
    rows = cli("spectra", runs, "--json").data["costs"]
    row = next(row for row in rows if row["method"] == "delta" and row["k"] == 4)
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "4", "--json"]
    figures = cli(*words).data
    assert figures["mean_error"] == pytest.approx(row["mean_error"], rel=1e-2)


def test_benchmark(cli: Cli, built: Path) -> None:
    rows = cli("benchmark", built, "--repeats", "2", "--json").data["operations"]
    assert len(rows) >= 4
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in rows)
    assert "median" in cli("benchmark", built, "--repeats", "1").out


def test_inspect(cli: Cli, runs: Path) -> None:
    data = cli("inspect", runs, "--json").data
    assert [row["name"] for row in data["adapters"]] == [f"task{n:02d}" for n in range(4)]
    assert len(data["groups"]) == 1
    shown = cli("inspect", f"{runs}/task0[01]").out
    assert "task01" in shown
    assert "task02" not in shown
    assert cli("inspect", runs, "-q").out.split() == [f"task{n:02d}" for n in range(4)]
