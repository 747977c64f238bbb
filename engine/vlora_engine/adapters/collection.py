"""The modules of a collection, and which adapters have each."""

from __future__ import annotations

from collections.abc import Sequence

from vlora_engine.adapters.model import AdapterSource, ModuleShape
from vlora_engine.errors import CollectionError


def modules_of(sources: Sequence[AdapterSource]) -> dict[str, list[int]]:
    """Every module that any source has, sorted, with the positions of the sources that have it.

    Raises:
        CollectionError: Two sources disagree about a module's dimensions or kind.
    """
    seen: dict[str, tuple[int, ModuleShape]] = {}
    holders: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        for name, shape in source.modules.items():
            first, first_shape = seen.setdefault(name, (i, shape))
            if first_shape.fits != shape.fits:
                raise CollectionError(
                    f"Module {name!r} has different shapes: the adapters are not of one base.",
                    where=f"{source_label(sources, first)} and {source_label(sources, i)}",
                    expected=_describe(first_shape),
                    found=_describe(shape),
                    remedy="leave one of the two out",
                )
            holders.setdefault(name, []).append(i)
    return {name: holders[name] for name in sorted(holders)}


def source_label(sources: Sequence[AdapterSource], i: int) -> str:
    """How a message names an adapter: by its path, or by its place among the others."""
    path = sources[i].path
    return str(path) if path is not None else f"adapter {i}"


def _describe(shape: ModuleShape) -> str:
    return f"{shape.kind} {shape.d_out} x {shape.d_in}"
