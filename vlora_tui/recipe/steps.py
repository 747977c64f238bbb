"""Reads the tables of a recipe, one function for each: every key known, every value checked."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from glob import has_magic
from typing import Any

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.compression_target import GOALS, METHODS, CompressionTarget, LayerK, one_k
from vlora_engine.convert.formats import GGUF, PEER_FORMATS, SUBSPACE_FORMATS, format_named
from vlora_engine.merging.methods import DEFAULT_METHOD
from vlora_engine.quantization.dtypes import AUTO_DTYPE, DTYPES
from vlora_engine.quantization.packing import NOT_PACKED, PACKINGS, Packing
from vlora_engine.targets.registry import TARGETS
from vlora_engine.targets.sizing import Sizing
from vlora_tui.recipe.model import (
    AdapterInput,
    Compress,
    Convert,
    Export,
    Input,
    Merge,
    Push,
    Quantize,
    Resize,
    startable,
)
from vlora_tui.recipe.table import REQUIRED, Table


def read_input(table: Table) -> Input:
    """What the recipe starts from: adapters or a subspace."""
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


def read_compress(table: Table) -> Compress:
    """How to compress the input into a subspace."""
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
        block_size=table.natural("block_size") or CompressionTarget.block_size,
        double_quant=table.get("double_quant", bool, CompressionTarget.double_quant),
        refine=table.natural("refine", least=0) or 0,
    )
    compress = Compress(
        target, device=table.get("device", str, "auto"), spectra=table.get("spectra", str)
    )
    table.end()
    check_target(target, table)
    table.located("block_size", lambda size: Packing("symmetric", 8, size), target.block_size)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", compress.device):
        table.fail(
            "device", "This is no device.", expected="auto, cpu, cuda, cuda:N or mps",
            found=repr(compress.device),
        )  # fmt: skip
    return compress


def check_target(target: CompressionTarget, table: Table) -> None:
    """Refuse what does not go together: k with a target, two goals, half a pair of k."""
    for key, what, expected, found, remedy in target.contradictions():
        table.fail(key, what, expected=expected, found=found, remedy=remedy)
    if target.adaptive and target.variance is None:
        has_goal = any(getattr(target, name) is not None for name in GOALS)
        table.fail(
            "adaptive",
            "adaptive goes with a variance.",
            expected="variance",
            remedy="leave it out: with an error or a budget every module gets its own k anyway"
            if has_goal
            else None,
        )


def _read_layers(table: Table) -> dict[str, LayerK]:
    layers = table.get("layers", dict, {})
    for pattern, k in layers.items():
        sides = k if isinstance(k, list) and len(k) == 2 else [k]
        if any(type(side) is not int or side < 1 for side in sides):
            table.fail(
                "layers",
                f"The k of modules {pattern!r} is wrong.",
                expected="a whole number of at least 1, or two: [k_a, k_b]",
                found=repr(k),
            )
    return {pattern: one_k(k) for pattern, k in layers.items()}


def read_quantize(table: Table) -> Quantize:
    """How to pack the subspace."""
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


def read_output(table: Table) -> str:
    """Where the subspace goes."""
    path = table.path_at("subspace")
    table.end()
    return path


def read_export(table: Table) -> Export:
    """Tasks or adapters to write for a server."""
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
        base=table.optional_path("base"),
        source=table.choice("source", ("input", "subspace"), ""),
    )
    table.end()
    _require_named(table, export.tasks)
    return export


def _require_named(table: Table, tasks: Sequence[str]) -> None:
    if "tasks" in table.rows and not tasks:
        table.fail("tasks", "No task is named.", expected='names or patterns such as "*"')


def read_merge(table: Table) -> Merge:
    """Adapters to merge into one."""
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


def read_resize(table: Table) -> Resize:
    """Tasks or adapters to give another rank."""
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
    rules = ("max_error", "dynamic", "energy", "target", "rank")
    given = [name for name in rules if getattr(resize, name) is not None]
    table.located(given[0] if given else "rank", _check_sizing, resize)
    return resize


def _check_sizing(resize: Resize) -> None:
    Sizing(resize.rank, resize.energy, resize.dynamic, resize.target, resize.max_error)


def read_convert(table: Table) -> Convert:
    """Tasks or adapters to write in another format."""
    convert = Convert(
        to=table.located("to", format_named, table.get("to", str, REQUIRED)),
        path=table.path_at("path"),
        tasks=table.words("tasks", []),
        source=table.choice("source", ("input", "subspace"), ""),
        k=table.natural("k"),
        allow_loss=table.get("allow_loss", bool, False),
        base=table.optional_path("base"),
        dtype=table.get("dtype", str),
    )
    table.end()
    for key in ("base", "dtype"):
        if key in table.rows and convert.to != GGUF:
            table.fail(
                key, f"The format {convert.to} has no use for it.", expected=f"{key} with gguf"
            )
    _require_named(table, convert.tasks)
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


def read_push(table: Table) -> Push:
    """What to push to the Hugging Face Hub."""
    if "token" in table.rows:
        table.fail(
            "token",
            "A token has no place in a recipe, which others may read.",
            remedy="log in with `hf auth login`, or set HF_TOKEN",
        )
    push = Push(
        repo=table.get("repo", str, REQUIRED),
        path=table.optional_path("path"),
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
    _require_named(table, push.tasks)
    if push.tasks and not push.adapters:
        if table.rows.get("adapters") is False:
            table.fail("tasks", "Tasks are chosen among the adapters.", expected="adapters = true")
        push = replace(push, adapters=True)
    return push


def _finite(table: Table, key: str) -> float | None:
    value = table.get(key, float)
    if value is not None and not math.isfinite(value):
        table.fail(key, f"{key!r} is out of range.", found=str(value))
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
