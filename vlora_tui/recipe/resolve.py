"""What a recipe's inputs stand for on this machine: patterns, the Hub's cache, commits."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from vlora_engine.adapters.address import AdapterRef, hub_cache
from vlora_engine.catalog.locate import locate
from vlora_engine.catalog.read import is_subspace
from vlora_engine.errors import MissingPathError, ParameterError
from vlora_engine.hub.cache import cached_adapters
from vlora_engine.hub.fetch import pin
from vlora_engine.utils.partials import FORMER, how_to_put_back, output_of
from vlora_tui.recipe.model import AdapterInput, Recipe, startable


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with patterns in its inputs replaced by the paths that match them.

    A place on the Hub is pinned to the commit that its revision stands for now.

    Raises:
        NotFoundError: A path is not there, or a pattern matches nothing.
        ParameterError: A name is given to a pattern that matches several paths.
        HubError, HubAccessError: The Hub does not say what a revision stands for.
    """
    found = [adapter for entry in recipe.input.adapters for adapter in expand_input(entry)]
    unique = list({(a.path, a.name): a for a in found}.values())
    subspace = recipe.input.subspace
    return replace(
        recipe,
        input=replace(
            recipe.input,
            adapters=tuple(unique),
            subspace=None if subspace is None else pinned(subspace),
        ),
        merges=tuple(replace(m, adapters=tuple(map(pinned, m.adapters))) for m in recipe.merges),
    )


def pinned(path: str | AdapterRef) -> str:
    """A place on the Hub at the commit that it stands for now; any other path as it is."""
    ref = AdapterRef.parse(path)
    if not ref.is_hub:
        return str(ref)
    return str(pin(ref))


def expand_input(entry: AdapterInput) -> list[AdapterInput]:
    """The paths that an entry's pattern matches; what is no pattern stays.

    Raises:
        NotFoundError: The pattern matches nothing.
        ParameterError: One name for several paths.
    """
    ref = startable(entry.path)
    if ref.is_hub:
        return [AdapterInput(pinned(ref), entry.name)]
    if ref.kind == "cache":
        return _cached_inputs(entry)
    path = os.path.expanduser(entry.path)
    if os.path.lexists(path) or not glob.has_magic(path) or _is_task(path):
        return [AdapterInput(path, entry.name)]  # whether it is there: the catalog says it best
    matches = sorted(glob.glob(path, recursive=True))
    # What is hidden was not meant; a plain file beside adapters is no mistake of the pattern.
    matches = [m for m in matches if os.path.isdir(m) or m.endswith((".safetensors", ".bin"))]
    matches += _lost_matches(path)
    if not matches:
        raise MissingPathError(
            "The pattern matches no adapter.",
            where=entry.path,
            remedy="check the path, or quote the pattern if the shell changed it",
        )
    return _as_inputs(entry, matches)


def _lost_matches(pattern: str) -> list[str]:
    """What the pattern would match, had a replacement not been cut short: opening it says so."""
    folder, name = os.path.split(pattern)
    finals = map(output_of, map(Path, glob.glob(os.path.join(folder, f".*{FORMER}"))))
    return sorted(
        str(path) for path in finals if fnmatch(path.name, name) and how_to_put_back(path)
    )


def _is_task(path: str) -> bool:
    """Whether it is DIR:TASK of a subspace: the name of a task is no pattern."""
    ref = locate(path)
    return ref.task is not None and ref.is_local and is_subspace(Path(ref.path))


def _cached_inputs(entry: AdapterInput) -> list[AdapterInput]:
    found = [str(address) for address in cached_adapters()]
    if not found:
        raise MissingPathError(
            "There is no adapter in the Hub's cache.",
            where=str(hub_cache()),
            remedy="name one on the Hub: hf://org/name",
        )
    return _as_inputs(entry, found)


def _as_inputs(entry: AdapterInput, paths: Sequence[str]) -> list[AdapterInput]:
    if entry.name is not None and len(paths) > 1:
        raise ParameterError(
            f"The name {entry.name!r} is given to {len(paths)} adapters.",
            where=entry.path,
            remedy="name adapters one by one",
        )
    return [AdapterInput(path, entry.name) for path in paths]
