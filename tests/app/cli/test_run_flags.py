"""``run`` with flags for the tables of a recipe: every key has one, and it goes before a file's."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Cli
from tests.witnesses.dense import dense_error
from tests.witnesses.hub import TOKEN, Hub
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import ParameterError
from vlora_engine.merging import MERGE_METHODS
from vlora_engine.quantization.packing import named_quantization, quantization
from vlora_tui.cli.merge_flags import Merging
from vlora_tui.cli.table_flags import TABLES, TableFlags
from vlora_tui.recipe.changes import SEVERAL, changed
from vlora_tui.recipe.model import (
    Convert,
    Export,
    Input,
    Merge,
    Push,
    Quantize,
    Recipe,
    Resize,
)
from vlora_tui.recipe.reader import parse_recipe


def read(cli: Cli, *words: object) -> Recipe:
    """The recipe that a command line stands for."""
    return parse_recipe(cli("run", *words, "--print-recipe").out)


def test_every_key_of_a_table_has_a_flag() -> None:
    assert set(TABLES) == {"quantize", *SEVERAL}
    assert {t.kind for t in TABLES.values()} == {Quantize, Export, Merge, Resize, Convert, Push}
    of_recipe = {field.name for field in fields(Recipe)} - {
        "input",
        "compress",
        "output",
        "max_memory",
    }
    assert len(of_recipe) == len(TABLES), "a table of a recipe without flags"
    for name, table in TABLES.items():
        keys = {field.name for field in fields(table.kind)}
        if table.kind is Merge:
            keys = keys - {"parameters"} | {field.name for field in fields(Merging)}
            assert keys >= {p.name for m in MERGE_METHODS.values() for p in m.parameters}
        flags = {p.name for p in TableFlags.parameters() if p.name.startswith(f"{name}_")}
        assert flags == {f"{name}_{key}" for key in keys}
        assert table.short is None or table.short in keys


def test_the_help_has_a_heading_for_each_table(cli: Cli) -> None:
    text = cli("run", "--help").out
    headings = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    tables = ["Table [quantize]", *(f"Table [[{name}]]" for name in SEVERAL)]
    assert headings == ["Arguments", "Options", "Table [compress], and what is read", *tables]
    below = text.split("Table [[push]]:")[1]
    assert "--push, --push-repo ORG/NAME" in below


EVERYTHING = [
    *("--export", "vllm", "--export-path", "e/{task}", "--export-tasks", "task0*"),
    *("--export-tasks", "x", "--no-export-verify", "--export-dtype", "fp16"),
    *("--export-alpha", "8", "--export-base-model", "org/b", "--export-target-modules", "q"),
    *("--export-drop-rest", "--export-base", "./b"),
    *("--merge", "ties", "--merge-path", "m", "--merge-density", "0.5,0.3,0.2,0.1"),
    *("--merge-weights", "1,1,1,2", "--merge-rank", "4", "--merge-layers", "*.q=1,2,3,4"),
    *("--no-merge-normalize", "--merge-dtype", "bf16"),
    *("--resize", "4", "--resize-path", "r/{task}", "--resize-dynamic", "sv_fro", "0.9"),
    *("--convert", "vlora", "--convert-path", "c", "--convert-k", "3", "--convert-allow-loss"),
    *("--push", "me/x", "--push-tasks", "a", "--push-private", "--push-revision", "dev"),
    *("--push-message", "First.", "--push-force", "--push-path", "p"),
]


def test_flags_of_every_table_are_read(
    cli: Cli, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packing = ("--quantize-bits", "4", "--quantize-block-size", "32", "--quantize-loadings")
    recipe = read(cli, built, "-o", "q", *packing, "--quantize-double-quant", *EVERYTHING)
    here = str(tmp_path)
    assert recipe == Recipe(
        Input(subspace=str(built)),
        output=f"{here}/q",
        quantize=Quantize("symmetric", 4, 32, loadings=True, double_quant=True),
        exports=(
            Export(
                f"{here}/e/{{task}}", ("task0*", "x"), "vllm", verify=False, dtype="fp16",
                alpha=8.0, base_model="org/b", target_modules=("q",), drop_rest=True,
                base=f"{here}/b",
            ),
        ),
        merges=(
            Merge(
                ("*",), f"{here}/m", "subspace", "ties", (1.0, 1.0, 1.0, 2.0),
                {"*.q": [1.0, 2.0, 3.0, 4.0]}, normalize=False, rank=4, dtype="bf16",
                parameters={"density": [0.5, 0.3, 0.2, 0.1]},
            ),
        ),
        resizes=(Resize(f"{here}/r/{{task}}", rank=4, dynamic=("sv_fro", 0.9)),),
        converts=(Convert("vlora-dev", f"{here}/c", k=3, allow_loss=True),),
        pushes=(
            Push("me/x", f"{here}/p", adapters=True, tasks=("a",), private=True, revision="dev",
                 message="First.", force=True),
        ),
    )  # fmt: skip


def test_adapters_and_every_step(cli: Cli, runs: Path, tmp_path: Path) -> None:
    places = [runs / f"task0{i}" for i in range(3)]
    flags = ["-k", "8", "-o", tmp_path / "s", "--quantize-bits", "8"]
    flags += ["--export-path", tmp_path / "e" / "{task}", "--export-tasks", "task00"]
    flags += ["--merge", "ties", "--merge-density", "0.5", "--merge-path", tmp_path / "m"]
    flags += ["--resize", "2", "--resize-path", tmp_path / "r" / "{task}"]
    flags += ["--convert", "mlx", "--convert-path", tmp_path / "c"]
    data = cli("run", "--headless", *places, *flags, "--json").data
    assert read_manifest(tmp_path / "s").quantization == quantization("symmetric", 8)
    assert sorted(os.listdir(tmp_path)) == ["c", "e", "m", "r", "s"]
    assert [len(data[name]) for name in ("exported", "merged", "resized", "converted")] == [
        1, 1, 3, 3,
    ]  # fmt: skip
    assert data["merged"][0]["adapters"] == ["task00", "task01", "task02"]
    meant = SharedSubspace.load(tmp_path / "s").reconstruct("task01")
    assert dense_error(meant, load_adapter(tmp_path / "c" / "task01")) < 1e-5


@pytest.mark.parametrize(
    "flags",
    [
        ("--merge", "average", "--merge-path", "out"),
        ("--merge-adapters", "task00", "--merge-adapters", "task02", "--merge-path", "out"),
        ("--resize-rank", "2", "--resize-path", "out/{task}"),
        ("--convert", "mlx", "--convert-path", "out"),
        ("--convert-to", "lorashare", "--convert-path", "out"),
    ],
)
def test_adapters_are_compressed_only_where_that_is_asked_for(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read(cli, runs, *flags)
    assert recipe.compress is None
    cli("run", "--headless", runs, *flags)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("named", [True, False])
def test_a_subspace_is_packed_by_the_short_word_too(
    cli: Cli, built: Path, tmp_path: Path, named: bool
) -> None:
    source = ("--subspace", built) if named else (built,)
    cli("run", "--headless", *source, "--quantize", "int4", "-o", tmp_path / "q")
    assert read_manifest(tmp_path / "q").quantization == named_quantization("int4")


def test_flags_push(
    cli: Cli, hub: Hub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    data = cli("run", "--headless", "--subspace", built, "--push", "me/x", "--json").data
    assert data["pushed"][0]["to"] == "hf://me/x"
    assert "subspace.json" in hub.repos["me/x"].files
    words = ("--export-path", tmp_path / "e" / "{task}", "--push", "me/e", "--push-path")
    cli("run", "--headless", built, *words, tmp_path / "e")
    assert "task03/adapter_config.json" in hub.repos["me/e"].files


FILE = """\
[input]
adapters = ["{runs}/task0[0-2]"]
[compress]
variance = 0.9
adaptive = true
spectra = "cache"
[output]
subspace = "s"
[[export]]
path = "e/{{task}}"
target = "vllm"
[[export]]
path = "f/{{task}}"
"""


@pytest.mark.parametrize(
    ("flags", "check"),
    [
        (("-k", "4"), lambda r: r.compress.target == CompressionTarget(k=4)),
        (("--k-a", "4", "--k-b", "5"), lambda r: r.compress.target.fixed_pair == (4, 5)),
        (("--variance", "0.5"), lambda r: r.compress.target.adaptive),
        (("--budget", "1MB"), lambda r: r.compress.target.goal == ("budget", 10**6)),
        (("--method", "columns"), lambda r: r.compress.target.variance == 0.9),
        (("--device", "cpu"), lambda r: r.compress.device == "cpu"),
        (("--skip-bad",), lambda r: r.input.skip_bad),
        (("--quantize-method", "nf4"), lambda r: r.quantize == Quantize("nf4", 4)),
        (("--export", "peft"), lambda r: {e.target for e in r.exports} == {"peft"}),
        (("--export-dtype", "fp16"), lambda r: [e.dtype for e in r.exports] == ["fp16"] * 2),
        (("--merge-path", "m"), lambda r: r.merges[0].adapters == ("*",)),
        (("--push", "me/x"), lambda r: r.pushes == (Push("me/x"),)),
        (("--convert", "mlx", "--convert-path", "c"), lambda r: r.converts[0].to == "mlx"),
    ],
)
def test_flags_go_before_the_keys_of_a_file(
    cli: Cli, runs: Path, tmp_path: Path, flags: tuple[str, ...], check: Any
) -> None:
    file = tmp_path / "r.toml"
    file.write_text(FILE.format(runs=runs))
    assert check(read(cli, file, *flags))


def test_paths_of_flags_are_relative_to_where_one_is(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "there" / "r.toml"
    file.parent.mkdir()
    text = FILE.format(runs=runs)
    file.write_text(text[: text.rindex("[[export]]")])
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    recipe = read(cli, file, "--export-path", "e", "--merge-path", "m", "--merge-adapters", "./a",
                  "--merge-adapters", "b")  # fmt: skip
    assert recipe.output == str(file.parent / "s")
    assert recipe.exports[0].path == str(here / "e")
    assert recipe.merges[0].adapters == (str(here / "a"), "b")


def test_a_recipe_from_standard_input_takes_flags(runs: Path) -> None:
    text = FILE.format(runs=runs)
    recipe = parse_recipe(text, given={"compress": {"k": 3}, "input": {"names": ["a"]}})
    assert recipe.compress is not None
    assert recipe.compress.target.k == 3
    assert recipe.input.adapters[0].name == "a"


WRONG = [
    ("{runs}", "There is nowhere to put the subspace"),
    ("{runs} -k 4", "There is nowhere to put the subspace"),
    ("{runs} --quantize-bits 8", "There is nowhere to put the subspace"),
    ("{runs} -k 4 -o {out} --quantize-bits 5", "8 or 4 bits"),
    ("{runs} -k 4 -o {out} --quantize int8 --quantize-bits 8", "packed twice"),
    ("--headless", "There is nothing to work on"),
    ("{runs} --subspace {built}", "not both"),
    ("{runs} --export vllm", "--export-path"),
    ("{runs} --export-path {out} --export-source subspace", "no subspace to export from"),
    ("{built} --export-path {out}", "put {{task}} into the path"),
    ("{built} --export-path {out} --export-tasks task9", "no task 'task9'"),
    ("{built} --export nobody --export-path {out}", "export[0].target"),
    ("{built} --merge ties", "--merge-path"),
    ("{built} --merge nothing --merge-path {out}", "nothing"),
    ("{built} --merge-weights 1,x --merge-path {out}", "--merge-weights takes numbers"),
    ("{built} --merge-weights 1,2 --merge-path {out}", "one weight for each adapter"),
    ("{built} --resize 0 --resize-path {out}/{{task}}", "at least 1"),
    ("{built} --resize-path {out}/{{task}}", "resize[0]"),
    ("{built} --convert-path {out}", "--convert-to"),
    ("{built} --convert kohya --convert-path {out}", "convert[0].to"),
    ("{built} --push here", "push[0].repo"),
    ("{built} --push-private", "--push-repo"),
    ("{built} --push me/x --no-push-adapters --push-tasks a", "adapters = true"),
    ("{built} --push-token x", "No such option"),
    ("{built} -k 4 -o {out}", "compressed already"),
    ("{built} -o {out}", "Nothing makes this subspace"),
    ("{file} --export-path {out}", "would go to one path"),
    ("{file} --export nobody", "the command line, export[0].target"),
    ("{file} --method auto --k-a 3 --k-b 3", "chooses its bits itself"),
    ("{file} --names a b c", "one name for each adapter"),
    ("{file} --subspace {built}", "compressed already"),
]


@pytest.mark.parametrize(("line", "words"), WRONG)
def test_what_makes_no_sense_is_refused(
    cli: Cli, runs: Path, built: Path, tmp_path: Path, line: str, words: str
) -> None:
    file = tmp_path / "r.toml"
    file.write_text(FILE.format(runs=runs))
    places = {"runs": runs, "built": built, "out": tmp_path / "out", "file": file}
    found = cli("run", *(word.format(**places) for word in line.split()), "--headless", code=2)
    assert words.format() in found.err
    assert os.listdir(tmp_path) == ["r.toml"]


@pytest.mark.parametrize(
    "tables", [{"export": 3}, {"export": [3]}, {"compress": 3}, {"input": [1]}, {}]
)
def test_what_is_no_recipe_is_left_to_the_reader(tables: dict[str, Any]) -> None:
    given = {"export": {"path": "x"}, "compress": {"k": 2}, "input": {"skip_bad": True}}
    found = changed(tables, given)
    assert {name: found[name] for name in tables} == tables
    with pytest.raises(ParameterError):
        changed({"input": {"subspace": "s"}}, {"input": {"names": ["a"]}})
