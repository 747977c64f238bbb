"""Turns command-line flags into a recipe, which is checked like one from a file."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlora_engine.catalog.locate import existing_path, locate
from vlora_engine.compression_target import ADAPTIVE_VARIANCE
from vlora_engine.errors import ParameterError
from vlora_tui.cli.options import Compressing
from vlora_tui.cli.output import Output
from vlora_tui.recipe.model import Recipe, absolute, named_inputs, startable

WHERE = "the command line"
LORASHARE_VARIANCE = 0.95  # what `-k auto` means where lorashare's users come from


def compress_recipe(
    adapters: Sequence[str],
    output: str | None,
    *,
    names: Sequence[str] | None = None,
    skip_bad: bool = False,
    **compress: Any,
) -> Recipe:
    """The recipe that the flags of ``compress`` stand for, its paths absolute."""
    tables = {
        "input": input_table(adapters, names, skip_bad=skip_bad),
        "compress": compress_table(**compress),
    }
    if output is not None:
        tables["output"] = {"subspace": output}
    return from_tables(tables)


def compress_table(
    *,
    k: str | None = None,
    layers: Sequence[str] | None = None,
    adaptive: bool = False,
    variance: float | None = None,
    refine: int | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The ``[compress]`` table of a recipe that flags stand for.

    Raises:
        ParameterError: k or the k of a layer is no whole number.
    """
    table = given_only(others)
    aimed = any(name in table for name in ("k_a", "k_b", "max_error", "mean_error", "budget"))
    table.update(_k_table(k, variance, adaptive, aimed=aimed))
    if layers:
        table["layers"] = dict(_layer(text) for text in layers)
    if refine:
        table["refine"] = refine
    return table


def given_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are None: what was not given."""
    return {name: value for name, value in values.items() if value is not None}


def input_table(
    adapters: Sequence[str], names: Sequence[str] | None, *, skip_bad: bool
) -> dict[str, Any]:
    """The ``[input]`` of a recipe on adapters, which have to be there."""
    require_there(adapters)
    entries = named_inputs(list(adapters), list(names or []))
    named = [e.path if e.name is None else {"path": e.path, "name": e.name} for e in entries]
    return {"adapters": named, "skip_bad": skip_bad}


def from_tables(tables: dict[str, Any]) -> Recipe:
    """A recipe from tables whose paths are relative to the current directory."""
    from vlora_tui.recipe.reader import read_tables

    return absolute(read_tables(tables, where=WHERE), Path.cwd())


def is_several(table: Mapping[str, Any]) -> bool:
    """Whether an ``[input]`` of adapters stands for several, as a folder or a pattern may."""
    from vlora_tui.pipeline.inputs import gather
    from vlora_tui.recipe.resolve import resolve
    from vlora_tui.recipe.steps import read_input
    from vlora_tui.recipe.table import Table

    if len(table["adapters"]) > 1:
        return True
    recipe = Recipe(read_input(Table(dict(table), "input", "", WHERE)))
    return len(gather(resolve(absolute(recipe, Path.cwd()))).tasks) > 1


def require_there(paths: Sequence[str]) -> None:
    """Refuse a path that is not there, in the words in which it was given.

    Raises:
        NotFoundError: It is not there. A pattern is judged later, a task of a subspace too, and
            what is on the Hub.
        ParameterError: It is on another machine, or no place that the Hub could have.
    """
    for path in paths:
        ref = startable(path)
        if ref.is_local and not glob.has_magic(path) and not locate(ref).task:
            existing_path(ref)


def say_once(out: Output, compressing: Compressing) -> list[str]:
    """What the flags that have nothing to do here come to: a line each, which is said once."""
    flags = ["--layer-by-layer"] * compressing.layer_by_layer
    flags += ["--chunk-size"] * (compressing.chunk_size is not None)
    notes = []
    if flags:
        notes.append(
            f"{' and '.join(flags)}: no effect; the build is always module by module, "
            "in bounded memory"
        )
    for note in notes:
        out.once(note)
    return notes


def _k_table(
    k: str | None, variance: float | None, adaptive: bool, *, aimed: bool
) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if k is not None and k != "auto":
        if not k.lstrip("+-").isdecimal():
            raise ParameterError("k is a whole number or auto.", found=repr(k))
        table["k"] = int(k)
    # A word that leaves k open means a variance only where nothing else says what to aim at.
    if variance is None and k == "auto" and not aimed:
        variance = LORASHARE_VARIANCE
    if variance is None and adaptive and k is None and not aimed:
        variance = ADAPTIVE_VARIANCE
    if variance is not None:
        table["variance"] = variance
    if adaptive:
        table["adaptive"] = True
    return table


def _layer(text: str) -> tuple[str, int | list[int]]:
    pattern, equals, k = text.rpartition("=")
    sides = k.split(",")
    if not equals or not pattern or len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ParameterError(
            "--layers takes a pattern and its k.",
            expected="'*.c_attn=24', or of either side '*.c_attn=24,16'",
            found=repr(text),
        )
    return pattern, int(k) if len(sides) == 1 else [int(side) for side in sides]
