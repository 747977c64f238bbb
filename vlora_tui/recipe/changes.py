"""Changes to the tables of a recipe before they are read: what a command line says goes first.

Keys that exclude each other go together: with another k or target the former goes. A change to a
table that may stand several times is made in each of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlora_engine.compression_target import GOALS
from vlora_engine.errors import ParameterError
from vlora_engine.quantization.packing import NOT_PACKED
from vlora_tui.recipe.model import (
    CACHE,
    Quantize,
    absolute_base,
    absolute_path,
    is_path,
    named_inputs,
)

Tables = dict[str, Any]

SEVERAL = ("export", "merge", "resize", "convert", "push")
DEFAULT_ROWS: dict[str, Tables] = {"merge": {"adapters": ["*"]}}  # where a change makes a table
_PATHS = {
    ("input", "subspace"),
    ("output", "subspace"),
    ("compress", "spectra"),
    ("convert", "base"),
    *((name, "path") for name in SEVERAL),
}


def changed(tables: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> Tables:
    """The tables with the keys that are ``given``, by table.

    ``names`` in the input are task names, in the order of its adapters. What of ``tables`` has a
    form that no recipe has is left for the reader to refuse.

    Raises:
        ParameterError: Several tables would write to one path, or there is no adapter to name.
    """
    found: Tables = dict(tables)
    for name, keys in given.items():
        if name in SEVERAL:
            found[name] = _changed_rows(name, found.get(name) or _first_rows(name, found), keys)
        elif name == "input":
            found[name] = _changed_input(found.get(name, {}), keys)
        elif isinstance(found.get(name, {}), dict):
            found[name] = _replaced(name, found.get(name, {}), keys) | dict(keys)
    return _packed_instead(found)


def absolute_keys(given: Mapping[str, Mapping[str, Any]], base: Path) -> dict[str, dict[str, Any]]:
    """The same with paths that are relative to ``base`` absolute."""

    def whole(table: str, key: str, value: Any) -> Any:
        if (table, key) in _PATHS and value != CACHE:
            return absolute_path(value, base)
        if (table, key) == ("export", "base"):
            return absolute_base(value, base)
        if (table, key) == ("merge", "adapters"):
            return [absolute_path(word, base) if is_path(word) else word for word in value]
        return value

    return {
        table: {key: whole(table, key, value) for key, value in keys.items()}
        for table, keys in given.items()
    }


def _changed_rows(name: str, rows: Any, keys: Mapping[str, Any]) -> Any:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return rows
    if len(rows) > 1 and "path" in keys and name != "push":
        raise ParameterError(
            f"The recipe has {len(rows)} tables [[{name}]], which would go to one path.",
            found=os.fspath(keys["path"]),
            remedy="change the path of each in the recipe",
        )
    return [_replaced(name, row, keys) | dict(keys) for row in rows]


def _first_rows(name: str, tables: Tables) -> list[Tables]:
    """A table that is not there yet, with what follows from the input."""
    source = tables.get("input")
    row = dict(DEFAULT_ROWS.get(name, {}))
    if name == "merge" and isinstance(source, dict) and "subspace" in source:
        row["source"] = "subspace"
    return [row]


def _changed_input(table: Any, keys: Mapping[str, Any]) -> Any:
    if not isinstance(table, dict):
        return table
    changes = dict(keys)
    names: Sequence[str] | None = changes.pop("names", None)
    kept = dict(table)
    if "subspace" in changes:
        kept.pop("adapters", None)
    if names:
        kept["adapters"] = _named(kept.get("adapters"), names)
    return kept | changes


def _named(adapters: Any, names: Sequence[str]) -> Any:
    if not isinstance(adapters, list) or not adapters:
        raise ParameterError("There is no adapter in the input to name.", found=", ".join(names))
    paths: list[Any] = [e.get("path") if isinstance(e, dict) else e for e in adapters]
    return [{"path": e.path, "name": e.name} for e in named_inputs(paths, names)]


def _replaced(name: str, table: Mapping[str, Any], keys: Mapping[str, Any]) -> Tables:
    """The table without what the new keys stand instead of."""
    gone: set[str] = set()
    if name == "compress":
        aims = {"k", "k_a", "k_b", *GOALS}
        if aims & keys.keys():
            pair = {"k_a", "k_b"} if {"k_a", "k_b"} & keys.keys() else set[str]()
            gone |= aims - pair
            gone |= set() if "variance" in keys else {"adaptive"}
        if keys.get("quantize") == NOT_PACKED:
            gone |= {"block_size", "double_quant"}
    elif name == "quantize" and "method" in keys:
        gone.add("bits")
    elif name == "resize" and {"energy", "dynamic"} & keys.keys():
        gone |= {"energy", "dynamic"}
    return {key: value for key, value in table.items() if key not in gone}


def _packed_instead(tables: Tables) -> Tables:
    """``quantize`` alone of [compress], where a subspace is the input: a [quantize] table."""
    source, compress = tables.get("input"), tables.get("compress")
    is_subspace = isinstance(source, dict) and "subspace" in source
    if not is_subspace or not isinstance(compress, dict) or "quantize" not in compress:
        return tables
    if compress.keys() - {"quantize", "block_size", "double_quant"}:
        return tables
    rest = {name: table for name, table in tables.items() if name != "compress"}
    if compress["quantize"] == NOT_PACKED:
        return rest
    details = {name: value for name, value in compress.items() if name != "quantize"}
    packed = Quantize.named(compress["quantize"], **details)
    row = {name: getattr(packed, name) for name in packed.__dataclass_fields__}
    return {**rest, "quantize": row | dict(rest.get("quantize", {}))}
