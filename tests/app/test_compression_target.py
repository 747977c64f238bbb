"""One request for Python, recipes, commands and screens: their defaults agree, in one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import vlora_engine
import vlora_tui
from tests.app.conftest import Cli
from tests.app.tui.run.test_run import session_of
from tests.engine.test_shared_subspace import files
from vlora_engine import SharedSubspace, open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.compression_target import (
    BASIS_METHODS,
    CODED_METHODS,
    DEFAULT_MAX_ERROR,
    METHODS,
    CompressionTarget,
)
from vlora_engine.errors import ParameterError
from vlora_engine.quantization.dtypes import DTYPES, STORAGE_DTYPES
from vlora_engine.quantization.packing import PACKINGS, QUANTIZATIONS
from vlora_tui.pipeline.run import Run
from vlora_tui.recipe.reader import parse_recipe

PACKAGES = [Path(str(package.__file__)).parent for package in (vlora_engine, vlora_tui)]


def test_all_ask_for_the_same_where_they_are_told_nothing(
    runs: Path, cli: Cli, tmp_path: Path
) -> None:
    paths = sorted(path for path in runs.iterdir() if path.is_dir())
    sources = {path.name: open_adapter(path) for path in paths}
    outs = {who: tmp_path / who for who in ("python", "command", "recipe", "screen")}

    build_subspace(sources, outs["python"])
    cli("compress", *paths, "-o", outs["command"])
    text = f"[input]\nadapters = {[str(path) for path in paths]}\n[compress]\n[output]\n"
    recipe = parse_recipe(f'{text}subspace = "{outs["recipe"]}"\n')
    Run(recipe, lambda event: None).execute()
    asked = session_of(paths).recipe()
    Run(replace(asked, output=str(outs["screen"])), lambda event: None).execute()
    held = SharedSubspace.from_adapters(list(sources.values()), list(sources))

    assert recipe.compress is not None
    assert asked.compress is not None
    assert recipe.compress.target.checked() == asked.compress.target.checked()
    made = {who: read_manifest(out) for who, out in outs.items()}
    for who, manifest in made.items():
        assert manifest.coding is not None, who
        assert (manifest.method, manifest.coding.target) == ("auto", {"max_error": 0.05}), who
        assert files(outs[who]) == files(outs["python"]), who
    assert (held.method, held.space.coding.target) == ("auto", {"max_error": 0.05})


@pytest.mark.parametrize(
    ("asked", "method"),
    [
        ({}, "auto"),
        ({"budget": 10**6}, "auto"),
        ({"mean_error": 0.1}, "auto"),
        ({"k": 4}, "delta"),
        ({"k_a": 4, "k_b": 8}, "delta"),
        ({"variance": 0.9}, "delta"),
        ({"layers": {"*": 3}}, "delta"),
        ({"dtype": "fp16"}, "delta"),
        ({"quantize": "nf4"}, "delta"),
        ({"method": "own"}, "own"),
    ],
)
def test_what_only_a_basis_has_makes_it_delta(asked: dict[str, object], method: str) -> None:
    assert CompressionTarget(**asked).method == method  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "svd"}, "Unknown method 'svd'"),
        ({"k": 0}, "k is at least 1"),
        ({"k_a": 3}, "without its other side"),
        ({"k": 3, "k_a": 3, "k_b": 3}, "k and k_a are both given"),
        ({"k": 3, "budget": 100}, "k and budget are both given"),
        ({"variance": 1.5}, "up to 1"),
        ({"max_error": 1.0}, "between 0 and 1"),
        ({"budget": 0}, "positive number of bytes"),
        ({"method": "auto", "k": 3}, "chooses its bits itself"),
        ({"method": "own", "dtype": "fp16"}, "chooses its bits itself"),
        ({"method": "flat", "k": 3, "refine": 1}, "Only delta is refined"),
        ({"method": "delta", "dtype": "fp8"}, "Unknown storage dtype"),
        ({"method": "delta", "quantize": "int3"}, "Unknown quantization"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        CompressionTarget(**asked).checked()  # type: ignore[arg-type]


def test_another_goal_replaces_the_one_before() -> None:
    target = CompressionTarget(k_a=3, k_b=5, dtype="fp16")
    assert target.goal == ("k", 5)
    assert target.with_goal("budget", 2e6).checked().budget == 2_000_000
    assert target.with_goal("max_error", 0.1) == CompressionTarget(
        "delta", max_error=0.1, dtype="fp16"
    )
    k = target.with_goal("k", 7.0).k
    assert (k, type(k)) == (7, int)


def test_a_layers_own_k_wins_over_a_pattern_and_can_be_cleared() -> None:
    target = CompressionTarget(k=3, layers={"a": 9, "*": 4})
    assert list(target.with_layer("a", 5).layers.items()) == [("*", 4), ("a", 5)]
    assert target.with_layer("a", None) == CompressionTarget(k=3, layers={"*": 4})
    assert (
        len({target, target.with_layer("a", 5), CompressionTarget(k=3, layers=target.layers)}) == 2
    )


# One home


WORDS = {
    "methods": METHODS,
    "methods with a basis": BASIS_METHODS,
    "coded methods": CODED_METHODS,
    "dtypes": DTYPES,
    "storage dtypes": tuple(STORAGE_DTYPES),
    "packings": PACKINGS,
    "quantizations": QUANTIZATIONS,
}
HOMES = ("compression_target.py", "quantization/dtypes.py", "quantization/packing.py")


def elsewhere() -> Iterator[tuple[str, ast.AST]]:
    """Every piece of source outside the homes, with its place."""
    for package in PACKAGES:
        for file in package.rglob("*.py"):
            place = file.relative_to(package).as_posix()
            if package.name == "vlora_engine" and place in HOMES:
                continue
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                yield f"{package.name}/{place}:{getattr(node, 'lineno', 0)}", node


def literal(node: ast.AST | None) -> object:
    """The value of a literal, None where it is none."""
    try:
        return ast.literal_eval(node) if isinstance(node, ast.expr) else None
    except (ValueError, TypeError):
        return None


def word_lists(node: ast.AST) -> Iterator[tuple[object, ...]]:
    """The words that a literal lists: its items, or the keys or values of a table of words."""
    value = literal(node)
    if isinstance(value, (tuple, list, set)):
        yield tuple(value)
    if isinstance(value, dict) and {"F32", "fp32"} <= {*value, *map(str, value.values())}:
        yield from (tuple(value), tuple(value.values()))


def bound(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Names that are given a value here: assigned, as a default, as a keyword, in a pair."""
    if isinstance(node, ast.Assign):
        yield from ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, node.value
    elif isinstance(node, ast.arguments):
        plain = [*node.posonlyargs, *node.args]
        with_default = plain[len(plain) - len(node.defaults) :]
        yield from ((a.arg, d) for a, d in zip(with_default, node.defaults, strict=True))
        yield from ((a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True))
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
        yield str(literal(node.elts[0])), node.elts[1]
    elif isinstance(node, ast.Dict):
        yield from ((str(literal(k)), v) for k, v in zip(node.keys, node.values, strict=True))


def test_no_other_module_lists_the_words_again() -> None:
    again = [
        f"{place} lists the {name}"
        for place, node in elsewhere()
        for words in word_lists(node)
        for name, known in WORDS.items()
        if sorted(map(str, words)) == sorted(known)
    ]
    assert again == []


def test_no_other_module_has_a_default_method_or_a_default_error() -> None:
    again = [
        f"{place} sets {name}"
        for place, node in elsewhere()
        for name, value in bound(node)
        if (
            literal(value) == DEFAULT_MAX_ERROR
            and any(word in name.lower() for word in ("error", "target", "goal"))
        )
        or (
            name == "method"
            and literal(value) in METHODS
            and isinstance(node, (ast.arguments, ast.AnnAssign))
        )
    ]
    assert again == []
