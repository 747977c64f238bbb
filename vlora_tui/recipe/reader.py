"""Reads recipes from TOML: every key known, every value checked, every fault with its line."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import AdapterRef, expanded
from vlora_engine.compression_target import GOALS, METHODS, CompressionTarget
from vlora_engine.convert.formats import GGUF, PEER_FORMATS, SUBSPACE_FORMATS, format_named
from vlora_engine.errors import FileKindError, InputError, MissingPathError
from vlora_engine.merging.methods import DEFAULT_METHOD
from vlora_engine.quantization.dtypes import AUTO_DTYPE, DTYPES
from vlora_engine.quantization.packing import NOT_PACKED, PACKINGS
from vlora_engine.targets.registry import TARGETS
from vlora_engine.targets.sizing import Sizing
from vlora_engine.utils.reading import read_text
from vlora_tui.recipe.changes import absolute_keys, changed
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
    startable,
)
from vlora_tui.recipe.table import REQUIRED, Given, RecipeError, Table

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
        input=_read_input(root.table("input")),
        compress=root.read_if_there("compress", _read_compress),
        quantize=root.read_if_there("quantize", _read_quantize),
        output=root.read_if_there("output", _read_output),
        exports=tuple(_read_export(table) for table in root.tables("export")),
        merges=tuple(_read_merge(table) for table in root.tables("merge")),
        resizes=tuple(_read_resize(table) for table in root.tables("resize")),
        converts=tuple(_read_convert(table) for table in root.tables("convert")),
        pushes=tuple(_read_push(table) for table in root.tables("push")),
    )
    root.end()
    recipe = _packed_after(recipe, root)
    _check_whole(recipe, root)
    return recipe


def read_input(rows: Mapping[str, Any], *, where: str) -> Input:
    """The ``[input]`` of a recipe by itself."""
    return _read_input(Table(dict(rows), "input", "", where, None))


def _read_input(table: Table) -> Input:
    subspace = table.get("subspace", str)
    adapters = tuple(_read_adapter(table, entry) for entry in table.get("adapters", list, []))
    skip_bad = table.get("skip_bad", bool, False)
    table.end()
    if subspace is None and not adapters:
        table.fail(None, "The recipe names no input.", expected="adapters = [...] or subspace")
    if subspace is not None and adapters:
        table.fail("subspace", "The input is adapters or a subspace, not both.")
    named = [adapter.name for adapter in adapters if adapter.name is not None]
    for name in named:
        if named.count(name) > 1:
            table.fail("adapters", f"Two adapters are both named {name!r}.")
    return Input(adapters, subspace, skip_bad)


def _read_adapter(table: Table, entry: Any) -> AdapterInput:
    if isinstance(entry, str) and entry:
        adapter = AdapterInput(entry)
    elif isinstance(entry, dict) and isinstance(entry.get("path"), str) and entry["path"]:
        unknown = entry.keys() - {"path", "name"}
        name = entry.get("name")
        if unknown or not isinstance(name, str | None) or name == "":
            table.fail(
                "adapters", "An adapter's table is wrong.", expected="path, name", found=repr(entry)
            )
        adapter = AdapterInput(entry["path"], name)
    else:
        table.fail(
            "adapters",
            "An adapter is a path or a table.",
            expected='"runs/*" or { path = "...", name = "..." }',
            found=repr(entry),
        )
    table.located("adapters", startable, adapter.path)
    return adapter


def _read_compress(table: Table) -> Compress:
    target = CompressionTarget(
        method=table.choice("method", METHODS, ""),
        k=table.natural("k"),
        k_a=table.natural("k_a"),
        k_b=table.natural("k_b"),
        variance=table.share("variance", including_one=True),
        adaptive=table.get("adaptive", bool, False),
        max_error=table.share("max_error"),
        mean_error=table.share("mean_error"),
        budget=table.size("budget"),
        layers=_read_layers(table),
        dtype=table.choice("dtype", DTYPES, AUTO_DTYPE),
        quantize=table.choice("quantize", PACKINGS, NOT_PACKED),
        refine=table.natural("refine", least=0) or 0,
    )
    compress = Compress(
        target, device=table.get("device", str, "auto"), spectra=table.get("spectra", str)
    )
    table.end()
    check_target(target, table)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", compress.device):
        table.fail(
            "device", "This is no device.", expected="auto, cpu, cuda, cuda:N or mps",
            found=repr(compress.device),
        )  # fmt: skip
    return compress


def check_target(target: CompressionTarget, table: Table) -> None:
    """Refuse k with a target, two goals, half a pair of k."""
    ks = [name for name in ("k", "k_a", "k_b") if getattr(target, name) is not None]
    goals = [name for name in GOALS if getattr(target, name) is not None]
    if ks and goals:
        table.fail(goals[0], f"{ks[0]} and {goals[0]} are both given.", expected="one of them")
    if len(goals) > 1:
        table.fail(
            goals[1], "There is more than one target.", expected="one", found=", ".join(goals)
        )
    if "k" in ks and len(ks) > 1:
        table.fail(ks[1], f"k and {ks[1]} are both given.", expected="k, or k_a and k_b")
    if len(ks) == 1 and "k" not in ks:
        table.fail(ks[0], f"{ks[0]} is given without its other side.", expected="k_a and k_b")
    if target.is_coded:
        _check_coded(target, table)
    if target.method == "flat" and "k_a" in ks and target.k_a != target.k_b:
        table.fail("k_a", "The method flat has one k for both sides.", expected="k")
    if target.refine and target.method != "delta":
        table.fail("refine", "Only delta is refined.", expected="delta", found=target.method)
    if target.adaptive and target.variance is None:
        table.fail(
            "adaptive",
            "adaptive goes with a variance.",
            expected="variance",
            remedy="leave it out: with an error or a budget every layer gets its own k anyway"
            if goals
            else None,
        )


def _check_coded(target: CompressionTarget, table: Table) -> None:
    """Refuse what only a basis has."""
    of_a_basis = [
        n for n in ("k", "k_a", "k_b", "adaptive", "layers", "refine") if getattr(target, n)
    ]
    if target.dtype != AUTO_DTYPE:
        of_a_basis.append("dtype")
    if of_a_basis:
        table.fail(
            of_a_basis[0],
            f"The method {target.method} chooses its bits itself, and has no {of_a_basis[0]}.",
            expected="max_error, mean_error, variance or budget",
            remedy="leave it out, or use the method delta, columns or flat",
        )


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
    compress = replace(recipe.compress, target=replace(target, quantize=NOT_PACKED))
    quantize = replace(Quantize.named(target.quantize), loadings=False)  # coded tasks have none
    return replace(recipe, compress=compress, quantize=quantize)


def _read_layers(table: Table) -> dict[str, int]:
    layers = table.get("layers", dict, {})
    for pattern, k in layers.items():
        if type(k) is not int or k < 1:
            table.fail(
                "layers",
                f"The k of layers {pattern!r} is wrong.",
                expected="a whole number of at least 1",
                found=repr(k),
            )
    return dict(layers)


def _read_quantize(table: Table) -> Quantize:
    method = table.choice("method", ("symmetric", "nf4"), "symmetric")
    bits, block_size = table.natural("bits"), table.natural("block_size")
    quantize = Quantize(
        method=method,
        bits=bits or (4 if method == "nf4" else 8),
        block_size=block_size or Quantize.block_size,
        loadings=table.get("loadings", bool, False),
        double_quant=table.get("double_quant", bool, False),
    )
    table.end()
    default = Quantize(method, bits=4 if method == "nf4" else 8)
    for key, checked in (
        ("bits", replace(default, bits=quantize.bits)),
        ("block_size", replace(default, block_size=quantize.block_size)),
    ):
        table.located(key, Quantize.quantization, checked)
    return quantize


def _read_output(table: Table) -> str:
    path = table.path_at("subspace")
    table.end()
    return path


def _read_export(table: Table) -> Export:
    export = Export(
        tasks=table.words("tasks", []),
        target=table.choice("target", tuple(TARGETS), "peft"),
        path=table.path_at("path"),
        verify=table.get("verify", bool, True),
        dtype=table.get("dtype", str),
        alpha=_finite(table, "alpha"),
        base_model=table.get("base_model", str),
        target_modules=table.words("target_modules") or None,
        drop_rest=table.get("drop_rest", bool, False),
        base=table.path_at("base") if "base" in table.rows else table.get("base", str),
        source=table.choice("source", ("input", "subspace"), ""),
    )
    table.end()
    if "tasks" in table.rows and not export.tasks:
        table.fail("tasks", "No task is named.", expected='names or patterns such as "*"')
    return export


def _read_merge(table: Table) -> Merge:
    adapters = table.words("adapters", REQUIRED)
    count = None if any(map(has_magic, adapters)) else len(adapters)  # of patterns it shows later
    weights = table.get("weights", list)
    if weights is not None:
        _check_weights(table, "weights", weights, count)
    merge = Merge(
        adapters=adapters,
        source=table.choice("source", ("input", "subspace"), "input"),
        method=table.get("method", str, DEFAULT_METHOD),
        weights=None if weights is None else tuple(float(weight) for weight in weights),
        layers=_read_layer_weights(table, count),
        normalize=table.get("normalize", bool),
        scale=1.0 if (scale := _finite(table, "scale")) is None else scale,
        space=table.choice("space", ("delta", "factors"), "delta"),
        dialect=table.choice("dialect", ("peft",), "") or None,
        rank=table.natural("rank"),
        energy=table.share("energy", including_one=True),
        dtype=table.choice("dtype", DTYPES, AUTO_DTYPE),
        path=table.path_at("path"),
    )
    merge = replace(merge, dtype=None if merge.dtype == "auto" else merge.dtype)
    return _with_parameters(merge, table, count)


def _read_layer_weights(table: Table, count: int | None) -> dict[str, Any]:
    """``"*.attn.*" = [0.5, 0.5]``, or ``{ weights = [...], density = 0.3 }``."""
    layers = table.get("layers", dict, {})
    for settings in layers.values():
        weights = settings.get("weights") if isinstance(settings, dict) else settings
        if weights is not None:
            _check_weights(table, "layers", weights, count)
        if isinstance(settings, dict):
            for key, value in settings.items():
                if key != "weights":
                    _check_parameter(table, "layers", key, value, count)
    return layers


def _check_weights(table: Table, key: str, weights: Any, count: int | None) -> None:
    if not isinstance(weights, list) or not all(_is_number(weight) for weight in weights):
        table.fail(key, "Weights are numbers.", expected="such as [0.7, 0.3]", found=repr(weights))
    if count is not None and len(weights) != count:
        table.fail(
            key,
            "There must be one weight for each adapter.",
            expected=f"{count} weights",
            found=f"{len(weights)}",
        )


def _with_parameters(merge: Merge, table: Table, count: int | None) -> Merge:
    """What is left are the method's own parameters; the method itself judges them when it runs."""
    parameters = table.others()
    for key, value in parameters.items():
        _check_parameter(table, key, key, value, count)
    return replace(merge, parameters=parameters)


def _check_parameter(table: Table, where: str, key: str, value: Any, count: int | None) -> None:
    """A number, a word, or numbers one for each adapter."""
    numbers = isinstance(value, list) and value and all(map(_is_number, value))
    if numbers and count is not None and len(value) != count:
        table.fail(
            where,
            f"There must be one {key} for each adapter.",
            expected=f"one number, or {count}",
            found=f"{len(value)}",
        )
    if not (_is_number(value) or isinstance(value, bool | str) or numbers):
        table.fail(where, f"{key!r} has a value of the wrong kind.", found=repr(value))


def _read_resize(table: Table) -> Resize:
    dynamic = table.get("dynamic", list)
    if dynamic is not None and not (
        len(dynamic) == 2 and isinstance(dynamic[0], str) and _is_number(dynamic[1])
    ):
        table.fail(
            "dynamic",
            "A dynamic rule is its name and its value.",
            expected='["sv_fro", 0.97]',
            found=repr(dynamic),
        )
    resize = Resize(
        tasks=table.words("tasks", []),
        path=table.path_at("path"),
        rank=table.natural("rank"),
        energy=table.get("energy", float),
        dynamic=None if dynamic is None else (dynamic[0], float(dynamic[1])),
        target=table.get("target", str),
        max_error=table.get("max_error", float),
        verify=table.get("verify", bool, True),
    )
    table.end()
    given = [
        n
        for n in ("max_error", "dynamic", "energy", "target", "rank")
        if getattr(resize, n) is not None
    ]
    table.located(given[0] if given else "rank", _check_sizing, resize)
    return resize


def _check_sizing(resize: Resize) -> None:
    Sizing(resize.rank, resize.energy, resize.dynamic, resize.target, resize.max_error)


def _read_convert(table: Table) -> Convert:
    convert = Convert(
        to=table.located("to", format_named, table.get("to", str, REQUIRED)),
        path=table.path_at("path"),
        tasks=table.words("tasks", []),
        source=table.choice("source", ("input", "subspace"), ""),
        k=table.natural("k"),
        allow_loss=table.get("allow_loss", bool, False),
        base=table.path_at("base") if "base" in table.rows else table.get("base", str),
        dtype=table.get("dtype", str),
    )
    table.end()
    for key in ("base", "dtype"):
        if key in table.rows and convert.to != GGUF:
            table.fail(
                key, f"The format {convert.to} has no use for it.", expected=f"{key} with gguf"
            )
    if "tasks" in table.rows and not convert.tasks:
        table.fail("tasks", "No task is named.", expected='names or patterns such as "*"')
    if convert.to in SUBSPACE_FORMATS and "{task}" in convert.path:
        table.fail(
            "path",
            f"The format {convert.to} holds all tasks in one directory.",
            expected="a path without {task}",
            found=convert.path,
        )
    if convert.k is not None and convert.to not in PEER_FORMATS:
        table.fail(
            "k",
            f"The format {convert.to} has no bases to compute.",
            expected=f"k with {' or '.join(PEER_FORMATS)}",
        )
    return convert


def _read_push(table: Table) -> Push:
    if "token" in table.rows:
        table.fail(
            "token",
            "A token has no place in a recipe, which others may read.",
            remedy="log in with `hf auth login`, or set HF_TOKEN",
        )
    push = Push(
        repo=table.get("repo", str, REQUIRED),
        path=table.path_at("path") if "path" in table.rows else table.get("path", str),
        adapters=table.get("adapters", bool, False),
        tasks=table.words("tasks", []),
        private=table.get("private", bool, False),
        revision=table.get("revision", str),
        message=table.get("message", str),
        force=table.get("force", bool, False),
    )
    table.end()
    table.located("repo", AdapterRef.whole_repository, push.repo)
    if push.revision == "":
        table.fail("revision", "The branch has no name.", expected="a name, or leave it out")
    if "tasks" in table.rows and not push.tasks:
        table.fail("tasks", "No task is named.", expected='names or patterns such as "*"')
    if push.tasks and not push.adapters:
        if table.rows.get("adapters") is False:
            table.fail("tasks", "Tasks are chosen among the adapters.", expected="adapters = true")
        push = replace(push, adapters=True)
    return push


def _check_whole(recipe: Recipe, root: Table) -> None:
    if recipe.compress is not None and recipe.output is None:
        root.fail("compress", "There is nowhere to put the subspace.", expected="[output] subspace")
    made = recipe.compress is not None or recipe.quantize is not None
    if recipe.output is not None and not made:
        root.fail(
            "output",
            "Nothing makes this subspace.",
            expected="a [compress] table"
            if recipe.input.subspace is None
            else "a [quantize] table",
        )
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
    for export in recipe.exports:
        if export.source == "subspace" and no_subspace:
            root.fail("export", "There is no subspace to export from.", expected='source = "input"')
        if export.source == "input" and recipe.input.subspace is not None:
            root.fail("export", "The input is a subspace.", expected='source = "subspace"')
    for merge in recipe.merges:
        if merge.source == "subspace" and no_subspace:
            root.fail("merge", "There is no subspace to merge from.", expected='source = "input"')
        if merge.source == "input" and recipe.input.subspace is not None:
            root.fail("merge", "The input is a subspace.", expected='source = "subspace"')
    for convert in recipe.converts:
        if convert.source == "subspace" and no_subspace:
            root.fail("convert", "There is no subspace to convert.", expected='source = "input"')
        if convert.source == "input" and recipe.input.subspace is not None:
            root.fail("convert", "The input is a subspace.", expected='source = "subspace"')
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


def _finite(table: Table, key: str) -> float | None:
    value = table.get(key, float)
    if value is not None and not math.isfinite(value):
        table.fail(key, f"{key!r} is out of range.", found=str(value))
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
