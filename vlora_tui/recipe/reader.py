"""Reads recipes from TOML: every key known, every value checked, every fault with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import expanded
from vlora_engine.errors import FileKindError, InputError, MissingPathError
from vlora_engine.quantization.packing import NOT_PACKED
from vlora_engine.utils.reading import read_text
from vlora_tui.recipe.changes import absolute_keys, changed
from vlora_tui.recipe.model import Convert, Export, Merge, Quantize, Recipe, absolute
from vlora_tui.recipe.steps import (
    read_compress,
    read_convert,
    read_export,
    read_input,
    read_merge,
    read_output,
    read_push,
    read_quantize,
    read_resize,
)
from vlora_tui.recipe.table import Given, RecipeError, Table

STDIN = "-"
MOST_RECIPE = 16 << 20  # bytes


def load_recipe(path: str | Path, given: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """Read and check the recipe file at ``path``; its paths become absolute.

    Args:
        given: Keys by table that go before those of the file; its paths are those of the current
            directory (`vlora_tui.recipe.changes`).

    ``-`` is standard input. What the shell hands over as a descriptor (``<(...)``) is read too; any
    other pipe is refused, as nobody may ever write to it.

    Raises:
        NotFoundError: There is no such file.
        RecipeError: Something in it is wrong; the error names the place.
        ParameterError: What is given does not go with it.
    """
    here = absolute_keys(given or {}, Path.cwd())
    if is_handed_over(str(path)):
        where = "standard input" if str(path) == STDIN else str(path)
        text = _handed_over(str(path), where)
        return absolute(parse_recipe(text, where=where, given=here), Path.cwd())
    file = expanded(str(path))
    try:
        text = read_text(file, MOST_RECIPE)
    except FileKindError:
        raise
    except FileNotFoundError:
        raise MissingPathError(
            "There is no such recipe.", where=file, remedy="write one with `run --print-recipe`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("The recipe cannot be read.", where=file, found=str(error)) from None
    return absolute(parse_recipe(text, where=str(file), given=here), file.resolve().parent)


def is_handed_over(path: str) -> bool:
    """Whether ``path`` is standard input or a descriptor that this process was started with."""
    return path == STDIN or re.fullmatch(r"/dev/stdin|/(dev|proc/self)/fd/\d+", path) is not None


def _handed_over(path: str, where: str) -> str:
    try:
        with open(0 if path == STDIN else path, "rb", closefd=path != STDIN) as file:
            raw = file.read(MOST_RECIPE + 1)
        if len(raw) > MOST_RECIPE:
            raise InputError(
                "The recipe is too large.", where=where, expected=f"at most {MOST_RECIPE} bytes"
            )
        return raw.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("The recipe cannot be read.", where=where, found=str(error)) from None


def parse_recipe(text: str, *, where: str = "recipe", given: Given | None = None) -> Recipe:
    """Read a recipe from TOML. Its paths stay as written.

    Args:
        given: Keys by table that go before those of the text.

    Raises:
        RecipeError: It is not TOML, has a key that is not known, or a value of the wrong kind.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of too many digits, lists too deep
        found = str(error) or "tables or lists too deep"
        raise RecipeError("The recipe is not TOML.", where=where, found=found) from None
    return read_tables(changed(tables, given or {}), text=text, where=where, given=given)


def read_tables(
    tables: Mapping[str, Any], *, text: str = "", where: str = "recipe", given: Given | None = None
) -> Recipe:
    """Check the tables of a recipe and turn them into one.

    Args:
        given: What of them the command line said, for errors.

    Raises:
        RecipeError: A key that is not known, or a value of the wrong kind.
    """
    root = Table(dict(tables), "", text, where, given)
    recipe = Recipe(
        input=read_input(root.table("input")),
        compress=root.read_if_there("compress", read_compress),
        quantize=root.read_if_there("quantize", read_quantize),
        output=root.read_if_there("output", read_output),
        exports=tuple(read_export(table) for table in root.tables("export")),
        merges=tuple(read_merge(table) for table in root.tables("merge")),
        resizes=tuple(read_resize(table) for table in root.tables("resize")),
        converts=tuple(read_convert(table) for table in root.tables("convert")),
        pushes=tuple(read_push(table) for table in root.tables("push")),
        max_memory=root.size("max_memory"),
    )
    root.end()
    recipe = _packed_after(recipe, root)
    _check_whole(recipe, root)
    return recipe


def _packed_after(recipe: Recipe, root: Table) -> Recipe:
    """The recipe with ``quantize`` of a coded method as a step after it: its bits are its own.

    There it means at most the bytes that A and B take so.
    """
    target = None if recipe.compress is None else recipe.compress.target
    if recipe.compress is None or target is None or target.quantize == NOT_PACKED:
        return recipe
    if recipe.quantize is not None:
        root.fail(
            "quantize",
            "The subspace would be packed twice.",
            expected="a [quantize] table, or quantize in the [compress] table",
            found=f"quantize = {target.quantize!r} in [compress]",
        )
    if not target.is_coded:
        return recipe
    named = Quantize.named(
        target.quantize, block_size=target.block_size, double_quant=target.double_quant
    )
    compress = replace(recipe.compress, target=target.unpacked())
    quantize = replace(named, loadings=False)  # coded tasks have none
    return replace(recipe, compress=compress, quantize=quantize)


def _check_whole(recipe: Recipe, root: Table) -> None:
    if recipe.compress is not None and recipe.output is None:
        root.fail("compress", "There is nowhere to put the subspace.", expected="[output] subspace")
    made = recipe.compress is not None or recipe.quantize is not None
    if recipe.output is not None and not made:
        table = "compress" if recipe.input.subspace is None else "quantize"
        root.fail("output", "Nothing makes this subspace.", expected=f"a [{table}] table")
    if recipe.quantize is not None and recipe.compress is None and recipe.input.subspace is None:
        root.fail(
            "quantize",
            "There is no subspace to quantize.",
            expected="input.subspace, or a [compress] table",
        )
    if recipe.quantize is not None and recipe.output is None:
        root.fail("quantize", "There is nowhere to put the subspace.", expected="[output] subspace")
    if recipe.compress is not None and recipe.input.subspace is not None:
        root.fail("compress", "A subspace is compressed already.", expected="input.adapters")
    no_subspace = recipe.compress is None and recipe.input.subspace is None
    steps: list[tuple[str, str, Export | Merge | Convert]] = [
        *(("export", "export from", step) for step in recipe.exports),
        *(("merge", "merge from", step) for step in recipe.merges),
        *(("convert", "convert", step) for step in recipe.converts),
    ]
    for key, verb, step in steps:
        if step.source == "subspace" and no_subspace:
            root.fail(key, f"There is no subspace to {verb}.", expected='source = "input"')
        if step.source == "input" and recipe.input.subspace is not None:
            root.fail(key, "The input is a subspace.", expected='source = "subspace"')
    for convert in recipe.converts:
        if convert.to == "subspace" and (recipe.compress is not None or no_subspace):
            root.fail(
                "convert",
                "Adapters become a subspace by compressing them.",
                expected="a [compress] table and [output], or a subspace of another library",
            )
    for push in recipe.pushes:
        if push.path is None and no_subspace:
            root.fail(
                "push",
                "There is no subspace to push.",
                expected="input.subspace, [compress] and [output], or path",
            )
    targets = [str(push.address) for push in recipe.pushes]
    for target in targets:
        if targets.count(target) > 1:
            root.fail("push", "Two pushes go to one place.", found=target)
