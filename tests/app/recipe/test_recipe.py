"""Recipes: what is read is what was written, and what is wrong is named with its place."""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import NotFoundError, ParameterError
from vlora_engine.quantization.packing import named_quantization
from vlora_engine.utils.sizes import parse_bytes
from vlora_tui.recipe.model import (
    AdapterInput,
    Compress,
    Convert,
    Export,
    Input,
    Merge,
    Push,
    Quantize,
    Recipe,
    Resize,
    absolute,
)
from vlora_tui.recipe.reader import load_recipe, parse_recipe
from vlora_tui.recipe.resolve import expand_input, resolve
from vlora_tui.recipe.table import RecipeError

EXAMPLE = """\
[input]
adapters = ["runs/*", { path = "legal/final", name = "legal" }]
skip_bad = false

[compress]
method = "delta"
k = 16
layers = { "*.attn.c_attn" = 24 }
spectra = "cache"
device = "auto"

[output]
subspace = "out/subspace"

[[export]]
tasks = ["*"]
target = "peft"
path = "out/adapters/{task}"
verify = true

[[merge]]
adapters = ["medical", "sports"]
source = "input"
method = "ties"
density = 0.5
path = "out/merged"
"""


def test_the_example_is_read() -> None:
    assert parse_recipe(EXAMPLE) == Recipe(
        input=Input((AdapterInput("runs/*"), AdapterInput("legal/final", "legal"))),
        compress=Compress(CompressionTarget(k=16, layers={"*.attn.c_attn": 24}), spectra="cache"),
        output="out/subspace",
        exports=(Export(path="out/adapters/{task}", tasks=("*",)),),
        merges=(
            Merge(("medical", "sports"), "out/merged", method="ties", parameters={"density": 0.5}),
        ),
    )


def test_the_example_comes_back() -> None:
    recipe = parse_recipe(EXAMPLE)
    assert parse_recipe(recipe.to_toml()) == recipe


words = st.text(min_size=1, max_size=12).filter(
    lambda text: not text.startswith("hf:/") and "\0" not in text
)
shares = st.floats(0.001, 0.999)
goals = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"k": st.integers(1, 500)}),
    st.fixed_dictionaries({"k_a": st.integers(1, 500), "k_b": st.integers(1, 500)}),
    st.fixed_dictionaries({"variance": shares, "adaptive": st.booleans()}),
    st.fixed_dictionaries({"max_error": shares}),
    st.fixed_dictionaries({"mean_error": shares}),
    st.fixed_dictionaries({"budget": st.integers(1, 2**40)}),
)
inputs = st.builds(
    Input,
    adapters=st.lists(
        st.builds(AdapterInput, words, st.none() | words),
        min_size=1,
        max_size=4,
        unique_by=lambda a: a.name or object(),
    ).map(tuple),
    skip_bad=st.booleans(),
)
compressions = st.builds(
    lambda goal, method, refine, device, spectra, quantize, packing, **others: Compress(
        CompressionTarget(
            method,
            refine=refine * (method == "delta"),
            **(packing if quantize != "none" else {}),
            quantize=quantize,
            **goal,
            **others,
        ),
        device,
        spectra,
    ),
    goals,
    method=st.sampled_from(["delta", "columns"]),
    layers=st.dictionaries(
        words, st.integers(1, 99) | st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=2
    ),
    dtype=st.sampled_from(["auto", "fp32", "bf16"]),
    device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    spectra=st.none() | words,
    quantize=st.sampled_from(["none", "int8", "int4", "nf4"]),
    packing=st.fixed_dictionaries(
        {"block_size": st.integers(1, 512), "double_quant": st.booleans()}
    ),
    refine=st.integers(0, 3),
)
exports = st.builds(
    Export,
    path=words,
    tasks=st.lists(words, min_size=1, max_size=3).map(tuple),
    verify=st.booleans(),
    alpha=st.none() | st.floats(1, 64),
    base_model=st.none() | words,
    target_modules=st.none() | st.lists(words, min_size=1, max_size=2).map(tuple),
)
merges = st.builds(
    Merge,
    adapters=st.tuples(words, words),
    path=words,
    method=words,
    weights=st.none() | st.tuples(shares, shares),
    rank=st.none() | st.integers(1, 64),
    energy=st.none() | shares,
    normalize=st.none() | st.booleans(),
    scale=st.floats(0.1, 9),
    dialect=st.none() | st.just("peft"),
    dtype=st.none() | st.sampled_from(["fp16", "bf16"]),
    layers=st.dictionaries(
        words,
        st.lists(shares, min_size=2, max_size=2)
        | st.fixed_dictionaries({"density": shares}, optional={"weights": st.just([1.0, 0.5])}),
        max_size=2,
    ),
    parameters=st.dictionaries(
        st.sampled_from(["density", "seed"]),
        shares | st.lists(shares, min_size=2, max_size=2),
        max_size=2,
    ),
)


sizings = st.one_of(
    st.fixed_dictionaries({"rank": st.integers(1, 512)}),
    st.fixed_dictionaries({"energy": shares}),
    st.fixed_dictionaries({"dynamic": st.tuples(st.just("sv_fro"), shares)}),
    st.just({"target": "vllm"}),
)
resizes = st.builds(
    lambda sizing, **others: Resize(**sizing, **others),
    sizings,
    path=words,
    tasks=st.lists(words, min_size=1, max_size=3).map(tuple),
    verify=st.booleans(),
)
converts = st.builds(
    lambda kind, **others: Convert(**kind, **others),
    st.fixed_dictionaries({"to": st.sampled_from(["peft", "mlx"])})
    | st.fixed_dictionaries({"to": st.just("lorashare"), "k": st.none() | st.integers(1, 9)}),
    path=words,
    tasks=st.lists(words, max_size=2).map(tuple),
    source=st.sampled_from(["", "input", "subspace"]),
    allow_loss=st.booleans(),
)
pushes = st.builds(
    lambda tasks, **others: Push(adapters=bool(tasks), tasks=tuple(tasks), **others),
    st.lists(words, max_size=2),
    repo=st.sampled_from(["me/a", "me/b", "hf://me/c@next"]),
    path=st.none() | words,
    private=st.booleans(),
    revision=st.none() | st.just("dev"),
    message=st.none() | words,
    force=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    inputs,
    compressions,
    words,
    st.lists(exports, max_size=2),
    st.lists(merges, max_size=2),
    st.lists(resizes, max_size=2),
    st.lists(converts, max_size=2),
    st.lists(pushes, max_size=2, unique_by=lambda push: str(push.address)),
)
def test_every_recipe_comes_back(
    source: Input,
    compress: Compress,
    output: str,
    exported: list[Export],
    merged: list[Merge],
    resized: list[Resize],
    converted: list[Convert],
    pushed: list[Push],
) -> None:
    steps = {
        "exports": exported, "merges": merged, "resizes": resized,
        "converts": converted, "pushes": pushed,
    }  # fmt: skip
    recipe = Recipe(source, compress, output, **{name: tuple(s) for name, s in steps.items()})
    assert parse_recipe(recipe.to_toml()) == recipe


@given(
    words,
    words,
    st.sampled_from([("symmetric", 8), ("symmetric", 4), ("nf4", 4)]),
    st.integers(1, 1024),
    st.booleans(),
    st.booleans(),
)
def test_recipes_that_quantize_come_back(
    source: str, output: str, kind: tuple[str, int], block_size: int, loadings: bool, double: bool
) -> None:
    quantize = Quantize(*kind, block_size, loadings, double)
    recipe = Recipe(Input(subspace=source), output=output, quantize=quantize)
    assert parse_recipe(recipe.to_toml()) == recipe


@pytest.mark.parametrize("method", ["auto", "own"])
def test_packing_what_has_bits_of_its_own_is_a_step_after_it(method: str) -> None:
    recipe = parse_recipe(f'{IN}{OUT}[compress]\nmethod = "{method}"\nquantize = "int4"')
    assert recipe.compress == Compress(CompressionTarget(method))
    packed = named_quantization("int4")
    assert packed is not None
    assert recipe.quantize == replace(Quantize.named("int4"), loadings=False)  # there are none
    assert recipe.quantize.quantization() == replace(packed, loadings=None)
    assert parse_recipe(recipe.to_toml()) == recipe


def test_paths_of_what_is_converted_and_pushed_are_relative_to_the_file() -> None:
    text = f'{SUB}[[convert]]\nto = "share"\npath = "c"\n[[push]]\nrepo = "me/x"\npath = "c"\n'
    text += '[[push]]\nrepo = "me/y"\ntasks = ["a*"]\n'
    recipe = absolute(parse_recipe(text), Path("/base"))
    assert recipe.converts == (Convert("lorashare", "/base/c"),)
    assert recipe.pushes == (
        Push("me/x", "/base/c"),
        Push("me/y", adapters=True, tasks=("a*",)),
    )


IN = '[input]\nadapters = ["a"]\n'
OUT = '[output]\nsubspace = "o"\n'
SUB = '[input]\nsubspace = "s"\n'
WRONG = [
    # text, the place that the error names, words of the error
    ("[input\nx", "line 1", "not TOML"),
    ("", "input", "names no input"),
    ("[input]\nadapters = []", "line 1, input", "names no input"),
    (f'{IN}subspace = "s"', "line 3, input.subspace", "not both"),
    (f"{IN}skipbad = true", "line 3, input.skipbad", "did you mean 'skip_bad'"),
    (f'{IN}skip_bad = "yes"', "line 3, input.skip_bad", "true or false"),
    ("[input]\nadapters = [3]", "line 2, input.adapters", "is a path or a table"),
    ('[input]\nadapters = [{ path = "a", task = "b" }]', "line 2", "path, name"),
    ('[input]\nadapters = ["hf://org"]', "line 2, input.adapters", "hf://org/name"),
    (
        '[input]\nadapters = [{ path = "a", name = "x" }, { path = "b", name = "x" }]',
        "input.adapters",
        "both named 'x'",
    ),
    (f"{IN}[compres]\nk = 3", "line 3, compres", "did you mean 'compress'"),
    (f"{IN}{OUT}[compress]\nk = 0", "line 6, compress.k", "at least 1"),
    (f"{IN}{OUT}[compress]\nk = 8.5", "line 6, compress.k", "whole number"),
    (f"{IN}{OUT}[compress]\nk = true", "line 6, compress.k", "whole number"),
    (f'{IN}{OUT}[compress]\nmethod = "own"\nk = 4', "line 7, compress.k", "chooses its bits"),
    (f'{IN}{OUT}[compress]\nmethod = "auto"\ndtype = "fp16"', "line 7, compress.dtype", "bits"),
    (
        f'{IN}{OUT}[compress]\nk = 4\nquantize = "nf4"\n[quantize]\nbits = 8',
        "line 8, quantize",
        "packed twice",
    ),
    (f'{IN}{OUT}[compress]\nmethod = "svd"', "line 6, compress.method", "delta, columns, flat"),
    (f'{IN}{OUT}[compress]\nquantize = "int3"', "line 6, compress.quantize", "int8, int4, nf4"),
    (f'{IN}{OUT}[quantize]\nmethod = "nf4"', "line 5, quantize", "no subspace to quantize"),
    (f"{SUB}[quantize]\nbits = 8", "line 3, quantize", "nowhere to put"),
    (f"{SUB}{OUT}[quantize]\nbits = 5", "line 6, quantize.bits", "8 or 4 bits"),
    (f"{SUB}{OUT}[quantize]\nblock_size = 0", "line 6, quantize.block_size", "at least 1"),
    (f"{SUB}{OUT}[quantize]\nblock_size = 9999999", "quantize.block_size", "out of range"),
    (f'{SUB}{OUT}[quantize]\nmethod = "int8"', "line 6, quantize.method", "symmetric, nf4"),
    (f"{SUB}{OUT}", "line 3, output", "a [quantize] table"),
    (f"{IN}{OUT}[compress]\nk = 4\nvariance = 0.9", "line 7, compress.variance", "both given"),
    (f"{IN}{OUT}[compress]\nk = 4\nk_a = 5\nk_b = 5", "line 7, compress.k_a", "both given"),
    (f"{IN}{OUT}[compress]\nk_a = 4", "line 6, compress.k_a", "other side"),
    (f"{IN}{OUT}[compress]\nmax_error = 1.5", "line 6, compress.max_error", "between 0 and 1"),
    (f"{IN}{OUT}[compress]\nmax_error = nan", "line 6, compress.max_error", "between 0 and 1"),
    (f"{IN}{OUT}[compress]\nmax_error = 0.1\nbudget = 9", "line 7", "more than one target"),
    (f'{IN}{OUT}[compress]\nbudget = "much"', "line 6, compress.budget", "no size"),
    (f"{IN}{OUT}[compress]\nbudget = -5", "line 6, compress.budget", "no size"),
    (f'{IN}{OUT}[compress]\ndevice = "gpu"', "line 6, compress.device", "cuda:N"),
    (f"{IN}{OUT}[compress]\nadaptive = true", "line 6, compress.adaptive", "variance"),
    (f'{IN}{OUT}[compress]\nlayers = {{ "*" = 0 }}', "line 6, compress.layers", "at least 1"),
    (f"{IN}{OUT}[compress.layers]\n'*' = 0", "line 5, compress.layers", "at least 1"),
    (f"{IN}{OUT}[compress]\nlayers = {{ '*' = [3] }}", "line 6, compress.layers", "[k_a, k_b]"),
    (
        f"{IN}{OUT}[compress]\nmethod = 'flat'\nk = 3\nlayers = {{ '*' = [3, 4] }}",
        "line 8, compress.layers",
        "one k for both sides",
    ),
    (
        f"{IN}{OUT}[compress]\nblock_size = 32",
        "line 6, compress.block_size",
        "nothing is packed",
    ),
    (
        f"{IN}{OUT}[compress]\nquantize = 'int4'\nblock_size = 99999999",
        "line 7, compress.block_size",
        "out of range",
    ),
    (f"{IN}[compress]\nk = 3", "line 3, compress", "nowhere to put"),
    (f"{IN}{OUT}", "line 3, output", "Nothing makes"),
    ('[input]\nsubspace = "s"\n[compress]\nk = 3\n' + OUT, "compress", "compressed already"),
    (f'{IN}[[export]]\npath = "e"\nsource = "subspace"', "line 3, export", "no subspace to"),
    (f'{SUB}[[export]]\npath = "e"\nsource = "input"', "line 3, export", "input is a subspace"),
    ('[input]\nsubspace = "s"\n[[export]]\n', "line 3, export[0]", "lacks 'path'"),
    (
        '[input]\nsubspace = "s"\n[[export]]\npath = "e"\n[[export]]\npath = "f"\ntarget = "vlm"',
        "line 7, export[1].target",
        "portable, vllm",
    ),
    ('[input]\nsubspace = "s"\n[[export]]\npath = "e"\ntasks = []', "line 5", "No task"),
    ('export = 3\n[input]\nsubspace = "s"', "line 1, export", "a list"),
    (f'{IN}[[merge]]\nadapters = ["a", "b"]\n', "line 3, merge[0]", "lacks 'path'"),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\nweights = [1]',
        "line 6, merge[0].weights",
        "2 weights",
    ),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\ndensity = [1]',
        "line 6, merge[0].density",
        "one density for each",
    ),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\ndensity = [[1]]',
        "line 6, merge[0].density",
        "wrong kind",
    ),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\nlayers = {{ "*" = [1, 2, 3] }}',
        "line 6, merge[0].layers",
        "2 weights",
    ),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\ndialect = "mergekit"',
        "line 6, merge[0].dialect",
        "peft",
    ),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\nenergy = 2',
        "line 6, merge[0].energy",
        "between 0 and 1",
    ),
    (
        f'{IN}[[merge]]\nadapters = ["a", "b"]\npath = "m"\nsource = "subspace"',
        "line 3, merge",
        "no subspace to merge from",
    ),
    (f'{IN}[mesh]\n"a b" = 1', "line 3, mesh", "not known"),
    (f'{IN}[[convert]]\npath = "c"', "line 3, convert[0]", "lacks 'to'"),
    (f'{IN}[[convert]]\nto = "mlx"', "line 3, convert[0]", "lacks 'path'"),
    (f'{IN}[[convert]]\nto = "kohya"\npath = "c"', "line 4, convert[0].to", "peft, mlx"),
    (f'{IN}[[convert]]\nto = "mlx"\npath = "c"\nk = 4', "line 6, convert[0].k", "no bases"),
    (f'{IN}[[convert]]\nto = "lorashare"\npath = "c"\nk = 0', "convert[0].k", "at least 1"),
    (
        f'{IN}[[convert]]\nto = "lorashare"\npath = "c/{{task}}"',
        "line 5, convert[0].path",
        "one directory",
    ),
    (
        f'{IN}[[convert]]\nto = "mlx"\npath = "c"\nsource = "subspace"',
        "line 3, convert",
        "no subspace to convert",
    ),
    (
        f'{SUB}[[convert]]\nto = "mlx"\npath = "c"\nsource = "input"',
        "line 3, convert",
        "The input is a subspace",
    ),
    (f'{IN}[[convert]]\nto = "subspace"\npath = "c"', "line 3, convert", "compressing them"),
    (f'{SUB}[[convert]]\nto = "mlx"\npath = "c"\ntasks = []', "line 6", "No task"),
    (f'{SUB}[[push]]\nrepo = "here"', "line 4, push[0].repo", "hf://org/name"),
    (f'{SUB}[[push]]\nrepo = "me/x/y"', "line 4, push[0].repo", "a whole repository"),
    (f"{SUB}[[push]]\nprivate = true", "line 3, push[0]", "lacks 'repo'"),
    (f'{SUB}[[push]]\nrepo = "me/x"\ntoken = "hf_x"', "line 5, push[0].token", "HF_TOKEN"),
    (f'{SUB}[[push]]\nrepo = "me/x"\nrevision = ""', "line 5, push[0].revision", "no name"),
    (
        f'{SUB}[[push]]\nrepo = "me/x"\nadapters = false\ntasks = ["a"]',
        "line 6, push[0].tasks",
        "adapters = true",
    ),
    (f'{IN}[[push]]\nrepo = "me/x"', "line 3, push", "no subspace to push"),
    (
        f'{SUB}[[push]]\nrepo = "me/x"\n[[push]]\nrepo = "hf://me/x"\nadapters = true',
        "line 3, push",
        "one place",
    ),
]


@pytest.mark.parametrize(("text", "place", "words"), WRONG)
def test_what_is_wrong_is_named_with_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, where="recipe.toml")
    said = str(caught.value)
    assert words in said
    assert place in said
    assert "recipe.toml" in said
    assert caught.value.exit_code == 2


def test_paths_of_a_file_are_relative_to_it(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    file = folder / "a.toml"
    file.write_text(
        '[input]\nadapters = ["../runs/x", "~/mine", "/abs/y"]\n[compress]\n'
        'spectra = "s"\n[output]\nsubspace = "out"\n[[export]]\npath = "e/{task}"\n'
        '[[merge]]\nadapters = ["a", "./b"]\npath = "m"\n'
    )
    recipe = load_recipe(file)
    runs = str(tmp_path / "runs" / "x")
    assert [a.path for a in recipe.input.adapters] == [runs, str(home / "mine"), "/abs/y"]
    assert recipe.output == str(folder / "out")
    assert recipe.exports[0].path == str(folder / "e" / "{task}")
    assert recipe.compress is not None
    assert recipe.compress.spectra == str(folder / "s")
    # a bare word names a task, what has a slash is a path
    assert recipe.merges[0].adapters == ("a", str(folder / "b"))


def test_the_word_cache_is_no_path() -> None:
    recipe = absolute(parse_recipe(EXAMPLE), Path("/base"))
    assert recipe.compress is not None
    assert recipe.compress.spectra == "cache"


def test_a_variable_does_not_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/elsewhere")
    recipe = absolute(parse_recipe('[input]\nadapters = ["$WHERE/a"]'), tmp_path)
    assert recipe.input.adapters[0].path == str(tmp_path / "$WHERE" / "a")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such recipe"):
        load_recipe(tmp_path / "no.toml")


def test_patterns_expand_to_folders_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    found = expand_input(AdapterInput(str(tmp_path / "*")))
    assert [os.path.basename(entry.path) for entry in found] == ["a", "b"]
    doubled = Recipe(Input((AdapterInput(str(tmp_path / "*")), AdapterInput(str(tmp_path / "a")))))
    assert len(resolve(doubled).input.adapters) == 2


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="matches no adapter"):
        expand_input(AdapterInput(str(tmp_path / "none*")))


def test_one_name_for_many_paths_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ParameterError, match="given to 2 adapters"):
        expand_input(AdapterInput(str(tmp_path / "*"), "x"))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("800", 800),
        (800, 800),
        ("40MB", 40_000_000),
        ("1.5 MiB", 1_572_864),
        ("2k", 2000),
        ("3GiB", 3 * 2**30),
        ("7b", 7),
    ],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "0", "4 apples", "nan", "1e400", "inf", "--5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ParameterError, match="no size"):
        parse_bytes(text)


def test_toml_is_what_others_read_too() -> None:
    tables = tomllib.loads(parse_recipe(EXAMPLE).to_toml())
    assert tables["compress"]["k"] == 16
    assert tables["export"][0]["path"] == "out/adapters/{task}"
