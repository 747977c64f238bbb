"""Find what a format cannot hold of an adapter, from headers and indexes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.catalog.read import read_manifest
from vlora_engine.convert.formats import GGUF
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.formats.config_fields import unread
from vlora_engine.formats.peft_save import ORIGIN
from vlora_engine.formats.rest_tensors import (
    foreign_tensors,
    is_base_layer,
    is_foreign,
    nbytes_of,
    told,
)
from vlora_engine.interop.names import LORASHARE, VLORA_DEV
from vlora_engine.utils.naming import counted


@dataclass(frozen=True)
class Loss:
    """Something of an adapter that a format cannot hold.

    Args:
        what: One sentence. serious: Whether the adapter would act otherwise without it.
    """

    what: str
    serious: bool = False


@dataclass(frozen=True)
class Outline:
    """The facts about an adapter that decide whether a format can hold it.

    ``rest`` counts the tensors beside A and B that act; ``beside`` has the bytes of those that are
    known by their keys, copies of the base's own weights among them.
    """

    name: str
    kinds: frozenset[str]
    ranks: frozenset[int]
    scales: frozenset[float]
    rest: int
    config: Mapping[str, Any]
    modules: frozenset[str] = frozenset()
    dtypes: frozenset[str] = frozenset()
    beside: Mapping[str, int] = field(default_factory=dict)


def losses(to: str, outlines: Sequence[Outline]) -> list[Loss]:
    """List what the format ``to`` cannot hold of these adapters.

    Raises:
        UnsupportedAdapterError: It has no place for a kind of module.
    """
    return list(_LOSSES[to](outlines))


def outline_of(name: str, source: AdapterSource) -> Outline:
    """The outline of an adapter whose headers were read."""
    shapes = source.modules.values()
    beside = _beside(source)
    return Outline(
        name,
        frozenset(shape.kind for shape in shapes),
        frozenset(shape.rank for shape in shapes),
        frozenset(source.scales.values()),
        sum(not is_base_layer(key) for key in beside),
        source.config,
        frozenset(source.modules),
        frozenset(shape.dtype for shape in shapes),
        beside,
    )


def _beside(source: AdapterSource) -> dict[str, int]:
    """The bytes of every tensor beside A and B, but for deltas that are zero: they do nothing."""
    live = foreign_tensors(source)
    return {
        key: nbytes_of(described)
        for key, described in source.rest.items()
        if key in live or not is_foreign(key)
    }


def outlines_of(whole: Path) -> list[Outline]:
    """Outlines of every task of a subspace, from its index."""
    manifest = read_manifest(whole)
    found = []
    for record in manifest.tasks.values():
        specs = [manifest.layers[i] for i in record.layers]
        found.append(
            Outline(
                record.id,
                frozenset([*(s.kind for s in specs), *(module.kind for module in record.own)]),
                frozenset(record.ranks),
                frozenset([*record.scales, *(module.scale for module in record.own)]),
                record.rest,
                record.config,
                frozenset([*(s.name for s in specs), *(module.name for module in record.own)]),
                frozenset(record.dtypes),
            )
        )
    return found


def _peft_losses(outlines: Sequence[Outline]) -> Iterator[Loss]:
    for outline in outlines:
        foreign = {key: size for key, size in outline.beside.items() if is_foreign(key)}
        if foreign:
            what = f"{told(foreign)}: ComfyUI alone adds that to the base, PEFT does not read it."
            yield Loss(f"{outline.name}: {what}", serious=True)
    for name in _with(outlines, lambda o: ORIGIN in o.config):
        yield Loss(
            f"{name}: what its tool noted beside it (training, metadata) has no place there."
        )


def _mlx_losses(outlines: Sequence[Outline]) -> Iterator[Loss]:
    _refuse_kinds(outlines, "mlx", {"linear", "embedding"})
    yield from _field_losses(outlines, "mlx")
    yield from _rest_losses(outlines, "mlx")
    for name in _with(outlines, lambda o: len(o.ranks) > 1):
        yield Loss(f"{name}: ranks differ; MLX-LM has one, the others are padded with zeros.")
    for name in _with(outlines, lambda o: len(o.scales) > 1):
        yield Loss(f"{name}: scales differ; MLX-LM has one, the others go into B.")
    for name in _with(outlines, lambda o: _tool(o) != "mlx" and bool(o.config)):
        yield Loss(f"{name}: of the config only base model, rank and scale have a place there.")
    for name in _with(outlines, lambda o: not all(".layers." in f".{m}" for m in o.modules)):
        yield Loss(f"{name}: modules are not named as in MLX-LM (model.layers.N...).")


def _gguf_losses(outlines: Sequence[Outline]) -> Iterator[Loss]:
    _refuse_kinds(outlines, GGUF, {"linear"})
    yield from _rest_losses(outlines, GGUF)
    for name in _with(outlines, lambda o: bool(o.config)):
        yield Loss(f"{name}: of the config only base model, rank and scale have a place there.")


def _vlora_losses(outlines: Sequence[Outline]) -> Iterator[Loss]:
    _refuse_kinds(outlines, VLORA_DEV, {"linear"})
    yield from _field_losses(outlines, VLORA_DEV)
    yield from _rest_losses(outlines, VLORA_DEV)
    for name in _with(outlines, lambda o: o.scales != {1.0}):
        yield Loss(f"{name}: vlora-dev keeps no alpha; it goes into B, so that dW stays.")
    for name in _with(outlines, lambda o: bool(o.config.keys() - {"peft_type", "r"})):
        yield Loss(f"{name}: vlora-dev keeps no config (base model, task type, target modules).")
    every = frozenset[str]().union(*(o.modules for o in outlines))
    for name in _with(outlines, lambda o: o.modules != every):
        yield Loss(f"{name}: modules that it lacks are there with a dW of zero.")
    yield from _fp32_losses(outlines)


def _share_losses(outlines: Sequence[Outline]) -> Iterator[Loss]:
    from vlora_engine.interop.write import share_names

    _refuse_kinds(outlines, LORASHARE, {"linear"})
    names = share_names([o.name for o in outlines])
    for task, directory in names.items():
        if task != directory:
            yield Loss(f"{task}: its name is no directory's name; it is called {directory}.")
    if len(frozenset[int]().union(*(o.ranks for o in outlines))) > 1:
        yield Loss("Ranks differ: lorashare reads that, but adds no adapter to it.")
    yield from _fp32_losses(outlines)


_LOSSES = {
    "peft": _peft_losses,
    "mlx": _mlx_losses,
    GGUF: _gguf_losses,
    "subspace": lambda outlines: iter(()),
    VLORA_DEV: _vlora_losses,
    LORASHARE: _share_losses,
}


def _field_losses(outlines: Sequence[Outline], to: str) -> Iterator[Loss]:
    """Fields of the config that change what the adapter does, in a format that keeps none."""
    for outline in outlines:
        for each in unread(outline.config):
            what = f"{outline.name}: {to} has no place for {each.name[:80]}: {each.without}."
            yield Loss(what, serious=True)


def _rest_losses(outlines: Sequence[Outline], to: str) -> Iterator[Loss]:
    for outline in outlines:
        acting = {key: size for key, size in outline.beside.items() if not is_base_layer(key)}
        copies = {key: size for key, size in outline.beside.items() if is_base_layer(key)}
        if copies:
            what = f"{told(copies)}: copies of the base's own weights, which are left out."
            yield Loss(f"{outline.name}: {what}")
        if outline.rest:
            count = counted(outline.rest, "tensor")
            out = "is left out" if outline.rest == 1 else "are left out"
            named = f": {told(acting)}" if acting else ""
            what = f"{count} outside the modules (heads, biases...) {out}{named}."
            yield Loss(f"{outline.name}: {what}", serious=True)


def _fp32_losses(outlines: Sequence[Outline]) -> Iterator[Loss]:
    for name in _with(outlines, lambda o: bool(o.dtypes - {"F32"})):
        yield Loss(f"{name}: it comes back in fp32, not in its own dtype.")


def _with(outlines: Sequence[Outline], test: Any) -> Iterator[str]:
    """The names for which ``test`` holds, as one text."""
    names = [outline.name for outline in outlines if test(outline)]
    if names:
        yield ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _refuse_kinds(outlines: Sequence[Outline], to: str, held: set[str]) -> None:
    for outline in outlines:
        others = sorted(outline.kinds - held)
        if others:
            raise UnsupportedAdapterError(
                f"The format {to} has no place for modules of kind {others[0]}.",
                where=outline.name,
                expected=" or ".join(sorted(held)),
                found=", ".join(others),
                remedy="convert it to peft, which holds every kind",
            )


def _tool(outline: Outline) -> str | None:
    origin = outline.config.get(ORIGIN)
    return origin.get("format") if isinstance(origin, dict) else None
