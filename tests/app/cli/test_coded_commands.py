"""Coded collections from the command line and from recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.engine.test_shared_subspace import files
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_tui.recipe.reader import load_recipe

MODULES = {f"model.layers.{i}.q_proj": (96, 96) for i in range(2)}


@pytest.fixture(scope="module")
def related(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four adapters of one checkpoint, and a stranger."""
    folder = tmp_path_factory.mktemp("related") / "in"
    start = make.factors(MODULES, rank=4, seed=90)
    for i in range(4):
        step = make.factors(MODULES, rank=4, seed=i)
        make.write(folder / f"run{i}", {key: start[key] + 0.05 * step[key] for key in start})
    make.write(folder / "stranger", make.factors(MODULES, rank=4, seed=50))
    return folder


@pytest.fixture
def coded(related: Path, cli: Cli, tmp_path: Path) -> Path:
    cli("compress", related, "-o", tmp_path / "coded", "-q")
    return tmp_path / "coded"


def test_without_a_word_every_direction_gets_bits_of_its_own(
    related: Path, cli: Cli, tmp_path: Path
) -> None:
    data = cli("compress", related, "-o", tmp_path / "s", "--json").data
    assert data["method"] == "auto"
    assert data["coding"]["target"] == {"max_error": 0.05}
    assert 0.049 < data["max_error"] <= 0.05
    shown = cli("info", tmp_path / "s").out
    assert "auto" in shown
    told = cli("info", tmp_path / "s", "--json").data
    assert told["coding"] == data["coding"]
    assert told["bytes"] == data["nbytes"] == read_manifest(tmp_path / "s").nbytes
    cli("export", tmp_path / "s", "run1", "-o", tmp_path / "run1")
    true = dense_error(load_adapter(related / "run1"), load_adapter(tmp_path / "run1"))
    assert data["task_errors"]["run1"] == pytest.approx(true, rel=1e-3)


def test_a_coded_collection_is_quantized_to_the_bytes_of_its_packed_adapters(
    related: Path, cli: Cli, tmp_path: Path
) -> None:
    cli("compress", related, "-o", tmp_path / "s", "--max-error", "0.001")
    cli("quantize", tmp_path / "s", "-o", tmp_path / "q", "--dry-run")
    assert not (tmp_path / "q").exists()
    told = cli("quantize", tmp_path / "s", "-o", tmp_path / "q").err
    assert "recoded" in told
    nbytes = sum(p.stat().st_size for p in (tmp_path / "q").rglob("*") if p.is_file())
    manifest = read_manifest(tmp_path / "s")
    factors = sum(task.factor_elements for task in manifest.tasks.values())
    assert nbytes < factors * (1 + 2 / 64) + 1000
    assert "left as it is" in cli("quantize", tmp_path / "q", "-o", tmp_path / "again").err
    assert read_manifest(tmp_path / "again").tasks == read_manifest(tmp_path / "q").tasks
    cli("validate", tmp_path / "again")


def test_a_basis_is_made_in_place_and_used(related: Path, cli: Cli, tmp_path: Path) -> None:
    cli("compress", related, "-o", tmp_path / "s")
    before = files(tmp_path / "s" / "tasks")
    assert "Would make a basis" in cli("basis", tmp_path / "s", "--dry-run").out
    assert read_manifest(tmp_path / "s").version == 2
    data = cli("basis", tmp_path / "s", "--json").data
    assert data["variance"] >= 0.99
    assert data["error"] == pytest.approx((1 - data["variance"]) ** 0.5)
    assert files(tmp_path / "s" / "tasks") == before
    assert "beside the tasks" in cli("info", tmp_path / "s").out
    assert cli("info", tmp_path / "s", "--json").data["basis"]["k"] == data["k"]
    adapter = next(related.iterdir())
    assert cli("coverage", tmp_path / "s", adapter, "--json").data["adapters"][0]["coverage"] > 0.9
    assert cli("basis", tmp_path / "s", "-k", "2", "--json").data["k"] == [2, 2]
    cli("validate", tmp_path / "s")
    for wrong in (("-k", "0"), ("--variance", "2"), ("-k", "2", "--variance", "0.5")):
        cli("basis", tmp_path / "s", *wrong, code=2)
    cli("compress", related, "-o", tmp_path / "delta", "-k", "3")
    assert "has a basis" in cli("basis", tmp_path / "delta", code=2).err
    assert not list(tmp_path.glob(".*part*"))


def test_own_and_budgets(related: Path, cli: Cli, tmp_path: Path) -> None:
    words = ("compress", related, "--budget", "12kB", "--json")
    own = cli(*words, "-o", tmp_path / "own", "--method", "own").data
    auto = cli(*words, "-o", tmp_path / "auto", "--method", "auto").data
    for data in (own, auto):
        assert 11_700 < data["nbytes"] <= 12_000
    assert auto["mean_error"] < 0.7 * own["mean_error"]
    assert own["coding"]["modes"] == {}
    again = cli(*words, "-o", tmp_path / "again").data  # no method: auto
    assert again["mean_error"] == auto["mean_error"]
    assert files(tmp_path / "again") == files(tmp_path / "auto")


@pytest.mark.parametrize(
    ("flags", "method"),
    [((), "auto"), (("-k", "4"), "delta"), (("--quantize", "nf4", "-k", "4"), "delta")],
)
def test_the_method_where_none_is_named(
    flags: tuple[str, ...], method: str, related: Path, cli: Cli, tmp_path: Path
) -> None:
    assert cli("compress", related, "-o", tmp_path / "s", *flags, "--json").data["method"] == method


@pytest.mark.parametrize("flags", [("-k", "4"), ("--dtype", "fp16"), ("--refine", "1")])
@pytest.mark.parametrize("method", ["own", "auto"])
def test_what_belongs_to_a_basis_is_refused(
    method: str, flags: tuple[str, ...], related: Path, cli: Cli, tmp_path: Path
) -> None:
    found = cli("compress", related, "-o", tmp_path / "s", "--method", method, *flags, code=2)
    assert method in found.err
    assert not (tmp_path / "s").exists()


def test_a_budget_that_cannot_be_says_what_can(related: Path, cli: Cli, tmp_path: Path) -> None:
    found = cli("compress", related, "-o", tmp_path / "s", "--budget", "1kB", code=2)
    assert "at least" in found.err
    assert not (tmp_path / "s").exists()


def test_plan_tells_what_compress_then_does(related: Path, cli: Cli, tmp_path: Path) -> None:
    plan = cli("plan", related, "--max-error", "0.1", "--json").data
    made = cli("compress", related, "-o", tmp_path / "s", "--max-error", "0.1", "--json").data
    assert plan["choice"]["nbytes"] == pytest.approx(made["nbytes"], rel=0.1)
    assert plan["choice"]["max_error"] <= 0.1
    assert plan["choice"]["nbytes"] < plan["choice"]["own"]["nbytes"]
    assert [row["tasks"] for row in plan["clusters"]] == [[f"run{i}" for i in range(4)]]
    methods = {curve["method"]: curve["points"] for curve in plan["curves"]}
    assert set(methods) == {"auto", "own", "delta", "columns", "flat", "int8", "nf4"}
    for name in ("auto", "own"):
        errors = [point["mean_error"] for point in methods[name]]
        assert errors == sorted(errors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_an_altered_file_is_found_and_named(coded: Path, cli: Cli) -> None:
    assert "sound" in cli("validate", coded).out
    for name in ("basis.safetensors", "tasks/run2.safetensors"):
        path = coded / name
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        found = cli("validate", coded, code=3)
        assert Path(name).name in found.out + found.err
        path.write_bytes(sound)
    assert cli("validate", coded).code == 0


def test_add_remove_and_compact(related: Path, coded: Path, cli: Cli, tmp_path: Path) -> None:
    before = files(coded)
    start = make.factors(MODULES, rank=4, seed=90)
    step = make.factors(MODULES, rank=4, seed=77)
    late = make.write(tmp_path / "late", {key: start[key] + 0.05 * step[key] for key in start})
    cli("add", coded, late, "--task-id", "late")
    after = files(coded)
    assert all(after[f] == data for f, data in before.items() if f.endswith(".safetensors"))
    assert read_manifest(coded).task("late").error <= 0.05
    cli("remove", coded, "stranger")
    assert "stranger" not in read_manifest(coded).tasks
    grown = read_manifest(coded).nbytes
    cli("compact", coded, "-o", tmp_path / "compacted")
    manifest = read_manifest(tmp_path / "compacted")
    assert manifest.nbytes < grown
    assert sorted(manifest.tasks) == ["late", *(f"run{i}" for i in range(4))]
    assert max(task.error for task in manifest.tasks.values()) <= 0.05
    assert all(task.measured for task in manifest.tasks.values())
    assert "sound" in cli("validate", tmp_path / "compacted").out


@pytest.mark.parametrize("name", ["no effect", "one", "nothing in common"])
def test_collections_at_the_edge(name: str, cli: Cli, tmp_path: Path) -> None:
    folder, count = tmp_path / "in", 1
    if name == "one":
        make.write(folder / "a", make.factors(MODULES, seed=1))
    elif name == "no effect":
        count = 2
        for i in range(count):
            tensors = make.factors(MODULES, seed=i)
            still = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}
            make.write(folder / f"t{i}", still)
    else:
        count = len(MODULES)
        for i, module in enumerate(MODULES):
            make.write(folder / f"t{i}", make.factors({module: MODULES[module]}, seed=i))
    data = cli("compress", folder, "-o", tmp_path / "s", "--json").data
    assert data["method"] == "auto"
    assert len(data["tasks"]) == count
    assert data["max_error"] <= 0.05
    assert "sound" in cli("validate", tmp_path / "s").out
    task = data["tasks"][0]
    cli("export", tmp_path / "s", task, "-o", tmp_path / "out")
    assert load_adapter(tmp_path / "out").layer_names
    cli("plan", folder, "--json")
    cli("plan", folder)


def test_a_recipe_says_auto_unless_it_says_k(related: Path, cli: Cli, tmp_path: Path) -> None:
    for settings, method in (("", "auto"), ("k = 4\n", "delta"), ('method = "own"\n', "own")):
        file = tmp_path / "recipe.toml"
        places = [json.dumps(str(path)) for path in (related / "*", tmp_path / method)]
        file.write_text(
            f"[input]\nadapters = [{places[0]}]\n[compress]\n{settings}"
            f"[output]\nsubspace = {places[1]}\n"
        )
        recipe = load_recipe(file)
        assert recipe.compress is not None
        assert recipe.compress.target.method == method
        cli("run", file, "--headless")
        assert read_manifest(tmp_path / method).method == method
