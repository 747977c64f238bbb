"""Flags are another way to write a recipe: they become its tables and are checked as one."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlora_engine.errors import ParameterError
from vlora_engine.hub.address import address_of, is_address, is_hub_place
from vlora_tui.cli.output import Output
from vlora_tui.recipe import Recipe, absolute, check_place, named_inputs
from vlora_tui.recipe_reader import read_tables

WHERE = "the command line"
LORASHARE_VARIANCE = 0.95  # what `-k auto` means where lorashare's users come from
VLORA_VARIANCE = 0.6  # what `--adaptive-k` alone means in vLoRA


def compress_recipe(
    adapters: Sequence[str],
    output: str | None,
    *,
    names: Sequence[str] | None,
    skip_bad: bool,
    k: str | None,
    layers: Sequence[str] | None,
    adaptive: bool,
    variance: float | None,
    refine: int,
    **compress: Any,
) -> Recipe:
    """The recipe that the flags of ``compress`` stand for, its paths absolute."""
    table = {name: value for name, value in compress.items() if value is not None}
    aimed = any(name in table for name in ("k_a", "k_b", "max_error", "mean_error", "budget"))
    table.update(_k_table(k, variance, adaptive, aimed=aimed))
    if layers:
        table["layers"] = dict(_layer(text) for text in layers)
    if refine:
        table["refine"] = refine
    require_there(adapters)
    entries = named_inputs(list(adapters), list(names or []))
    tables: dict[str, Any] = {
        "input": {
            "adapters": [
                e.path if e.name is None else {"path": e.path, "name": e.name} for e in entries
            ],
            "skip_bad": skip_bad,
        },
        "compress": table,
    }
    if output is not None:
        tables["output"] = {"subspace": output}
    return from_tables(tables)


def from_tables(tables: dict[str, Any]) -> Recipe:
    """A recipe from tables whose paths are relative to the current directory."""
    return absolute(read_tables(tables, where=WHERE), Path.cwd())


def require_there(paths: Sequence[str]) -> None:
    """Refuse a path that is not there, in the words in which it was given.

    Raises:
        NotFoundError: It is not there. A pattern is judged later, a task of a subspace too, and
            what is on the Hub.
        ParameterError: It is on another machine, or no place that the Hub could have.
    """
    from vlora_engine.formats.places import existing_path, split_task

    for path in paths:
        if is_hub_place(path):
            check_place(path)
        elif not glob.has_magic(path) and split_task(path) is None:
            existing_path(path)


def fetch_first(out: Output, *places: str) -> list[str]:
    """The places with those on the Hub downloaded and pinned to their commits.

    Raises:
        NotFoundError, HubError, HubAccessError: The Hub does not give them.
        Cancelled: SIGTERM or Ctrl-C came while downloading.
    """
    if not any(map(is_address, places)):
        return list(places)
    from vlora_engine.hub.address import parse_address
    from vlora_engine.hub.fetch import fetch
    from vlora_tui.cli.execute import stop_on_signals
    from vlora_tui.cli.progress import Watcher

    found = []
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        for place in places:
            if not is_address(place):
                found.append(place)
                continue
            address = parse_address(place)
            fetched = fetch(address.place, progress=watcher.on_progress, cancelled=stop.is_set)
            for remark in fetched.remarks:
                out.note(f"note: {remark.where}: {remark.what}")
            found.append(str(replace(fetched.address, task=address.task)))
    return found


def require_own(place: str) -> None:
    """Refuse to change a subspace that is the Hub's, or the copy of it in the cache.

    Raises:
        ParameterError: It is.
    """
    address = address_of(place) if not is_address(place) else place
    if address is not None:
        raise ParameterError(
            "A subspace on the Hub is not changed in place.",
            where=place,
            remedy=f"vlora-tui pull {address} -o DIR, change that, and push it",
        )


def say_once(out: Output, *, layer_by_layer: bool, chunk_size: int | None) -> None:
    """What the flags of lorashare that have nothing to do here come to."""
    given = ["--layer-by-layer"] * layer_by_layer + ["--chunk-size"] * (chunk_size is not None)
    if given:
        out.once(
            f"{' and '.join(given)}: no effect; the build is always layer by layer, "
            "in bounded memory"
        )


def numbers(text: str | None, flag: str) -> list[float] | None:
    """``0.7,0.3`` as numbers.

    Raises:
        ParameterError: Something in it is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(
            f"{flag} takes numbers with commas between.", expected="0.7,0.3", found=repr(text)
        ) from None


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
        variance = VLORA_VARIANCE
    if variance is not None:
        table["variance"] = variance
    if adaptive:
        table["adaptive"] = True
    return table


def _layer(text: str) -> tuple[str, int]:
    pattern, equals, k = text.rpartition("=")
    if not equals or not pattern or not k.isdecimal():
        raise ParameterError(
            "--layers takes a pattern and its k.", expected="'*.c_attn=24'", found=repr(text)
        )
    return pattern, int(k)
