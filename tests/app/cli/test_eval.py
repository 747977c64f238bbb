"""``vlora-tui eval``: its table, its JSON, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.conftest import FreshPython
from tests.witnesses.train import Trained
from vlora_tui.cli import main

pytest.importorskip("peft")

FEW = ["--max-tokens", "300", "--length", "31"]  # ten sequences, sampled in 30 steps


@pytest.fixture(scope="module")
def small(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained adapters with 10 directions a side; to be read only."""
    place = tmp_path_factory.mktemp("eval") / "small"
    assert main(["compress", str(trained.path / "adapters"), "-o", str(place), "-k10", "-q"]) == 0
    return place


def test_the_json_holds_every_figure_worst_first(cli: Cli, trained: Trained, small: Path) -> None:
    words = ["eval", small, "--base", trained.base, "--prompts", trained.path / "texts", *FEW]
    data = cli(*words, "--json").data
    assert data["schema"] == "vlora-tui/eval"
    assert data["base"] == str(trained.base)
    assert (data["method"], data["max_tokens"], data["seed"]) == ("delta", 300, 0)
    kl = [row["kl"] for row in data["tasks"]]
    assert kl == sorted(kl, reverse=True)
    assert {row["task"] for row in data["tasks"]} == set(trained.tasks)
    assert data["worst"]["task"] == data["tasks"][0]["task"]
    assert data["worst"]["kl"] == kl[0]
    assert data["mean"]["kl"] == pytest.approx(sum(kl) / 4)
    for row in data["tasks"]:
        assert row["text"] == str(trained.text(row["task"]))
        assert row["tokens"] == 300
        assert 0 < row["kl"] < row["base"]["kl"] < 2
        assert 0.3 < row["agreement"] < 1
        assert row["loss"] < row["compressed"]["loss"] < row["base"]["loss"]
        assert row["loss_change"] == pytest.approx(row["compressed"]["loss"] - row["loss"])
        assert 0 < row["gain_kept"] < 1
        assert 0 < row["error"] < 1
        assert row["stranger"] != row["task"]
        assert row["shuffled"]["kl"] > row["kl"]
    assert data["control"]["fails"] is True
    assert data["control"]["mean_kl"] > 2 * data["mean"]["kl"]
    assert (data["unplaced"], data["left_out"]) == ([], [])
    assert (data["fail_above"], data["exceeds"]) == (None, False)
    # the same command says the same
    assert cli(*words, "--json").data == data


def test_the_table_is_for_people(cli: Cli, trained: Trained, small: Path) -> None:
    found = cli("eval", small, "--base", trained.base, *FEW)
    lines = found.out.splitlines()
    assert lines[0].split()[:3] == ["task", "dW", "error"]
    assert {line.split()[0] for line in lines[1:5]} == set(trained.tasks)
    assert lines[6].startswith("mean     KL 0.")
    assert lines[7].startswith("worst    KL 0.")
    assert lines[8].startswith("control  KL ")
    assert lines[8].endswith("it fails, as it must")
    assert found.err == ""


def test_tasks_are_chosen_and_a_bound_on_kl_is_watched(
    cli: Cli, trained: Trained, small: Path
) -> None:
    words = ["eval", small, "--base", trained.base, "--task", "u*", "--task", "add", *FEW]
    data = cli(*words, "--fail-above", "0", "--json", code=3).data
    assert {row["task"] for row in data["tasks"]} == {"upper", "add"}
    assert data["exceeds"] is True
    kl = data["worst"]["kl"]
    assert data["prompts"] == "sampled"
    quiet = cli(*words, "--fail-above", kl * 1.001, "-q")
    assert float(quiet.out) == pytest.approx(kl, rel=1e-4)
    found = cli(*words, "--fail-above", kl * 0.999, code=3)
    assert f"exceeds {kl * 0.999:g}" in found.err
    # whom a task is shuffled with, and what it is measured on, hang on the collection alone
    alone = cli("eval", small, "--base", trained.base, "--task", "add", *FEW, "--json").data
    assert alone["tasks"] == [row for row in data["tasks"] if row["task"] == "add"]


def test_originals_that_are_elsewhere_or_gone(
    cli: Cli, trained: Trained, small: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "deep" / "small"  # the originals are named relative to where it lay
    shutil.copytree(small, moved)
    words = ["eval", moved, "--base", trained.base, *FEW]
    found = cli(*words, code=2)
    assert "The originals of 4 of 4 tasks were not found." in found.err
    assert "task 'add' was made from is not there" in found.err
    assert "--originals" in found.err
    there = Path(shutil.copytree(trained.path / "adapters", tmp_path / "there"))
    kl = cli(*words, "--originals", there, "-q").out
    assert kl == cli("eval", small, "--base", trained.base, *FEW, "-q").out
    shutil.rmtree(there / "add")
    found = cli(*words, "--originals", there, code=2)
    assert "The originals of 1 of 4 tasks were not found." in found.err
    assert "--skip-bad" in found.err
    found = cli(*words, "--originals", there, "--skip-bad", "--json")
    assert found.data["left_out"] == ["add"]
    assert len(found.data["tasks"]) == 3
    assert "add is left out" in found.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval {no}", "no subspace here"),
        ("eval {small}", "tiny-byte-llama"),  # what the adapters name is no model here
        ("eval {small} --base {no}", "no such base model"),
        ("eval {small} --base org/model", "hf download org/model"),
        ("eval {small} --base {adapter}", "no model in this folder"),
        ("eval {small} --base {gpt2}", "does not fit the base model"),
        ("eval {small} --base {base} --task uper", "did you mean 'upper'"),
        ("eval {small} --base {base} --task zz*", "no task 'zz*'"),
        ("eval {small} --base {base} --prompts {no}", "no such file or directory"),
        ("eval {small} --base {base} --prompts {empty}", "no text in this file"),
        ("eval {small} --base {base} --prompts {binary}", "not text"),
        ("eval {small} --base {base} --prompts {folder}", "no text for some tasks"),
        ("eval {small} --base {base} --prompts other={binary}", "not evaluated"),
        ("eval {small} --base {base} --originals {folder}", "no adapter here"),
        ("eval {small} --base {base} --originals {no}", "no such file or directory"),
        ("eval {small} --base {base} --device tpu", "cuda:N"),
        ("eval {small} --base {base} --dtype int8", "fp16"),
        ("eval {small} --base {base} --max-tokens 0", "at least 1"),
        ("eval {small} --base {base} --length 1", "at least 2"),
        ("eval {small} --base {base} --fail-above -1", "0 or more"),
        ("eval {small} --base {base} --fail-above nan", "0 or more"),
        ("eval", "Missing argument"),
    ],
)
def test_bad_input(
    cli: Cli, trained: Trained, small: Path, tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\x7fELF\0")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a file").write_text("text")
    if "{gpt2}" in line:
        from tests.witnesses import make

        make.tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    places = {name: tmp_path / name for name in ("no", "empty", "binary", "folder", "gpt2")}
    own = {"small": small, "base": trained.base, "adapter": trained.adapter("add")}
    found = cli(*(word.format(**places, **own) for word in line.split()), code=2)
    assert words.lower() in found.err.lower()
    assert found.out == ""


def test_a_subspace_that_names_no_base(cli: Cli, small: Path, tmp_path: Path) -> None:
    nameless = Path(shutil.copytree(small, tmp_path / "nameless"))
    index = json.loads((nameless / "subspace.json").read_text())
    (nameless / "subspace.json").write_text(json.dumps({**index, "base_model": None}))
    found = cli("eval", nameless, code=2)
    assert "names no base model" in found.err
    assert "--base" in found.err


@pytest.mark.parametrize("library", ["peft", "transformers"])
def test_without_the_extra(
    cli: Cli, trained: Trained, small: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    found = cli("eval", small, "--base", trained.base, code=1)
    assert f"needs {library}, which is not installed" in found.err
    assert "pip install 'vlora-tui[peft]'" in found.err


def test_a_refusal_needs_no_torch(fresh_python: FreshPython, trained: Trained, small: Path) -> None:
    words = ["eval", str(small), "--base", str(trained.base), "--task", "none"]
    code = (
        f"import sys\nfrom vlora_tui.cli import main\ncode = main({words!r})\n"
        "print(code, sorted({'torch', 'peft'} & set(sys.modules)))"
    )
    assert fresh_python(code).stdout == "2 []\n"


# ---- adapters as they are, and merges -----------------------------------------------------------


def test_adapters_beside_the_base_and_a_merge_beside_its_parents(
    cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    first, second = sorted(trained.tasks)[:2]
    places = [trained.path / "adapters" / name for name in (first, second)]
    merge = ["merge", *places, "--method"]
    cli(*merge, "average", "-o", tmp_path / "mean")
    cli("merge", places[0], "--method", "linear", "--weights=1", "-o", tmp_path / "same")
    words = ["eval", *places, "--base", trained.base, "--prompts", trained.path / "texts", *FEW]
    alone = cli(*words, "--json").data
    assert alone["schema"] == "vlora-tui/eval-adapters"
    assert [row["adapter"] for row in alone["adapters"]] == [first, second]
    for row in alone["adapters"]:
        assert row["merges"] == {}
        assert row["gain"] == pytest.approx(row["base"]["loss"] - row["loss"])
        assert row["gain"] > 0.01
        assert row["stranger"] in {first, second} - {row["adapter"]}
    found = cli(*words, "--merged", tmp_path / "mean", "--merged", tmp_path / "same", "--json").data
    one, other = found["adapters"]
    assert one["loss"] == alone["adapters"][0]["loss"]
    # a copy of the first is the first, and to the second it is the other adapter
    assert one["merges"]["same"]["kl"] == pytest.approx(0, abs=1e-9)
    assert one["merges"]["same"]["agreement"] == 1
    assert one["merges"]["same"]["gain_kept"] == pytest.approx(1, abs=1e-6)
    assert other["merges"]["same"]["kl"] == pytest.approx(other["other"]["kl"], rel=1e-6)
    for row in (one, other):
        assert 0 < row["merges"]["mean"]["kl"] < row["base"]["kl"]
        kept = (row["base"]["loss"] - row["merges"]["mean"]["loss"]) / row["gain"]
        assert row["merges"]["mean"]["gain_kept"] == pytest.approx(kept)
    text = cli(*words, "--merged", tmp_path / "mean").out
    assert f"of {first}'s gain" in text
    bound = ["--merged", tmp_path / "mean", "--fail-above", "1e-6"]
    assert "exceeds" in cli(*words, *bound, code=3).err


def test_what_is_a_subspaces_is_refused_of_adapters(cli: Cli, trained: Trained) -> None:
    place = trained.path / "adapters" / sorted(trained.tasks)[0]
    for words in (["--task", "x"], ["--originals", str(place)]):
        assert "is about a subspace" in cli("eval", place, *words, code=2).err
    assert "--merged" in cli("eval", place, "--fail-above", "1", code=2).err
